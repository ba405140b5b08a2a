"""Small COCO files for the tests: written by hand, with real image files of one colour."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

CATEGORIES = ({"id": 3, "name": "cat"}, {"id": 1, "name": "person"}, {"id": 7, "name": "hot dog"})


def image_entry(image_id: int, *, width: int = 40, height: int = 30, **changes: Any) -> dict:
    """One entry of ``images``."""
    return {"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height} | changes


def box_entry(
    annotation_id: int, image_id: int, category_id: int, bbox: Any = (5, 6, 10, 12), **changes: Any
) -> dict:
    """One entry of ``annotations``."""
    bbox = list(bbox) if isinstance(bbox, tuple) else bbox
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "iscrowd": 0,
    } | changes


def write_files(
    folder: Path,
    images: Sequence[dict],
    annotations: Sequence[dict],
    categories: Sequence[dict] = CATEGORIES,
    *,
    name: str = "instances.json",
) -> Path:
    """Write the annotation file and an image file for each well-formed image entry; return the annotation file."""
    for entry in images:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
            path = folder / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            size = [entry.get(key) for key in ("width", "height")]
            good = all(isinstance(side, int) and side > 0 for side in size)
            Image.new("RGB", tuple(size) if good else (4, 4)).save(path)
    path = folder / name
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
