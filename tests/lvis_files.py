"""Small LVIS files for the tests: rare, common and frequent classes, known and unknown ones in each image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 64
CATEGORIES = [
    {"id": 1, "name": "anchor", "frequency": "f", "synonyms": ["anchor"], "synset": "anchor.n.01"},
    {"id": 2, "name": "bat_(animal)", "frequency": "r", "synonyms": ["bat_(animal)", "flying_mouse"]},
    {"id": 3, "name": "sofa", "frequency": "c", "synonyms": ["sofa", "couch", "lounge"]},
    {"id": 4, "name": "kite", "frequency": "f", "synonyms": ["kite"]},
    {"id": 5, "name": "gear", "frequency": "r", "synonyms": ["gear"]},
    {"id": 6, "name": "wine_glass", "frequency": "c", "synonyms": ["wine_glass"]},
]


def random_content(seed: int, *, images: int = 24) -> dict[str, list[dict[str, Any]]]:
    """The content of an LVIS file: about three boxes an image, two classes known not to be in it, some open ones."""
    rng = np.random.default_rng(seed)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id in range(1, images + 1):
        labels = rng.integers(1, len(CATEGORIES) + 1, rng.integers(0, 6))
        present = sorted(set(labels.tolist()))
        absent = [one["id"] for one in CATEGORIES if one["id"] not in present]
        content["images"].append(
            {
                "id": image_id,
                "width": SIZE,
                "height": SIZE,
                "coco_url": f"an address/val2017/{image_id:06d}.png",
                "neg_category_ids": sorted(rng.permutation(absent)[:2].tolist()),
                "not_exhaustive_category_ids": [one for one in present if rng.random() < 0.3],
            }
        )
        for label in labels.tolist():
            x, y = rng.integers(0, SIZE - 22, 2).tolist()
            width, height = rng.integers(8, 22, 2).tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                }
            )
    return content


def write_lvis(folder: Path, content: dict, *, name: str = "lvis_v1_val.json") -> Path:
    """Write an LVIS file and images of one colour where it says that they lie; returns the file."""
    for entry in content["images"]:
        path = folder / "/".join(entry["coco_url"].split("/")[-2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"])).save(path)
    path = folder / name
    path.write_text(json.dumps(content))
    return path
