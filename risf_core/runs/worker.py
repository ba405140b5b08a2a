"""A worker: a process that executes one notebook, and takes its kernel with it when it dies.

Started by the launcher as ``python -m risf_core.runs.worker`` with the run as JSON on its standard input.
"""

import fcntl
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from risf_core.errors import RisfError
from risf_core.notebook_models import MODELS
from risf_core.params import NotebookParams
from risf_core.progress import log_line
from risf_core.records import artifacts_dir
from risf_core.runs.kernel import die_with_parent
from risf_core.runs.state import finished_record, record_path, results_dir, run_id, state_hash
from risf_core.runs.yaml_files import project_root

DONE, FAILED, WAS_DONE = 0, 1, 3  # exit codes


def notebook_output(params: NotebookParams) -> Path:
    """The executed notebook of a launched run; its log lies beside it."""
    return results_dir(params.profile) / "runs" / f"{run_id(params)}.ipynb"


@contextmanager
def run_lock(params: NotebookParams) -> Iterator[None]:
    """Hold the run: another launcher that wants it waits here. The system lets go when the process dies."""
    path = results_dir(params.profile) / "locks" / f"{run_id(params)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log_line("waiting for another launcher that makes this run")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def work(params: NotebookParams, notebook: Path, *, force: bool) -> int:
    """Execute one run's notebook under its lock.

    Returns:
        DONE, or WAS_DONE if the run was finished by another launcher in the meantime.

    Raises:
        Exception: Whatever stopped the notebook, which is kept with its traceback.
    """
    asked = time.time()
    with run_lock(params):
        record = finished_record(params, notebook)
        made_meanwhile = record is not None and record_path(params).stat().st_mtime > asked
        if record is not None and (not force or made_meanwhile):
            return WAS_DONE
        state = state_hash(params, notebook)
        _make_room(params, state, force=force)
        token = {"run_id": run_id(params), "state_hash": state, "started": time.time()}
        os.environ["RISF_RUN"] = json.dumps(token)
        try:
            _execute(params, notebook)
        except BaseException:
            record_path(params).unlink(missing_ok=True)  # a cell after run.finish() failed
            raise
        if finished_record(params, notebook) is not None:
            return DONE
        if record_path(params).is_file():
            raise RisfError("code or data changed while the notebook ran; call the same command again")
        raise RisfError(
            "the notebook ran to its end and wrote no record: its last cell must call run.finish(...)"
        )


def _make_room(params: NotebookParams, state: str, *, force: bool) -> None:
    """Delete what an earlier state of the run left; rows and checkpoints of the same state stay, to go on from."""
    record_path(params).unlink(missing_ok=True)
    notebook_output(params).unlink(missing_ok=True)
    notebook_output(params).parent.mkdir(parents=True, exist_ok=True)
    folder = artifacts_dir(params)
    mark = folder / "state_hash"
    if force or not mark.is_file() or mark.read_text() != state:
        shutil.rmtree(folder)
        artifacts_dir(params)
        mark.write_text(state)


def _execute(params: NotebookParams, notebook: Path) -> None:
    # jsonschema's optional check of IRIs compiles a grammar when imported, 1.5 s that no notebook needs
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from traitlets.config import Config

    # Sockets are files: TCP ports are chosen before the kernel takes them, so that two kernels starting at once may get
    # the same ones, and one notebook speak to the other's kernel.
    with tempfile.TemporaryDirectory(prefix="risf-jupyter-") as folder:
        _own_jupyter(Path(folder))
        papermill.execute_notebook(
            str(notebook),
            str(notebook_output(params)),
            parameters=params.model_dump(mode="json"),
            kernel_name="python3",
            language="python",
            cwd=str(project_root()),
            log_output=False,
            progress_bar=False,
            config=Config(KernelManager={"transport": "ipc", "ip": str(Path(folder) / "kernel")}),
        )


def _own_jupyter(folder: Path) -> None:
    """Have kernels started by this very interpreter, whatever kernels and start-up files the user has."""
    package_root = str(Path(__file__).resolve().parents[2])
    kernel = {
        "argv": [
            sys.executable,
            "-m",
            "risf_core.runs.kernel",
            "--HistoryManager.enabled=False",
            "--log-level=ERROR",
            "-f",
            "{connection_file}",
        ],
        "display_name": "Python 3",
        "language": "python",
    }
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel))
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {
        "JUPYTER_PATH": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join(paths),
        "RISF_WORKER": str(os.getpid()),
    }
    os.environ.pop("MPLBACKEND", None)  # figures belong into the executed notebook


def main() -> int:
    """Read the run from standard input, make it, and leave one line about a failure at the end of the log."""
    job: dict[str, Any] = json.loads(sys.stdin.read())
    die_with_parent(job["launcher"])
    params = MODELS[job["notebook"]].model_validate(job["params"])
    logging.basicConfig(level=logging.WARNING)
    # it warns of each name that the cell leaves to its default
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        return work(params, Path(job["notebook_path"]), force=job["force"])
    except Exception as error:  # the launcher tells the user; here the whole story goes to the log
        logging.getLogger(__name__).error("the run failed", exc_info=error)
        log_line(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
