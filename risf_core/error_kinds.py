"""What keeps an average precision below 100: six kinds of error, and what each costs.

The kinds and their oracles are those of TIDE (Bolya et al., ECCV 2020, https://arxiv.org/abs/2008.08115),
with its thresholds: a detection overlaps an object enough from an IoU of 0.5 on, and not at all below 0.1. A detection
that counts and finds no object is of the first kind that fits:

- *localisation*: it overlaps an object of its own class, by 0.1 to 0.5; the oracle gives it the object's box;
- *classification*: it overlaps an object of another class by 0.5 or more; the oracle gives it the object's class;
- *duplicate*: it overlaps an object of its class by 0.5 or more, which a better one has found; the oracle drops it;
- *background*: it overlaps no object by 0.1; the oracle drops it;
- *both*: all others, wrong in class and box; the oracle drops them.

Where a corrected detection and another one have the same object, the lower score is dropped. An object that is not
found and that no detection of the first two kinds points to is *missed*; the oracle takes it out of the count. Each
oracle works alone, so the gains need not sum to what is missing to 100; all oracles together give 100.

NumPy alone. AP50 is COCO's (101 recalls); crowd regions and difficult boxes count neither way, as in `evaluation`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.detections import Detections
from risf_core.errors import DataError, ParamsError

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # TIDE's t_f and t_b
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
RIGHT = -1  # in place of a kind


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections that count, told right from wrong, and the objects of their images.

    Detections of crowd regions and difficult boxes are left out.

    Attributes:
        class_names: The C classes.
        image_ids: int64 [D].
        labels: int64 [D].
        scores: float32 [D].
        kinds: int64 [D], place in `KINDS`, or `RIGHT`.
        objects: int64 [D], the object that the detection finds or would find once corrected; -1 for none.
        object_labels: int64 [M].
        is_missed: bool [M], not found, and no detection that a correction would put there.
        rows: int64 [D], where each stands in the `Detections` that were judged.
    """

    class_names: tuple[str, ...]
    image_ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray
    object_labels: np.ndarray
    is_missed: np.ndarray
    rows: np.ndarray

    def counts(self, classes: Sequence[str] | None = None) -> dict[str, int]:
        """How many errors there are of each kind, over some classes: of the detection's, or of the missed object's."""
        known = self._chosen(classes)
        is_own, is_own_object = np.isin(self.labels, known), np.isin(self.object_labels, known)
        found = {kind: int((is_own & (self.kinds == place)).sum()) for place, kind in enumerate(KINDS)}
        return found | {"missed": int((is_own_object & self.is_missed).sum())}

    def ap50(self, *, fixed: Collection[str] = (), classes: Sequence[str] | None = None) -> float:
        """AP50 in percent, the mean over the classes with objects, once some kinds of error are fixed.

        A class all of whose objects were missed and are taken out of the count has 100 if nothing is detected of it
        any more, else 0.

        Args:
            fixed: Kinds of error, of `KINDS`; none gives the AP50 as it is.
            classes: The classes of the mean; None for all.

        Raises:
            ParamsError: If a kind is unknown.
            DataError: If no image has an object of these classes.
        """
        if unknown := [kind for kind in fixed if kind not in KINDS]:
            raise ParamsError(f"{unknown[0]!r} is no kind of error. Expected some of: {', '.join(KINDS)}.")
        known = [k for k in self._chosen(classes) if (self.object_labels == k).any()]
        if not known:
            raise DataError(f"no image has an object of {', '.join(classes or self.class_names)}.")
        labels, is_right, is_kept = self._fixed(fixed)
        is_there = ~self.is_missed if "missed" in fixed else np.ones(len(self.object_labels), dtype=bool)
        values = []
        for k in known:
            rows = np.flatnonzero(is_kept & (labels == k))
            order = np.argsort(-self.scores[rows], kind="stable")
            num_objects = int((is_there & (self.object_labels == k)).sum())
            values.append(average_precision(is_right[rows[order]], num_objects))
        return float(np.mean(values))

    def gains(self, classes: Sequence[str] | None = None) -> dict[str, float]:
        """By how many points AP50 would rise if one kind of error alone were fixed; see `ap50`."""
        now = self.ap50(classes=classes)
        return {kind: self.ap50(fixed=(kind,), classes=classes) - now for kind in KINDS}

    def contributions(self, classes: Sequence[str] | None = None) -> dict[int, float]:
        """What each image adds to the average precision, in points; the sum is the AP50 without interpolation.

        An object that is found adds its share. A wrong detection takes away what it costs the objects ranked below
        it: each of them has a precision of right over shown, and every wrong one among the shown takes an equal part.

        Returns:
            Points by image id; images with neither are not there and add nothing.
        """
        known = [k for k in self._chosen(classes) if (self.object_labels == k).any()]
        result: dict[int, float] = {}
        for k in known:
            rows = np.flatnonzero(self.labels == k)
            rows = rows[np.argsort(-self.scores[rows], kind="stable")]
            is_right = self.kinds[rows] == RIGHT
            parts = is_right / np.arange(
                1, len(rows) + 1
            )  # of each right one: 1 / how many are shown by then
            below = parts.sum() - np.cumsum(parts)
            points = np.where(is_right, 1.0, -below) * 100 / (self.object_labels == k).sum() / len(known)
            for image_id, value in zip(self.image_ids[rows].tolist(), points.tolist(), strict=True):
                result[image_id] = result.get(image_id, 0.0) + value
        return result

    def _chosen(self, classes: Sequence[str] | None) -> list[int]:
        names = self.class_names if classes is None else classes
        check_class_list(names, self.class_names, where="classes of the mean")
        return [self.class_names.index(name) for name in names]

    def _fixed(self, fixed: Collection[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels [D], which are right [D] and which are kept [D] with the oracles of some kinds."""
        is_fixed = np.isin(self.kinds, [place for place, kind in enumerate(KINDS) if kind in fixed])
        is_corrected = is_fixed & (self.objects >= 0)
        labels, is_right = self.labels.copy(), (self.kinds == RIGHT) | is_corrected
        labels[is_corrected] = self.object_labels[self.objects[is_corrected]]
        is_kept = ~is_fixed | is_corrected
        claims = np.flatnonzero(is_right)
        order = claims[np.argsort(-self.scores[claims], kind="stable")]
        _, first = np.unique(self.objects[order], return_index=True)  # the best of each object
        is_best = np.zeros(len(labels), dtype=bool)
        is_best[order[first]] = True
        return labels, is_right & is_best, is_kept & (is_best | ~is_right)


def average_precision(is_right: np.ndarray, num_objects: int) -> float:
    """COCO's mean of the precision at 101 recalls, in percent.

    Args:
        is_right: Bool [n], in falling score.
        num_objects: Objects that could be found; with none: 100 if there is no detection either, else 0.
    """
    if num_objects == 0:
        return 0.0 if len(is_right) else 100.0
    found = np.cumsum(is_right)
    precision = found / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / num_objects, RECALLS, side="left")
    return 100.0 * float(precision[places[places < len(precision)]].sum()) / len(RECALLS)


def judge(detections: Detections, data: DetectionData) -> Judged:
    """Find what is right and what is wrong, and why.

    Args:
        detections: Those that count: above the score cut, at most so many of an image.
        data: The test images with the objects of the detections' classes, in their order.

    Raises:
        DataError: If the classes differ, or there are detections of an image that is not in the data.
    """
    if detections.class_names != data.class_names:
        raise DataError(
            f"{data.name} has the classes {', '.join(data.class_names)}, the detections "
            f"{', '.join(detections.class_names)}. Expected the same, in the same order."
        )
    known = {record.image_id for record in data.images}
    if unknown := set(detections.image_ids.tolist()) - known:
        raise DataError(f"{data.name}: there are detections of image {min(unknown)}, which is not in it.")
    kinds = np.full(len(detections), KINDS.index("background"))
    objects, is_ignored = np.full(len(detections), -1), np.zeros(len(detections), dtype=bool)
    labels: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    next_object = 0
    for record in data.images:
        counts = ~(record.is_crowd | record.is_difficult)
        start, stop = np.searchsorted(detections.image_ids, [record.image_id, record.image_id + 1])
        own = slice(int(start), int(stop))
        boxes, own_labels = detections.boxes[own], detections.labels[own]
        overlaps = overlap(boxes, record.boxes[counts])
        is_same = own_labels[:, None] == record.labels[counts][None, :]
        found = _matches(overlaps * is_same)
        is_ignored[own] = (found < 0) & _in_ignored(boxes, own_labels, found, record.keep(~counts))
        own_kinds, targets = _kinds(overlaps, is_same, found)
        kinds[own], objects[own] = own_kinds, np.where(targets < 0, -1, targets + next_object)
        labels.append(record.labels[counts])
        next_object += int(counts.sum())
    object_labels = np.concatenate(labels)
    rows = np.flatnonzero(~is_ignored)
    is_missed = np.ones(len(object_labels), dtype=bool)
    is_missed[objects[rows][objects[rows] >= 0]] = False
    columns = (detections.image_ids, detections.labels, detections.scores, kinds, objects)
    return Judged(data.class_names, *(one[rows] for one in columns), object_labels, is_missed, rows)


def overlap(boxes: np.ndarray, objects: np.ndarray, is_crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of corner boxes [n, 4] and [M, 4], float64 [n, M]; over the box's own area for crowds."""
    boxes, objects = boxes.astype(np.float64), objects.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)  # [n, M]
    areas = [(one[:, 2:] - one[:, :2]).prod(axis=1) for one in (boxes, objects)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    if is_crowd is not None:
        union = np.where(is_crowd[None, :], areas[0][:, None], union)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _matches(overlaps: np.ndarray) -> np.ndarray:
    """The object that each detection takes, -1 for none: in falling score, the free one that it overlaps most."""
    found, free = np.full(len(overlaps), -1), overlaps.copy()  # [n, M]
    for row in range(len(free) if free.size else 0):
        best = free.shape[1] - 1 - int(free[row, ::-1].argmax())  # the last of equal ones, as pycocotools
        if free[row, best] >= FOREGROUND:
            found[row] = best
            free[:, best] = 0.0
    return found


def _in_ignored(boxes: np.ndarray, labels: np.ndarray, found: np.ndarray, ignored) -> np.ndarray:
    """Which of the detections without an object are those of a crowd region or of a difficult box: bool [n]."""
    result = np.zeros(len(boxes), dtype=bool)
    if not len(ignored.labels):
        return result
    is_same = labels[:, None] == ignored.labels[None, :]
    free = overlap(boxes, ignored.boxes, ignored.is_crowd) * is_same
    for row in np.flatnonzero(found < 0):
        best = free.shape[1] - 1 - int(free[row, ::-1].argmax())
        if free[row, best] >= FOREGROUND:
            result[row] = True
            if not ignored.is_crowd[best]:
                free[:, best] = 0.0  # a difficult box serves one detection
    return result


def _kinds(overlaps: np.ndarray, is_same: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kind [n] of each detection of an image, and the object that it finds or would find [n], -1 for none."""
    kinds, targets = np.full(len(found), KINDS.index("background")), found.copy()
    if overlaps.size:
        same, other = overlaps * is_same, overlaps * ~is_same
        best_same, best_other = same.max(axis=1), other.max(axis=1)
        kinds[overlaps.max(axis=1) >= BACKGROUND] = KINDS.index("both")
        kinds[best_same >= FOREGROUND] = KINDS.index("duplicate")
        is_class = best_other >= FOREGROUND
        is_box = (best_same >= BACKGROUND) & (best_same < FOREGROUND)
        kinds[is_class], kinds[is_box] = KINDS.index("classification"), KINDS.index("localisation")
        targets = np.where(is_class, other.argmax(axis=1), -1)
        targets = np.where(is_box, same.argmax(axis=1), targets)
    is_right = found >= 0
    return np.where(is_right, RIGHT, kinds), np.where(is_right, found, targets)
