"""AP50 of two scorings of the same detections, and an interval of their difference by resampling images.

COCO's rule (greedy matching by score, precision at 101 recalls), written for weighted images: one matching serves all
resamples. A test holds it against pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, xyxy_to_xywh
from risf_core.errors import DataError

RECALLS = np.linspace(0.0, 1.0, 101)
IOU_THRESH = 0.5


@dataclass(frozen=True)
class PairedAP50:
    """AP50 in percent before and after, and the 95 % percentile interval of the difference over resampled images."""

    before: float
    after: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """Detections of one class in falling score: image position [D], whether right [D]; objects of each image [I]."""

    images: np.ndarray
    is_right: np.ndarray
    num_objects: np.ndarray

    def ap50(self, weights: np.ndarray) -> float:
        """Average precision in percent where image i is there ``weights[i]`` times; NaN without an object."""
        count = weights @ self.num_objects
        if not count:
            return float("nan")
        own = weights[self.images]
        right, shown = np.cumsum(own * self.is_right), np.cumsum(own)
        precision = np.divide(right, shown, out=np.zeros(len(own)), where=shown > 0)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(right / count, RECALLS, side="left")
        reached = places < len(precision)
        return 100.0 * float(precision[places[reached]].sum()) / len(RECALLS)


def paired_ap50(
    before: Detections, after: Detections, data: DetectionData, *, resamples: int = 1000, seed: int = 0
) -> PairedAP50:
    """AP50, the mean over the classes with objects, of two scorings, and a paired bootstrap over the images.

    Args:
        before: Detections with the classes of ``data``.
        after: The same with other scores.
        data: The images with their objects.
        resamples: Draws of as many images with replacement.
        seed: Of the draws.

    Raises:
        DataError: If the classes differ, there is no object, or the data have crowd regions or difficult boxes, which
            are not built in.
    """
    if any((record.is_crowd | record.is_difficult).any() for record in data.images):
        raise DataError(
            f"{data.name} has crowd regions or difficult boxes, which this interval does not know."
        )
    sides = [class_matches(detections, data) for detections in (before, after)]
    if not any(data.counts().values()):
        raise DataError(f"{data.name}: no image has an object of {', '.join(data.class_names)}.")
    generator, count = np.random.default_rng(seed), len(data)
    everything = np.ones(count)
    first, second = (_mean_ap50(side, everything) for side in sides)
    differences = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(0, count, count), minlength=count).astype(float)
        differences.append(_mean_ap50(sides[1], weights) - _mean_ap50(sides[0], weights))
    low, high = np.nanpercentile(differences, [2.5, 97.5])  # a draw may hold no object
    return PairedAP50(first, second, float(low), float(high))


def class_matches(detections: Detections, data: DetectionData) -> list[ClassMatches]:
    """For each class which detections are right at an IoU of 0.5: each object serves one, the best scores choose first.

    Raises:
        DataError: If the classes differ.
    """
    if detections.class_names != data.class_names:
        raise DataError(f"{data.name}: its classes are not those of the detections.")
    places = {record.image_id: place for place, record in enumerate(data.images)}
    images = np.array([places[image_id] for image_id in detections.image_ids.tolist()], dtype=np.int64)
    matches = []
    for label in range(len(data.class_names)):
        objects = [record.boxes[record.labels == label] for record in data.images]
        rows = np.flatnonzero(detections.labels == label)
        is_right = np.zeros(len(rows), dtype=bool)
        for place in np.unique(images[rows]).tolist():
            own = np.flatnonzero(images[rows] == place)  # in falling score, as detections are
            is_right[own] = _match(detections.boxes[rows[own]], objects[place])
        order = np.argsort(-detections.scores[rows], kind="stable")
        counts = np.array([len(boxes) for boxes in objects], dtype=float)
        matches.append(ClassMatches(images[rows[order]], is_right[order], counts))
    return matches


def _match(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Whether each box takes an object that no earlier one has, the one it overlaps most: bool [n]."""
    is_right = np.zeros(len(boxes), dtype=bool)
    if len(objects) == 0:
        return is_right
    ious = coco_mask.iou(
        xyxy_to_xywh(boxes), xyxy_to_xywh(objects), np.zeros(len(objects), np.uint8)
    )  # [n, M]
    for row, overlaps in enumerate(ious):
        best = len(overlaps) - 1 - int(overlaps[::-1].argmax())  # the last of equal ones, as pycocotools
        if overlaps[best] >= IOU_THRESH:
            is_right[row] = True
            ious[:, best] = -1.0
    return is_right


def _mean_ap50(matches: list[ClassMatches], weights: np.ndarray) -> float:
    values = [value for one in matches if not np.isnan(value := one.ap50(weights))]
    return float(np.mean(values)) if values else float("nan")
