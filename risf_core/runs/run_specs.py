"""Runs from params files: one file, its replaced values, grids of them, and the runs that a run builds on."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from risf_core.errors import ParamsError
from risf_core.notebook_models import MODELS
from risf_core.params import NotebookParams, RunRef
from risf_core.runs.yaml_files import (
    describe,
    explain,
    merge,
    models_in,
    nearest,
    project_path,
    project_root,
    read_yaml,
    takes_list,
    unflatten,
)

# VOC's metric and the seed of its cut to K boxes change nothing in a base model
FREE = {
    "voc": {"data.metric", "data.rounding", "data.absent", "data.seed"},
    "pictograms": {"data.few_shot_splits"},  # each split is drawn apart
}


@dataclass(frozen=True)
class RunSpec:
    """One run: a notebook and its resolved parameters, and the words that start it.

    Attributes:
        params: The resolved parameters.
        file: The params file.
        overrides: Values that replaced those of the file.
        notebook: The notebook's file.
    """

    params: NotebookParams
    file: Path
    overrides: dict[str, Any]
    notebook: Path

    @cached_property
    def command(self) -> str:
        """The shell command that makes this run."""
        own = project_root() / ".venv" / "bin" / "python"  # what make sets up
        words = [
            shown(own) if own.exists() else "python",
            "-m",
            "risf_core.run",
            shown(self.notebook),
            "--params",
            shown(self.file),
        ]
        for name, value in flatten(self.overrides).items():
            text = (
                yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            )
            words += ["-p", name, text]
        return shlex.join(words)


def shown(path: Path) -> str:
    """A path for people: relative to the project where it lies inside."""
    return str(path.relative_to(project_root()) if path.is_relative_to(project_root()) else path)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"data": {"seed": 1}}`` as ``{"data.seed": 1}``; references to other runs stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and "params" not in value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def model_of(path: Path) -> type[NotebookParams]:
    """The parameter model of a notebook or params file, by its name up to the first dot.

    Raises:
        ParamsError: If no notebook has that name.
    """
    stem = path.name.split(".", 1)[0]
    if stem not in MODELS:
        raise ParamsError(
            f"{shown(path)}: no notebook is called {stem!r} (nearest: {nearest(stem, MODELS)!r}); "
            f"choose from {', '.join(MODELS)}."
        )
    return MODELS[stem]


def load_run(
    file: str | Path, overrides: dict[str, Any] | None = None, *, notebook: str | Path | None = None
) -> RunSpec:
    """One run from a params file named ``<notebook>[.<variant>].yaml``.

    Args:
        file: The params file, relative to the current folder or to the project.
        overrides: Values that replace those of the file; dotted names reach into nested models.
        notebook: The notebook, where the file's name does not tell it.

    Raises:
        ParamsError: If the file or a value in it is wrong.
    """
    path = find_file(file)
    overrides = unflatten(overrides or {})
    content = read_yaml(path)  # first: a file that is not there has no notebook either
    model = model_of(Path(notebook or path))
    notebook_path = find_file(notebook) if notebook else project_path(f"notebooks/{model.notebook}.ipynb")
    values = merge(_with_defaults(content, overrides, model), overrides)
    try:
        params = model.model_validate(values)
    except ValidationError as error:
        replaced = ", ".join(f"{name} {value}" for name, value in flatten(overrides).items())
        source = f"{shown(path)}{' with ' if replaced else ''}{replaced}"
        raise ParamsError(f"{source}: {explain(error, model)}") from None
    return RunSpec(params=params, file=path, overrides=overrides, notebook=notebook_path)


def _with_defaults(
    content: dict[str, Any], overrides: dict[str, Any], model: type[NotebookParams]
) -> dict[str, Any]:
    """The file's content, and the notebook's own defaults of what it leaves out and a dotted name reaches into.

    ``solver.lr`` replaces one value: without this the others would be those of the solver's class, such as 1,200 steps,
    not the 300 of fine-tuning.
    """
    defaults = {
        name: info.default.model_dump(mode="json", exclude_unset=True)
        for name, info in model.model_fields.items()
        if isinstance(overrides.get(name), dict)
        and name not in content
        and isinstance(info.default, BaseModel)
    }
    return content | defaults


def find_file(path: str | Path) -> Path:
    """Absolute path of a file given relative to the current folder or, failing that, to the project."""
    here = Path(path).expanduser().absolute()
    return here if here.exists() else project_path(path)


def expand(ref: RunRef) -> list[RunSpec]:
    """The runs that a reference names: the product of the lists given to parameters that are not lists."""
    file = project_path(ref.params)
    return [load_run(file, values) for values in _variants(unflatten(ref.set), (model_of(file),), ref.params)]


def _variants(
    values: dict[str, Any], models: tuple[type[BaseModel], ...], where: str
) -> list[dict[str, Any]]:
    """One mapping for each cell of the grid in `values`."""
    axes: list[list[tuple[str, Any]]] = []
    fields = {name: info.annotation for model in models for name, info in model.model_fields.items()}
    for name, value in values.items():
        below = models_in(fields.get(name))
        options = [value]
        if isinstance(value, list) and name in fields and not takes_list(fields[name]):
            options = value
            if not value:
                raise ParamsError(f"{where}: set: {name}: the list is empty; give at least one value.")
        elif isinstance(value, dict) and below and RunRef not in below:
            options = _variants(value, below, where)
        axes.append([(name, option) for option in options])
    return [dict(cell) for cell in product(*axes)]


def upstream_refs(params: BaseModel, prefix: str = "") -> list[tuple[str, str, RunRef]]:
    """All references to other runs in `params`: (dotted name, notebook that it must be a run of or "", reference)."""
    found: list[tuple[str, str, RunRef]] = []
    for name, info in type(params).model_fields.items():
        value = getattr(params, name)
        notebook = re.match(r"runs? of (\w+)", info.description or "")
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, RunRef):
                found.append((prefix + name, notebook.group(1) if notebook else "", item))
            elif isinstance(item, BaseModel):
                found += upstream_refs(item, f"{prefix}{name}.")
    return found


def upstream(params: NotebookParams) -> list[RunSpec]:
    """The runs that `params` build on.

    Raises:
        ParamsError: If a reference is to the wrong notebook, or its run has other data or another split.
    """
    specs: list[RunSpec] = []
    for name, notebook, ref in upstream_refs(params):
        for spec in expand(ref):
            if notebook and spec.params.notebook != notebook:
                raise ParamsError(f"{name}: expected a run of {notebook}, got {shown(spec.file)}.")
            if notebook != "12_tiny_clip":  # a CLIP may come from other data
                _check_same_data(name, params, spec)
            specs.append(spec)
    return specs


def _check_same_data(name: str, params: NotebookParams, spec: RunSpec) -> None:
    if getattr(params.data, "base_classes", None) == () and spec.params.notebook == "10_base_training":
        return  # data without base classes: the base model comes from other data
    own, theirs = (p.model_dump(include={"data", "split"}) for p in (params, spec.params))
    own, theirs = (flatten(values | {"data": {**values["data"], "root": ""}}) for values in (own, theirs))
    free = FREE.get(params.data.source, ())
    for field in own:
        if field in theirs and field not in free and own[field] != theirs[field]:
            raise ParamsError(
                f"{name}: {shown(spec.file)} has {field} {describe(theirs[field])}, but this run has "
                f"{describe(own[field])}; make them equal."
            )


def load_list(path: str | Path) -> list[RunSpec]:
    """The runs of a list (``runs.yaml``): a key ``runs`` with references, their grids expanded.

    Raises:
        ParamsError: If the list or one of its runs is wrong.
    """
    file = find_file(path)
    content = read_yaml(file)
    refs = content.get("runs")
    if unknown := sorted(content.keys() - {"runs"}):
        raise ParamsError(f"{shown(file)}: unknown name {unknown[0]!r} (nearest: 'runs').")
    if not isinstance(refs, list) or not refs:
        raise ParamsError(f"{shown(file)}: runs: expected a list of params files, got {describe(refs)}.")
    specs: list[RunSpec] = []
    for number, item in enumerate(refs, start=1):
        try:
            ref = RunRef.model_validate(item)
        except ValidationError as error:
            raise ParamsError(f"{shown(file)}: runs, item {number}: {explain(error, RunRef)}") from None
        beside = file.parent / ref.params
        try:
            specs += expand(ref.model_copy(update={"params": str(beside)}) if beside.is_file() else ref)
        except ParamsError as error:
            raise ParamsError(f"{shown(file)}: {error}") from None
    return specs
