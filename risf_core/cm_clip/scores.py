"""The arithmetic of CM-CLIP: label spaces, the blend of two scores, and re-scoring from stored cosines. NumPy alone."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError

BACKGROUND = "background"
TEMPERATURE = 100.0  # factor of the cosines in the released code, and CLIP's largest logit scale


def rescore(scores: Tensor, label_probs: Tensor, *, c: float) -> Tensor:
    """Blend detector confidence with the image-text probability of the predicted class.

    The calibration of CM-CLIP: ``c * scores + (1 - c) * label_probs``. Works on NumPy arrays as well.

    Args:
        scores: Detector confidences in [0, 1], shape [N].
        label_probs: CLIP's probability of each detection's own label, in [0, 1], shape [N].
        c: Weight of the detector, in [0, 1]; 1.0 returns `scores` unchanged.

    Returns:
        New confidences in [0, 1], shape [N], same type as `scores`.

    Raises:
        ValueError: If the shapes differ or c is outside [0, 1].

    Example:
        >>> rescore(torch.tensor([0.8]), torch.tensor([0.6]), c=0.5)
        tensor([0.7000])
    """
    if scores.shape != label_probs.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and label_probs {tuple(label_probs.shape)} differ in shape"
        )
    if not 0.0 <= c <= 1.0:
        raise ValueError(f"c is {c}. Expected a weight from 0 (CLIP alone) to 1 (detector alone).")
    return c * scores + (1.0 - c) * label_probs


def label_space_names(
    label_space: str, *, novel_names: Sequence[str], base_names: Sequence[str] = ()
) -> tuple[str, ...]:
    """The names of a label space, background last.

    Args:
        label_space: "novel+background" (paper) or "novel+base+background" (base names compete as well: an extension).
    """
    groups = {"novel": tuple(novel_names), "base": tuple(base_names), BACKGROUND: (BACKGROUND,)}
    parts = label_space.split("+")
    if parts[-1] != BACKGROUND or set(parts) - set(groups):
        raise ParamsError(f"label space {label_space!r}: expected novel+background or novel+base+background.")
    return tuple(name for part in parts for name in groups[part])


def rescored_rows(
    detections: Detections, rescored_classes: Sequence[str] | None, score_thresh: float
) -> np.ndarray:
    """Which detections CM-CLIP touches: bool [D], a score above the threshold and a class of the list (None: any)."""
    names = detections.class_names if rescored_classes is None else rescored_classes
    unknown = [name for name in names if name not in detections.class_names]
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} is no class of the detections ({', '.join(detections.class_names)})."
        )
    is_rescored = np.array([name in names for name in detections.class_names], dtype=bool)
    return (detections.scores > score_thresh) & is_rescored[detections.labels]


def apply_cm_clip(
    detections: Detections,
    similarities: Similarities,
    *,
    c: float = 0.7,
    temperature: float = TEMPERATURE,
    label_space: Sequence[str],
    rescored_classes: Sequence[str] | None = None,
    score_thresh: float = 0.05,
) -> Detections:
    """Re-score stored detections from stored cosines: NumPy alone, no model.

    Args:
        detections: Those that `similarities` was encoded from.
        similarities: Cosines with a label list that holds `label_space`.
        c: Weight of the detector's score.
        temperature: Factor of the cosines.
        label_space: The names that compete in the softmax; each re-scored class is one of them.
        rescored_classes: Names of the classes whose detections change; None for all of the detector's.
        score_thresh: Detections at or below it keep their score.

    Returns:
        The detections with new scores, in the order of these.

    Raises:
        DataError: If the two files do not belong together, or a re-scored class has no column.
    """
    if len(detections) != len(similarities):
        raise DataError(
            f"{len(similarities)} rows of similarities for {len(detections)} detections: not the same run."
        )
    rows = rescored_rows(detections, rescored_classes, score_thresh)
    if (rows & ~similarities.encoded).any():
        count = int((rows & ~similarities.encoded).sum())
        raise DataError(
            f"{count} detections to re-score were not encoded. Encode with a threshold of {score_thresh}."
        )
    labels = detections.labels[rows]
    names = [detections.class_names[label] for label in range(len(detections.class_names))]
    absent = [names[label] for label in np.unique(labels) if names[label] not in label_space]
    if absent:
        raise DataError(
            f"class {absent[0]!r} is re-scored but stands not in the label space {list(label_space)}."
        )
    columns = np.array([label_space.index(name) if name in label_space else -1 for name in names])
    probs = _softmax(np.float32(temperature) * similarities.columns(label_space)[rows])
    label_probs = probs[np.arange(len(labels)), columns[labels]]  # [n, L] -> [n]
    scores = detections.scores.copy()
    scores[rows] = rescore(scores[rows], label_probs, c=c)
    return detections.with_scores(scores)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
