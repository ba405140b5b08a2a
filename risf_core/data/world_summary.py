"""What a reader should know of a pictogram world: counts, unannotated novel objects, designs of the test alone."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from risf_core.data.glyphs import CLASSES, DESIGNS, SPLITS, TEST_ONLY_DESIGNS, corpus_designs, ink_mask
from risf_core.data.world import World


def class_designs() -> tuple[list[np.ndarray], list[str]]:
    """Every design of the 20 classes in black ink on white, with its class name.

    Returns:
        Images, uint8 [128, 128, 3], and names; a design that the captioned corpus does not show is "name (test)".
    """
    images, names = [], []
    for name in CLASSES:
        for code in DESIGNS[name]:
            ink = 255 - np.asarray(ink_mask(code))
            images.append(np.repeat(ink[..., None], 3, axis=2))
            names.append(name if code in corpus_designs(name) else f"{name} (test)")
    return images, names


def class_counts(world: World) -> list[dict[str, Any]]:
    """One row for each class: its objects and designs, and the split in which it is novel.

    Returns:
        Rows with `class`, `novel_in_split` (None if always base), `trainval_objects`, `test_objects`, `designs`.
    """
    trainval, test = _objects(world.trainval_annotations), _objects(world.test_annotations)
    novel_in = {name: split for split, names in SPLITS.items() for name in names}
    return [
        {
            "class": name,
            "novel_in_split": novel_in.get(name),
            "trainval_objects": sum(item["name"] == name for item in trainval),
            "test_objects": sum(item["name"] == name for item in test),
            "designs": "".join(map(chr, DESIGNS[name])),
        }
        for name in CLASSES
    ]


def unannotated_novel(world: World) -> list[dict[str, Any]]:
    """Novel objects that stand unannotated in the images of base training, for each split.

    Returns:
        Rows with `split`, `base_images` (images with a base object, the ones trained on), `base_objects`,
        `novel_objects` (unannotated in these images) and `images_with_novel`.
    """
    trainval = _objects(world.trainval_annotations)
    rows = []
    for split, novel in SPLITS.items():
        base_images = {item["image_id"] for item in trainval if item["name"] not in novel}
        hidden = [item for item in trainval if item["name"] in novel and item["image_id"] in base_images]
        rows.append(
            {
                "split": split,
                "base_images": len(base_images),
                "base_objects": sum(item["name"] not in novel for item in trainval),
                "novel_objects": len(hidden),
                "images_with_novel": len({item["image_id"] for item in hidden}),
            }
        )
    return rows


def design_overlap(world: World) -> list[dict[str, Any]]:
    """Which designs the captioned corpus shares with the test scenes, for each class and group of classes.

    The corpus shares no image with the test, but its photos come from the same renderer, and of most designs it has
    seen other drawings. CM-CLIP's numbers must be read beside this.

    Returns:
        Rows with `class` ("novel of split 1", ..., "all" in the last four), `corpus_designs`, `test_only_designs`
        (text, one character a design), `test_objects`, and `seen_share`: the percentage of the test objects whose
        design is in the corpus (None without test objects).
    """
    per_class = {name: Counter() for name in CLASSES}
    for item in _objects(world.test_annotations):
        per_class[item["name"]][item["design"]] += 1
    groups = {name: (name,) for name in CLASSES}
    groups |= {f"novel of split {split}": names for split, names in SPLITS.items()} | {"all": CLASSES}
    rows = []
    for group, names in groups.items():
        total = sum(per_class[name].total() for name in names)
        seen = sum(per_class[name][code] for name in names for code in corpus_designs(name))
        rows.append(
            {
                "class": group,
                "corpus_designs": "".join(chr(code) for name in names for code in corpus_designs(name)),
                "test_only_designs": "".join(
                    chr(code) for name in names for code in TEST_ONLY_DESIGNS.get(name, ())
                ),
                "test_objects": total,
                "seen_share": 100.0 * seen / total if total else None,
            }
        )
    return rows


def _objects(annotations: Path) -> list[dict[str, Any]]:
    """The annotations of one of the world's own files, each with its class name."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [{**item, "name": names[item["category_id"]]} for item in content["annotations"]]
