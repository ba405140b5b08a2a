"""Many score vectors on the same stored detections: what does not depend on the scores is computed once.

A sweep over c, temperature, label space or fusion changes the scores of a detections file and nothing else. Overlaps
are therefore computed once, in a fixed order of the rows. For each score vector the rows are ordered as `Detections`
orders them, and an object is matched anew only if the detections that could take it changed places: by pycocotools'
own `evaluateImg`, as its own `accumulate` makes the precision; for VOC by the functions of `risf_core.voc_evaluation`.
Tests hold every number to pycocotools' stock path.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from risf_core.cm_clip.scores import Fusion, fuse, label_probabilities
from risf_core.detections import Detections, Similarities, xyxy_to_xywh
from risf_core.errors import DataError
from risf_core.evaluation import METRICS, Evaluator
from risf_core.voc_evaluation import (
    THRESHOLDS,
    VocEvaluator,
    average_precision,
    best_overlaps,
    devkit_numbers,
    precision_recall,
)

AREA = [0, 1e10]  # COCO's area range "all"
NO_LIMIT = 1 << 60  # of a class: `max_dets` cuts each image before, all classes together
MEMORY = 50_000  # matchings that are remembered, some hundred bytes each


class ScoreSweep:
    """Average precision of one detections file under any number of score vectors.

    Example:
        >>> sweep = ScoreSweep(evaluator, detections)  # doctest: +SKIP
        >>> sweep.evaluate(detections.scores) == evaluator.evaluate(detections)  # doctest: +SKIP
        True
    """

    def __init__(
        self, evaluator: Evaluator, detections: Detections, *, metrics: Sequence[str] = tuple(METRICS)
    ) -> None:
        """
        Args:
            evaluator: Of COCO's metric or of VOC's, as `evaluator_for` makes them; COCO's is computed by pycocotools
                whatever its engine.
            detections: Those whose scores change; nothing else of them does.
            metrics: Which of AP, AP50 and AP75 are wanted. Without AP a tenth or a fifth of the thresholds is enough.

        Raises:
            DataError: If the detections do not fit the evaluator's data, or a metric is unknown.
        """
        if not metrics or set(metrics) - METRICS.keys() or len(set(metrics)) < len(metrics):
            raise DataError(
                f"metrics are {list(metrics)}. Expected one or more of: {', '.join(METRICS)}, each once."
            )
        evaluator._check(detections)
        self.evaluator, self.detections = evaluator, detections
        places = range(len(THRESHOLDS)) if "AP" in metrics else sorted(METRICS[name] for name in metrics)
        self._positions = {
            name: METRICS[name] if "AP" in metrics else places.index(METRICS[name])
            for name in METRICS
            if name in metrics
        }
        # rows in the order of equal scores: image, proposal, label
        self._base = np.lexsort((detections.labels, detections.proposals, detections.image_ids))
        self._image_ids = detections.image_ids[self._base]
        starts = np.searchsorted(self._image_ids, self._image_ids)
        self._start = starts if (np.arange(len(starts)) - starts >= evaluator.max_dets).any() else None
        known = detections.class_names
        self.class_names = tuple(name for name in evaluator.data.class_names if name in known)
        columns = [self.class_names.index(name) for name in known]
        self._columns = np.array(columns, dtype=np.int16)[detections.labels[self._base]]
        engine = _VocMatches if isinstance(evaluator, VocEvaluator) else _CocoMatches
        rows = self._image_ids, detections.boxes[self._base], self._columns
        self._engine = engine(evaluator, self.class_names, *rows, places=list(places))

    def evaluate(self, scores: np.ndarray) -> dict:
        """What ``evaluator.evaluate(detections.with_scores(scores))`` returns, with the wanted metrics alone.

        Args:
            scores: New confidences of the detections, in their order, [D].
        """
        scores = np.asarray(scores, dtype=np.float32)
        if scores.shape != (len(self.detections),) or not np.isfinite(scores).all():
            found = f"scores have shape {scores.shape}, or are not finite"
            raise DataError(f"{found}. Expected finite numbers ({len(self.detections)},).")
        scores = scores[self._base]
        order = np.lexsort((-scores, self._image_ids))  # stable: equal scores stay in the order of the rows
        if self._start is not None:
            order = order[np.arange(len(order)) - self._start < self.evaluator.max_dets]
        by_class = order[np.argsort(self._columns[order], kind="stable")]
        counts = np.bincount(self._columns[order], minlength=len(self.class_names))
        rows = np.split(by_class, np.cumsum(counts)[:-1]) if len(self.class_names) else []
        precision = self._engine.precision(scores, order, rows)
        result = self._means(precision, "")
        for name, group in self.evaluator.groups.items():
            columns = [self.class_names.index(member) for member in group if member in self.class_names]
            result |= self._means(precision[:, :, columns], name[0])
        per_class = {name: self._means(precision[:, :, [k]], "") for k, name in enumerate(self.class_names)}
        num_images = max(len(self.evaluator.data), 1)
        return result | {"per_class": per_class, "num_detections": len(order) / num_images}

    def _means(self, precision: np.ndarray, prefix: str) -> dict[str, float | None]:
        """Means in percent over classes with ground truth, as the evaluator makes them."""
        means = {}
        for metric, position in self._positions.items():
            values = precision[position]
            values = values[values != -1]
            means[prefix + metric] = 100.0 * float(values.mean()) if values.size else None
        return means


class _CocoMatches:
    """pycocotools' matching and precision for rows whose order alone changes.

    A *pair* is an image and a class of which the image shows an object; its *contenders* are the rows that overlap an
    object enough for the lowest threshold. All other rows match nothing in any order.

    Args:
        evaluator: With the ground truth.
        class_names: The K classes.
        image_ids: int64 [D], ascending.
        boxes: float32 [D, 4].
        columns: Class of each row, [D].
        places: Which of COCO's ten thresholds count.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        class_names: Sequence[str],
        image_ids: np.ndarray,
        boxes: np.ndarray,
        columns: np.ndarray,
        *,
        places: Sequence[int],
    ) -> None:
        self._eval = COCOeval(iouType="bbox")
        params = self._eval.params
        params.iouThrs = params.iouThrs[places]
        params.catIds, params.imgIds = list(range(len(class_names))), [0]
        params.areaRng, params.areaRngLbl, params.maxDets = [AREA], ["all"], [NO_LIMIT]
        self._eval._paramsEval = params
        labels = {evaluator.data.class_names.index(name): k for k, name in enumerate(class_names)}
        truth = {
            (image_id, labels[label]): objects
            for (image_id, label), objects in evaluator._ground_truth.items()
            if label in labels
        }
        self._gt_ignore: list[list[int]] = [[] for _ in class_names]
        for (_, k), objects in truth.items():
            self._gt_ignore[k] += [int(bool(entry["ignore"])) for entry in objects]
        self._matched = np.zeros((len(places), len(boxes)), dtype=bool)
        self._ignored = np.zeros_like(self._matched)
        self._find_contenders(truth, image_ids, boxes, columns)
        self._memory: dict[tuple[int, bytes], tuple[np.ndarray, np.ndarray]] = {}

    def _find_contenders(
        self, truth: Mapping, image_ids: np.ndarray, boxes: np.ndarray, columns: np.ndarray
    ) -> None:
        """Overlaps of each pair, once; its contenders go into flat arrays, pair after pair."""
        boxes_xywh = xyxy_to_xywh(boxes)
        areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
        lowest = min(self._eval.params.iouThrs[0], 1 - 1e-10)  # as evaluateImg has it
        contenders, self._eval._gts, self._eval._dts, self._overlaps = [], {}, {}, []
        for key, rows in _rows_by_pair(truth, image_ids, columns):
            objects = truth[key]
            self._ignored[:, rows] = areas[rows] > AREA[1]  # what evaluateImg says of unmatched rows
            crowd = [entry["iscrowd"] for entry in objects]
            overlaps = coco_mask.iou(boxes_xywh[rows], np.array([entry["bbox"] for entry in objects]), crowd)
            is_contender = overlaps.max(axis=1) >= lowest
            if is_contender.any():
                rows, pair = rows[is_contender], len(contenders)
                self._eval._gts[0, pair] = objects
                self._eval._dts[0, pair] = [
                    {"id": row + 1, "score": 0.0, "area": areas[row]} for row in rows.tolist()
                ]
                self._overlaps.append(overlaps[is_contender])
                contenders.append(rows)
        lengths = [len(rows) for rows in contenders]
        self._contenders = np.concatenate([np.empty(0, dtype=np.int64), *contenders])  # rows, [M]
        self._pair_of = np.repeat(np.arange(len(contenders)), lengths)  # [M]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._sequence = np.full(len(self._contenders), -2, dtype=np.int32)

    def precision(self, scores: np.ndarray, order: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        """pycocotools' precision [T thresholds, R recalls, K classes]; -1 for a class without ground truth.

        Args:
            scores: Of all rows, [D].
            order: The rows that count, by image, best first.
            rows: The same of each class.
        """
        self._match(order)
        self._eval.evalImgs = [
            {
                "dtScores": scores[own].astype(np.float64),
                "dtMatches": self._matched[:, own],
                "dtIgnore": self._ignored[:, own],
                "gtIgnore": np.array(ignored),
            }
            for own, ignored in zip(rows, self._gt_ignore, strict=True)
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and has no option not to
            self._eval.accumulate()
        return self._eval.eval["precision"][:, :, :, 0, 0]

    def _match(self, order: np.ndarray) -> None:
        """Bring the matches up to date where the contenders of a pair changed their order."""
        rank = np.full(self._matched.shape[1], len(order), dtype=np.int64)  # rows that do not count come last
        rank[order] = np.arange(len(order))
        rank = rank[self._contenders]
        places = np.lexsort((rank, self._pair_of))
        sequence = (places - self._starts[self._pair_of]).astype(np.int32)  # of each pair, best first
        sequence[rank[places] == len(order)] = -1
        changed = np.unique(self._pair_of[sequence != self._sequence])
        self._sequence = sequence
        bounds = zip(changed.tolist(), self._starts[changed].tolist(), self._starts[changed + 1].tolist())
        for pair, start, end in bounds:
            local = sequence[start:end]
            local = local[local >= 0]
            rows = self._contenders[start + local]
            self._matched[:, rows], self._ignored[:, rows] = self._match_pair(pair, local)

    def _match_pair(self, pair: int, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pycocotools' matches of a pair's contenders in an order, bool [T, n] twice: matched, ignored."""
        key = pair, local.tobytes()
        if key not in self._memory:
            if len(self._memory) >= MEMORY:
                self._memory.clear()
            entries = self._eval._dts[0, pair]
            self._eval._dts[0, pair] = [
                entries[i] for i in local.tolist()
            ]  # equal scores: their order counts
            self._eval.ious = {(0, pair): self._overlaps[pair][local]}
            found = self._eval.evaluateImg(0, pair, AREA, NO_LIMIT)
            self._eval._dts[0, pair] = entries
            self._memory[key] = found["dtMatches"] != 0, found["dtIgnore"]
        return self._memory[key]


def _rows_by_pair(
    truth: Mapping, image_ids: np.ndarray, columns: np.ndarray
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The rows of each (image id, class) that shows an object, as ((image id, class), rows)."""
    num_classes = int(columns.max(initial=0)) + 1
    keys = image_ids * num_classes + columns  # [D]
    wanted = [image_id * num_classes + k for image_id, k in truth if k < num_classes]
    rows = np.flatnonzero(np.isin(keys, np.array(wanted, dtype=np.int64)))
    rows = rows[np.argsort(keys[rows], kind="stable")]
    bounds = np.flatnonzero(np.diff(keys[rows])) + 1
    for own in np.split(rows, bounds) if len(rows) else ():
        yield (int(image_ids[own[0]]), int(columns[own[0]])), own


class _VocMatches:
    """VOC's overlaps, once, and its precision for any order; arguments as for `_CocoMatches`."""

    def __init__(
        self,
        evaluator: VocEvaluator,
        class_names: Sequence[str],
        image_ids: np.ndarray,
        boxes: np.ndarray,
        columns: np.ndarray,
        *,
        places: Sequence[int],
    ) -> None:
        self._metric, self._rounding, self._absent = evaluator.metric, evaluator.rounding, evaluator.absent
        self._truth = [evaluator._truth[evaluator.data.class_names.index(name)] for name in class_names]
        self._thresholds = [THRESHOLDS[place] for place in places]
        self._overlaps, self._objects = np.empty(len(boxes)), np.empty(len(boxes), dtype=np.int64)
        for k, truth in enumerate(self._truth):
            rows = np.flatnonzero(columns == k)
            devkit_boxes, _ = devkit_numbers(boxes[rows], np.zeros(len(rows)), rounding=self._rounding)
            self._overlaps[rows], self._objects[rows] = best_overlaps(devkit_boxes, image_ids[rows], truth)

    def precision(self, scores: np.ndarray, order: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Average precision [T thresholds, 1, K classes], 0 to 1; -1 for a class that counts nowhere."""
        result = np.full((len(self._thresholds), 1, len(self._truth)), -1.0)
        for k, (own, truth) in enumerate(zip(rows, self._truth, strict=True)):
            if truth.is_ignored.all() and self._absent == "left_out":
                continue
            no_boxes = np.zeros((len(own), 4), dtype=np.float32)
            _, written = devkit_numbers(no_boxes, scores[own], rounding=self._rounding)
            own = own[np.argsort(-written, kind="stable")]
            found = self._overlaps[own], self._objects[own], truth.is_ignored
            for t, thresh in enumerate(self._thresholds):
                curve = precision_recall(*found, iou_thresh=thresh)
                result[t, 0, k] = average_precision(*curve, metric=self._metric)
        return result


def sweep_scores(
    scores: np.ndarray, rows: np.ndarray, label_probs: np.ndarray, *, c: Sequence[float], fusion: Fusion
) -> np.ndarray:
    """The score vectors of a sweep over c, from one softmax.

    Args:
        scores: The detector's, float32 [D].
        rows: Which are re-scored, bool [D], and
        label_probs: CLIP's probability of each of these, [number of rows]; both from `label_probabilities`.
        c: The C weights of the detector.
        fusion: As for `fuse`.

    Returns:
        float32 [C, D], each what `apply_cm_clip` gives.
    """
    result = np.tile(scores, (len(c), 1))  # [C, D]
    own = scores[rows]
    for vector, weight in zip(result, c, strict=True):
        vector[rows] = fuse(own, label_probs, c=weight, fusion=fusion)
    return result


def sweep_c(
    sweep: ScoreSweep,
    similarities: Similarities,
    *,
    c: Sequence[float],
    fusion: Fusion = "arithmetic",
    **options,
) -> list[dict]:
    """Average precision at each c, from stored cosines: one softmax, no overlap computed again.

    Args:
        sweep: The detections, with their evaluator.
        similarities: Cosines of the same detections.
        c: Weights of the detector.
        fusion: As for `fuse`.
        options: Temperature, label space, classes and threshold, as for `label_probabilities`.
    """
    rows, label_probs = label_probabilities(sweep.detections, similarities, **options)
    vectors = sweep_scores(sweep.detections.scores, rows, label_probs, c=c, fusion=fusion)
    return [sweep.evaluate(vector) for vector in vectors]
