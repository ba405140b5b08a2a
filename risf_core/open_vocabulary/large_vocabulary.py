"""Detections under a large vocabulary: the scores of all classes of every detection would not fit the memory.

LVIS's 19,809 test images with 300 detections each and 1,204 columns are 29 GB of class scores, which no metric reads.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from risf_core.data.dataset import DetectionData
from risf_core.data.loader import load_batch
from risf_core.detecting import detect_images
from risf_core.detections import ARRAY_TYPES, Detections, cut
from risf_core.open_vocabulary.detector import OpenVocabularyRCNN
from risf_core.progress import progress

LARGE = 300  # classes from which on class scores are left out
KEPT = ("image_ids", "boxes", "scores", "labels", "proposals")


class LeanDetections(Detections):
    """Detections whose ``class_scores`` are zeros that take no memory."""

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], class_names: tuple[str, ...]) -> LeanDetections:
        """Columns by the names of `KEPT`, in any order of rows."""
        order = np.lexsort(
            (columns["labels"], columns["proposals"], -columns["scores"], columns["image_ids"])
        )
        rows = {name: np.asarray(columns[name], dtype=ARRAY_TYPES[name])[order] for name in KEPT}
        return cls(**rows, class_scores=_zeros(len(order), class_names), class_names=class_names)

    def keep(self, mask: np.ndarray) -> LeanDetections:
        """The detections of a bool mask [D]."""
        rows = {name: getattr(self, name)[mask] for name in KEPT}
        return replace(self, **rows, class_scores=_zeros(int(np.sum(mask)), self.class_names))

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file without the class scores."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            names = np.array(self.class_names, dtype=np.str_)
            np.savez(file, **{name: getattr(self, name) for name in KEPT}, class_names=names)
        os.replace(temporary, path)


def _zeros(count: int, class_names: tuple[str, ...]) -> np.ndarray:
    return np.broadcast_to(np.float32(0), (count, len(class_names) + 1))


@torch.no_grad()
def detect_vocabulary(
    detector: OpenVocabularyRCNN,
    data: DetectionData,
    path: Path,
    *,
    score_thresh: float,
    max_detections: int,
) -> Detections:
    """Detect in all images, store what was found, and return what counts.

    Args:
        path: Where the detections are stored: all of them (score > 0.001, at most 300 an image), with a vocabulary of
            300 classes or more those that count, without class scores.
        score_thresh: Detections at or below it do not count.
        max_detections: The best of an image that count.
    """
    if len(data.class_names) < LARGE:
        found = detect_images(detector, data)
        found.save(path)
        return cut(found, None, score_thresh=score_thresh, max_detections=max_detections)[0]
    detector.eval()
    columns: dict[str, list[np.ndarray]] = {name: [] for name in KEPT}
    for index in progress(range(len(data)), desc="detecting", unit="image"):
        images, _ = load_batch(data, [index])
        padded, sizes = detector.batch([detector.resize(images[0].to(detector.pixel_mean.device))])
        own_sizes = [tuple(images[0].shape[-2:])]
        limits = {"score_thresh": score_thresh, "max_detections": max_detections}
        (one,) = detector.detect(padded, sizes, own_sizes, **limits)
        rows = {name: one[name].cpu().numpy() for name in ("boxes", "scores", "labels")}
        rows |= {"proposals": one["proposal"].cpu().numpy()}
        rows["image_ids"] = np.full(len(rows["scores"]), data.images[index].image_id)
        for name in KEPT:
            columns[name].append(rows[name])
    found = LeanDetections.of(
        {name: np.concatenate(values) for name, values in columns.items()}, data.class_names
    )
    found.save(path)
    return found
