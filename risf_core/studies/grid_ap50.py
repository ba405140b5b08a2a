"""AP50 of thousands of score vectors on one set of stored detections, all at once.

A grid of re-scorings changes scores and nothing else. Which detections overlap which objects is found once; then, for
every score vector, an object goes to the best of its contenders, so that ranks, sums and maxima of whole matrices
replace the search. Where a detection could take either of two objects, or a crowd region is among them, COCO's greedy
order decides, image by image. Numbers equal pycocotools' (a test holds them to it), also for an area range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, xyxy_to_xywh
from risf_core.errors import DataError

IOU_THRESH = 0.5
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
EVERY_AREA = (0.0, 1e10)
CHUNK = 256  # score vectors at a time: the working set of a class stays in the caches


class _Contested(NamedTuple):
    """Detections of one class and image whose objects are not given by the overlaps alone."""

    rows: np.ndarray  # positions within the class
    overlaps: np.ndarray  # [n, G], objects that count first
    objects: np.ndarray  # positions among the class's objects, [G]
    is_crowd: np.ndarray  # [G]


class _Class(NamedTuple):
    """One class's detections (`rows`, by image, proposal) with what they overlap."""

    rows: np.ndarray
    pair_rows: np.ndarray  # uncontested pairs, by object: position within the class, [P]
    pair_objects: np.ndarray  # their object, each once, [O]
    pair_starts: np.ndarray  # where each object's pairs begin, [O]
    contested: list[_Contested]
    is_ignored: np.ndarray  # objects that count neither way, [objects]
    outside: np.ndarray  # detections outside the area range, bool [n]


class GridAP50:
    """The detections and ground truth of a test set, prepared for any number of score vectors.

    Args:
        detections: What `risf_core.detections.cut` leaves: at most `MAX_DETECTIONS` of an image.
        data: The test set with the detector's classes, in their order.
        area_range: Objects of another area (pixels) are ignored, as are unmatched detections: COCO's areaRng.
    """

    def __init__(
        self,
        detections: Detections,
        data: DetectionData,
        *,
        area_range: tuple[float, float] = EVERY_AREA,
    ) -> None:
        if data.class_names != detections.class_names:
            raise DataError(
                f"{data.name} has the classes {', '.join(data.class_names)}, the detections "
                f"{', '.join(detections.class_names)}. Expected the same, in the same order."
            )
        self.class_names, self._count = data.class_names, len(detections)
        self._classes = [_prepare(detections, data, k, area_range) for k in range(len(data.class_names))]

    @property
    def num_objects(self) -> int:
        """How many objects count."""
        return sum(int((~one.is_ignored).sum()) for one in self._classes)

    def per_class(self, scores: np.ndarray) -> np.ndarray:
        """AP50 in percent of each score vector [M, D] and class: float64 [M, C]; NaN for a class without an object."""
        scores = np.asarray(scores, dtype=np.float32)
        if scores.ndim != 2 or scores.shape[1] != self._count:
            raise DataError(f"scores have shape {scores.shape}. Expected [M, {self._count}].")
        parts = [
            np.stack([_average_precision(one, part[:, one.rows]) for one in self._classes], axis=1)
            for part in np.array_split(scores, -(-len(scores) // CHUNK) or 1)
        ]
        return np.concatenate(parts)

    def mean(self, scores: np.ndarray) -> np.ndarray:
        """AP50 in percent, mean over the classes with an object: float64 [M]."""
        values = self.per_class(scores)
        known = ~np.isnan(values).all(axis=0)
        return values[:, known].mean(axis=1)


def _prepare(
    detections: Detections, data: DetectionData, label: int, area_range: tuple[float, float]
) -> _Class:
    own = np.flatnonzero(detections.labels == label)
    # equal scores stand in the order of image and proposal, see `Detections`
    rows = own[np.lexsort((detections.proposals[own], detections.image_ids[own]))]
    image_ids, boxes = detections.image_ids[rows], xyxy_to_xywh(detections.boxes[rows])
    pairs: list[tuple[int, int]] = []
    contested, ignored, next_object = [], [], 0
    for record in sorted(data.images, key=lambda record: record.image_id):
        record = record.keep(record.labels == label)
        truth = xyxy_to_xywh(record.boxes)
        is_ignored = record.is_crowd | record.is_difficult | ~_within(truth, area_range)
        order = np.argsort(is_ignored, kind="stable")
        start, stop = np.searchsorted(image_ids, [record.image_id, record.image_id + 1])
        if len(order) and stop > start:
            crowd = record.is_crowd[order]
            overlaps = np.asarray(coco_mask.iou(boxes[start:stop], truth[order], crowd.astype(np.uint8)))
            is_pair = overlaps >= IOU_THRESH
            if (is_pair.sum(axis=1) > 1).any() or is_pair[:, crowd].any():
                objects = next_object + np.arange(len(order))
                contested.append(_Contested(np.arange(start, stop), overlaps, objects, crowd))
            else:
                pairs += [(next_object + g, start + d) for d, g in zip(*np.nonzero(is_pair))]
        ignored.append(is_ignored[order])
        next_object += len(order)
    objects, pair_rows = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
    pair_objects, pair_starts = np.unique(objects, return_index=True)
    is_ignored = np.concatenate([np.zeros(0, bool), *ignored])
    outside = ~_within(boxes, area_range)
    return _Class(rows, pair_rows, pair_objects, pair_starts, contested, is_ignored, outside)


def _within(boxes_xywh: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    return (areas >= area_range[0]) & (areas <= area_range[1])


def _average_precision(one: _Class, scores: np.ndarray) -> np.ndarray:
    """AP50 in percent of one class for score vectors [M, n]: float64 [M]."""
    vectors, count = scores.shape
    num_objects = int((~one.is_ignored).sum())
    if num_objects == 0:
        return np.full(vectors, np.nan)
    if count == 0:
        return np.zeros(vectors)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(count)[None], axis=1)
    is_true, is_ignored = np.zeros((vectors, count), bool), np.tile(one.outside, (vectors, 1))
    if len(one.pair_objects):
        best = np.minimum.reduceat(ranks[:, one.pair_rows], one.pair_starts, axis=1)  # [M, O]
        winners = np.take_along_axis(order, best, axis=1)
        not_counted = one.is_ignored[one.pair_objects]
        np.put_along_axis(is_ignored, winners, not_counted[None], axis=1)
        np.put_along_axis(is_true, winners, ~not_counted[None], axis=1)
    for group in one.contested:
        for m in range(vectors):
            for row, taken in zip(group.rows, _greedy(group, ranks[m, group.rows], one.is_ignored)):
                if taken >= 0:
                    is_ignored[m, row] = one.is_ignored[taken]
                    is_true[m, row] = not one.is_ignored[taken]
    is_true, is_ignored = (np.take_along_axis(flags, order, axis=1) for flags in (is_true, is_ignored))
    return _interpolated(is_true, ~is_true & ~is_ignored, num_objects)


def _greedy(group: _Contested, ranks: np.ndarray, is_ignored: np.ndarray) -> np.ndarray:
    """The object that each detection of a contested image takes, -1 for none: COCO's rule for one threshold."""
    taken, owners = np.full(len(ranks), -1), np.full(len(group.objects), -1)
    for d in np.argsort(ranks):
        best, found = IOU_THRESH, -1
        for g, overlap in enumerate(group.overlaps[d]):
            if owners[g] >= 0 and not group.is_crowd[g]:
                continue
            counts = not is_ignored[group.objects[g]]
            if found >= 0 and not is_ignored[group.objects[found]] and not counts:
                break
            if overlap >= best:
                best, found = overlap, g
        if found >= 0:
            owners[found], taken[d] = d, group.objects[found]
    return taken


def _interpolated(is_true: np.ndarray, is_false: np.ndarray, num_objects: int) -> np.ndarray:
    """COCO's mean of the precision at 101 recalls, in percent, from flags [M, n] in the order of the scores."""
    true, false = np.cumsum(is_true, axis=1), np.cumsum(is_false, axis=1)
    precision = true / (false + true + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or a larger one
    needed = np.searchsorted(
        np.arange(num_objects + 1) / num_objects, RECALLS
    )  # true ones for each recall, [101]
    total = np.zeros(len(true))
    for m, counts in enumerate(true):
        places = np.searchsorted(counts, needed)
        total[m] = best[m, places[places < len(counts)]].sum()
    return 100.0 * total / len(RECALLS)
