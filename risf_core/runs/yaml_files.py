"""Params files: YAML read strictly, and pydantic's complaints turned into one clear line.

YAML's traps (1e-4 is text, 010 is eight, a key given twice) are refused or explained; nothing in a file is
executed.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from risf_core.errors import ParamsError

_EXPONENT_WITHOUT_POINT = re.compile(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)")
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "names with values",
    "model": "names with values",
    "model_attributes": "names with values",
}


def project_root() -> Path:
    """Folder of params/, notebooks/, data/ and results/: $RISF_ROOT, else this repository or the cwd."""
    if root := os.environ.get("RISF_ROOT"):
        return Path(os.path.abspath(root))
    repository = Path(__file__).resolve().parents[2]
    return repository if (repository / "notebooks").is_dir() else Path.cwd()


def project_path(path: str | Path) -> Path:
    """Absolute form of a path that parameters give relative to the project's root."""
    return Path(os.path.normpath(project_root() / Path(path).expanduser()))


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choice most like `name`, however unlike it is."""
    return difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.0)[0]


def _complaint(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, octal, hexadecimal and base-60 numbers."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            raise _complaint("expected names with values", node)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _complaint(f"the name {key.value!r} is not text", key)
            if key.value in seen:
                raise _complaint(f"{key.value!r} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _construct_int(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    if not _PLAIN_INT.fullmatch(node.value):
        value = yaml.SafeLoader.construct_yaml_int(loader, node)
        decimal = node.value.lstrip("+-0")
        advice = f"write {decimal} or {value}" if decimal.isdigit() else f"write {value}"
        raise _complaint(f"YAML reads {node.value} as {value}: {advice}", node)
    return int(node.value)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
for _kind in ("set", "omap", "pairs", "binary"):  # sets have no order; none of these is a parameter
    del _StrictLoader.yaml_constructors[f"tag:yaml.org,2002:{_kind}"]


def parse_yaml(text: str, *, where: str) -> Any:
    """Value of YAML text, plain data alone.

    Raises:
        ParamsError: If the text is not YAML, holds a language's tag, a key twice or a misleading number.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join((error.problem or str(error)).split())
        if "could not determine a constructor for the tag" in problem:
            tag = problem.split("'")[1].replace("tag:yaml.org,2002:", "!!")
            problem = f"the tag {tag} is not allowed; params are plain text, numbers, lists and names"
        elif "ConstructorError" not in type(error).__name__:
            problem = f"not YAML: {problem}"
        raise ParamsError(f"{where}{line}: {problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"{where}: not YAML: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path, *, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Names and values of a params file, laid on those of the file that `extends` names (same folder).

    Raises:
        ParamsError: If the file is missing, unreadable, empty, not a mapping, or extends itself.
    """
    if not path.is_file():
        folder = path.parent
        names = sorted(file.name for file in folder.glob("*.yaml")) if folder.is_dir() else []
        hint = f"; nearest in that folder: {nearest(path.name, names)}" if names else ""
        raise ParamsError(f"{path}: no such params file{hint}.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    except (UnicodeDecodeError, OSError) as error:
        raise ParamsError(f"{path}: not readable as text: {error}.") from None
    if not isinstance(content, dict):
        got = "the file is empty" if content is None else f"got {describe(content)}"
        raise ParamsError(f"{path}: {got}; expected names with values, such as 'profile: mini'.")
    if "extends" not in content:
        return content
    under = content.pop("extends")
    if not isinstance(under, str) or Path(under).name != under:
        raise ParamsError(f"{path}: extends: expected a file of the same folder, got {describe(under)}.")
    if path in _above:
        raise ParamsError(f"{path}: the file extends itself.")
    return merge(read_yaml(path.with_name(under), _above=(*_above, path)), content)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, nested mappings too; one of another `source` or `kind` replaces the one below it."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        same_kind = both and all(
            value.get(key, below.get(key)) == below.get(key) for key in ("source", "kind")
        )
        merged[name] = merge(below, value) if same_kind else value
    return merged


def unflatten(values: dict[str, Any]) -> dict[str, Any]:
    """``{"data.seed": 1}`` as ``{"data": {"seed": 1}}``."""
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        for part in reversed(dotted.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def describe(value: Any) -> str:
    """A value for a message: its kind and, where short, itself."""
    if value is None:
        return "nothing (null)"
    kinds = (((bool, int, float), ""), (str, "text "), ((list, tuple), "the list "), (dict, "the mapping "))
    kind = next((words for types, words in kinds if isinstance(value, types)), f"{type(value).__name__} ")
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return kind + (shown if len(shown) <= 60 else shown[:57] + "...")


def models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that an annotation such as ``A | B | None`` or ``tuple[A, ...]`` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(model for inner in get_args(annotation) for model in models_in(inner))


def takes_list(annotation: Any) -> bool:
    """Whether a field with this annotation takes a list: ``tuple[A, ...] | None`` does."""
    if get_origin(annotation) in (tuple, list):
        return True
    return any(takes_list(inner) for inner in get_args(annotation))


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All of pydantic's complaints as one line."""
    items = error.errors(include_url=False)
    problems = [_explain_one(item, model) for item in items if not _follows_from_another(item, items)]
    return "; ".join(dict.fromkeys(problems)) + "."


def _follows_from_another(item: dict[str, Any], items: list[dict[str, Any]]) -> bool:
    """Whether a list is called too short only because items of it were refused."""
    depth = len(item["loc"])
    return item["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == item["loc"] for other in items
    )


def _explain_one(item: dict[str, Any], model: type[BaseModel]) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    name, level = _name_of(item["loc"], model)
    if kind == "extra_forbidden":
        known = nearest(item["loc"][-1], sorted({field for below in level for field in below.model_fields}))
        full = ".".join(filter(None, (name.rpartition(".")[0], known)))
        return f"unknown parameter {name!r} (nearest: {full!r})"
    if kind == "missing":
        return f"{name}: missing; give it a value"
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
        shown = value.get("source") if kind == "union_tag_invalid" and isinstance(value, dict) else value
        hint = f" (nearest: {nearest(shown, choices)!r})" if isinstance(shown, str) else ""
        where = f"{name}.source" if kind == "union_tag_invalid" else name
        return f"{where}: expected one of {', '.join(choices)}, got {describe(shown)}{hint}"
    if kind == "value_error":
        return ": ".join(filter(None, (name, str(context["error"]))))
    if (expected := _EXPECTED.get(kind.removesuffix("_type"))) is not None:
        return f"{name}: expected {expected}, got {describe(value)}{_yaml_hint(value, expected)}"
    if kind in ("too_short", "too_long"):
        least_or_most = "at least" if kind == "too_short" else "at most"
        length = context.get("min_length", context.get("max_length"))
        return f"{name}: needs {least_or_most} {length} items, got {context['actual_length']}"
    message = item["msg"].removeprefix("Input should be ").replace("String should match", "text of the")
    return f"{name}: must be {message}, got {describe(value)}"


def _name_of(loc: tuple, model: type[BaseModel]) -> tuple[str, tuple[type[BaseModel], ...]]:
    """Dotted name of an error's place, without pydantic's names of union members, and the models there."""
    name, level = "", (model,)
    for position, part in enumerate(loc):
        fields = {field: info for below in level for field, info in below.model_fields.items()}
        if isinstance(part, int):
            name += f"[{part}]"
        elif part in fields:
            name += f".{part}" if name else part
            level = models_in(fields[part].annotation)
        elif position == len(loc) - 1 and part not in {"pictograms", "coco"}:
            name += f".{part}" if name else str(part)
    return name, level


def _yaml_hint(value: Any, expected: str) -> str:
    match = _EXPONENT_WITHOUT_POINT.fullmatch(value) if isinstance(value, str) else None
    if match and "number" in expected:
        mantissa, fraction, sign, exponent = match.groups()
        fraction = fraction if fraction and fraction != "." else ".0"
        return f": YAML reads it as text, write {mantissa}{fraction}e{sign or '+'}{exponent}"
    if isinstance(value, bool) and expected == "text":
        return ": YAML reads yes, no, on, off as true or false; put quotes around the word"
    return ""
