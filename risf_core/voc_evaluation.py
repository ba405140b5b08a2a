"""The average precision of PASCAL VOC: 11 recall points (2007) or the area (2010 on), difficult boxes ignored.

The rules are those of the VOC devkit as detectron2, DeFRCN and RISF apply them; the code is our own. What differs from
COCO's (`risf_core.evaluation`): a detection goes to the one object that it overlaps most, and is false if that object
is taken or overlaps too little; the overlap must exceed the threshold; and sizes count pixels, x2 - x1 + 1.

The published evaluator writes detections to text first: corners with one decimal, scores with three. That makes ties,
which it breaks by an unstable sort. Here equal scores stay in the order of image, then of the unrounded scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.evaluation import MAX_DETS, Evaluator
from risf_core.faster_evaluation import FasterEvaluator

THRESHOLDS = tuple(
    percent / 100 for percent in range(50, 100, 5)
)  # of AP; the first is AP50's, the sixth AP75's
RECALL_POINTS = np.arange(0.0, 1.1, 0.1)  # of the 2007 metric; the sums of the devkit, so 0.30000000000000004
FIRST_PIXEL = np.array(
    [1, 1, 0, 0]
)  # devkit boxes are 1-based and inclusive: [x1 + 1, y1 + 1, x2, y2] of ours

Metric = Literal["voc07", "voc_area"]
Rounding = Literal["published", "none"]
Engine = Literal["pycocotools", "faster-coco-eval"]
Absent = Literal["left_out", "published"]
CHOICES = {
    "metric": ("voc07", "voc_area"),
    "rounding": ("published", "none"),
    "absent": ("left_out", "published"),
}


class ClassTruth(NamedTuple):
    """The objects of one class, by ascending image id: boxes [G, 4] in the devkit's pixels; ignored: difficult."""

    image_ids: np.ndarray
    boxes: np.ndarray
    is_ignored: np.ndarray


class VocEvaluator(Evaluator):
    """VOC's average precision of a test set, prepared once for any number of evaluations.

    `evaluate` returns what `Evaluator.evaluate` does: AP (the mean over the thresholds .50, .55, ... .95), AP50 and
    AP75 in percent, with the prefixes of the groups and per class.
    """

    def __init__(
        self,
        data: DetectionData,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        max_dets: int = MAX_DETS,
        metric: Metric = "voc07",
        rounding: Rounding = "published",
        absent: Absent = "left_out",
    ) -> None:
        """
        Args:
            data: The test set. Difficult boxes and crowd regions are ignored: what goes to one counts neither way.
            groups: Class names by group, as for `Evaluator`.
            max_dets: The best detections of an image that count, all classes together.
            metric: "voc07", the mean precision at 11 recall points, or "voc_area", the area under the curve.
            rounding: "published" for corners with one and scores with three decimals, "none" for neither.
            absent: What a class counts of which all objects are ignored. "left_out": None, outside every mean.
                "published": 0 in "voc07", and not a number in "voc_area", which every mean becomes with it.
        """
        super().__init__(data, groups=groups, max_dets=max_dets)
        for name, value in (("metric", metric), ("rounding", rounding), ("absent", absent)):
            if value not in CHOICES[name]:
                raise DataError(f"{name} is {value!r}. Expected one of: {', '.join(CHOICES[name])}.")
        self.metric, self.rounding, self.absent = metric, rounding, absent
        self._truth = [_class_truth(data, label) for label in range(len(data.class_names))]

    def curve(
        self, detections: Detections, class_name: str, *, iou_thresh: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision after each detection of a class, best first, float64 [D] each."""
        self._check(detections)
        truth = self._truth[self.data.class_names.index(class_name)]
        overlaps, objects = self._match(detections.top(self.max_dets), class_name, truth)
        return precision_recall(overlaps, objects, truth.is_ignored, iou_thresh=iou_thresh)

    def _precision(self, detections: Detections, class_names: Sequence[str]) -> np.ndarray:
        """Average precision [T thresholds, 1, K classes], 0 to 1; -1 for a class that counts nowhere."""
        result = np.full((len(THRESHOLDS), 1, len(class_names)), -1.0)
        for k, name in enumerate(class_names):
            truth = self._truth[self.data.class_names.index(name)]
            if truth.is_ignored.all() and self.absent == "left_out":
                continue
            overlaps, objects = self._match(detections, name, truth)
            for t, thresh in enumerate(THRESHOLDS):
                recall, precision = precision_recall(overlaps, objects, truth.is_ignored, iou_thresh=thresh)
                result[t, 0, k] = average_precision(recall, precision, metric=self.metric)
        return result

    def _match(
        self, detections: Detections, class_name: str, truth: ClassTruth
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each detection of a class, best first: largest overlap with an object, and which object."""
        own = detections.keep(detections.labels == detections.class_names.index(class_name))
        boxes, scores = devkit_numbers(own.boxes, own.scores, rounding=self.rounding)
        order = np.argsort(-scores, kind="stable")
        return best_overlaps(boxes[order], own.image_ids[order], truth)


def _class_truth(data: DetectionData, label: int) -> ClassTruth:
    ids, boxes, ignored = [], [np.empty((0, 4))], [np.empty(0, dtype=bool)]
    for image in sorted(data.images, key=lambda record: record.image_id):
        own = image.labels == label
        ids += [image.image_id] * int(own.sum())
        boxes.append(image.boxes[own] + FIRST_PIXEL)
        ignored.append((image.is_difficult | image.is_crowd)[own])
    return ClassTruth(np.array(ids, dtype=np.int64), np.concatenate(boxes), np.concatenate(ignored))


def devkit_numbers(
    boxes: np.ndarray, scores: np.ndarray, *, rounding: Rounding = "published"
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores as the devkit's evaluation reads them.

    Args:
        boxes: float32 [D, 4], corners x1, y1, x2, y2 in pixels.
        scores: float32 [D].
        rounding: "published" for what stands in the text files, "none" for the exact values.

    Returns:
        float64 [D, 4], 1-based inclusive corners, and float64 [D].
    """
    if rounding == "none":
        return boxes.astype(np.float64) + FIRST_PIXEL, scores.astype(np.float64)
    shifted = boxes + FIRST_PIXEL.astype(np.float32)  # float32, as published
    return _as_written(shifted, 1), _as_written(scores, 3)


def _as_written(values: np.ndarray, decimals: int) -> np.ndarray:
    """What reading ``f"{value:.1f}"`` gives: the product below is exact for float32 values, ties go to even."""
    return np.rint(values.astype(np.float64) * 10**decimals) / 10**decimals


def best_overlaps(
    boxes: np.ndarray, image_ids: np.ndarray, truth: ClassTruth
) -> tuple[np.ndarray, np.ndarray]:
    """The object of the same image that each detection overlaps most; the first of several.

    Args:
        boxes: float64 [D, 4], in the devkit's pixels.
        image_ids: int64 [D].
        truth: The objects of the class.

    Returns:
        Overlap, float64 [D], -inf in an image without an object; position in `truth`, int64 [D], -1 there.
    """
    start = np.searchsorted(truth.image_ids, image_ids)
    counts = np.searchsorted(truth.image_ids, image_ids, side="right") - start  # [D]
    overlaps, objects = np.full(len(boxes), -np.inf), np.full(len(boxes), -1)
    with_object = np.flatnonzero(counts)
    if not len(with_object):
        return overlaps, objects
    counts = counts[with_object]
    first = np.cumsum(counts) - counts  # where the pairs of each detection begin
    pair_detection = np.repeat(with_object, counts)  # [P]
    pair_object = np.arange(counts.sum()) - np.repeat(first - start[with_object], counts)  # [P]
    iou = pixel_iou(boxes[pair_detection], truth.boxes[pair_object])
    best = np.maximum.reduceat(iou, first)
    candidates = np.flatnonzero(iou == np.repeat(best, counts))
    _, earliest = np.unique(pair_detection[candidates], return_index=True)
    overlaps[with_object] = best
    objects[with_object] = pair_object[candidates[earliest]]
    return overlaps, objects


def pixel_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap of pairs of boxes [P, 4] whose corners are inclusive: a side has x2 - x1 + 1 pixels."""
    corners = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    shared = np.maximum(corners[1] - corners[0] + 1, 0).prod(axis=1)
    areas = [(group[:, 2:] - group[:, :2] + 1).prod(axis=1) for group in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def precision_recall(
    overlaps: np.ndarray, objects: np.ndarray, is_ignored: np.ndarray, *, iou_thresh: float
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection.

    Args:
        overlaps: float64 [D], best first.
        objects: int64 [D], what `best_overlaps` found.
        is_ignored: bool [G]; a detection of an ignored object is neither true nor false.
        iou_thresh: An overlap must be greater.

    Returns:
        float64 [D] each; recall is not a number if all objects are ignored.
    """
    is_match = overlaps > iou_thresh
    is_true = np.zeros(len(overlaps), dtype=bool)
    is_skipped = np.zeros(len(overlaps), dtype=bool)
    is_skipped[is_match] = is_ignored[objects[is_match]]
    candidates = np.flatnonzero(is_match & ~is_skipped)
    is_true[candidates[np.unique(objects[candidates], return_index=True)[1]]] = (
        True  # the first of each object
    )
    true, false = np.cumsum(is_true), np.cumsum(~is_true & ~is_skipped)
    count = int((~is_ignored).sum())
    recall = true / count if count else np.full(len(true), np.nan)
    return recall, true / np.maximum(true + false, np.finfo(np.float64).eps)


def average_precision(recall: np.ndarray, precision: np.ndarray, *, metric: Metric) -> float:
    """One number for a curve, 0 to 1.

    "voc07" is the mean over recall 0, .1, ... 1 of the best precision at that recall or a larger one; "voc_area" the
    area under the curve made to fall with recall.

    Example:
        >>> float(average_precision(np.array([0.5]), np.array([1.0]), metric="voc_area"))
        0.5
    """
    if metric == "voc07":
        best = [precision[recall >= point].max(initial=0.0) for point in RECALL_POINTS]
        return sum(best) / len(RECALL_POINTS)
    steps = np.concatenate([[0.0], recall, [1.0]])
    heights = np.concatenate([[0.0], precision, [0.0]])
    heights = np.maximum.accumulate(heights[::-1])[::-1]  # the best precision at that recall or a larger one
    return float(np.diff(steps) @ heights[1:])


def evaluator_for(
    data: DetectionData,
    *,
    metric: str = "coco",
    rounding: Rounding = "published",
    absent: Absent = "left_out",
    groups: Mapping[str, Sequence[str]] | None = None,
    max_dets: int = MAX_DETS,
    engine: Engine = "pycocotools",
) -> Evaluator:
    """The evaluator of a metric: "coco" (by `engine`), "voc07" or "voc_area" (with `rounding` and `absent`)."""
    if metric == "coco" and engine == "faster-coco-eval":
        return FasterEvaluator(data, groups=groups, max_dets=max_dets)
    if metric == "coco":
        return Evaluator(data, groups=groups, max_dets=max_dets)
    return VocEvaluator(
        data, groups=groups, max_dets=max_dets, metric=metric, rounding=rounding, absent=absent
    )
