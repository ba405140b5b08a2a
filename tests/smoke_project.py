"""The smoke profile worked off in a project of its own, for the tests of the notebooks."""

import hashlib
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import yaml

from tests.notebook_files import REPOSITORY, launch, launch_command, link_project, project_environment

LIST = "params/smoke/runs.yaml"
STUDIES = (  # the first two are under way when they are killed
    "34_latency",
    "35_other_detectors",
    "36_label_space",
    "37_rescoring_controls",
    "22_predict",
)
STOPS = """
import torch.nn.functional as F

calls = 0


def stops(logits, labels):
    global calls
    calls += 1
    if calls == 12:  # the check on random RoIs takes six calls
        raise RuntimeError("stopped in the middle of training")
    return F.cross_entropy(logits, labels)
"""
STOPPING_RUN = {"losses": ["ce", "my_losses.py:stops"], "seeds": [0], "arms": ["kshot"], "shots": 1}


@dataclass(frozen=True)
class Smoke:
    """The finished project, and what was seen when its first launcher was killed.

    ``made_before``: records and stored detections that were finished then, with the time of their last change;
    ``outlived``: processes that lived on, and records that appeared before the second launcher was started;
    ``done``: that one, which ended by itself.
    """

    root: Path
    made_before: dict[Path, int]
    outlived: list[psutil.Process | Path]
    done: subprocess.CompletedProcess

    @property
    def results(self) -> Path:
        return self.root / "results" / "smoke"

    def all_records(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted((self.results / "records").glob("*.json"))]

    def records(self, *notebooks: str) -> list[dict]:
        return [record for record in self.all_records() if record["notebook"] in notebooks]

    def record(self, notebook: str) -> dict:
        (record,) = self.records(notebook)
        return record

    def fine_tuning(self, setting: str = "fsod") -> list[dict]:
        return [r for r in self.records("20_fine_tuning") if r["params"]["setting"] == setting]

    def rows(self, **wanted) -> list[dict]:
        """Rows of the fsod fine-tunings that hold these values."""
        rows = [row for record in self.fine_tuning() for row in record["rows"]]
        return [row for row in rows if wanted.items() <= row.items()]

    def table(self, name: str) -> pd.DataFrame:
        path = self.results / "tables" / f"{name}.csv"
        return pd.read_csv(path, keep_default_na=False, na_values=[""])  # "none" is a re-scoring

    def artifacts(self, record: dict) -> Path:
        return self.results / "artifacts" / record["run_id"]

    def notebook_outputs(self, run_id: str) -> list[dict]:
        cells = json.loads((self.results / "runs" / f"{run_id}.ipynb").read_text())["cells"]
        return [output for cell in cells for output in cell.get("outputs", ())]


def work_off(root: Path) -> Smoke:
    """Work off the smoke list and one run that fails in its middle; the first launcher is killed while it trains."""
    link_project(root)
    (root / "my_losses.py").write_text(STOPS)
    runs = yaml.safe_load((root / LIST).read_text())["runs"]
    runs.insert(2, {"params": "params/smoke/20_fine_tuning.yaml", "set": STOPPING_RUN})
    (root / "runs.yaml").write_text(yaml.safe_dump({"runs": runs}))
    words = ("--list", "runs.yaml", "--workers", "2")
    made_before, outlived = _kill_while_training(root, *words)
    return Smoke(root, made_before, outlived, launch(root, *words))


def _kill_while_training(root: Path, *words: str) -> tuple[dict[Path, int], list[psutil.Process | Path]]:
    """Kill the launcher with -9 once a fine-tuning has stored two cells: see ``Smoke`` for what comes back."""
    results = root / "results" / "smoke"
    family = _kill_once_there_is(root, "artifacts/fine_tuning-*/detections/seed0-kshot-bnrl.npz", *words)
    records = set(results.glob("records/*.json"))
    stored = results.glob("artifacts/fine_tuning-*/detections/*-ce.npz")
    made_before = {path: path.stat().st_mtime_ns for path in (*records, *stored)}
    _, alive = psutil.wait_procs(family, timeout=10)
    return made_before, [*alive, *(set(results.glob("records/*.json")) - records)]


def _kill_once_there_is(root: Path, pattern: str, *words: str) -> list[psutil.Process]:
    """Start the launcher and kill it with -9 once a file of the results is there; the processes it had started."""
    results, family = root / "results" / "smoke", []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(launch_command(*words), cwd=root, env=project_environment(root), **quiet)
    try:
        end = time.monotonic() + 900
        while not list(results.glob(pattern)):
            assert process.poll() is None and time.monotonic() < end, "the launcher ended or stands still"
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert len(family) >= 2  # at least a worker and its kernel
    return family


def repeat_studies(smoke: Smoke, root: Path) -> dict[str, int]:
    """Make the studies of the smoke list again from the runs they build on; the first launcher is killed in the middle.

    Returns:
        For each run that was under way then, how many rows it had written.
    """
    link_project(root)
    (root / "data").symlink_to(smoke.root / "data")
    results, names = root / "results" / "smoke", {record["run_id"] for record in smoke.records(*STUDIES)}
    for folder in ("records", "artifacts"):
        studies = shutil.ignore_patterns("results-*", *(f"{name}*" for name in names))
        shutil.copytree(smoke.results / folder, results / folder, ignore=studies)
    runs = [f"params/smoke/{notebook}.yaml" for notebook in STUDIES]
    (root / "runs.yaml").write_text(yaml.safe_dump({"runs": runs}))
    words = ("--list", "runs.yaml", "--workers", "2")
    family = _kill_once_there_is(root, "artifacts/other_detectors-*/detections/retinanet-*.npz", *words)
    psutil.wait_procs(family, timeout=10)
    written = {
        path.parent.name: len(path.read_text().splitlines())
        for path in results.glob("artifacts/*/rows.jsonl")
    }
    done = launch(root, *words)
    assert done.returncode == 0, done.stderr
    return {name: number for name, number in written.items() if name in names}


def own_loss_words(*more: str) -> tuple[str, ...]:
    """Words of a fine-tuning with the README's focal loss beside the built-in ones."""
    run = (
        "notebooks/20_fine_tuning.ipynb",
        "--params",
        "params/smoke/20_fine_tuning.yaml",
        "-p",
        "shots",
        "1",
    )
    return (*run, "-p", "losses", "[ce, bnrl, my_losses.py:focal]", *more)


def add_own_loss(root: Path) -> Path:
    """An empty project with the README's loss in it, the fine-tuning with it, and what that builds on, made anew."""
    link_project(root)
    (root / "my_losses.py").write_text(readme_loss())
    done = launch(root, *own_loss_words("--with-upstream"))
    assert done.returncode == 0, done.stderr
    return root


def readme_section() -> str:
    """The README on a loss of the user's own."""
    return (REPOSITORY / "README.md").read_text().split("### A loss of your own")[1].split("\n##")[0]


def readme_loss() -> str:
    """The code of its example."""
    (code,) = re.findall(r"```python\n(.*?)```", readme_section(), re.DOTALL)
    return code


def files_that_repeat(root: Path) -> dict[Path, Path]:
    """Data and artifacts by their path in the project; locks and checkpoints for resuming are none of them."""
    folders = ("data", "results/smoke/artifacts")
    paths = (path for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    return {p.relative_to(root): p for p in paths if p.suffix != ".lock" and "checkpoint" not in p.name}


def content(path: Path) -> str | dict[str, tuple]:
    """What a file holds, to be compared: arrays and parameters by type, shape and hash, other files by their hash."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    elif path.suffix in (".pth", ".pt"):
        loaded = torch.load(path, weights_only=True)
        arrays = {name: tensor.numpy() for name, tensor in loaded.get("model", loaded).items()}
    else:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    return {name: (str(array.dtype), array.shape, hashes[name]) for name, array in arrays.items()}
