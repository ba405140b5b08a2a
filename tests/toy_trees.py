"""COCO and VOC in the published layout with tiny drawn images, and the profiles' params files at toy size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from risf_core.data.voc import VOC_CLASSES
from tests.data.voc_files import xml_text
from tests.notebook_files import REPOSITORY

# COCO's 80 names by id: the 20 that VOC has as the profile names them, "thing 8" and so on for the others.
VOC_IDS = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72)
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
DETECTOR = {
    "stages": [1, 1, 1], "stem_width": 8, "res2_width": 16, "res5_blocks": 1, "res5_width": 32, "freeze_at": 0,
    "norm": "BN", "anchor_sizes": [32.0], "anchor_ratios": [1.0], "rpn_pre_nms_train": 100, "rpn_pre_nms_test": 100,
    "rpn_post_nms_train": 40, "rpn_post_nms_test": 30, "rpn_batch": 32, "roi_batch": 16, "min_size": [60, 72],
    "max_size": 128,
}  # fmt: skip
SOLVER = {"batch_size": 2, "reference_batch": 2}
LOW_SCORE = 0.005  # below what a detector of 80 classes says that has hardly been trained
CLIP = {"model": "risf-tiny-resnet", "pretrained": None, "path_only": True}


def draw_scene(
    path: Path, labels: Sequence[int], rng: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """Save an image of 96 x 72 pixels with a square of its own colour for each label; returns their corners.

    Squares of 32 pixels stand about where the detector's anchors do, so that a few steps of training find some.
    """
    pixels = rng.integers(90, 130, (72, 96, 3), dtype=np.uint8)
    boxes = []
    for place, label in enumerate(
        labels
    ):  # at most six, in a grid of 3 x 2 cells, so that none covers another
        x, y = 32 * (place % 3) + int(rng.integers(0, 4)), 32 * (place // 3) + int(rng.integers(0, 4))
        corners = (x, y, min(x + 32, 96), min(y + 32, 72))
        pixels[corners[1] : corners[3], x : corners[2]] = (
            37 * label % 256,
            91 * label % 256,
            200 - 2 * label,
        )
        boxes.append(corners)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return boxes


def write_coco_tree(data: Path) -> None:
    """``coco/{trainval2014,val2014,cocosplit}`` under `data`: 60 + 12 images, one shot of seed 0."""
    rng, coco = np.random.default_rng(0), data / "coco"
    shared = yaml.safe_load((REPOSITORY / "params" / "coco" / "shared.yaml").read_text())
    novel = dict(zip(VOC_IDS, shared["data"]["novel_classes"], strict=True))
    categories = [{"id": i, "name": novel.get(i, f"thing {i}")} for i in range(1, 91) if i not in GAPS]
    parts = {"trainvalno5k": ("trainval2014", 60, 0), "5k": ("val2014", 12, 60)}
    contents = {}
    for part, (folder, count, first) in parts.items():
        content = {"images": [], "annotations": [], "categories": categories}
        for number in range(first, first + count):
            name = f"COCO_val2014_{number:012d}.jpg"
            labels = [
                (4 * number + step) % 80 for step in (0, 1, 2, 3, 41)
            ]  # each class stands in three images
            boxes = draw_scene(coco / folder / name, labels, rng)
            content["images"].append({"id": number, "file_name": name, "height": 72, "width": 96})
            for label, (x1, y1, x2, y2) in zip(labels, boxes, strict=True):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                key = {"id": len(content["annotations"]) + 1000 * first, "image_id": number}
                content["annotations"].append(key | {"category_id": categories[label]["id"]} | box)
        _write(coco / "cocosplit" / "datasplit" / f"{part}.json", json.dumps(content))
        contents[part] = content
    train = contents["trainvalno5k"]
    for category in categories:  # the first draw has no number, as TFA ships it
        own = next(a for a in train["annotations"] if a["category_id"] == category["id"])
        image = [entry for entry in train["images"] if entry["id"] == own["image_id"]]
        content = {"images": image, "annotations": [own], "categories": categories}
        name = f"full_box_1shot_{category['name']}_trainval.json"
        _write(coco / "cocosplit" / name, json.dumps(content))


def write_voc_tree(data: Path) -> None:
    """``VOCdevkit/VOC{2007,2012}`` and ``vocsplit`` under `data`: 30 + 10 images, one shot."""
    rng = np.random.default_rng(0)
    sets = {("VOC2007", "trainval"): range(1, 21), ("VOC2007", "test"): range(101, 111)}
    sets[("VOC2012", "trainval")] = range(1, 11)
    shown: dict[str, str] = {}  # class -> the first image of a training set that shows it
    for (year, part), numbers in sets.items():
        folder, ids = data / "VOCdevkit" / year, []
        for number in numbers:
            text = f"2008_{number:06d}" if year == "VOC2012" else f"{number:06d}"
            labels = [(2 * number + step) % 20 for step in (0, 1, 7)]
            boxes = draw_scene(folder / "JPEGImages" / f"{text}.jpg", labels, rng)
            objects = [
                (VOC_CLASSES[label], (x1 + 1, y1 + 1, x2, y2), part == "test" and place == 2)
                for place, (label, (x1, y1, x2, y2)) in enumerate(zip(labels, boxes, strict=True))
            ]
            _write(folder / "Annotations" / f"{text}.xml", xml_text(objects, width=96, height=72))
            ids.append(text)
            if part == "trainval":
                for label in labels:
                    shown.setdefault(VOC_CLASSES[label], f"datasets/{year}/JPEGImages/{text}.jpg")
        _write(folder / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{text}\n" for text in ids))
    for name, path in shown.items():
        _write(data / "vocsplit" / f"box_1shot_{name}_train.txt", f"{path}\n")


def shrink_profile(project: Path, profile: str) -> None:
    """Write the params files of a profile, with toy detectors and schedules, as those of a project."""
    fine_tuning = f"params/{profile}/20_fine_tuning.fsod_1shot.yaml"
    short = {"solver": {"iterations": 20, "milestones": [16]}}
    changes: dict[str, Mapping] = {
        "10_base_training.yaml": {
            "weights": None,
            "detector": DETECTOR,
            "solver": SOLVER | {"iterations": 40, "milestones": [30], "warmup": 2, "checkpoint_every": 20},
        },
        "fine_tuning.yaml": {
            "seeds": [0],
            "clip": CLIP,
            "keep_weights": True,
            "score_thresh": LOW_SCORE,
            "cm_clip": {"score_thresh": LOW_SCORE},
            "head": {"num_proposals": 20, "roi_batch": 16},
            "solver": SOLVER,
        },
        "20_fine_tuning.fsod_1shot.yaml": short,
        "20_fine_tuning.gfsod_1shot.yaml": short,
        "21_evaluate.fsod.yaml": {
            "checkpoint": {"detector": DETECTOR},
            "clip": CLIP,
            "score_thresh": LOW_SCORE,
            "cm_clip": {"score_thresh": LOW_SCORE},
        },
        "30_ablation_c.yaml": {"fine_tuning": [fine_tuning], "c": [0.0, 0.7, 1.0]},
        "runs.yaml": {
            "runs": [
                f"params/{profile}/{name}.yaml"
                for name in ("10_base_training", "20_fine_tuning.fsod_1shot", "20_fine_tuning.gfsod_1shot")
                + ("30_ablation_c", "40_results")
            ]
        },
    }
    for path in (REPOSITORY / "params" / profile).glob("*.yaml"):
        content = _laid(yaml.safe_load(path.read_text()), changes.get(path.name, {}))
        _write(project / "params" / profile / path.name, yaml.safe_dump(content, sort_keys=False))


def _laid(under: Mapping, over: Mapping) -> dict:
    nested = {
        name: _laid(under[name], value)
        for name, value in over.items()
        if isinstance(value, Mapping) and isinstance(under.get(name), Mapping)
    }
    return {**under, **over, **nested}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
