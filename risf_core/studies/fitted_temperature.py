"""The temperature that makes CLIP's probabilities most likely, given which object each detection lies on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import minimize_scalar

from risf_core.cm_clip.scores import BACKGROUND
from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, xyxy_to_xywh
from risf_core.errors import DataError

IOU_THRESH = 0.5
RANGE = (0.1, 1000.0)


def label_targets(detections: Detections, data: DetectionData, names: Sequence[str]) -> np.ndarray:
    """The name of a label space that each detection lies on.

    Args:
        detections: N of them.
        data: Their images with the boxes of all classes that are known.
        names: The label space, "background" among them.

    Returns:
        int64 [N], position in `names`: the object with the largest overlap of at least 0.5 if its class is one of them,
        else background. Crowd regions are no objects.
    """
    columns = {name: place for place, name in enumerate(names)}
    of_class = np.array([columns.get(name, columns[BACKGROUND]) for name in data.class_names])
    targets = np.full(len(detections), columns[BACKGROUND], dtype=np.int64)
    for record in data.images:
        start, stop = np.searchsorted(detections.image_ids, [record.image_id, record.image_id + 1])
        record = record.keep(~record.is_crowd)
        if stop > start and len(record.labels):
            boxes = (xyxy_to_xywh(detections.boxes[start:stop]), xyxy_to_xywh(record.boxes))
            overlaps = coco_mask.iou(*boxes, np.zeros(len(record.labels), dtype=np.uint8))
            labels = of_class[record.labels[overlaps.argmax(axis=1)]]
            targets[start:stop] = np.where(overlaps.max(axis=1) >= IOU_THRESH, labels, columns[BACKGROUND])
    return targets


def fit_temperature(evidence: np.ndarray, targets: np.ndarray) -> float:
    """The factor T that minimises the mean of ``-log softmax(T evidence)[target]``: a convex problem in one number.

    Args:
        evidence: Cosines, [N, L].
        targets: Right columns, int64 [N].

    Returns:
        T, within 0.1 to 1000; a T at an end of it (`is_at_bound`) is no minimum.
    """
    if not len(targets):
        raise DataError("no detection to fit a temperature on. Expected some: lower the score threshold.")
    evidence = evidence.astype(np.float32)
    right = evidence[np.arange(len(targets)), targets].mean(dtype=np.float64)
    largest = evidence.max(axis=1, keepdims=True)
    shifted, offset = evidence - largest, float(largest.mean(dtype=np.float64))

    def loss(log_temperature: float) -> float:
        temperature = np.float32(np.exp(log_temperature))
        sums = np.exp(temperature * shifted).sum(axis=1)
        return float(np.log(sums).mean(dtype=np.float64) + temperature * (offset - right))

    found = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def is_at_bound(temperature: float) -> bool:
    """Whether a fit ended at a bound: at the lower one the evidence misleads, whatever its scale."""
    return bool(np.isclose(np.log(temperature), np.log(RANGE), rtol=0.0, atol=0.01).any())
