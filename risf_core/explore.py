"""Stored detections and cosines, one image at a time: what 01_explore shows under its slider. No forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, get_args

import numpy as np
import pandas as pd

from risf_core.cm_clip.scores import label_probabilities, label_space_names
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError
from risf_core.params import CmClipParams, LabelSpace
from risf_core.report.pictures import box_iou
from risf_core.score_sweeps import sweep_scores

MAX_BOXES = 20  # of an image, the detector's best: more lines and rows than these nobody reads
MIN_IOU = 0.5  # a detection with the class of an object and this overlap is right, as in AP50


class CellKey(NamedTuple):
    """Which fine-tuning; ``shots`` is K, ``seed`` the draw of the K-shot images."""

    split: int
    shots: int
    loss: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"split {self.split}, K = {self.shots}, {self.loss}, arm {self.arm}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Cell:
    """The stored files of one fine-tuning.

    Attributes:
        detections: Those that count, D of all images.
        similarities: Their cosines, in the same order.
        data: Test images with the boxes of the novel classes, which are those of the detections.
        base_names: Base classes, which compete in the wider label space.
        options: How its run re-scored: temperature, threshold, fusion.
    """

    detections: Detections
    similarities: Similarities
    data: DetectionData
    base_names: tuple[str, ...]
    options: CmClipParams

    def names(self, label_space: str) -> tuple[str, ...]:
        """The L names of a label space, background last."""
        return label_space_names(label_space, novel_names=self.data.class_names, base_names=self.base_names)

    @cached_property
    def label_spaces(self) -> tuple[str, ...]:
        """The label spaces whose names all have stored cosines."""
        stored = set(self.similarities.label_names)
        return tuple(space for space in get_args(LabelSpace) if stored.issuperset(self.names(space)))

    def view(self, image_id: int, label_space: str) -> View:
        """One image of it.

        Raises:
            DataError: If the image is not among the test images.
            ParamsError: If there are no cosines with a name of the label space.
        """
        records = {record.image_id: record for record in self.data.images}
        if image_id not in records:
            raise DataError(f"{self.data.name}: no image {image_id}. Expected one of its {len(records)} ids.")
        if label_space not in self.label_spaces:
            known = ", ".join(self.label_spaces)
            raise ParamsError(
                f"label_space: {label_space}, but its run has stored cosines for {known} alone."
            )
        is_own = self.detections.image_ids == image_id
        is_own[np.flatnonzero(is_own)[MAX_BOXES:]] = False  # rows stand by descending score
        return View(self._keep(is_own), records[image_id], label_space)

    def scores(self, c: Sequence[float], label_space: str) -> np.ndarray:
        """The scores at each c, float32 [C, D]: those of `apply_cm_clip`, in the order of the detections."""
        rows, label_probs = label_probabilities(
            self.detections,
            self.similarities,
            temperature=self.options.temperature,
            label_space=self.names(label_space),
            score_thresh=self.options.score_thresh,
            not_encoded=self.options.not_encoded,
        )
        return sweep_scores(self.detections.scores, rows, label_probs, c=c, fusion=self.options.fusion)

    def probabilities(self, label_space: str) -> np.ndarray:
        """CLIP's probability of each name of the label space, float32 [D, L]; NaN for boxes without a crop."""
        logits = self.similarities.columns(self.names(label_space)) * np.float32(self.options.temperature)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))  # [D, L]
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def _keep(self, rows: np.ndarray) -> Cell:
        kept = self.detections.keep(rows), self.similarities.keep(rows)
        return replace(self, detections=kept[0], similarities=kept[1])


@dataclass(frozen=True, eq=False)
class View:
    """One image with its N boxes, at most ``MAX_BOXES``, the detector's best first; box 1 is the first.

    Attributes:
        cell: Stored files of these boxes alone.
        record: The image with its ground truth.
        label_space: The names that compete.
    """

    cell: Cell
    record: ImageRecord
    label_space: str

    @property
    def detections(self) -> Detections:
        """The boxes, with the detector's scores."""
        return self.cell.detections

    @cached_property
    def class_names(self) -> list[str]:
        """The class of each box."""
        return [self.detections.class_names[label] for label in self.detections.labels]

    @cached_property
    def is_right(self) -> np.ndarray:
        """Whether an object of the box's class overlaps it by ``MIN_IOU`` or more, bool [N]; crowds do not count."""
        truth = self.record.keep(~self.record.is_crowd)
        is_same = self.detections.labels[:, None] == truth.labels[None, :]  # [N, M]
        return (is_same & (box_iou(self.detections.boxes, truth.boxes) >= MIN_IOU)).any(axis=1)

    def scores(self, c: float) -> np.ndarray:
        """The scores at c, float32 [N]."""
        return self.cell.scores([c], self.label_space)[0]

    def curves(self, c: Sequence[float]) -> np.ndarray:
        """The scores at each c, float32 [C, N]."""
        return self.cell.scores(c, self.label_space)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """CLIP's probabilities, float32 [N, L], see `Cell.probabilities`."""
        return self.cell.probabilities(self.label_space)

    def table(self, c: float, *, top: int = 3) -> pd.DataFrame:
        """A row for each box, the best new score first, with CLIP's ``top`` most probable names.

        Columns: box (its number), class, right, detector (its score), CLIP (probability of the class), score (at c),
        change, and ``CLIP's first names``, a text.
        """
        names, scores = self.cell.names(self.label_space), self.scores(c)
        own = [names.index(name) for name in self.class_names]
        table = pd.DataFrame(
            {
                "box": np.arange(1, len(own) + 1),
                "class": self.class_names,
                "right": np.where(self.is_right, "yes", "no"),
                "detector": self.detections.scores,
                "CLIP": self.probabilities[np.arange(len(own)), np.array(own, dtype=int)],
                "score": scores,
                "change": scores - self.detections.scores,
                "CLIP's first names": [_first_names(names, row, top) for row in self.probabilities],
            }
        )
        return table.sort_values(["score", "box"], ascending=[False, True], ignore_index=True)


def _first_names(names: Sequence[str], probabilities: np.ndarray, top: int) -> str:
    """The most probable names of one box as text; a box without a crop has none."""
    if np.isnan(probabilities).any():
        return "not encoded"
    best = np.argsort(-probabilities, kind="stable")[:top]
    return ", ".join(f"{names[place]} {probabilities[place]:.2f}" for place in best)
