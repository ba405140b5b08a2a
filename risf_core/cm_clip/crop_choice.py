"""Which crops are encoded, and which detections each of them serves. NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np

from risf_core.detections import Detections
from risf_core.errors import ParamsError

Share = Literal["none", "iou", "proposal", "object"]
ALIKE = 0.9  # boxes that overlap more show a CLIP nearly the same picture
SAME_OBJECT = 0.5  # COCO's first threshold: boxes that overlap more may find the same object


class CropChoice(NamedTuple):
    """The crops of a set of detections.

    Attributes:
        owners: int64 [D], for each detection the one whose box is cut out for it; -1 if none is.
        counts: How many boxes are wanted (`boxes`), and of these how many have a box `equal` to another one, are served
            by a `shared` crop, are `dropped` by the budget, are `encoded`. The last four sum to the first.
    """

    owners: np.ndarray
    counts: dict[str, int]


def choose_crops(
    detections: Detections, wanted: np.ndarray, *, share: Share = "none", budget: int | None = None
) -> CropChoice:
    """Decide whose boxes are cut out.

    Equal boxes of an image always share their crop, which changes nothing. The rest is approximate, by name. It has to
    be: a re-scored score lies anywhere from c s to c s + 1 - c, and at the published c = 0.7 these ranges fix the rank
    of not one of the mini world's detections (K = 5, ce and bnrl).

    Args:
        detections: Sorted by descending score within each image, as they always are.
        wanted: bool [D], those that may be re-scored.
        share: Whose crop serves other boxes of the image, whatever their class. "none": nobody's. "iou": that of the
            best-scored box, all that overlap it by more than 0.9; then that of the best of the others, and so on.
            "object": the same with 0.5. "proposal": that of the best-scored of the boxes that class-specific
            regression made of one proposal (the proposal's own box is not stored).
        budget: At most so many crops of an image; None encodes all. The best-scored box of each object comes first
            (groups as in "object"), for its rank decides whether the object is found; then the other boxes by score. A
            box without a crop takes the one that overlaps it most, if by more than 0.5, and else stays without: whoever
            re-scores decides what that means (`apply_cm_clip`: not_encoded).
    """
    if share not in get_args(Share):
        raise ParamsError(f"share is {share!r}. Expected one of: {', '.join(get_args(Share))}.")
    if budget is not None and budget < 1:
        raise ParamsError(f"budget is {budget}. Expected at least 1 crop an image, or None for all.")
    rows = np.flatnonzero(wanted)
    equal = rows[_first_of(detections.image_ids[rows], *detections.boxes[rows].T)]  # whose box each has
    different = np.unique(equal)
    sharing = _leaders(detections, different, share)
    if budget is not None:
        within = _within_budget(detections, np.unique(sharing), budget)
        sharing = within[np.searchsorted(np.unique(sharing), sharing)]
    owners = np.full(len(detections), -1, dtype=np.int64)
    owners[rows] = sharing[np.searchsorted(different, equal)]
    counts = {"boxes": len(rows), "dropped": int((owners[rows] < 0).sum())}
    counts["equal"] = len(rows) - len(different) - counts["dropped"] + int((sharing < 0).sum())
    counts["encoded"] = len(np.unique(sharing[sharing >= 0]))
    counts["shared"] = int((sharing >= 0).sum()) - counts["encoded"]
    return CropChoice(owners, counts)


def _leaders(detections: Detections, rows: np.ndarray, share: Share) -> np.ndarray:
    """For each row the one whose crop serves it: int64 [len(rows)]."""
    if share == "none":
        return rows
    if share == "proposal":
        return rows[_first_of(detections.image_ids[rows], detections.proposals[rows])]
    thresh = {"iou": ALIKE, "object": SAME_OBJECT}[share]
    leaders = rows.copy()
    for start, stop in _images(detections, rows):
        leaders[start:stop] = rows[
            start + _greedy_groups(pair_ious(detections.boxes[rows[start:stop]]), thresh)
        ]
    return leaders


def _within_budget(detections: Detections, rows: np.ndarray, budget: int) -> np.ndarray:
    """For each row the one whose crop serves it where an image may have `budget` crops; -1: none does."""
    owners = rows.copy()
    for start, stop in _images(detections, rows):
        if stop - start > budget:
            ious = pair_ious(detections.boxes[rows[start:stop]])
            is_follower = _greedy_groups(ious, SAME_OBJECT) != np.arange(stop - start)
            chosen = np.sort(np.argsort(is_follower, kind="stable")[:budget])
            nearest = ious[:, chosen].argmax(axis=1)
            found = np.where(ious[:, chosen].max(axis=1) > SAME_OBJECT, rows[start + chosen[nearest]], -1)
            found[chosen] = rows[start + chosen]
            owners[start:stop] = found
    return owners


def _greedy_groups(ious: np.ndarray, thresh: float) -> np.ndarray:
    """The first of each box's group, [N]: the first box takes all that overlap it more, then the first of the rest."""
    leaders = np.arange(len(ious))
    free = np.ones(len(ious), dtype=bool)
    for first in range(len(ious)):
        if free[first]:
            free[first] = False
            members = (ious[first] > thresh) & free
            leaders[members] = first
            free[members] = False
    return leaders


def _images(detections: Detections, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where the rows of each image start and stop."""
    starts = np.flatnonzero(np.diff(detections.image_ids[rows], prepend=np.nan)).tolist()
    return zip(starts, [*starts[1:], len(rows)])


def _first_of(*keys: np.ndarray) -> np.ndarray:
    """For each position the first one with the same keys: int64 [N]."""
    table = np.column_stack([np.asarray(key, dtype=np.float64) for key in keys])
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def pair_ious(boxes: np.ndarray) -> np.ndarray:
    """IoU of all pairs of corner boxes, [N, 4] -> float64 [N, N]; 0 where both are empty."""
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    widths = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    heights = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    common = widths.clip(min=0) * heights.clip(min=0)
    areas = (x2 - x1) * (y2 - y1)
    union = areas[:, None] + areas - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
