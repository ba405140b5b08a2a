"""Which results a word of the command line means: ``WHERE[:NAME=VALUE,...]``.

WHERE is

- ``PROFILE``: the current records of ``results/PROFILE``;
- ``PROFILE/RUN_ID`` or ``RUN_ID``: one run; the beginning of an id is enough where only one run has it;
- a record file, a folder of records, or a pattern such as ``'results/mini/records/fine_tuning-*.json'``;
- ``FILE.risf.zip``: a pack, see ``python -m risf_core.pack``;
- ``foreign/NAME``: a pack that has been unpacked.

NAME is a column of the rows (loss, arm, rescoring, K or shots, seed, split, ...), ``notebook``, ``run_id``, or a
parameter of the run with its dots (solver.lr). A NAME that is given again adds a value: ``K=1,K=5`` takes both.
"""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from risf_core.data_params import Data
from risf_core.errors import ParamsError, RecordError
from risf_core.ground_truth import GroundTruth
from risf_core.notebook_models import MODELS
from risf_core.packs import ENDING, foreign_root, read_unpacked, unpack
from risf_core.runs.run_specs import shown
from risf_core.runs.state import load_record, results_dir, why_not_current
from risf_core.runs.yaml_files import nearest, project_root

logger = logging.getLogger(__name__)

ALIASES = {"K": "shots"}
OF_RECORDS = ("notebook", "run_id")
_why_not_current = cache(why_not_current)


@dataclass(frozen=True, eq=False)
class Source:
    """A record with the place of its artifacts.

    Attributes:
        record: The record.
        artifacts: Folder of its detections; it need not exist.
        foreign: Name of the pack that it comes from; empty for one of this project.
        tests: Of a foreign one: split to the file of its test data.
        path: File of the record if only a current one counts, see `current`.
    """

    record: Mapping[str, Any]
    artifacts: Path
    foreign: str = ""
    tests: Mapping[str, Path] = field(default_factory=dict)
    path: Path | None = None

    @property
    def run_id(self) -> str:
        return self.record["run_id"]

    @property
    def origin(self) -> str:
        """What tables say of where it comes from."""
        return f"foreign: {self.foreign}" if self.foreign else "own"


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        word: As it was given.
        sources: Its records.
        wanted: Column of the rows to the values that are taken.
    """

    word: str
    sources: Sequence[Source]
    wanted: Mapping[str, Sequence[str]]

    @property
    def origin(self) -> str:
        """``own`` or ``foreign: NAME``; all records of a side have the same."""
        return self.sources[0].origin


class Truths:
    """Test data of sources, opened once for each set of annotations."""

    def __init__(self) -> None:
        self._opened: dict[tuple, GroundTruth] = {}

    def get(self, source: Source, split: Any) -> GroundTruth:
        """The test data that rows of a split were judged on.

        Raises:
            RecordError: If a pack does not say, or the data here are others than those of the record.
            DataError: If annotations or images of this project are missing.
        """
        if source.foreign:
            path = source.tests.get(str(split))
            if path is None:
                raise RecordError(
                    f"{source.run_id} of {source.origin}: the pack has no test data of split {split}."
                )
            return self._open(("foreign", path), lambda: _read_truth(path))
        data, key = source.record["params"]["data"], (source.record["data_hash"], split)
        truth, split_hash = self._open(("own", *key), lambda: _open_truth(data, split))
        known = source.record.get("split_hash")
        if known not in (None, split_hash) and source.record["notebook"] == "20_fine_tuning":
            raise RecordError(
                f"{source.run_id}: the annotations here are not those of the record (hash {split_hash[:8]}, recorded "
                f"{known[:8]}). Compare where it was made, or repeat the run."
            )
        return truth

    def _open(self, key: tuple, opener) -> Any:
        if key not in self._opened:
            self._opened[key] = opener()
        return self._opened[key]


def _read_truth(path: Path) -> GroundTruth:
    return GroundTruth.from_json(json.loads(path.read_bytes()), where=str(path))


def _open_truth(data: Mapping[str, Any], split: Any) -> tuple[GroundTruth, str]:
    from risf_core.data.benchmark import open_benchmark

    params = TypeAdapter(Data).validate_python(dict(data))
    benchmark = open_benchmark(params, split=split)
    return GroundTruth.of_benchmark(benchmark), benchmark.hash


@contextmanager
def opened(words: Sequence[str]) -> Iterator[list[Side]]:
    """What words of the command line mean; packs are unpacked into a folder that is gone afterwards.

    Raises:
        ParamsError: If a word means nothing, or nothing fits its conditions.
        DataError: If a pack is damaged.
        RecordError: If a record cannot be read.
    """
    with TemporaryDirectory(prefix="risf-packs-") as place:
        yield [_open_side(word, Path(place) / str(number)) for number, word in enumerate(words)]


def _open_side(word: str, place: Path) -> Side:
    where, colon, conditions = word.partition(":")
    if not where or (colon and not conditions):
        raise ParamsError(f"{word!r}: expected WHERE[:NAME=VALUE,...], such as mini:loss=ce,arm=missing.")
    sources = _sources(where, place)
    if not sources:
        raise ParamsError(f"{word}: there is no record in it.")
    wanted = _conditions(word, conditions)
    rows = [row for source in sources for row in source.record.get("rows") or []]
    columns = {name for row in rows for name, value in row.items() if not isinstance(value, dict | list)}
    by_row = {name: values for name, values in wanted.items() if name in columns}
    for name, values in wanted.items():
        if name not in by_row:
            sources = _with_parameter(word, sources, name, values, columns)
    for name, values in by_row.items():
        there = dict.fromkeys(_text(row[name]) for row in rows if name in row)
        for value in values:
            if not any(same(row.get(name), value) for row in rows):
                raise ParamsError(f"{word}: no row has {name}={value}. There are: {', '.join(there)}.")
    return Side(word, sources, by_row)


def _conditions(word: str, text: str) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise ParamsError(f"{word}: {part!r} is no condition. Expected NAME=VALUE, such as loss=ce.")
        wanted.setdefault(ALIASES.get(name, name), []).append(value)
    return wanted


def _with_parameter(
    word: str, sources: Sequence[Source], name: str, values: Sequence[str], columns: set[str]
) -> list[Source]:
    """The sources whose record or parameter has one of the values."""
    found = [_parameter(source.record, name) for source in sources]
    if all(value is _ABSENT for value in found):
        top = {key for source in sources for key in source.record["params"]}
        close = nearest(name, {*columns, *top, *OF_RECORDS})
        raise ParamsError(f"{word}: {name!r} is no column of the rows and no parameter (nearest: {close!r}).")
    kept = [one for one, own in zip(sources, found, strict=True) if any(same(own, value) for value in values)]
    if not kept:
        there = ", ".join(dict.fromkeys(_text(value) for value in found if value is not _ABSENT))
        raise ParamsError(f"{word}: no run has {name}={values[0]}. There are: {there}.")
    return kept


_ABSENT = object()


def _parameter(record: Mapping[str, Any], name: str) -> Any:
    if name in OF_RECORDS:
        return record[name]
    value: Any = record["params"]
    for part in name.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def same(value: Any, text: str) -> bool:
    """Whether a value of a record is what a word of the command line says.

    Example:
        >>> same(0.02, "0.020"), same("ce", "ce"), same(True, "true"), same(None, "null"), same(1, "2")
        (True, True, True, True, False)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return value is not _ABSENT and _text(value) == text


# --- where --------------------------------------------------------------------------------------------------------


def _sources(where: str, place: Path) -> list[Source]:
    """The records that WHERE means, at least one."""
    if where.startswith("foreign/"):
        return _foreign(foreign_root() / where.removeprefix("foreign/"), where.removeprefix("foreign/"))
    path = Path(where).expanduser()
    if where.endswith(".zip"):
        name = path.name.removesuffix(".zip").removesuffix(".risf")
        unpack(path, place)
        return _foreign(place, name)
    if "/" not in where and (results_dir(where) / "records").is_dir():
        return _of_profile(where)
    if found := _of_run(where):
        return found
    if path.is_dir() or path.is_file() or glob.has_magic(where):
        return _of_files(where, path)
    profiles = sorted(path.parent.name for path in (project_root() / "results").glob("*/records"))
    hint = f"Profiles with records: {', '.join(profiles)}." if profiles else "No profile has a record yet."
    raise ParamsError(f"{where!r} is no profile, run, file, folder, pattern or pack ({ENDING}). {hint}")


def _of_profile(profile: str) -> list[Source]:
    """The records of a profile but for summaries of all; whether they are current is asked of those needed alone."""
    found, artifacts = [], results_dir(profile) / "artifacts"
    for path in sorted((results_dir(profile) / "records").glob("*.json")):
        record = load_record(path)
        if record is None or "rows" not in record:
            logger.warning("%s is left out: not readable as a record.", shown(path))
        elif not getattr(MODELS.get(record.get("notebook", "")), "after_all", True):
            found.append(Source(record, artifacts / record["run_id"], path=path))
    if not found:
        raise ParamsError(f"results/{profile}/records holds no record: make reproduce PROFILE={profile}")
    return found


def current(side: Side, notebook: str | None = None) -> Side:
    """A side without the records of a profile that are out of date, which are named.

    Args:
        side: The side.
        notebook: The notebook whose records are needed; those of others go unseen.

    Raises:
        ParamsError: If nothing is left.
    """
    kept, stale = [], []
    for source in side.sources:
        if notebook not in (None, source.record["notebook"]):
            continue
        reason = _why_not_current(source.path) if source.path else ""
        (stale if reason else kept).append(source)
        if reason:
            logger.warning("%s is left out: %s.", shown(source.path), reason)
    if not kept:
        raise ParamsError(
            f"{side.word}: none of its {len(stale)} records is current; `make reproduce` repeats their runs."
        )
    return replace(side, sources=kept)


def _of_run(where: str) -> list[Source]:
    """The one run whose id begins so, in all profiles or the one named; nothing if there is none."""
    profile, _, beginning = where.rpartition("/")
    if not beginning or "/" in profile or glob.has_magic(where):
        return []
    pattern = f"{profile or '*'}/records/{beginning}*.json"
    paths = sorted((project_root() / "results").glob(pattern))
    exact = [path for path in paths if path.stem == beginning]
    paths = exact or paths
    if len(paths) > 1:
        names = ", ".join(f"{path.parents[1].name}/{path.stem}" for path in paths[:6])
        raise ParamsError(f"{where!r} is the beginning of {len(paths)} runs: {names}. Name one of them.")
    for path in paths:
        if reason := _why_not_current(path):
            logger.warning("%s is compared as it is: %s.", shown(path), reason)
    return [_of_file(path) for path in paths]


def _of_files(where: str, path: Path) -> list[Source]:
    if path.is_dir():
        paths = sorted(path.glob("*.json")) or sorted((path / "records").glob("*.json"))
    else:
        paths = (
            [path] if path.is_file() else [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
        )
    if not paths:
        raise ParamsError(f"{where}: there is no record (*.json). Expected the folder or files of records.")
    sources = [_of_file(path) for path in paths]
    origins = {source.origin for source in sources}
    if len(origins) > 1:
        raise ParamsError(f"{where} mixes {' and '.join(sorted(origins))}. Name them apart, as two sides.")
    return sources


def _of_file(path: Path) -> Source:
    record = load_record(path)
    if record is None or "notebook" not in record or "rows" not in record:
        raise RecordError(f"{path}: not readable as a record. Expected a file of results/<profile>/records.")
    folder = path.resolve().parents[1]
    if "origin" in record:  # a file of an unpacked pack, named by itself: with all checks of the pack
        return next(one for one in _foreign(folder, folder.name) if one.run_id == record["run_id"])
    return Source(record, folder / "artifacts" / record["run_id"])


def _foreign(folder: Path, name: str) -> list[Source]:
    records, manifest = read_unpacked(folder)
    tests = {
        run["run_id"]: {split: folder / test for split, test in run["tests"].items()}
        for run in manifest["runs"]
    }
    return [
        Source(record, folder / "artifacts" / record["run_id"], name, tests[record["run_id"]])
        for record in records
    ]
