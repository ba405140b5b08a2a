"""Class lists from files: a name a line, COCO's categories, YOLO's data.yaml."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from risf_core.data.dataset import check_class_list
from risf_core.errors import DataError

NUMBERED = re.compile(r"(-?[0-9]{1,4000})\s+(\S.*)")  # "17 cat"


class ClassList(NamedTuple):
    """The classes of a detector: their names, and the category ids that its results files give them."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def read_class_list(path: str | Path, *, first_id: int = 1) -> ClassList:
    """Class names from a file.

    Args:
        path: Text with a name a line in the order of the category ids, or ``id name`` in every line; a JSON file with
            COCO's ``categories``; or YOLO's ``.yaml`` with ``names``, a list or from numbers that count from 0.
        first_id: Category id of the first name, where the file gives none. YOLO's numbers are no category ids: its
            results files may count from 1.

    Raises:
        DataError: If the file is none of these, or an id stands twice.
        SplitError: If a name stands twice.
    """
    path = Path(path)
    text = read_text(path)
    if path.suffix.lower() == ".json":
        ids, names = _coco_categories(text, path)
    elif path.suffix.lower() in (".yaml", ".yml"):
        names = _yolo_names(text, path)
        ids = range(first_id, first_id + len(names))
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
        ids = range(first_id, first_id + len(names))
        numbered = [NUMBERED.fullmatch(name) for name in names]
        if all(numbered):
            ids, names = [int(match[1]) for match in numbered], [match[2] for match in numbered]
    if not names:
        raise DataError(f"{path}: there is no class in the file. Expected a name a line.")
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: a category id stands twice. Expected each once.")
    return ClassList(check_class_list(tuple(names), tuple(names), where=str(path)), tuple(ids))


def _coco_categories(text: str, path: Path) -> tuple[list[int], list[str]]:
    """Ids and names of COCO's categories, by ascending id."""
    try:
        pairs = [(entry["id"], entry["name"]) for entry in json.loads(text)["categories"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'{path}: no list of classes. Expected JSON with "categories": [{{"id": 1, "name": "cat"}}, ...].'
        ) from error
    for category_id, name in pairs:
        if type(category_id) is not int or type(name) is not str or not name.strip():
            raise DataError(
                f"{path}: a category has the id {category_id!r} and the name {name!r}. Expected a whole number, which "
                "the results' category_id refers to, and a text."
            )
    pairs.sort()
    return [category_id for category_id, _ in pairs], [name for _, name in pairs]


def _yolo_names(text: str, path: Path) -> list[str]:
    """The ``names`` of YOLO's data.yaml as they stand there, in the order of their numbers."""
    wanted = (
        "Expected YOLO's `names:`, a list or numbers from 0 with a name each; or take a text, a name a line."
    )
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: no YAML ({' '.join(str(error).split())}). {wanted}") from error
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = [value for key, value in pairs if key.value == "names"]
    if len(found) != 1:
        raise DataError(f"{path}: `names` stands there {len(found)} times. {wanted}")
    if isinstance(found[0], yaml.MappingNode):
        pairs = [(str(key.value), value) for key, value in found[0].value]
    elif isinstance(found[0], yaml.SequenceNode):
        pairs = [(str(number), value) for number, value in enumerate(found[0].value)]
    else:
        raise DataError(f"{path}: `names` is {found[0].value!r}. {wanted}")
    if not all(isinstance(value, yaml.ScalarNode) and value.value.strip() for _, value in pairs):
        raise DataError(f"{path}: a name under `names` is no text. {wanted}")
    by_number = {number: value.value.strip() for number, value in pairs}
    numbers = [str(number) for number in range(len(pairs))]
    if set(by_number) != set(numbers):
        shown = ", ".join(number for number, _ in pairs[:5])
        raise DataError(f"{path}: `names` has {len(pairs)} numbers: {shown}, ... {wanted}")
    return [by_number[number] for number in numbers]


def read_text(path: Path) -> str:
    """A whole text file, its ends of lines as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: {error}. Expected a text file in UTF-8.") from error
