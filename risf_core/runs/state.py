"""What identifies a run, and when it is finished.

A run's id is made of its parameters; its state hash also of the code, the data and the runs it builds on. A run is
finished when its record holds its current state hash. Comments and docstrings change nothing.
"""

import ast
import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from risf_core.errors import DataError, ParamsError
from risf_core.notebook_models import MODELS
from risf_core.params import NotebookParams
from risf_core.runs.notebook_cells import code_cells
from risf_core.runs.run_specs import upstream
from risf_core.runs.yaml_files import project_path, project_root

PACKAGE = Path(__file__).parents[1]
# Modules that change no number: some carry runs, some show results (only a run that reads records depends on those).
CARRYING = {
    "data_params",
    "distilled_rescoring_params",
    "doctor",
    "errors",
    "notebook_models",
    "open_vocabulary_params",
    "params",
    "part_params",
    "progress",
    "records",
    "run",
    "runs",
    "study_params",
}
SHOWING = {"figures", "report", "tables"}
ANNOTATION_ENDINGS = {".json", ".xml", ".txt", ".pkl"}  # of the files that count in a folder of data


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def params_hash(params: NotebookParams) -> str:
    """Hash of the parameters that may change a number, and of the user's own files; None stands for a missing one."""
    values = params.model_dump(mode="json", exclude={"device": True, "num_threads": True, "data": {"root"}})
    paths = {path: project_path(path) for path in params.user_files()}
    files = {name: _file_hash(path) if path.is_file() else None for name, path in paths.items()}
    return digest({"notebook": params.notebook, "params": values, "user_files": files})


def missing_files(params: NotebookParams) -> list[Path]:
    """The user's own files, annotation files and folders that the parameters name and that are not there."""
    names = (*params.user_files(), *params.data_files())
    return [path for path in map(project_path, names) if not path.exists()]


def check_user_files(params: NotebookParams) -> None:
    """DataError if a file of the user is missing."""
    if missing := [path for path in map(project_path, params.user_files()) if not path.is_file()]:
        raise DataError(
            f"{missing[0]}: no such file; correct the path in the parameters of {params.notebook}."
        )


def run_id(params: NotebookParams) -> str:
    """Name of a run: its label and eight digits of its parameters' hash."""
    return f"{params.label()}-{params_hash(params)[:8]}"


def data_hash(params: NotebookParams) -> str:
    """Hash of the data's description and, where the data are files of the user, of these.

    Annotations count by content, images by name and size: reading every image anew would take minutes.

    Raises:
        DataError: If an annotation file or folder is missing.
    """
    paths = {name: project_path(name) for name in params.data_files()}
    for path in paths.values():
        if not path.exists():
            raise DataError(f"{path}: no such annotation file or folder; correct the path under data.")
    files = {name: _folder_hash(path) if path.is_dir() else _file_hash(path) for name, path in paths.items()}
    folders = [_names_and_sizes(project_path(name)) for name in _image_folders(params.data)]
    description = params.data.model_dump(mode="json", exclude={"root"})
    return digest({"data": description, "files": files, "images": folders})


def _image_folders(data: Any) -> list[str]:
    """The folders of the user's images, as the parameters name them."""
    names = [getattr(data, name, None) for name in ("images", "test_images")]
    names += [
        f"{devkit}/JPEGImages" for name in ("voc2007", "voc2012") if (devkit := getattr(data, name, None))
    ]
    return [name for name in names if name is not None]


@cache
def _names_and_sizes(folder: Path) -> str:
    """Hash over name and size of every file in a folder and below; of a folder that is not there, too."""
    files = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return digest(sorted((os.path.relpath(path, folder), os.path.getsize(path)) for path in files))


def state_hash(params: NotebookParams, notebook: Path | None = None) -> str:
    """Hash of all that may change the run's numbers: parameters, code, data and the runs it builds on.

    Args:
        params: The run's parameters.
        notebook: The notebook's file, if not the one of the project.

    Raises:
        DataError: If a file of the user or of the data is missing.
    """
    check_user_files(params)
    notebook = notebook or project_path(f"notebooks/{params.notebook}.ipynb")
    parts: dict[str, Any] = {
        "params": params_hash(params),
        "code": code_hash(notebook, with_showing=params.after_all),
        "data": data_hash(params),
        "upstream": upstream_states(params),
    }
    if params.after_all:
        others = (
            record
            for _, record in current_records(params.profile)
            if not MODELS[record["notebook"]].after_all
        )
        parts["records"] = sorted(record["state_hash"] for record in others)
    return digest(parts)


def upstream_states(params: NotebookParams) -> dict[str, str]:
    """State hash of each run that `params` build on, by its run id."""
    return {run_id(spec.params): state_hash(spec.params) for spec in upstream(params)}


# --- code ---------------------------------------------------------------------------------------------------------


def code_hash(notebook: Path, *, with_showing: bool = False, package: Path = PACKAGE) -> str:
    """Hash of a notebook's code cells (but for `parameters`) and of the modules of `package` that they lead to.

    Raises:
        ParamsError: If the notebook is missing or no notebook.
    """
    cells = [normalise(source) for source in code_cells(notebook)]
    left_out = CARRYING | (set() if with_showing else SHOWING)
    modules = import_closure(code_cells(notebook), package=package, left_out=left_out)
    sources = {name: _module(path, _stamp(path)) for name, path in modules.items()}
    code = {name: normalised for name, (normalised, _) in sources.items()}
    files = {}
    for path in _data_files(package):
        relative = path.relative_to(package)
        # a module names the file or its folder
        if any(relative.parts[0] in text for _, text in sources.values()):
            files[relative.as_posix()] = _file_hash(path)
    return digest({"cells": cells, "modules": code, "files": files})


def normalise(source: str) -> str:
    """Code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def import_closure(
    sources: list[str], *, package: Path = PACKAGE, left_out: set[str] = frozenset()
) -> dict[str, Path]:
    """Modules of `package` that `sources` import, directly or not, by dotted name; imports inside functions count too.

    Args:
        sources: Python sources that import the package by its full name.
        package: The package's folder.
        left_out: Top-level modules of the package that are neither counted nor followed.
    """
    found: dict[str, Path] = {}
    waiting = [name for source in sources for name in _imported(source, "", package)]
    while waiting:
        name = waiting.pop()
        path = _module_file(name, package)
        if name in found or path is None or name == package.name or name.split(".")[1] in left_out:
            continue
        found[name] = path
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [*_imported(_text(path, _stamp(path)), inside, package), name.rpartition(".")[0]]
    return dict(sorted(found.items()))


@cache
def _imported(source: str, inside: str, package: Path) -> tuple[str, ...]:
    """Dotted names of `package` that a source's import statements may mean; `inside` is the package it lies in."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = inside.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.split(".")[0] == package.name)


def _module_file(name: str, package: Path) -> Path | None:
    base = package.joinpath(*name.split(".")[1:])
    choices = (base / "__init__.py", base.parent / f"{base.name}.py")
    return next((path for path in choices if path.is_file()), None)


def _data_files(package: Path) -> list[Path]:
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return sorted(files)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@cache
def _text(path: Path, stamp: tuple[int, int]) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _module(path: Path, stamp: tuple[int, int]) -> tuple[str, str]:
    text = _text(path, stamp)
    return normalise(text), text


def _file_hash(path: Path) -> str:
    return _hash_of(path, _stamp(path))


def _folder_hash(folder: Path) -> str:
    """Hash over names and contents of the annotation files and lists in a folder and below."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in ANNOTATION_ENDINGS)
    return _hash_of_files(folder, tuple((path, _stamp(path)) for path in files))


@cache
def _hash_of_files(folder: Path, files: tuple[tuple[Path, tuple[int, int]], ...]) -> str:
    return digest({path.relative_to(folder).as_posix(): _hash_of(path, stamp) for path, stamp in files})


@cache
def _hash_of(path: Path, stamp: tuple[int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- finished -----------------------------------------------------------------------------------------------------


def results_dir(profile: str) -> Path:
    """Where a profile's results lie: records/, runs/, artifacts/, tables/, figures/."""
    return project_root() / "results" / profile


def record_path(params: NotebookParams) -> Path:
    """Where the record of a run lies, once it is finished."""
    return results_dir(params.profile) / "records" / f"{run_id(params)}.json"


def load_record(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is no readable one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return (
        record if isinstance(record, dict) and {"run_id", "state_hash", "params"} <= record.keys() else None
    )


def finished_record(params: NotebookParams, notebook: Path | None = None) -> dict[str, Any] | None:
    """The record of a finished run, else None: missing, or of other code, data or upstream runs."""
    record = load_record(record_path(params))
    return record if record and record["state_hash"] == state_hash(params, notebook) else None


def why_not_current(path: Path) -> str:
    """Why the record at `path` is not that of a finished run; empty if it is."""
    record = load_record(path)
    if record is None:
        return "not readable as a record"
    model = MODELS.get(record.get("notebook", ""))
    if model is None:
        return f"of an unknown notebook {record.get('notebook')!r}"
    try:
        params = model.model_validate(record["params"])
        if record_path(params) != path:
            return "its parameters belong to another run id"
        return (
            ""
            if record["state_hash"] == state_hash(params)
            else "made with other code, data or upstream runs"
        )
    except (
        ValueError,
        ParamsError,
        DataError,
        OSError,
    ) as error:  # pydantic's ValidationError is a ValueError
        return f"its parameters are not valid now: {' '.join(str(error).split())[:200]}"


def current_records(profile: str) -> list[tuple[Path, dict[str, Any]]]:
    """The records of a profile's finished runs that read no other records, sorted by file name."""
    paths = sorted((results_dir(profile) / "records").glob("*.json"))
    records = ((path, load_record(path)) for path in paths)
    plain = [
        (path, r)
        for path, r in records
        if r and not getattr(MODELS.get(r.get("notebook")), "after_all", True)
    ]
    return [(path, record) for path, record in plain if not why_not_current(path)]
