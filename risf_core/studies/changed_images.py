"""The images that re-scoring changes most, by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.studies.matching import takes_object


class ImageChange(NamedTuple):
    """What re-scoring did to one image in one cell: ``after - before`` of `image_margins`."""

    image_id: int
    cell: int
    change: float


def score_ranks(detections: Detections) -> np.ndarray:
    """The share of the other detections of the same class, in all images, that score lower: float64 [D] in [0, 1].

    Equal scores count half; 0.5 where the class has one detection. Average precision depends on this order alone, so a
    re-scoring that lifts all scores alike changes nothing.
    """
    ranks = np.full(len(detections), 0.5)
    for label in np.unique(detections.labels):
        own = np.flatnonzero(detections.labels == label)
        scores = np.sort(detections.scores[own])
        below, upto = (
            np.searchsorted(scores, detections.scores[own], side=side) for side in ("left", "right")
        )
        if len(own) > 1:
            ranks[own] = (below + upto - 1) / 2 / (len(own) - 1)
    return ranks


def image_margins(detections: Detections, data: DetectionData) -> dict[int, float]:
    """How far right detections stand above wrong ones in each image: sum of their ranks less that of the wrong ones.

    Rank: among all detections of the class (`score_ranks`). Right: by COCO's rule at an IoU of 0.5 (`takes_object`).
    Images without a detection have 0.

    Args:
        detections: Those that count, of all images.
        data: The test images with the detections' classes.

    Returns:
        The margin of every image of the data by its id.
    """
    right = takes_object(detections, data)
    signed = np.where(np.isnan(right), 0.0, 2.0 * np.nan_to_num(right) - 1.0) * score_ranks(detections)
    ids = np.array(sorted(record.image_id for record in data.images), dtype=np.int64)
    sums = np.bincount(np.searchsorted(ids, detections.image_ids), weights=signed, minlength=len(ids))
    return dict(zip(ids.tolist(), sums.tolist(), strict=True))


def image_changes(
    before: Detections, after: Detections, data: DetectionData, *, cell: int = 0
) -> list[ImageChange]:
    """The change of every image's margin, in the order of the image ids.

    Args:
        before: Detections that count.
        after: The same with other scores.
        data: The test images.
        cell: Number under which the changes go; see `most_changed`.

    Raises:
        DataError: If the two do not have equally many detections.
    """
    if len(before) != len(after):
        raise DataError(
            f"{len(before)} detections before and {len(after)} after re-scoring. Expected the same boxes."
        )
    old, new = (image_margins(found, data) for found in (before, after))
    return [ImageChange(image_id, cell, new[image_id] - old[image_id]) for image_id in old]


def most_changed(
    changes: Sequence[ImageChange], *, count: int
) -> tuple[list[ImageChange], list[ImageChange]]:
    """The largest gains, largest first, and the largest losses, largest loss first; an image comes once in each.

    Args:
        changes: Of one or several cells (trainings) of the same images.
        count: The most of either.

    Returns:
        Gains with a change above 0, and losses with one below 0; ties go to the smaller image id, then cell.
    """
    found = []
    for sign in (1.0, -1.0):
        ordered = sorted(changes, key=lambda one: (-sign * one.change, one.image_id, one.cell))
        best: dict[int, ImageChange] = {}
        for one in ordered:
            if sign * one.change > 0:
                best.setdefault(one.image_id, one)
        found.append(list(best.values())[:count])
    return found[0], found[1]
