"""Boxes of others in a ``.json``: COCO's and LVIS's form, or a list of results, with corners or with sides."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError

TOLERANCE = 1.0  # pixels by which boxes may pass their image's border and still fit


def read_json_boxes(
    path: Path, data: DetectionData, box_form: str
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Boxes [m, 4] as corners, scores [m] (1 where the file has none) and labels of the images of `data` by their id.

    Images are found by file name where the file lists images, else by id. A file whose images are listed has an entry
    for each of them.

    Args:
        path: The file.
        data: The images; category ids are those of the data.
        box_form: "xyxy", "xywh", or "auto".

    Raises:
        DataError: If it is no such file, names a category that the data does not have, or fits neither form or both.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable .json ({error}).") from None
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected COCO's form with annotations, or a list of results.")
    places = _places(path, content, data)
    own = [row for row in rows if row.get("image_id") in places]
    if rows and not own:
        raise DataError(f"{path}: none of its {len(rows)} boxes lies in an image of {data.name}.")
    if not rows:
        raise DataError(
            f"{path}: it has no boxes. The released file of filtered captions is such a one: its boxes are in the "
            "folder of pickles."
        )
    records = [places[row["image_id"]] for row in own]
    boxes = _corners(path, own, records, box_form)
    labels = _labels(path, own, data)
    scores = _scores(path, own)
    members = defaultdict(list)
    for number, record in enumerate(records):
        members[record.image_id].append(number)
    found = {}
    for record in places.values():
        chosen = np.array(members[record.image_id], dtype=np.int64)
        if len(chosen) or isinstance(content, dict):
            found[record.image_id] = boxes[chosen], scores[chosen], None if labels is None else labels[chosen]
    return found


def _places(path: Path, content: Any, data: DetectionData) -> dict[Any, ImageRecord]:
    """The image of the data that each image id of the file means."""
    if not isinstance(content, dict) or not content.get("images"):
        return {record.image_id: record for record in data.images}
    by_name: dict[str, ImageRecord] = {}
    for record in data.images:
        if record.path.name in by_name:
            raise DataError(
                f"{data.name}: two images are called {record.path.name}, by which {path} is looked up."
            )
        by_name[record.path.name] = record
    names = {row.get("id"): _file_name(row) for row in content["images"] if isinstance(row, dict)}
    return {image_id: by_name[name] for image_id, name in names.items() if name in by_name}


def _file_name(row: Mapping[str, Any]) -> str:
    """LVIS names the file by ``coco_url`` alone."""
    return str(row.get("file_name") or row.get("coco_url") or "").rsplit("/", 1)[-1]


def _scores(path: Path, rows: list[dict]) -> np.ndarray:
    try:
        return np.array([float(row.get("score", 1.0)) for row in rows])
    except (TypeError, ValueError):
        raise DataError(f"{path}: a score is not a number.") from None


def _labels(path: Path, rows: list[dict], data: DetectionData) -> np.ndarray | None:
    if not any("category_id" in row for row in rows):
        return None
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    unknown = {row.get("category_id") for row in rows} - set(label_of)
    if unknown:
        shown = ", ".join(map(str, data.category_ids[:5]))
        raise DataError(
            f"{path}: category {next(iter(unknown))!r} is none of {data.name}'s (such as {shown}); {len(unknown)} "
            "unknown ids. Expected the ids of its annotation file."
        )
    return np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64)


def _corners(path: Path, rows: list[dict], records: list[ImageRecord], box_form: str) -> np.ndarray:
    """The boxes as corners, after telling corners from sides."""
    try:
        given = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: a box is not four numbers. Expected bbox: [four numbers].") from None
    sides = given.copy()
    sides[:, 2:] += given[:, :2]
    if box_form == "auto":
        box_form = _told_form(path, given, sides, records)
    return given if box_form == "xyxy" else sides


def _told_form(path: Path, given: np.ndarray, sides: np.ndarray, records: list[ImageRecord]) -> str:
    limits = np.array([[record.width, record.height] for record in records]) + TOLERANCE
    bad = {
        "xyxy": int(((given[:, 2:] < given[:, :2]) | (given[:, :2] > limits)).any(axis=1).sum()),
        "xywh": int((sides[:, 2:] > limits).any(axis=1).sum()),
    }
    fitting = [form for form, count in bad.items() if not count]
    if len(fitting) != 1:
        counts = f"{bad['xyxy']} do not fit as corners, {bad['xywh']} not as x, y, width, height"
        raise DataError(
            f"{path}: of {len(given)} boxes {counts}, so the file does not tell which it holds. Expected one form, in "
            'pixels of the original images. Say it: box_form="xyxy" or "xywh".'
        )
    return fitting[0]
