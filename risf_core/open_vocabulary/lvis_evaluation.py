"""LVIS's box average precision: all classes, rare, common and frequent ones (Gupta et al. 2019).

COCO's evaluation with two rules for classes that an image is not annotated with. A detection counts only if its class
is known to be in the image or known not to be; and where a class may have more objects than boxes, a detection that
matches none of them is ignored. There are 300 detections an image, all classes together. The public ``lvis`` package
needs a numpy before 1.24 (it calls ``np.float``), so its rules are applied to our `Evaluator`; the tests hold the
numbers against faster-coco-eval's LVIS mode and against a recomputation in plain Python. (With ``np.float`` put back,
lvis 0.5.3 gave the same six numbers on eight random sets, to nine decimals.)

Mask AP is declared out: these numbers do not stand beside published LVIS numbers, which are of masks.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from itertools import chain

import numpy as np

from risf_core.detections import Detections
from risf_core.evaluation import METRICS, Evaluator, _ArrayCOCOeval
from risf_core.open_vocabulary.lvis_data import FREQUENCIES, LvisData

LVIS_MAX_DETS = 300  # of an image, before any rule


class LvisEvaluator(Evaluator):
    """`Evaluator` with LVIS's rules.

    Besides AP, AP50 and AP75 over all classes it gives bAP... and nAP... of base and novel (rare) classes, and APr,
    APc and APf, the AP of rare, common and frequent ones; percent, None for a group without ground truth.
    """

    def __init__(self, lvis: LvisData, *, max_dets: int = LVIS_MAX_DETS) -> None:
        groups = {"base": lvis.base_names, "novel": lvis.novel_names}
        groups |= {word: lvis.names(letter) for letter, word in FREQUENCIES.items()}
        groups = {name: names for name, names in groups.items() if names}
        super().__init__(lvis.data, groups=groups, max_dets=max_dets)
        images = np.array([record.image_id for record in lvis.data.images], dtype=np.int64)
        self._is_open = frozenset(zip(*(part.tolist() for part in _pairs(images, lvis.not_exhaustive))))
        present = [record.labels for record in lvis.data.images]
        pairs = [_pairs(images, present), _pairs(images, lvis.negative)]
        self._known = np.unique(np.concatenate([self._codes(*pair) for pair in pairs]))

    def evaluate(self, detections: Detections) -> dict:
        """As `Evaluator.evaluate`, with ``APr``, ``APc`` and ``APf``."""
        result = super().evaluate(detections)
        for letter in FREQUENCIES:
            prefixed = {metric: result.pop(letter + metric, None) for metric in METRICS}
            result[f"AP{letter}"] = prefixed["AP"]
        return result

    def _precision(self, detections: Detections, class_names: Sequence[str]) -> np.ndarray:
        """As `Evaluator._precision`, of the detections whose class is known of their image.

        Class by class over the images that have an object or a detection of it: all pairs of 20,000 images and 1,203
        classes would fill the memory.
        """
        labels = np.array([self.data.class_names.index(name) for name in detections.class_names], np.int64)
        is_known = np.isin(self._codes(detections.image_ids, labels[detections.labels]), self._known)
        detections = detections.keep(is_known)
        evaluation = _LvisCOCOeval(
            self._ground_truth, detections, labels[detections.labels], is_open=self._is_open
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [self.max_dets]
        shape = (len(evaluation.params.iouThrs), len(evaluation.params.recThrs), len(class_names))
        precision = np.full(shape, -1.0)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and has no option not to
            for column, name in enumerate(class_names):
                label = self.data.class_names.index(name)
                evaluation.params.catIds = [label]
                evaluation.params.imgIds = evaluation.images_of(label)
                if evaluation.params.imgIds:
                    evaluation.evaluate()
                    evaluation.accumulate()
                    precision[:, :, column] = evaluation.eval["precision"][:, :, 0, 0, 0]
        return precision

    def _codes(self, image_ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """One number for each image and label, int64."""
        return np.searchsorted(self._image_ids, image_ids) * len(self.data.class_names) + labels


class _LvisCOCOeval(_ArrayCOCOeval):
    """COCOeval on arrays, which ignores a detection without a match where a class may have more objects than boxes.

    Args:
        is_open: Those images and labels, as pairs.
    """

    def __init__(
        self, ground_truth: Mapping, detections: Detections, labels: np.ndarray, *, is_open: Container
    ) -> None:
        super().__init__(ground_truth, detections, labels)
        self._is_open = is_open
        self._images: dict[int, set[int]] = defaultdict(set)
        for image_id, label in chain(ground_truth, self._unmatched):
            self._images[label].add(image_id)

    def images_of(self, label: int) -> list[int]:
        """The images with an object or a detection of a class, ascending."""
        return sorted(self._images[label])

    def evaluateImg(self, imgId, catId, aRng, maxDet):  # noqa: N802, N803  the names are pycocotools'
        found = super().evaluateImg(imgId, catId, aRng, maxDet)
        if found is not None and (imgId, catId) in self._is_open:
            found["dtIgnore"] = found["dtIgnore"].astype(bool) | (found["dtMatches"] == 0)
        return found


def _pairs(image_ids: np.ndarray, labels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Image ids and labels in one row each, from the labels of each image."""
    lengths = [len(one) for one in labels]
    return np.repeat(image_ids, lengths), np.concatenate([np.empty(0, np.int64), *labels])
