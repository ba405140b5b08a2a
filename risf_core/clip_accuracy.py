"""How well a CLIP tells crops apart: ground-truth boxes of test images, and photos of the corpus it did not see."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from risf_core.clip_models import LoadedClip
from risf_core.cm_clip import CMCLIP, encode_detections
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.glyphs import TEST_ONLY_DESIGNS
from risf_core.data.loader import ImageCache
from risf_core.detections import Detections, xyxy_to_xywh

if TYPE_CHECKING:
    from risf_core.data.world import World


def crop_accuracy(
    clip: LoadedClip,
    data: DetectionData,
    class_names: Sequence[str],
    *,
    box_jitter: float = 0.0,
    seed: int = 0,
    cache: ImageCache | None = None,
    crop_options: Mapping[str, str] | None = None,
) -> dict:
    """Zero-shot classification of ground-truth crops among some classes.

    Args:
        clip: The CLIP.
        data: Images with boxes; boxes of other classes and crowd regions are left out.
        class_names: The names that compete.
        box_jitter: Standard deviation of the noise on each edge, as a fraction of the box's width or height.
        seed: Of the noise.
        cache: Decoded images, for several calls on the same images.
        crop_options: ``preprocess``, ``resize`` and ``crop`` of CM-CLIP; None for its defaults.

    Returns:
        ``accuracy`` in percent (None without a crop), ``per_class`` {name: percent or None}, ``confusion`` (number of
        crops, one list for each true class, one column for each predicted one) and ``num_crops``.
    """
    data = data.select_classes(class_names)
    names, count = data.class_names, len(data.class_names)
    records = [record.keep(~record.is_crowd) for record in data.images]
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(_jittered(r, box_jitter, seed) for r in records)])
    ids = np.repeat([record.image_id for record in records], [len(record.labels) for record in records])
    labels = np.concatenate([np.empty(0, np.int64), *(record.labels for record in records)])
    total = len(labels)
    truth = Detections(
        ids, boxes, np.ones(total), labels, np.zeros((total, count + 1)), np.arange(total), names
    )
    cm_clip = CMCLIP(clip.model, clip.tokenizer, names, label_space=names, **(crop_options or {}))
    similarities = encode_detections(truth, data, cm_clip, cache=cache)
    predicted = similarities.cosines.argmax(axis=1) if total else labels
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (truth.labels, predicted), 1)
    hits, crops = confusion.diagonal(), confusion.sum(axis=1)
    return {
        "accuracy": 100.0 * hits.sum() / total if total else None,
        "per_class": {name: 100.0 * hits[k] / crops[k] if crops[k] else None for k, name in enumerate(names)},
        "confusion": confusion.tolist(),
        "num_crops": total,
    }


def _jittered(record: ImageRecord, box_jitter: float, seed: int) -> np.ndarray:
    """The boxes of an image, each edge moved by noise, within the image and at least a pixel wide: float32 [N, 4]."""
    if box_jitter == 0.0:
        return record.boxes
    rng = np.random.default_rng([seed, record.image_id])
    sides = np.tile(record.boxes[:, 2:] - record.boxes[:, :2], 2)  # [N, 4]: w, h, w, h
    boxes = record.boxes + rng.normal(0.0, box_jitter, record.boxes.shape) * sides
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    limits = np.array([record.width, record.height] * 2)
    near = np.clip(corners, 0, limits - 1)[:, :2]
    far = np.maximum(np.clip(corners, 0, limits)[:, 2:], near + 1)
    return np.concatenate([near, far], axis=1).astype(np.float32)


def split_by_design(data: DetectionData, world: "World") -> dict[str, DetectionData]:
    """Test boxes whose glyph design the corpus shows ("seen") and those that only the test shows ("held_out").

    The data's images are those of `world.test_annotations`.
    """
    annotations = json.loads(world.test_annotations.read_text())
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    held_out = {
        (item["image_id"], *item["bbox"])
        for item in annotations["annotations"]
        if item["design"] in TEST_ONLY_DESIGNS.get(names[item["category_id"]], ())
    }
    parts = {"seen": [], "held_out": []}
    for record in data.images:
        keys = [(record.image_id, *box) for box in xyxy_to_xywh(record.boxes).tolist()]
        is_held_out = np.array([key in held_out for key in keys], dtype=bool)
        parts["seen"].append(record.keep(~is_held_out))
        parts["held_out"].append(record.keep(is_held_out))
    return {
        part: replace(data, name=f"{data.name}, {part} designs", images=tuple(r)) for part, r in parts.items()
    }


def photo_accuracy(
    clip: LoadedClip, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> float | None:
    """Zero-shot accuracy in percent on whole images.

    Args:
        clip: The CLIP.
        images: uint8 RGB [N, H, W, 3].
        labels: int64 [N], index into `class_names`; those below 0 do not count.
        class_names: The names that compete.
    """
    cm_clip = CMCLIP(clip.model, clip.tokenizer, class_names, label_space=class_names)
    whole = torch.tensor([[0.0, 0.0, images.shape[2], images.shape[1]]])
    chosen = np.flatnonzero(labels >= 0)
    hits = 0
    for rows in np.array_split(chosen, -(-len(chosen) // cm_clip.batch_size)) if len(chosen) else ():
        photos = torch.from_numpy(images[rows]).permute(0, 3, 1, 2)  # [B, H, W, 3] -> [B, 3, H, W]
        crops = torch.cat([cm_clip.crops(photo, whole) for photo in photos])
        hits += int((cm_clip.encode_crops(crops).argmax(1).cpu().numpy() == labels[rows]).sum())
    return 100.0 * hits / len(chosen) if len(chosen) else None
