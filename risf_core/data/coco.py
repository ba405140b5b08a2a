"""COCO annotation files in and out, with a strict check of their structure.

Whatever is wrong in a file is collected and reported in one error, before anything is trained on it.
``python -m risf_core.data.check`` lists every problem of a set, and decodes its images.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from risf_core.data.box_checks import check_boxes, check_duplicates
from risf_core.data.coco_checks import (
    AnnotationColumns,
    ImageEntry,
    check_annotations,
    check_categories,
    check_images,
    check_references,
    image_sizes,
    read_json,
)
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.problems import Problems
from risf_core.errors import DataError

logger = logging.getLogger(__name__)


def load_coco(
    annotations: str | Path,
    images_dir: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    drop_invalid: bool = False,
) -> DetectionData:
    """Load a COCO-format annotation file and check all of it.

    Images come sorted by id, boxes in the order of the file. Boxes that end up to one pixel outside their
    image are cut to it. Image files are looked for here and decoded when they are read
    (`risf_core.data.loader`).

    Args:
        annotations: The JSON file, with ``images``, ``annotations`` and ``categories``.
        images_dir: Folder that the ``file_name`` of the images starts from.
        class_names: Classes to keep, in this order; None takes all, by ascending category id, as the
            published heads do.
        name: Name of the data; the file's own without ending if None.
        drop_invalid: Drop boxes without size, with a number that is not finite or outside their image, and
            log how many, instead of refusing the file. COCO's own training file has boxes of zero height.

    Raises:
        DataError: If the file is unreadable or anything in it is wrong; the error's `problems` are all
            findings.
        SplitError: If a class of `class_names` is not in the file (with the nearest name), or is listed
            twice.
    """
    path = Path(annotations)
    data, problems, _ = inspect_coco(path, images_dir, name=name, drop_invalid=drop_invalid)
    problems.raise_if_any(f"{path} {images_dir}")
    if class_names is None:
        return data
    selected = data.select_classes(class_names)
    dropped = len(data.flat.labels) - len(selected.flat.labels)
    logger.info(
        "%s: %d classes kept, %d boxes of other classes left out", data.name, len(class_names), dropped
    )
    return selected


def inspect_coco(
    annotations: str | Path,
    images_dir: str | Path | None,
    *,
    name: str | None = None,
    drop_invalid: bool = False,
    with_duplicates: bool = False,
) -> tuple[DetectionData | None, Problems, list[ImageEntry]]:
    """Read a COCO-format file as `load_coco` does, and return what is wrong with it instead of raising.

    Without an image folder the annotations alone are checked. Boxes that stand twice are looked for on request alone
    (`with_duplicates`): published files are trained on and evaluated with theirs.

    Returns:
        The data, or None if anything is wrong; the problems; the images of the file, of size 0 where the entry is
        faulty.

    Raises:
        DataError: If the file is no COCO file at all.
    """
    path = Path(annotations)
    folder = path.parent if images_dir is None else Path(images_dir)
    problems = Problems(path)
    content = read_json(path, problems)
    categories = check_categories(content["categories"], problems)
    images = check_images(content["images"], folder, problems, look_for_files=images_dir is not None)
    columns = check_annotations(content["annotations"], problems)
    columns = columns.keep(check_references(columns, images, categories, problems))
    columns = columns.keep(check_boxes(columns, images, problems, drop_invalid=drop_invalid))
    if with_duplicates:
        check_duplicates(columns, problems, is_problem=not drop_invalid)
    if problems.found:
        return None, problems, images
    data = _assemble(name or path.stem, categories, images, columns)
    return replace(data, dropped=tuple(problems.dropped)), problems, images


def _assemble(
    name: str, categories: dict[int, str], images: list[ImageEntry], columns: AnnotationColumns
) -> DetectionData:
    """Build the records: annotations grouped by image in the order of the file, boxes cut to the image."""
    size = image_sizes(columns, images)
    corners = np.concatenate(
        [columns.boxes_xywh[:, :2], columns.boxes_xywh[:, :2] + columns.boxes_xywh[:, 2:]], axis=1
    )
    boxes = np.clip(corners, 0, np.tile(size, 2)).astype(np.float32)  # [A, 4]
    labels = np.searchsorted(list(categories), columns.category_ids)
    position = np.searchsorted([image.image_id for image in images], columns.image_ids)
    order = np.argsort(position, kind="stable")
    ends = np.searchsorted(position[order], np.arange(len(images)), side="right")
    records = []
    start = 0
    for image, end in zip(images, ends, strict=True):
        own = order[start:end]
        records.append(
            ImageRecord(*image[:4], boxes[own], labels[own].astype(np.int64), columns.is_crowd[own])
        )
        start = end
    return DetectionData(name, tuple(categories.values()), tuple(categories), tuple(records))


def coco_content(data: DetectionData, images_dir: str | Path, *, keep: np.ndarray | None = None) -> dict:
    """The data as the content of a COCO annotation file.

    An annotation's id is its annotation index (its position in `DetectionData.flat`) plus 1, whatever is
    left out.

    Args:
        data: The data.
        images_dir: Folder that ``file_name`` starts from; all images must lie in it.
        keep: int64 [k], indices of the annotations to write, and with them only their images. None writes
            everything.
    """
    flat = data.flat
    kept = np.arange(len(flat.labels)) if keep is None else np.sort(keep)
    written = range(len(data)) if keep is None else np.unique(flat.images[kept])
    records = [data.images[position] for position in written]
    boxes_xywh = _xywh(flat.boxes[kept])
    annotations = [
        {
            "id": int(index) + 1,
            "image_id": data.images[flat.images[index]].image_id,
            "category_id": data.category_ids[flat.labels[index]],
            "bbox": box,
            "area": round(box[2] * box[3], 4),
            "iscrowd": int(flat.is_crowd[index]),
        }
        for index, box in zip(kept, boxes_xywh, strict=True)
    ]
    return {
        "images": [
            {
                "id": record.image_id,
                "file_name": file_name(record, images_dir),
                "height": record.height,
                "width": record.width,
            }
            for record in records
        ],
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": class_name}
            for category_id, class_name in zip(data.category_ids, data.class_names, strict=True)
        ],
    }


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    """Corners float32 [N, 4] as x, y, width, height; two decimals where that gives the same corners."""
    exact = boxes.astype(np.float64)
    exact[:, 2:] -= exact[:, :2]
    short = exact.round(2)
    back = np.concatenate([short[:, :2], short[:, :2] + short[:, 2:]], axis=1).astype(np.float32)
    return np.where((back == boxes).all(axis=1, keepdims=True), short, exact).tolist()


def file_name(record: ImageRecord, images_dir: str | Path) -> str:
    """An image's name relative to the folder of the images.

    Raises:
        DataError: If the image is not in that folder.
    """
    try:
        return record.path.relative_to(images_dir).as_posix()
    except ValueError as error:
        raise DataError(
            f"image {record.path} is not in {images_dir}. Expected all images in one folder."
        ) from error


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file that is there whole or not at all; the same content gives the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_coco(path: str | Path, data: DetectionData, *, images_dir: str | Path) -> None:
    """Write the data as a COCO annotation file, atomically; `load_coco` gives the same data back.

    Args:
        path: The JSON file; its folder is made.
        data: The data.
        images_dir: Folder that ``file_name`` starts from; all images must lie in it.
    """
    write_json(path, coco_content(data, images_dir))
