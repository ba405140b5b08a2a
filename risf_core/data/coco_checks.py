"""What must hold in a COCO annotation file: every finding is collected, with the entry and what was expected.

Nothing here raises before the whole file has been looked at, but for a file that is no COCO file at all. What must hold
of the boxes: `risf_core.data.box_checks`.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from risf_core.data.problems import Problems
from risf_core.errors import DataError

LARGEST_ID = 2**62  # ids must fit int64
OUTLINE = object()  # our key in an annotation, see `read_json`; no file can have it
UNKNOWN = (np.nan,) * 4
COCO_EXPECTED = "Expected a COCO JSON file; for a folder of XML files write source: xml"


class ImageEntry(NamedTuple):
    """An image of an annotation file, checked; `position` is where it stands in the file's list."""

    image_id: int
    path: Path
    height: int
    width: int
    position: int


class AnnotationColumns(NamedTuple):
    """The well-formed annotations of a file as columns.

    Attributes:
        positions: Where they stand in the file's list, int64 [A].
        ids, image_ids, category_ids: int64 [A].
        boxes_xywh: float64 [A, 4].
        is_crowd: bool [A].
        outlines: x1, y1, x2, y2 around the polygons, float64 [A, 4]; NaN where there are none.
        areas: The file's own area where there is no outline, float64 [A]; else NaN.
    """

    positions: np.ndarray
    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes_xywh: np.ndarray
    is_crowd: np.ndarray
    outlines: np.ndarray
    areas: np.ndarray

    def keep(self, mask: np.ndarray) -> AnnotationColumns:
        return AnnotationColumns(*(column[mask] for column in self))


def read_json(path: Path, problems: Problems) -> dict[str, list]:
    """Read the three lists of the file; of outlines (``segmentation``), most of COCO's size, only the corners stay."""

    def without_outline(pairs: list[tuple[str, Any]]) -> dict:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            _report_repeated(pairs, entry, problems)
        outline = entry.pop("segmentation", None)
        if outline:
            entry[OUTLINE] = _corners(outline)
        return entry

    if path.is_dir():
        raise DataError(f"{path}: is a folder. {COCO_EXPECTED}.")
    if not path.is_file():
        raise DataError(
            f"annotation file {path} does not exist. Expected a COCO-format JSON file; check the path."
        )
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=without_outline)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not a JSON file ({error}). Expected COCO annotations; restore the file."
        ) from error
    if not isinstance(content, dict):
        what = "a list (a COCO results file?)" if isinstance(content, list) else type(content).__name__
        raise DataError(
            f"{path}: holds {what}. Expected an object with 'images', 'annotations' and 'categories'."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = "not a list" if key in content else "missing"
            raise DataError(
                f"{path}: '{key}' is {what}. Expected COCO annotations, with the lists 'images', "
                "'annotations' and 'categories'."
            )
    return content


def _report_repeated(pairs: list[tuple[str, Any]], entry: dict, problems: Problems) -> None:
    counts = Counter(key for key, _ in pairs)
    where = f"entry with id {_short(entry['id'])}" if "id" in entry else "an object"
    for key in (key for key, count in counts.items() if count > 1):
        problems.add(
            "repeated key", f"{where} has {counts[key]} times the key {_short(key)}; expected it once"
        )


def _corners(outline: Any) -> tuple[float, ...]:
    """x1, y1, x2, y2 around polygons ``[[x, y, x, y, ...], ...]``; NaN for run lengths and anything else."""
    try:
        xs, ys = [polygon[0::2] for polygon in outline], [polygon[1::2] for polygon in outline]
        corners = (min(map(min, xs)), min(map(min, ys)), max(map(max, xs)), max(map(max, ys)))
        return tuple(float(value) for value in corners)
    except (TypeError, ValueError, KeyError, OverflowError):
        return UNKNOWN


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST_ID


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_id(entry.get("id"))


def _fault(entry: Any, kinds: dict[str, str]) -> tuple[str, str] | None:
    """Kind and words of what is wrong with one entry, or None; `kinds`: that of each key (id, size or text)."""
    if not isinstance(entry, dict):
        return "wrong type", f"is {_short(entry)}; expected an object"
    for key, kind in kinds.items():
        if key not in entry:
            return "missing key", f"has no '{key}'"
        value = entry[key]
        if kind == "text":
            if not isinstance(value, str) or not value.strip():
                return "wrong type", f"{key} is {_short(value)}; expected a text"
            if not value.isprintable() and any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value):
                return "wrong value", f"{key} is {_short(value)}; expected no control characters"
        elif not _is_id(value):
            return "wrong type", f"{key} is {_short(value)}; expected a whole number"
        elif kind == "size" and value <= 0:
            return "wrong value", f"{key} is {value}; expected pixels above 0"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_categories(entries: list, problems: Problems) -> dict[int, str]:
    """Return {category id: name} by ascending id."""
    names: dict[int, str] = {}
    if not entries:
        problems.add("missing key", "'categories' is empty; expected at least one class")
    for position, entry in enumerate(entries):
        fault = _fault(entry, {"id": "id", "name": "text"})
        if fault:
            problems.add(fault[0], f"category number {position}: {fault[1]}")
            if _has_id(entry):  # its annotations are not to be reported as well
                names.setdefault(entry["id"], "")
        elif entry["id"] in names:
            line = f"category id {entry['id']} stands twice; expected each id once"
            problems.add("duplicate category", line)
        else:
            if entry["name"] in names.values():
                line = (
                    f"category {entry['name']!r} stands twice, under different ids; expected each name once"
                )
                problems.add("duplicate category", line)
            names[entry["id"]] = entry["name"]
    problems.add_similar_names({name: f"category id {number}" for number, name in names.items() if name})
    return dict(sorted(names.items()))


def check_images(
    entries: list, images_dir: Path, problems: Problems, *, look_for_files: bool
) -> list[ImageEntry]:
    """Return the images by ascending id, of size 0 where the entry is faulty, and look for their files."""
    images: dict[int, ImageEntry] = {}
    position_of: dict[str, int] = {}  # of a file name
    if not entries:
        problems.add("missing key", "'images' is empty; expected at least one image")
    for position, entry in enumerate(entries):
        fault = _fault(entry, {"id": "id", "file_name": "text", "height": "size", "width": "size"})
        if fault:
            has_id = isinstance(entry, dict) and "id" in entry
            where = f"image {_short(entry['id'])}" if has_id else f"image number {position}"
            problems.add(fault[0], f"{where}: {fault[1]}", ("images", position))
            if _has_id(entry):  # its annotations are not to be reported as well
                images.setdefault(entry["id"], ImageEntry(entry["id"], images_dir, 0, 0, position))
            continue
        image_id, file_name = entry["id"], entry["file_name"]
        if image_id in images:
            first = images[image_id].position  # if the two differ, nobody knows whose the annotations are
            drop = [("images", position)] + ([] if entries[first] == entry else [("images", first)])
            problems.add(
                "duplicate image id", f"image id {image_id} stands twice; expected each id once", *drop
            )
            continue
        if file_name in position_of:
            other = entries[position_of[file_name]]["id"]
            line = f"images {other} and {image_id} have the same file {file_name!r}"
            problems.add("duplicate file", line, ("images", position))
        position_of.setdefault(file_name, position)
        size = entry["height"], entry["width"]
        images[image_id] = ImageEntry(image_id, images_dir / file_name, *size, position)
    if look_for_files:
        _check_files(position_of, entries, images_dir, problems)
    return sorted(images.values())


def _check_files(position_of: dict[str, int], entries: list, images_dir: Path, problems: Problems) -> None:
    """Report the image files that are not there; one line if there is none at all."""
    present = _present_files(position_of, images_dir)
    missing = [file_name for file_name in position_of if file_name not in present]
    if not missing:
        return
    if not images_dir.is_dir():
        line = f"the image folder {images_dir} does not exist ({len(missing)} image files expected in it)"
        problems.add("missing file", line)
        return
    if not present:
        line = f"none of the {len(missing)} image files is in {images_dir}; the first would be {_short(missing[0])}. "
        problems.add("missing file", line + "Check the image folder and the 'file_name' of the images")
        return
    by_lower = {entry.name.lower(): entry.name for entry in os.scandir(images_dir)}
    for file_name in missing:
        other = by_lower.get(file_name.lower())
        hint = f"; the folder has {other!r}" if other else ""
        position = position_of[file_name]
        path = str(images_dir / file_name)
        shown = path if path.isprintable() and len(path) < 500 else _short(file_name)
        line = f"image {entries[position]['id']}: file {shown} does not exist{hint}"
        problems.add("missing file", line, ("images", position))


def _present_files(file_names: dict[str, int], images_dir: Path) -> set[str]:
    """Those of the names whose file exists; reads whole folders where that is cheaper."""
    if len(file_names) < 1000:
        return {file_name for file_name in file_names if os.path.isfile(images_dir / file_name)}
    present = set()
    for folder in {os.path.dirname(file_name) for file_name in file_names}:
        if os.path.isdir(images_dir / folder):
            with os.scandir(images_dir / folder) as entries:
                present.update(os.path.join(folder, entry.name) for entry in entries if entry.is_file())
    return present & file_names.keys()


def _annotation_fault(entry: Any) -> tuple[str, str] | None:
    """Kind and words of what is wrong with the form of one annotation, or None."""
    fault = _fault(entry, {"id": "id", "image_id": "id", "category_id": "id"})
    if fault:
        return fault
    box = entry.get("bbox")
    if type(box) is not list or len(box) != 4:
        kind = "wrong type" if "bbox" in entry else "missing key"
        return kind, f"has no 'bbox' [x, y, width, height]; it is {_short(box)}"
    for value in box:
        if type(value) is not float and not _is_id(value):
            return (
                "wrong type",
                f"bbox is {_short(box)}; expected four numbers [x, y, width, height] in pixels",
            )
    if entry.get("iscrowd", 0) not in (0, 1):
        return "wrong value", f"iscrowd is {_short(entry['iscrowd'])}; expected 0 or 1"
    return None


def check_annotations(entries: list, problems: Problems) -> AnnotationColumns:
    """Return the well-formed annotations as columns, in the order of the file."""
    good = []
    for position, entry in enumerate(entries):
        fault = _annotation_fault(entry)
        if fault is None:
            good.append((position, entry))
            continue
        has_id = isinstance(entry, dict) and "id" in entry
        where = f"annotation {_short(entry['id'])}" if has_id else f"annotation number {position}"
        if isinstance(entry, dict) and "image_id" in entry:
            where += f" (image {_short(entry['image_id'])})"
        problems.add(fault[0], f"{where}: {fault[1]}", ("annotations", position))

    def column(key: str, dtype: type, default: int | None = None) -> np.ndarray:
        return np.array([entry.get(key, default) for _, entry in good], dtype=dtype)

    columns = AnnotationColumns(
        positions=np.array([position for position, _ in good], dtype=np.int64),
        ids=column("id", np.int64),
        image_ids=column("image_id", np.int64),
        category_ids=column("category_id", np.int64),
        boxes_xywh=column("bbox", np.float64).reshape(-1, 4),
        is_crowd=column("iscrowd", bool, 0),
        outlines=np.array([entry.get(OUTLINE, UNKNOWN) for _, entry in good], dtype=np.float64).reshape(
            -1, 4
        ),
        areas=np.array([_area_of_box(entry) for _, entry in good], dtype=np.float64),
    )
    _check_annotation_ids(columns, entries, problems)
    return columns


def _area_of_box(entry: dict) -> float:
    """The area that the file gives, where it can only be that of the box."""
    area = entry.get("area")
    is_number = type(area) is float or _is_id(area)
    return float(area) if is_number and OUTLINE not in entry else np.nan


def _check_annotation_ids(columns: AnnotationColumns, entries: list, problems: Problems) -> None:
    _, first, which = np.unique(columns.ids, return_index=True, return_inverse=True)
    for number in np.setdiff1d(np.arange(len(columns.ids)), first):
        position, other = int(columns.positions[number]), int(columns.positions[first[which[number]]])
        line = (
            f"annotation id {columns.ids[number]} stands twice (images {entries[other]['image_id']} and "
            f"{entries[position]['image_id']}); expected each id once"
        )
        is_copy = entries[position] == entries[other]  # else both are objects, and one needs another id
        problems.add("duplicate annotation id", line, *([("annotations", position)] if is_copy else []))


def check_references(
    columns: AnnotationColumns, images: list[ImageEntry], categories: dict[int, str], problems: Problems
) -> np.ndarray:
    """Report annotations of unknown images or categories; return the mask [A] of the others."""
    known_image = np.isin(columns.image_ids, [image.image_id for image in images])
    known_category = np.isin(columns.category_ids, list(categories))
    for number in np.flatnonzero(~known_image):
        line = (
            f"annotation {columns.ids[number]}: image_id {columns.image_ids[number]} is not among the "
            f"{len(images)} images of the file"
        )
        problems.add("unknown image", line, ("annotations", columns.positions[number]))
    for number in np.flatnonzero(known_image & ~known_category):
        line = (
            f"annotation {columns.ids[number]} (image {columns.image_ids[number]}): category_id "
            f"{columns.category_ids[number]} is not among the {len(categories)} categories of the file"
        )
        problems.add("unknown category", line, ("annotations", columns.positions[number]))
    return known_image & known_category


def image_sizes(columns: AnnotationColumns, images: list[ImageEntry]) -> np.ndarray:
    """Width and height of the image of each annotation, float64 [A, 2]."""
    if not len(columns.ids):
        return np.empty((0, 2))
    position = np.searchsorted([image.image_id for image in images], columns.image_ids)
    return np.array([(image.width, image.height) for image in images], dtype=np.float64)[position]
