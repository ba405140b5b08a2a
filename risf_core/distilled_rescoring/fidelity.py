"""How near a head comes to CLIP: on annotated test boxes of base and of novel classes, and on detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from risf_core.cm_clip import CMCLIP
from risf_core.data.benchmark import Benchmark
from risf_core.detections import _load_npz as load_arrays
from risf_core.detections import _save_npz as save_arrays
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.distilled_rescoring.pairs import pool_boxes, view_image
from risf_core.progress import progress


@dataclass(frozen=True, eq=False)
class TruthBoxes:
    """Annotated test boxes as detector and CLIP see them.

    ``features`` float32 [N, D], ``embeds`` float32 [N, d] (normalised), ``labels`` int64 [N] among base, then novel
    names.
    """

    features: np.ndarray
    embeds: np.ndarray
    labels: np.ndarray


def truth_boxes(
    detector: FasterRCNN, benchmark: Benchmark, clip: CMCLIP, *, count: int, path: Path
) -> TruthBoxes:
    """The annotated boxes of the first ``count`` test images, crowd regions left out; kept at ``path``."""
    if not path.exists():
        data = benchmark.test.select_classes((*benchmark.base_names, *benchmark.novel_names))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in TruthBoxes.__dataclass_fields__}
        detector.eval()
        for record in progress(data.images[:count], desc="annotated test boxes", unit="image"):
            boxes = torch.from_numpy(record.boxes[~record.is_crowd])
            if len(boxes):
                view = view_image(detector, record)
                parts["features"].append(pool_boxes(detector, view, boxes).numpy())
                parts["embeds"].append(clip.embed_boxes(view.image, boxes).cpu().numpy())
                parts["labels"].append(record.labels[~record.is_crowd])
        save_arrays(path, {name: np.concatenate(values) for name, values in parts.items()})
    return TruthBoxes(**load_arrays(path, tuple(TruthBoxes.__dataclass_fields__)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True, initial=-np.inf)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def text_fidelity(student: np.ndarray, teacher: np.ndarray, *, temperature: float) -> dict[str, float]:
    """Agreement of two sets of cosines [N, L] with the same names: share of equal best names in percent, and KL.

    KL is the mean of ``KL(softmax(t teacher) || softmax(t student))`` in nats.
    """
    said, meant = log_softmax(temperature * student), log_softmax(temperature * teacher)
    divergence = (np.exp(meant) * (meant - said)).sum(axis=1)
    same = student.argmax(axis=1) == teacher.argmax(axis=1)
    return {"agreement": 100.0 * float(same.mean()), "kl": float(divergence.mean())}


def truth_fidelity(
    embeds_norm: np.ndarray,
    truth: TruthBoxes,
    texts_norm: np.ndarray,
    names: Sequence[str],
    class_names: Sequence[str],
    *,
    temperature: float,
) -> dict[str, float]:
    """How near a head's embeddings of annotated boxes are to CLIP's, and what both know.

    Args:
        embeds_norm: The head's, [N, d].
        truth: The boxes.
        texts_norm: Of all names, [L, d].
        names: The L names.
        class_names: What ``truth.labels`` count.
        temperature: Of the divergence.

    Returns:
        ``cosine`` (mean of q.v), ``agreement`` and ``kl`` over all names, ``right`` and ``right_clip``: the share of
        boxes whose own class is the best of all names, by the head and by CLIP, in percent; ``boxes``.
    """
    columns = np.array([names.index(name) for name in class_names])[truth.labels]
    student, teacher = embeds_norm @ texts_norm.T, truth.embeds @ texts_norm.T
    return {
        "boxes": len(truth.labels),
        "cosine": float((embeds_norm * truth.embeds).sum(axis=1).mean()),
        **text_fidelity(student, teacher, temperature=temperature),
        "right": 100.0 * float((student.argmax(axis=1) == columns).mean()),
        "right_clip": 100.0 * float((teacher.argmax(axis=1) == columns).mean()),
    }


def rank_agreement(probs: np.ndarray, reference: np.ndarray) -> float | None:
    """Spearman's correlation of two sets of probabilities; None where it is not defined."""
    value = float(spearmanr(probs, reference).statistic) if len(probs) > 1 else float("nan")
    return None if np.isnan(value) else value
