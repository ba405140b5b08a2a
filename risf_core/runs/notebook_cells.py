"""The code cells of a notebook, read without running them."""

import ast
import json
from pathlib import Path
from typing import Any

from risf_core.errors import ParamsError


def code_cells(notebook: Path, *, parameters: bool = False) -> list[str]:
    """Sources of a notebook's code cells: those tagged `parameters`, or all others."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        tagged = [("parameters" in cell.get("metadata", {}).get("tags", ()), cell["source"]) for cell in code]
    except FileNotFoundError:
        raise ParamsError(f"{notebook}: no such notebook.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ParamsError(f"{notebook}: not a notebook: {error!r}.") from None
    sources = ["".join(source) for is_tagged, source in tagged if is_tagged == parameters]
    return [_parsing(_without_magics(source), notebook) for source in sources]


def _without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def _parsing(kept: str, notebook: Path) -> str:
    try:
        ast.parse(kept)
    except SyntaxError as error:
        raise ParamsError(f"{notebook}: a code cell is not Python: {error.msg}: {error.text!r}.") from None
    return kept


def names_in_parameters_cell(namespace: dict[str, Any], fields: dict[str, Any]) -> tuple[str, ...]:
    """Names set by the last cell that only assigns literals, a parameter among them; without IPython, all names."""
    if "In" not in namespace:
        return tuple(name for name in namespace if not name.startswith("_"))
    for source in reversed(namespace["In"]):
        names = literal_assignments(source)
        if names and fields.keys() & names.keys():
            return tuple(name for name in names if name in namespace)
    return ()


def names_in_force(namespace: dict[str, Any]) -> set[str]:
    """Names assigned since the last cell that sets `profile`, which begins the parameters anew; else all names.

    A name that was deleted from the parameters cell stays in a kernel that goes on; it must not stay in force.
    """
    found: set[str] = set()
    for source in reversed(namespace.get("In", ())):
        try:
            body = ast.parse(_without_magics(source)).body
        except SyntaxError:  # such a cell did not run
            continue
        for node in body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if "profile" in found:
            return found
    return set(namespace)


def literal_assignments(source: str) -> dict[str, Any] | None:
    """Names and values of a cell that holds nothing but ``name = literal`` lines, else None."""
    names: dict[str, Any] = {}
    try:
        for node in ast.parse(source).body:
            target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
            if not isinstance(target, ast.Name):
                return None
            names[target.id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError, TypeError):
        return None
    return names
