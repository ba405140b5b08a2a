"""COCO's average precision for all, base and novel classes with pycocotools, and the recall of proposals.

pycocotools stays the one engine: `COCOeval.evaluate` and `COCOeval.accumulate` run unchanged, with area "all" and one
limit of detections. Only the way in is ours: arrays become the annotation dicts they read, without a results file,
an index of all annotations or printing. A test compares each number with the stock path.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.detections import Detections, xyxy_to_xywh
from risf_core.errors import DataError

METRICS = {"AP": slice(None), "AP50": 0, "AP75": 5}  # positions in COCO's thresholds .50, .55, ... .95
# Detections of an image, all classes together, as detectron2's TEST.DETECTIONS_PER_IMAGE. COCO's own limit of 100 is
# for each class of an image, so it never cuts anything afterwards.
MAX_DETS = 100


def evaluate(
    detections: Detections,
    data: DetectionData,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    max_dets: int = MAX_DETS,
) -> dict:
    """Average precision of detections on a test set; see `Evaluator.evaluate`."""
    return Evaluator(data, groups=groups, max_dets=max_dets).evaluate(detections)


class Evaluator:
    """The ground truth of a test set, prepared once for any number of evaluations."""

    def __init__(
        self,
        data: DetectionData,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        max_dets: int = MAX_DETS,
    ) -> None:
        """
        Args:
            data: The test set. Crowd regions are ignored as COCO does: a detection inside one counts neither way.
                Difficult boxes, which COCO does not know, are ignored as its boxes outside an area range are.
            groups: Class names by group, e.g. ``{"base": [...], "novel": [...]}``; the first letter of a group is the
                prefix of its metrics (``bAP``, ``nAP50``).
            max_dets: The best detections of an image that count, all classes together.
        """
        self.data = data
        self.groups = {
            name: check_class_list(names, data.class_names, where=name)
            for name, names in (groups or {}).items()
        }
        prefixes = [name[:1] for name in self.groups]
        if len(set(prefixes)) != len(prefixes) or "" in prefixes:
            raise DataError(
                f"groups {list(self.groups)} do not differ in the first letter, the prefix of their metrics."
            )
        if max_dets < 1:
            raise DataError(f"max_dets is {max_dets}; expected 1 or more.")
        self.max_dets = max_dets
        self._image_ids = np.array(sorted(image.image_id for image in data.images), dtype=np.int64)
        self._ground_truth = _ground_truth(data)

    def evaluate(self, detections: Detections) -> dict:
        """Average precision in percent, over the classes the detector knows.

        A class without a detection has 0; a class without ground truth has None and stays outside every mean. A group
        of which the detector knows no class has None.

        Returns:
            ``AP``, ``AP50``, ``AP75`` over the detector's classes; the same with its prefix for each group;
            ``per_class``: ``{class name: {"AP", "AP50", "AP75"}}``; ``num_detections``: how many counted, a mean
            over the images.

        Raises:
            DataError: If the detections name a class or an image that the data does not have, or the detector knows
                only some classes of a group.
        """
        self._check(detections)
        detections = detections.top(self.max_dets)
        class_names = [name for name in self.data.class_names if name in detections.class_names]
        precision = self._precision(detections, class_names)
        result = _means(precision, "")
        for name, group in self.groups.items():
            columns = [class_names.index(member) for member in group if member in class_names]
            result |= _means(precision[:, :, columns], name[0])
        per_class = {name: _means(precision[:, :, [k]], "") for k, name in enumerate(class_names)}
        return result | {"per_class": per_class, "num_detections": len(detections) / max(len(self.data), 1)}

    def _check(self, detections: Detections) -> None:
        check_class_list(detections.class_names, self.data.class_names, where="classes of the detections")
        is_known = np.isin(detections.image_ids, self._image_ids)
        if not is_known.all():
            image_id = detections.image_ids[~is_known][0]
            raise DataError(
                f"{self.data.name}: there are detections of image {image_id}, which is not in the data."
            )
        for name, group in self.groups.items():
            unknown = [member for member in group if member not in detections.class_names]
            if unknown and len(unknown) < len(group):
                raise DataError(
                    f"group {name}: the detector knows only some of its classes; {unknown[0]!r} is missing."
                )

    def _precision(self, detections: Detections, class_names: Sequence[str]) -> np.ndarray:
        """pycocotools' precision [T thresholds, R recalls, K classes]; -1 for a class without ground truth."""
        labels = [self.data.class_names.index(name) for name in detections.class_names]
        evaluation = _ArrayCOCOeval(
            self._ground_truth, detections, np.array(labels, dtype=np.int64)[detections.labels]
        )
        evaluation.params.imgIds = self._image_ids.tolist()
        evaluation.params.catIds = [self.data.class_names.index(name) for name in class_names]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [self.max_dets]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and has no option not to
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][:, :, :, 0, 0]


class _ArrayCOCOeval(COCOeval):
    """COCOeval on arrays, which does not search for matches in images that do not show the class.

    Args:
        ground_truth: COCO's annotation dicts by (image id, label).
        detections: Sorted by score within each image.
        labels: Their labels in the ground truth's numbers, int64 [D].
    """

    def __init__(self, ground_truth: Mapping, detections: Detections, labels: np.ndarray) -> None:
        super().__init__(iouType="bbox")
        self._gts = ground_truth
        self._dts: dict[tuple[int, int], list[dict]] = {}
        self._unmatched: dict[tuple[int, int], np.ndarray] = {}  # scores where there is nothing to match
        order = np.lexsort((labels, detections.image_ids))  # stable: within image and label still by score
        image_ids, labels = detections.image_ids[order], labels[order]
        scores, boxes = detections.scores[order].astype(np.float64), xyxy_to_xywh(detections.boxes[order])
        is_start = np.diff(image_ids, prepend=-1).astype(bool) | np.diff(labels, prepend=-1).astype(bool)
        starts = np.flatnonzero(is_start)
        keys = zip(image_ids[starts].tolist(), labels[starts].tolist())
        for key, start, end in zip(keys, starts.tolist(), [*starts[1:].tolist(), len(order)]):
            if key in ground_truth:
                self._dts[key] = _annotations(boxes[start:end], start + 1, scores=scores[start:end].tolist())
            else:
                self._unmatched[key] = scores[start:end]

    def _prepare(self) -> None:
        """Nothing is left to prepare."""

    def computeIoU(self, imgId, catId):  # noqa: N802, N803  the names are pycocotools'
        is_pair = (imgId, catId) in self._dts
        return super().computeIoU(imgId, catId) if is_pair else []

    def evaluateImg(self, imgId, catId, aRng, maxDet):  # noqa: N802, N803
        if (imgId, catId) in self._gts:
            self._dts.setdefault((imgId, catId), [])
            return super().evaluateImg(imgId, catId, aRng, maxDet)
        scores = self._unmatched.get((imgId, catId))
        if scores is None:
            return None
        nothing = np.zeros((len(self.params.iouThrs), len(scores)), dtype=bool)
        return {"dtScores": scores, "dtMatches": nothing, "dtIgnore": nothing, "gtIgnore": np.zeros(0)}


def _ground_truth(data: DetectionData) -> dict[tuple[int, int], list[dict]]:
    """COCO's annotation dicts by (image id, label)."""
    found, next_id = defaultdict(list), 1  # ids from 1: pycocotools reads a match with id 0 as none
    for image in data.images:
        flags = list(zip(image.is_crowd.tolist(), (image.is_crowd | image.is_difficult).tolist()))
        annotations = _annotations(xyxy_to_xywh(image.boxes), next_id, flags=flags)
        for label, annotation in zip(image.labels.tolist(), annotations):
            found[image.image_id, label].append(annotation)
        next_id += len(annotations)
    return dict(found)


def _annotations(boxes_xywh: np.ndarray, first_id: int, *, scores=None, flags=None) -> list[dict]:
    """COCO's annotation dicts of boxes [N, 4], with the fields that the evaluation of boxes reads.

    `scores` are those of detections, `flags` (is_crowd, is_ignored) those of objects.
    """
    extra = (
        [{"score": score} for score in scores]
        if scores is not None
        else [{"iscrowd": int(is_crowd), "ignore": int(is_ignored)} for is_crowd, is_ignored in flags]
    )
    areas = (boxes_xywh[:, 2] * boxes_xywh[:, 3]).tolist()
    rows = zip(boxes_xywh.tolist(), areas, extra)
    return [
        {"id": first_id + n, "bbox": box, "area": area} | fields for n, (box, area, fields) in enumerate(rows)
    ]


def _means(precision: np.ndarray, prefix: str) -> dict[str, float | None]:
    """Mean precision in percent over classes with ground truth, as pycocotools summarizes; None without any."""
    means = {}
    for metric, thresholds in METRICS.items():
        values = precision[thresholds]
        values = values[values != -1]
        means[prefix + metric] = 100.0 * float(values.mean()) if values.size else None
    return means


def proposal_recall(
    boxes: Mapping[int, np.ndarray],
    data: DetectionData,
    class_names: Sequence[str],
    *,
    iou_thresh: float = 0.5,
    top: int = 100,
) -> float | None:
    """Share of the objects of some classes that a proposal covers, in percent.

    An object is found if any of the first proposals of its image overlaps it enough; one proposal may find several.

    Args:
        boxes: Proposals by image id: corners in pixels of the original image, [P, 4], best first.
        data: The test set; crowd regions and difficult boxes are left out.
        class_names: The classes that count.
        iou_thresh: Least overlap.
        top: How many proposals of each image count.

    Returns:
        Percent, or None if the data has no such object.
    """
    missing = [image.image_id for image in data.images if image.image_id not in boxes]
    if missing:
        raise DataError(f"{data.name}: {len(missing)} images have no proposals, the first is {missing[0]}.")
    names = check_class_list(class_names, data.class_names, where=data.name)
    labels = [data.class_names.index(name) for name in names]
    num_found = num_objects = 0
    for image in data.images:
        objects = image.boxes[np.isin(image.labels, labels) & ~image.is_crowd & ~image.is_difficult]
        num_objects += len(objects)
        proposals = np.asarray(boxes[image.image_id])[:top]
        if len(objects) and len(proposals):
            crowd = np.zeros(len(objects), dtype=np.uint8)
            iou = coco_mask.iou(xyxy_to_xywh(proposals), xyxy_to_xywh(objects), crowd)  # [P, N]
            num_found += int((iou.max(axis=0) >= iou_thresh).sum())
    return 100.0 * num_found / num_objects if num_objects else None
