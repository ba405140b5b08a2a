"""What a detector's answers above the threshold are: right, confused, on base objects, on background, or loose."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, xyxy_to_xywh

IOU_OBJECT = 0.5  # a detection with it lies on an object
IOU_BACKGROUND = 0.1  # below it, with every object, a detection lies on background
KINDS = ("right", "confused", "on_base", "background", "loose")


def kinds_of(detections: Detections, test: DetectionData, novel_names: Sequence[str]) -> np.ndarray:
    """The kind of each detection, in their order: text [D], one of KINDS, or "" for those that count nowhere.

    right: IoU >= 0.5 with a novel object of its own class (a second one on the same object, too); confused: else with
    a novel object of another class; on_base: else with an object of any other class; background: IoU < 0.1 with every
    object; loose: all others. Detections with IoU >= 0.1 with a crowd region or a difficult box count nowhere, unless
    they are right.

    Args:
        detections: Of novel classes.
        test: Test images with the boxes of base and novel classes.
        novel_names: The novel classes.
    """
    novel = np.array([name in novel_names for name in test.class_names])
    label_of = np.array([test.class_names.index(name) for name in detections.class_names])
    positions = defaultdict(list)
    for position, image_id in enumerate(detections.image_ids.tolist()):
        positions[image_id].append(position)
    kinds = np.full(len(detections), "background", dtype="<U10")
    for record in test.images:
        own = np.array(positions.get(record.image_id, ()), dtype=int)
        if not len(own) or not len(record.labels):
            continue
        flags = np.zeros(len(record.labels), dtype=np.uint8)
        # [d, N]
        iou = coco_mask.iou(xyxy_to_xywh(detections.boxes[own]), xyxy_to_xywh(record.boxes), flags)
        is_object = ~(record.is_crowd | record.is_difficult)
        on = (iou >= IOU_OBJECT) & is_object
        is_same = label_of[detections.labels[own]][:, None] == record.labels
        found = np.select(
            [
                (on & is_same).any(axis=1),
                ((iou >= IOU_BACKGROUND) & ~is_object).any(axis=1),
                (on & novel[record.labels]).any(axis=1),
                on.any(axis=1),
                (iou < IOU_BACKGROUND).all(axis=1),
            ],
            ["right", "", "confused", "on_base", "background"],
            "loose",
        )
        kinds[own] = found
    return kinds


def error_rates(
    detections: Detections, test: DetectionData, novel_names: Sequence[str]
) -> dict[str, float | None]:
    """Confusions and false positives of the detections that count (cut at a score before).

    Args:
        detections: Of novel classes, above the threshold.
        test: Test images with the boxes of base and novel classes.
        novel_names: The novel classes.

    Returns:
        ``confusion``: percent of the detections on a novel object that name another novel class; ``background``:
        detections an image on background; ``background_per_object``: the same for each novel object of the test
        images; ``on_base``: detections an image on a base object; ``detections``: an image, all kinds. ``*_top``:
        confusion, and the percent on background, among the best N detections, N the number of novel objects, whatever
        their scores: what does not depend on how high a loss's scores are. None where nothing is counted.
    """
    is_novel = np.array([name in novel_names for name in test.class_names])[test.flat.labels]
    difficult = np.concatenate([np.zeros(0, dtype=bool), *(record.is_difficult for record in test.images)])
    objects = int((is_novel & ~test.flat.is_crowd & ~difficult).sum())
    kinds, images = kinds_of(detections, test, novel_names), max(len(test), 1)
    counts = Counter(kinds.tolist())
    best = kinds[np.argsort(-detections.scores, kind="stable")]
    top = Counter(best[best != ""][:objects].tolist())
    return {
        "confusion": _percent(counts["confused"], counts["confused"] + counts["right"]),
        "background": counts["background"] / images,
        "background_per_object": counts["background"] / objects if objects else None,
        "on_base": counts["on_base"] / images,
        "detections": len(detections) / images,
        "confusion_top": _percent(top["confused"], top["confused"] + top["right"]),
        "background_top": _percent(top["background"], sum(top.values())),
    }


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None
