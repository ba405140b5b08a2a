"""Write rendered scenes as PNG files and COCO JSON."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from risf_core.data.coco import write_json
from risf_core.data.glyphs import CLASSES
from risf_core.data.pictograms import Scene, SceneObject

MAX_OBJECTS = 100  # annotation ids are image_id * MAX_OBJECTS + position of the object in its scene


class CocoFile:
    """Images and annotations on their way into one COCO JSON file with all 20 categories, ids 1 to 20."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, image_id: int, file_name: str, scene: Scene, objects: Iterable[SceneObject]) -> None:
        """Add an image and those of the scene's objects that are to be annotated."""
        height, width = scene.image.shape[:2]
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        self.annotations += [_annotation(image_id, scene.objects.index(item), item) for item in objects]

    def write(self, path: Path) -> None:
        """Write the file in one atomic step."""
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
        write_json(path, {"images": self.images, "annotations": self.annotations, "categories": categories})


def _annotation(image_id: int, position: int, item: SceneObject) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box
    return {
        "id": image_id * MAX_OBJECTS + position,
        "image_id": image_id,
        "category_id": CLASSES.index(item.concept) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "visible": round(item.visible, 4),  # not of COCO: fraction of the object's pixels that can be seen
        "design": item.design,  # not of COCO: code point of the glyph
    }


def save_png(path: Path, image: np.ndarray) -> None:
    """Save uint8 [H, W, 3]; lightly compressed, since the noise in the images hardly compresses."""
    Image.fromarray(image).save(path, compress_level=1)
