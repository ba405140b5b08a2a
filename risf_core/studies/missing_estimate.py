"""How many objects nobody annotated: an estimate from detections in images that the detector was not trained on.

A place is where a detection stands, after suppression over all classes; one that overlaps an annotated box is claimed.
At a score t let n(t) be the claimed places for each annotated box, M(t) the places that are not claimed, N the number
of images and b the false places an image. Then

    unannotated = max(0, M(t) - b N) / n(t),        missing rate = unannotated / (annotated + unannotated),

where t is the score at which n(t) reaches a wanted recall. Two assumptions. An unannotated object is found as often as
an annotated one: this needs a detector that did not learn on the image that the object is background, and objects left
out by chance, not because they are hard. And b, measured where nothing is missing, holds here too; a low recall makes
it small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections
from risf_core.errors import DataError

PLACE_IOU = 0.3  # places overlap less; a place that overlaps an annotated box by as much is claimed


@dataclass(frozen=True, eq=False)
class Places:
    """The places of one image, best first.

    Attributes:
        image_id: Id of the image.
        num_annotated: Annotated boxes in it, crowd regions left out.
        boxes: float32 [P, 4], corners in pixels. labels: int64 [P]. scores: float32 [P].
        is_claimed: bool [P], whether it overlaps an annotated box.
    """

    image_id: int
    num_annotated: int
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    is_claimed: np.ndarray


class Point(NamedTuple):
    """What is counted at one score: t, n(t), M(t)."""

    threshold: float
    found_per_box: float
    unclaimed: int


class Estimate(NamedTuple):
    """Numbers of objects in all images, the rate in 0 to 1, and the point that they follow from."""

    annotated: int
    unannotated: float
    rate: float
    point: Point


def places_of(detections: Detections, data: DetectionData) -> list[Places]:
    """The places of every image of ``data``: greedy suppression over all classes at ``PLACE_IOU``.

    Detections in a crowd region (more than half of their area) are no places: nobody knows what stands there.
    """
    found = []
    for record in data.images:
        start, end = np.searchsorted(detections.image_ids, [record.image_id, record.image_id + 1])
        boxes, scores = detections.boxes[start:end], detections.scores[start:end]
        rows = np.array(_suppressed(boxes, _inside(boxes, record.boxes[record.is_crowd])), dtype=np.int64)
        known = record.boxes[~record.is_crowd]
        is_claimed = (_box_iou(boxes[rows], known) >= PLACE_IOU).any(axis=1)
        labels = detections.labels[start:end][rows]
        found.append(Places(record.image_id, len(known), boxes[rows], labels, scores[rows], is_claimed))
    return found


def _shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection of corner boxes in pixels: [N, 4] and [M, 4] to [N, M]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    shared = _shared(first, second)
    return shared / np.maximum(_areas(first)[:, None] + _areas(second)[None] - shared, 1e-9)


def _inside(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Whether each box [N, 4] lies by more than half in a region [M, 4]: bool [N]."""
    return (_shared(boxes, crowds) > 0.5 * _areas(boxes)[:, None]).any(axis=1)


def _suppressed(boxes: np.ndarray, is_left_out: np.ndarray) -> list[int]:
    """Positions of the boxes [N, 4], best first, that overlap no better one by ``PLACE_IOU``."""
    overlaps, kept = _box_iou(boxes, boxes), []
    for row in np.flatnonzero(~is_left_out).tolist():
        if not (overlaps[row, kept] >= PLACE_IOU).any():
            kept.append(row)
    return kept


def point_at(places: Sequence[Places], recall: float) -> Point:
    """The score at which claimed places reach ``recall`` for each annotated box, and what is counted there.

    Where so many were never found it is the lowest score of a claimed place, and ``found_per_box`` is below ``recall``.

    Raises:
        DataError: If no image has an annotated box, or none was found at any score.
    """
    annotated = sum(place.num_annotated for place in places)
    claimed = np.sort(np.concatenate([place.scores[place.is_claimed] for place in places] or [[]]))[::-1]
    if not annotated or not len(claimed):
        raise DataError(
            f"missing rate: {annotated} annotated boxes in {len(places)} images, of which the detector found none. "
            "Expected some: train longer, or with more shots."
        )
    wanted = min(len(claimed), max(1, int(np.ceil(recall * annotated - 1e-9))))
    threshold = float(claimed[wanted - 1])
    unclaimed = sum(int((place.scores[~place.is_claimed] >= threshold).sum()) for place in places)
    return Point(threshold, float((claimed >= threshold).sum()) / annotated, unclaimed)


def estimate(places: Sequence[Places], *, recall: float, false_per_image: float = 0.0) -> Estimate:
    """The estimate of the module's docstring; errors as in `point_at`."""
    point = point_at(places, recall)
    annotated = sum(place.num_annotated for place in places)
    unannotated = max(0.0, point.unclaimed - false_per_image * len(places)) / point.found_per_box
    return Estimate(annotated, unannotated, unannotated / (annotated + unannotated), point)


def bootstrap(
    places: Sequence[Places], *, recall: float, false_per_image: float, resamples: int, seed: int
) -> dict[str, float]:
    """95 % percentile intervals over draws of the images with replacement, the score being found anew in each draw.

    Returns:
        ``low`` and ``high`` of the rate; ``per_image_low`` and ``per_image_high`` of the unannotated objects an image.
    """
    rng, rates, counts = np.random.default_rng(seed), [], []
    for _ in range(resamples):
        drawn = [places[index] for index in rng.integers(len(places), size=len(places))]
        try:
            found = estimate(drawn, recall=recall, false_per_image=false_per_image)
        except DataError:  # a draw of images in which nothing annotated was found
            continue
        rates.append(found.rate)
        counts.append(found.unannotated / len(places))
    low, high = np.percentile(rates, [2.5, 97.5]) if rates else (np.nan, np.nan)
    fewest, most = np.percentile(counts, [2.5, 97.5]) if counts else (np.nan, np.nan)
    return {"low": low, "high": high, "per_image_low": fewest, "per_image_high": most}


def choose_settings(cells: Iterable[Mapping]) -> dict[str, dict]:
    """For each kind of score the settings with the smallest root mean square error of the rate on planted cells.

    Args:
        cells: Each with ``score``, ``annotated``, ``unannotated`` (planted), ``images`` and ``points``: dicts with
            ``c``, ``recall``, ``found_per_box`` and ``unclaimed``.

    Returns:
        Kind of score to ``{"c", "recall", "false_per_image", "rmse"}``. ``false_per_image`` is the mean of the cells
        where nothing is missing, or 0 where the error without it is smaller.
    """
    by_setting: dict[str, dict[tuple, list[tuple[Mapping, Mapping]]]] = {}
    for cell in cells:
        for point in cell["points"]:
            of_score = by_setting.setdefault(cell["score"], {})
            of_score.setdefault((point["c"], point["recall"]), []).append((cell, point))
    chosen = {}
    for score, settings in by_setting.items():
        tried = []
        for (c, recall), pairs in settings.items():
            false = [point["unclaimed"] / cell["images"] for cell, point in pairs if cell["unannotated"] == 0]
            for value in dict.fromkeys((0.0, float(np.mean(false)) if false else 0.0)):
                rmse = float(np.sqrt(np.mean([_error(*pair, value) ** 2 for pair in pairs])))
                tried.append({"c": c, "recall": recall, "false_per_image": value, "rmse": rmse})
        chosen[score] = min(tried, key=lambda one: one["rmse"])
    return chosen


def _error(cell: Mapping, point: Mapping, false_per_image: float) -> float:
    """Error of the rate in points of percent."""
    count = max(0.0, point["unclaimed"] - false_per_image * cell["images"]) / point["found_per_box"]
    true = cell["unannotated"] / (cell["annotated"] + cell["unannotated"])
    return 100.0 * (count / (cell["annotated"] + count) - true)
