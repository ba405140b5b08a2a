"""What must hold in a COCO annotation file: every finding is collected, with the entry and what was expected.

Used by `risf_core.data.coco`; nothing here raises before the whole file has been looked at, but for a file
that is no COCO file at all.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from risf_core.errors import DataError

logger = logging.getLogger(__name__)

OUTSIDE_TOLERANCE = 1.0  # pixels; files round boxes and image sizes differently
SHOWN_PROBLEMS = 5  # in the message of an error; all are in its `problems`
LARGEST_ID = 2**62  # ids must fit int64


class ImageEntry(NamedTuple):
    """An image of an annotation file, checked."""

    image_id: int
    path: Path
    height: int
    width: int


class AnnotationColumns(NamedTuple):
    """The well-formed annotations of a file as columns: ids [A], boxes [A, 4], is_crowd bool [A]."""

    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes_xywh: np.ndarray
    is_crowd: np.ndarray

    def keep(self, mask: np.ndarray) -> AnnotationColumns:
        return AnnotationColumns(*(column[mask] for column in self))


class Problems:
    """What is wrong in one annotation file; collected first, raised once."""

    def __init__(self, path: Path, images_dir: Path) -> None:
        self.path, self.images_dir = path, images_dir
        self.lines: list[str] = []
        self.hints: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def raise_if_any(self) -> None:
        """Raise one DataError: the first problems, how many there are, what to do; all as its `problems`."""
        if not self.lines:
            return
        count = len(self.lines)
        shown = [f"{self.path}: {self.lines[0]}", *(f"  {line}" for line in self.lines[1:SHOWN_PROBLEMS])]
        if count > SHOWN_PROBLEMS:
            shown.append(f"  ... {count - SHOWN_PROBLEMS} more")
        todo = f"Fix the file. Every problem: python -m risf_core.data.coco {self.path} {self.images_dir}"
        shown += [*self.hints, f"{count} problem{'s' if count > 1 else ''} in total. {todo}"]
        error = DataError("\n".join(shown))
        error.problems = tuple(self.lines)
        raise error


def read_json(path: Path) -> dict[str, list]:
    """Read the three lists of the file; outlines (``segmentation``) are not kept: most of COCO's size."""

    def without_outline(entry: dict) -> dict:
        entry.pop("segmentation", None)
        return entry

    if not path.is_file():
        raise DataError(
            f"annotation file {path} does not exist. Expected a COCO-format JSON file; check the path."
        )
    try:
        content = json.loads(path.read_bytes(), object_hook=without_outline)
    except (ValueError, RecursionError) as error:
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


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST_ID


def _fault(entry: Any, kinds: dict[str, str]) -> str | None:
    """Say what is wrong with one entry, or None; `kinds` names each required key's kind: id, size or text."""
    if not isinstance(entry, dict):
        return f"is {_short(entry)}; expected an object"
    for key, kind in kinds.items():
        if key not in entry:
            return f"has no '{key}'"
        value = entry[key]
        if kind == "text":
            if not isinstance(value, str) or not value.strip():
                return f"{key} is {_short(value)}; expected a text"
        elif not _is_id(value):
            return f"{key} is {_short(value)}; expected a whole number"
        elif kind == "size" and value <= 0:
            return f"{key} is {value}; expected pixels above 0"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_categories(entries: list, problems: Problems) -> dict[int, str]:
    """Return {category id: name} by ascending id."""
    names: dict[int, str] = {}
    if not entries:
        problems.add("'categories' is empty; expected at least one class")
    for position, entry in enumerate(entries):
        fault = _fault(entry, {"id": "id", "name": "text"})
        if fault:
            problems.add(f"category number {position}: {fault}")
            # its annotations are not to be reported as well
            if isinstance(entry, dict) and _is_id(entry.get("id")):
                names.setdefault(entry["id"], "")
        elif entry["id"] in names:
            problems.add(f"category id {entry['id']} stands twice; expected each id once")
        elif entry["name"] in names.values():
            problems.add(
                f"category {entry['name']!r} stands twice, under different ids; expected each name once"
            )
            names[entry["id"]] = entry["name"]
        else:
            names[entry["id"]] = entry["name"]
    return dict(sorted(names.items()))


def check_images(entries: list, images_dir: Path, problems: Problems) -> list[ImageEntry]:
    """Return the well-formed images by ascending id, and look for their files."""
    images: dict[int, ImageEntry] = {}
    id_of_file: dict[str, int] = {}
    if not entries:
        problems.add("'images' is empty; expected at least one image")
    for position, entry in enumerate(entries):
        fault = _fault(entry, {"id": "id", "file_name": "text", "height": "size", "width": "size"})
        if fault:
            where = (
                f"image {entry['id']}"
                if isinstance(entry, dict) and "id" in entry
                else f"image number {position}"
            )
            problems.add(f"{where}: {fault}")
            # its annotations are not to be reported as well
            if isinstance(entry, dict) and _is_id(entry.get("id")):
                images.setdefault(entry["id"], ImageEntry(entry["id"], images_dir, 0, 0))
            continue
        image_id, file_name = entry["id"], entry["file_name"]
        if image_id in images:
            problems.add(f"image id {image_id} stands twice; expected each id once")
            continue
        if file_name in id_of_file:
            problems.add(f"images {id_of_file[file_name]} and {image_id} have the same file {file_name!r}")
        id_of_file[file_name] = image_id
        images[image_id] = ImageEntry(image_id, images_dir / file_name, entry["height"], entry["width"])
    _check_files(id_of_file, images_dir, problems)
    return sorted(images.values())


def _check_files(id_of_file: dict[str, int], images_dir: Path, problems: Problems) -> None:
    """Report the image files that are not there; one line if there is none at all."""
    present = _present_files(id_of_file, images_dir)
    missing = [file_name for file_name in id_of_file if file_name not in present]
    if not missing:
        return
    if not images_dir.is_dir():
        problems.add(
            f"the image folder {images_dir} does not exist ({len(missing)} image files expected in it)"
        )
        return
    if not present:
        problems.add(
            f"none of the {len(missing)} image files is in {images_dir}; the first would be {missing[0]!r}. "
            "Check the image folder and the 'file_name' of the images"
        )
        return
    by_lower = {entry.name.lower(): entry.name for entry in os.scandir(images_dir)}
    for file_name in missing:
        other = by_lower.get(file_name.lower())
        hint = f"; the folder has {other!r}" if other else ""
        problems.add(f"image {id_of_file[file_name]}: file {images_dir / file_name} does not exist{hint}")


def _present_files(file_names: dict[str, int], images_dir: Path) -> set[str]:
    """Those of the names whose file exists; reads whole folders where that is cheaper."""
    if len(file_names) < 1000:
        return {file_name for file_name in file_names if (images_dir / file_name).is_file()}
    present = set()
    for folder in {os.path.dirname(file_name) for file_name in file_names}:
        if (images_dir / folder).is_dir():
            with os.scandir(images_dir / folder) as entries:
                present.update(os.path.join(folder, entry.name) for entry in entries if entry.is_file())
    return present & file_names.keys()


def _annotation_fault(entry: Any) -> str | None:
    """Say what is wrong with the form of one annotation, or None."""
    fault = _fault(entry, {"id": "id", "image_id": "id", "category_id": "id"})
    if fault:
        return fault
    box = entry.get("bbox")
    if type(box) is not list or len(box) != 4:
        return f"has no 'bbox' [x, y, width, height]; it is {_short(box)}"
    for value in box:
        if type(value) is not float and not _is_id(value):
            return f"bbox is {_short(box)}; expected four numbers [x, y, width, height] in pixels"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd is {_short(entry['iscrowd'])}; expected 0 or 1"
    return None


def check_annotations(entries: list, problems: Problems) -> AnnotationColumns:
    """Return the well-formed annotations as columns, in the order of the file."""
    good = []
    for position, entry in enumerate(entries):
        fault = _annotation_fault(entry)
        if fault is None:
            good.append(entry)
            continue
        has_id = isinstance(entry, dict) and "id" in entry
        where = f"annotation {_short(entry['id'])}" if has_id else f"annotation number {position}"
        if isinstance(entry, dict) and "image_id" in entry:
            where += f" (image {_short(entry['image_id'])})"
        problems.add(f"{where}: {fault}")
    columns = AnnotationColumns(
        ids=np.array([entry["id"] for entry in good], dtype=np.int64),
        image_ids=np.array([entry["image_id"] for entry in good], dtype=np.int64),
        category_ids=np.array([entry["category_id"] for entry in good], dtype=np.int64),
        boxes_xywh=np.array([entry["bbox"] for entry in good], dtype=np.float64).reshape(-1, 4),
        is_crowd=np.array([entry.get("iscrowd", 0) for entry in good], dtype=bool),
    )
    _, first = np.unique(columns.ids, return_index=True)
    for position in np.setdiff1d(np.arange(len(good)), first):
        problems.add(f"annotation id {columns.ids[position]} stands twice; expected each id once")
    return columns


def check_references(
    columns: AnnotationColumns, images: list[ImageEntry], categories: dict[int, str], problems: Problems
) -> np.ndarray:
    """Report annotations of unknown images or categories; return the mask [A] of the others."""
    known_image = np.isin(columns.image_ids, [image.image_id for image in images])
    known_category = np.isin(columns.category_ids, list(categories))
    for position in np.flatnonzero(~known_image):
        problems.add(
            f"annotation {columns.ids[position]}: image_id {columns.image_ids[position]} is not among the "
            f"{len(images)} images of the file"
        )
    for position in np.flatnonzero(known_image & ~known_category):
        problems.add(
            f"annotation {columns.ids[position]} (image {columns.image_ids[position]}): category_id "
            f"{columns.category_ids[position]} is not among the {len(categories)} categories of the file"
        )
    return known_image & known_category


def check_boxes(
    columns: AnnotationColumns, images: list[ImageEntry], problems: Problems, *, drop_invalid: bool
) -> np.ndarray:
    """Report boxes not finite, without size or outside their image; return the mask [A] of the others."""
    boxes = columns.boxes_xywh
    size = image_sizes(columns, images)  # [A, 2] width, height
    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        corners = boxes[:, :2] + boxes[:, 2:]  # [A, 2]
        has_size = (boxes[:, 2:] > 0).all(axis=1)
        cut = np.minimum(corners, size) - np.maximum(boxes[:, :2], 0)  # [A, 2] width, height inside the image
        inside = (boxes[:, :2] >= -OUTSIDE_TOLERANCE).all(axis=1)
        inside &= (corners <= size + OUTSIDE_TOLERANCE).all(axis=1) & (cut > 0).all(axis=1)
    inside |= size[:, 0] == 0  # an image whose entry is faulty is reported already
    valid = finite & has_size & inside
    bad = np.flatnonzero(~valid)
    if drop_invalid and len(bad):
        logger.warning("%s: %d of %d boxes are invalid and dropped", problems.path, len(bad), len(boxes))
        return valid
    for position in bad:
        if not finite[position]:
            what = "holds a number that is not finite"
        elif not has_size[position]:
            sizes = zip(("width", "height"), boxes[position, 2:], strict=True)
            what = "has " + " and ".join(
                f"{'zero' if v == 0 else 'negative'} {k}" for k, v in sizes if v <= 0
            )
        else:
            what = f"lies outside its image of {size[position, 0]:.0f}x{size[position, 1]:.0f} pixels"
        problems.add(
            f"annotation {columns.ids[position]} (image {columns.image_ids[position]}): box "
            f"{_numbers(boxes[position])} {what}. Expected [x, y, width, height] in pixels, inside the image"
        )
    _suspect_format(boxes[finite], size[finite], problems, num_bad=len(bad))
    return valid


def image_sizes(columns: AnnotationColumns, images: list[ImageEntry]) -> np.ndarray:
    """Width and height of the image of each annotation, float64 [A, 2]."""
    if not len(columns.ids):
        return np.empty((0, 2))
    position = np.searchsorted([image.image_id for image in images], columns.image_ids)
    return np.array([(image.width, image.height) for image in images], dtype=np.float64)[position]


def _numbers(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def _suspect_format(boxes: np.ndarray, size: np.ndarray, problems: Problems, *, num_bad: int) -> None:
    """Add a hint or a problem where all boxes look like another format than x, y, width, height in pixels."""
    if not len(boxes):
        return
    if (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all() and (boxes >= 0).all():
        problems.add(
            "all boxes lie in the first pixel of their images: they look like fractions of the image size. "
            "Expected pixels"
        )
    elif num_bad:
        as_corners = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (
            boxes[:, 2:] <= size + OUTSIDE_TOLERANCE
        ).all(axis=1)
        swapped = (boxes[:, :2] + boxes[:, 2:] <= size[:, ::-1] + OUTSIDE_TOLERANCE).all(axis=1)
        if as_corners.all():
            problems.hints.append("All boxes would be right as corners [x1, y1, x2, y2]: convert them.")
        elif swapped.all():
            problems.hints.append(
                "All boxes would be inside if 'width' and 'height' of the images were swapped."
            )
