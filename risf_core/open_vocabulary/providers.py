"""Who proposes regions for distillation: the RPN, a class-agnostic objectness, annotations, or a file of others.

Each says in the manifest whether it may have seen boxes of novel classes. The RPN of a base model and the objectness
learnt from base boxes have not; annotations of all classes are an oracle and never the headline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from risf_core.data.dataset import DetectionData
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.error_kinds import overlap
from risf_core.errors import DataError, ParamsError
from risf_core.open_vocabulary.class_regions import best_of_class as best_of_class
from risf_core.open_vocabulary.class_regions import with_classes
from risf_core.open_vocabulary.objectness import ObjectnessHead, proposals_with_features
from risf_core.open_vocabulary.objectness import train_objectness as train_objectness
from risf_core.open_vocabulary.regions import RegionSet

TOP = 5  # regions of an image; released RKD
NMS_THRESH = 0.5  # class-agnostic; released RKD, on the union of its four queries
COVERED = 0.5  # IoU from which on an object counts as covered
MIN_SIDE = 1.0  # of a jittered box, pixels


@torch.no_grad()
def rpn_regions(
    detector: FasterRCNN, data: DetectionData, *, top: int = TOP, sees_novel: str = "no", batch_size: int = 1
) -> RegionSet:
    """The best proposals of the RPN by objectness, after class-agnostic suppression at IoU 0.5.

    Args:
        detector: A base model.
        data: The images.
        top: Regions of an image, at most.
        sees_novel: "no" where the detector was trained on boxes of base classes alone.
        batch_size: Images at once; above 1 padding changes the numbers a little where sizes differ.

    Returns:
        Class-agnostic regions; scores are the RPN's objectness, 0 to 1.
    """
    outputs = []
    for boxes, logits, _ in proposals_with_features(detector, data, batch_size, "proposing"):
        outputs.append(_best(boxes, logits.sigmoid(), top))
    return _region_set(data, outputs, {"provider": "rpn", "sees_novel": sees_novel, "top": top})


@torch.no_grad()
def objectness_regions(
    detector: FasterRCNN,
    head: ObjectnessHead,
    data: DetectionData,
    *,
    top: int = TOP,
    sees_novel: str = "no",
    batch_size: int = 1,
) -> RegionSet:
    """The best proposals by the root of the RPN's objectness times the learnt quality, suppressed at IoU 0.5.

    Args:
        detector: The base model that `head` was trained on.
        head: From `train_objectness`; the manifest names the classes of its boxes as ``trained_on``.
        data: The images.
        top: Regions of an image, at most.
        sees_novel: "no" where both were trained on boxes of base classes alone.
        batch_size: As in `rpn_regions`.
    """
    outputs = []
    for boxes, logits, features in proposals_with_features(detector, data, batch_size, "scoring objectness"):
        outputs.append(_best(boxes, (logits.sigmoid() * head(features())).sqrt(), top))
    facts = {"provider": "objectness", "sees_novel": sees_novel, "top": top, "trained_on": list(head.classes)}
    return _region_set(data, outputs, facts)


def annotated_regions(
    data: DetectionData,
    *,
    jitter: float = 0.0,
    miss: float = 0.0,
    seed: int = 0,
    sees_novel: str = "yes",
) -> RegionSet:
    """The annotated boxes as regions: an oracle, to be labelled as such.

    Args:
        data: Images with boxes; crowd regions are left out.
        jitter: Each corner moves by up to this share of the box's side, uniformly.
        miss: Share of the boxes that are left out.
        seed: Of both.
        sees_novel: "yes" names the provider "oracle"; "no", for data with boxes of base classes alone, "base boxes".

    Returns:
        Regions with the labels and class names of `data`; all scores 1.
    """
    if not 0 <= jitter < 0.5 or not 0 <= miss < 1:
        raise ParamsError(f"jitter {jitter}, miss {miss}: expected 0 <= jitter < 0.5 and 0 <= miss < 1.")
    rng, outputs = np.random.default_rng(seed), []
    for record in data.images:
        own = record.keep(~record.is_crowd)
        sides = own.boxes[:, 2:] - own.boxes[:, :2]
        boxes = own.boxes + rng.uniform(-jitter, jitter, own.boxes.shape) * np.tile(sides, 2)
        boxes = np.clip(boxes, 0, [record.width, record.height] * 2)
        is_kept = (rng.random(len(boxes)) >= miss) & ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)
        labels = own.labels[is_kept]
        outputs.append({"boxes": boxes[is_kept], "scores": np.ones(len(labels)), "labels": labels})
    facts = {"provider": "oracle" if sees_novel != "no" else "base boxes", "sees_novel": sees_novel}
    facts |= {"jitter": jitter, "miss": miss, "seed": seed, "class_names": list(data.class_names)}
    return _region_set(data, outputs, facts)


def external_regions(
    path: str | Path,
    data: DetectionData,
    *,
    classes: Sequence[str] | None = None,
    sees_novel: str | None = None,
    outside: str = "error",
    missing: str = "error",
) -> RegionSet:
    """Regions that another system made: a file in our format, or what MViT and the released RKD code write.

    Args:
        path: Our ``.npz`` (`risf_core.open_vocabulary.regions`), else one of the forms of
            `risf_core.open_vocabulary.region_files`.
        data: The images; each gets its own regions, clipped to it.
        classes: The columns that the labels become, by name; regions of other classes are refused. None leaves them.
        sees_novel: What the user knows of the provider; None takes what the file says, "unknown" where it says nothing.
        outside: What happens to boxes outside of their image: see `RegionSet.fitted`.
        missing: What happens to images without an entry: see `region_files.read_regions`; our files list all theirs.

    Raises:
        DataError: If the file is none of these, or does not fit the images.
    """
    from risf_core.open_vocabulary.region_files import read_regions  # it reads ours with what stands here

    if Path(path).suffix == ".npz":
        found = RegionSet.load(path).fitted(data, outside=outside)
    else:
        found = read_regions(path, data, outside=outside, missing=missing)
    if sees_novel is not None:
        found = found.noted(sees_novel=sees_novel)
    return found if classes is None else with_classes(found, classes)


def recall_of(
    regions: RegionSet, data: DetectionData, class_names: Sequence[str], *, iou_thresh: float = COVERED
) -> float:
    """Share of the objects of some classes that a region covers, in percent.

    Args:
        regions: Of all images of `data`.
        data: Images with the boxes of all classes; crowd regions and difficult boxes do not count.
        class_names: The classes that count.
        iou_thresh: An object is covered from this IoU on.

    Raises:
        DataError: If no image has an object of these classes.
    """
    chosen, covered = data.select_classes(class_names), []
    for record in chosen.images:
        own = record.keep(~(record.is_crowd | record.is_difficult))
        ious = overlap(own.boxes, regions.of(record.image_id).boxes)  # [N, m]
        covered.append((ious >= iou_thresh).any(axis=1))
    every = np.concatenate([np.empty(0, dtype=bool), *covered])
    if not len(every):
        raise DataError(f"{data.name}: no object of {', '.join(class_names)}, so there is no recall of them.")
    return 100.0 * float(every.mean())


def _best(boxes: Tensor, scores: Tensor, top: int) -> dict[str, np.ndarray]:
    kept = nms(boxes, scores, NMS_THRESH)[:top]
    return {"boxes": boxes[kept].cpu().numpy(), "scores": scores[kept].cpu().numpy()}


def _region_set(data: DetectionData, outputs: list[dict[str, Any]], facts: dict[str, Any]) -> RegionSet:
    return RegionSet.from_images([record.image_id for record in data.images], outputs, facts).fitted(data)
