"""From a run to its record: the run's folder, its rows, and the JSON that says it is finished.

A run started by the launcher writes under ``results/<profile>/``; one made by hand under ``results/scratch/``, where
nothing counts as finished. Everything in a record repeats exactly but for its ``environment``.
"""

import html
import json
import logging
import os
import platform
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from risf_core.errors import ParamsError, RecordError
from risf_core.notebook_models import MODELS
from risf_core.params import NotebookParams, RunRef
from risf_core.progress import show_log
from risf_core.runs.environment import describe_environment, package_versions
from risf_core.runs.run_specs import RunSpec, expand, shown, upstream_refs
from risf_core.runs.state import (
    data_hash,
    finished_record,
    load_record,
    params_hash,
    results_dir,
    run_id,
    state_hash,
    upstream_states,
    why_not_current,
)
from risf_core.runs.yaml_files import project_root

SCHEMA = 1  # of the record; add one when a key changes its meaning
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upstream:
    """A finished run that another builds on: its id, its folder of artifacts and its record."""

    run_id: str
    dir: Path
    record: dict[str, Any]


class Record(dict):
    """A record; a notebook shows where it lies and its single metrics, not its curves, classes and rows."""

    path: Path

    def __repr__(self) -> str:
        short = {name: _in_short(value) for name, value in self["metrics"].items()}
        return f"record {shown(self.path)}, {len(self['rows'])} rows, metrics {json.dumps(short, indent=1)}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def _in_short(value: Any) -> Any:
    """A number or text as it is; of a long list or mapping how much it holds."""
    is_long = isinstance(value, list | dict) and len(value) > 4
    return f"{len(value)} entries, in the file" if is_long else value


class Rows:
    """Rows of a run's grid, each on disk as soon as it is added, so that a killed grid goes on by row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                self._rows[_key(row["key"])] = row
            except (ValueError, KeyError, TypeError):
                if number < len(lines):
                    raise RecordError(
                        f"{path}, line {number}: not a row; delete the file to start anew."
                    ) from None
                logger.warning("%s: the last row was cut off by a kill and is made again.", path)
        if len(self._rows) < len(lines):
            _write_atomically(path, "".join(json.dumps(row) + "\n" for row in self._rows.values()))

    def done(self, **key: Any) -> bool:
        """Whether the row with this key is there."""
        return _key(key) in self._rows

    def get(self, **key: Any) -> dict[str, Any]:
        """Key and values of the row with this key, as the record will hold them."""
        row = self._rows[_key(key)]
        return {**row["key"], **row["values"]}

    def add(self, key: dict[str, Any], values: dict[str, Any]) -> None:
        """Add a row and flush it to disk.

        Raises:
            RecordError: If the key is there already or is one of the values' names.
        """
        row = {"key": plain(key), "values": plain(values)}
        if _key(key) in self._rows or key.keys() & values.keys():
            raise RecordError(
                f"{self.path}: the row {key} is there already, or a value has the name of a key."
            )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[_key(key)] = row

    def as_list(self) -> list[dict[str, Any]]:
        """All rows, keys and values merged, in the order in which they were added."""
        return [{**row["key"], **row["values"]} for row in self._rows.values()]

    def __len__(self) -> int:
        return len(self._rows)


def _key(key: dict[str, Any]) -> str:
    return json.dumps(plain(key), sort_keys=True)


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays and tensors as lists, paths as text, NaN as None.

    Raises:
        RecordError: If a value has no JSON form, or is infinite.
    """
    if hasattr(value, "tolist"):  # numpy, torch
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise RecordError("An infinite value cannot be recorded; find where it comes from.")
        return None if value != value else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise RecordError(
        f"A value of type {type(value).__name__} cannot be recorded; give numbers, text or lists."
    )


class Run:
    """A run under way, see :func:`start_run`.

    Attributes:
        params: The run's parameters.
        run_id: Its name.
        dir: Folder of its artifacts, which exists.
        results_dir: Where tables and figures of the profile go; for a run by hand its own folder.
        device: "cpu" or "cuda".
        rows: Rows of its record.
        environment: Further values for the record's environment block, such as times and the precision chosen.
        is_scratch: Whether it was started by hand, so that its record counts for nothing.
    """

    def __init__(self, params: NotebookParams, *, token: dict[str, Any] | None, device: str) -> None:
        self.params, self.device, self.run_id, self.is_scratch = params, device, run_id(params), token is None
        self.started = time.time() if token is None else token["started"]
        self.state_hash = state_hash(params) if token is None else token["state_hash"]
        self._hashes = {"params_hash": params_hash(params), "data_hash": data_hash(params)}
        self._upstream = upstream_states(params)
        if token is not None and token["run_id"] != self.run_id:
            raise RecordError(
                f"The notebook changed its parameters: started as {token['run_id']}, is {self.run_id}."
            )
        self.dir = _scratch_dir(self.run_id) if token is None else artifacts_dir(params)
        self.record_path = (
            self.dir / "record.json"
            if token is None
            else results_dir(params.profile) / "records" / f"{self.run_id}.json"
        )
        self.results_dir = self.dir if token is None else results_dir(params.profile)
        self.rows = Rows(self.dir / "rows.jsonl")
        self.environment: dict[str, Any] = {}
        self._draft: Record | None = None

    def upstream(self, ref: str | RunRef) -> Upstream:
        """The one finished run of a parameter (by name) or of a reference.

        Raises:
            RecordError: If it is not finished, with the command that makes it.
        """
        found = self.upstreams(ref)
        if len(found) != 1:
            raise RecordError(f"{ref}: expected one run, got {len(found)}; use upstreams.")
        return found[0]

    def upstreams(self, refs: str | RunRef | Iterable[RunRef]) -> list[Upstream]:
        """The finished runs of a parameter (by dotted name) or of references, grids expanded."""
        if isinstance(refs, str):
            refs = [ref for name, _, ref in upstream_refs(self.params) if name == refs]
        elif isinstance(refs, RunRef):
            refs = [refs]
        return [_finished_upstream(spec) for ref in refs for spec in expand(ref)]

    def draft(self, *, metrics: dict[str, Any], split_hash: str | None = None) -> Record:
        """The record as it would be written now: what a notebook's tables and figures are made from.

        Args:
            metrics: Numbers of the run, in percent where they are rates; NaN becomes null.
            split_hash: Hash of the split and annotation files that were read (``Benchmark.hash``).
        """
        self._draft = Record(
            schema=SCHEMA,
            run_id=self.run_id,
            notebook=self.params.notebook,
            params=self.params.model_dump(mode="json"),
            state_hash=self.state_hash,
            split_hash=split_hash,
            upstream=self._upstream,
            metrics=plain(metrics),
            rows=self.rows.as_list(),
            environment={},
            **self._hashes,
        )
        self._draft.path = self.record_path
        return self._draft

    def finish(self, *, metrics: dict[str, Any] | None = None, split_hash: str | None = None) -> Record:
        """Write the record, atomically and last: the draft, or one of ``metrics``; what fails before leaves none.

        Raises:
            RecordError: If there is neither a draft nor metrics.
        """
        if metrics is not None:
            self.draft(metrics=metrics, split_hash=split_hash)
        if self._draft is None:
            raise RecordError(f"{self.run_id}: nothing to record; call run.draft(metrics=...) first.")
        record = self._draft
        record["environment"] = describe_environment(self.started, self.device) | plain(self.environment)
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
        _write_atomically(self.record_path, text)
        return record


def start_run(params: NotebookParams) -> Run:
    """Begin a run: threads, seeds, folder; prints what a reader of the notebook needs to repeat it.

    Raises:
        ParamsError: If ``device: cuda`` is asked for where there is none.
    """
    show_log()
    device = _prepare_torch(params) if params.needs_torch else "cpu"
    random.seed(params.seed)
    np.random.seed(params.seed % 2**32)
    token = json.loads(os.environ["RISF_RUN"]) if "RISF_RUN" in os.environ else None
    run = Run(params, token=token, device=device)
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    how = "by hand: written to scratch, counts for nothing" if run.is_scratch else "by the launcher"
    print(
        f"run {run.run_id} (started {how})\nseed {params.seed}, device {device}, {params.num_threads} thread(s)"
    )
    print(f"Python {platform.python_version()}, {versions}\nfolder {shown(run.dir)}")
    return run


def _prepare_torch(params: NotebookParams) -> str:
    import torch  # here alone: refusing bad parameters and working off a finished list need no torch

    torch.set_num_threads(params.num_threads)
    torch.manual_seed(params.seed)
    if params.device == "cuda" and not torch.cuda.is_available():
        raise ParamsError(
            "device: cuda, but torch finds no GPU; take device: auto or cpu, or run `make doctor`."
        )
    return "cuda" if params.device != "cpu" and torch.cuda.is_available() else "cpu"


def artifacts_dir(params: NotebookParams) -> Path:
    """Folder of a launched run's artifacts; it exists."""
    path = results_dir(params.profile) / "artifacts" / run_id(params)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _scratch_dir(name: str) -> Path:
    """A new folder for a run made by hand."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        path = project_root() / "results" / "scratch" / f"{name}-{stamp}{suffix}"
        if not path.exists():
            path.mkdir(parents=True)
            return path
    raise RecordError(f"{path}: too many runs in one second.")


def _finished_upstream(spec: RunSpec) -> Upstream:
    record = finished_record(spec.params)
    name, folder = run_id(spec.params), results_dir(spec.params.profile) / "artifacts" / run_id(spec.params)
    if record is None or not folder.is_dir():
        again = " --force" if record else ""
        raise RecordError(
            f"The run {name} is needed and not finished (or out of date); make it: {spec.command}{again}"
        )
    return Upstream(run_id=name, dir=folder, record=record)


def read_records(profile: str, notebook: str | None = None, *, all: bool = False) -> list[dict[str, Any]]:
    """Records of a profile's finished runs, sorted by file name.

    Args:
        profile: Name of the profile.
        notebook: Stem of a notebook, such as "20_fine_tuning"; None takes all.
        all: Whether to return also records that are out of date; otherwise they are listed as warnings, but
            for summaries of all records (40_results).
    """
    records = []
    for path in sorted((results_dir(profile) / "records").glob("*.json")):
        reason, record = why_not_current(path), load_record(path)
        after_all = record is not None and getattr(MODELS.get(record.get("notebook")), "after_all", False)
        if reason and after_all and not all:
            continue  # every new record outdates a summary of all; make reproduce writes it anew
        if record is None or (reason and not all):
            logger.warning("%s is left out: %s.", shown(path), reason)
        elif notebook in (None, record["notebook"]):
            records.append(record)
    return records


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
