"""Which crops are encoded, and which detections each of them serves. NumPy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from risf_core.detections import Detections
from risf_core.errors import ParamsError

SHARES = ("none", "iou", "proposal")
SHARED_IOU = 0.9  # boxes that overlap more than this look alike to a CLIP


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
    detections: Detections, wanted: np.ndarray, *, share: str = "none", budget: int | None = None
) -> CropChoice:
    """Decide whose boxes are cut out.

    Equal boxes of an image always share their crop, which changes nothing. The rest is approximate, by name:

    Args:
        detections: Sorted by descending score within each image, as they always are.
        wanted: bool [D], those that may be re-scored.
        share: "none"; "iou" (the best-scored box of an image serves all that overlap it by more than `SHARED_IOU`,
            whatever their class, then the best of the others, and so on); "proposal" (the best-scored of the boxes that
            class-specific regression made of one proposal serves all of them; the proposal's own box is not stored).
        budget: At most so many crops of an image, the best-scored first; None encodes all.
    """
    if share not in SHARES:
        raise ParamsError(f"share is {share!r}. Expected one of: {', '.join(SHARES)}.")
    if budget is not None and budget < 1:
        raise ParamsError(f"budget is {budget}. Expected at least 1 crop an image, or None for all.")
    rows = np.flatnonzero(wanted)
    owners = np.full(len(detections), -1, dtype=np.int64)
    owners[rows] = rows[_first_of(detections.image_ids[rows], *detections.boxes[rows].T)]
    num_different = len(np.unique(owners[rows]))
    if share != "none":
        leaders = np.unique(owners[rows])
        served_by = np.arange(len(detections))
        served_by[leaders] = _LEADERS[share](detections, leaders)
        owners[rows] = served_by[owners[rows]]
    num_encoded = num_kept = len(np.unique(owners[rows]))
    if budget is not None:
        leaders = np.unique(owners[rows])  # ascending: by image, then by score
        starts = np.searchsorted(detections.image_ids[leaders], detections.image_ids[leaders])
        late = leaders[np.arange(len(leaders)) - starts >= budget]
        is_late = np.zeros(len(detections), dtype=bool)
        is_late[late] = True
        owners[rows[is_late[owners[rows]]]] = -1
        num_encoded -= len(late)
    dropped = int((owners[rows] < 0).sum())
    counts = {
        "boxes": len(rows),
        "equal": len(rows) - num_different,
        "shared": num_different - num_kept,
        "dropped": dropped,
        "encoded": num_encoded,
    }
    return CropChoice(owners, counts)


def _first_of(*keys: np.ndarray) -> np.ndarray:
    """For each position the first one with the same keys: int64 [N]."""
    table = np.column_stack([np.asarray(key, dtype=np.float64) for key in keys])
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _leaders_by_proposal(detections: Detections, rows: np.ndarray) -> np.ndarray:
    return rows[_first_of(detections.image_ids[rows], detections.proposals[rows])]


def _leaders_by_iou(detections: Detections, rows: np.ndarray) -> np.ndarray:
    """Greedy clusters within each image, the best-scored box first."""
    leaders = rows.copy()
    starts = np.flatnonzero(np.diff(detections.image_ids[rows], prepend=np.nan))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)]):
        close = _pair_ious(detections.boxes[rows[start:stop]]) > SHARED_IOU
        free = np.ones(stop - start, dtype=bool)
        for first in range(stop - start):
            if free[first]:
                members = np.flatnonzero(close[first] & free)
                leaders[start + members] = rows[start + first]
                free[members] = free[first] = False
    return leaders


def _pair_ious(boxes: np.ndarray) -> np.ndarray:
    """IoU of all pairs, [N, 4] -> [N, N]; 0 where both are empty."""
    boxes = boxes.astype(np.float64)
    corners = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
        boxes[:, None, :2], boxes[None, :, :2]
    )
    shared = corners.clip(min=0).prod(axis=2)  # [N, N, 2] -> [N, N]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = areas[:, None] + areas[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


_LEADERS = {"iou": _leaders_by_iou, "proposal": _leaders_by_proposal}
