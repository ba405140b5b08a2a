"""The arithmetic of CM-CLIP: label spaces, the blend of two scores, and re-scoring from stored cosines. NumPy alone."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError, ParamsError

BACKGROUND = "background"
TEMPERATURE = 100.0  # factor of the cosines in the released code, and CLIP's largest logit scale
CHUNK = 4096  # rows of one softmax: with 81 names 1.3 MiB at a time, which a CPU's caches hold
Fusion = Literal["arithmetic", "geometric"]
NotEncoded = Literal["refuse", "zero", "keep"]


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
        >>> rescore(np.array([0.8]), np.array([0.6]), c=0.5)
        array([0.7])
    """
    if scores.shape != label_probs.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and label_probs {tuple(label_probs.shape)} differ in shape"
        )
    if not 0.0 <= c <= 1.0:
        raise ValueError(f"c is {c}. Expected a weight from 0 (CLIP alone) to 1 (detector alone).")
    return c * scores + (1.0 - c) * label_probs


def fuse(scores: Tensor, label_probs: Tensor, *, c: float, fusion: Fusion = "arithmetic") -> Tensor:
    """Two scores as one: the published blend (`rescore`), or their weighted geometric mean (an extension).

    The geometric one is ``scores**c * label_probs**(1 - c)``: linear in the logarithms, so that either score alone can
    veto. Where one of them is 0 so is the result, unless its weight is 0.

    Args:
        scores: Detector confidences, 0 or more, shape [N]; tensor or array.
        label_probs: CLIP's probability of each detection's own label, in [0, 1], shape [N].
        c: Weight of the detector, in [0, 1]; 1.0 returns `scores` unchanged.
        fusion: "arithmetic" or "geometric".

    Example:
        >>> fuse(np.array([0.8]), np.array([0.2]), c=0.5, fusion="geometric").round(6)
        array([0.4])
    """
    if fusion not in get_args(Fusion):
        raise ParamsError(f"fusion is {fusion!r}. Expected one of: {', '.join(get_args(Fusion))}.")
    blend = rescore(scores, label_probs, c=c)
    if fusion == "arithmetic":
        return blend
    if (scores < 0).any():
        raise DataError("a score is negative; fusion: geometric takes powers. Expected scores of 0 or more.")
    return scores**c * label_probs ** (1.0 - c)


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


def label_probabilities(
    detections: Detections,
    similarities: Similarities,
    *,
    temperature: float = TEMPERATURE,
    label_space: Sequence[str],
    rescored_classes: Sequence[str] | None = None,
    score_thresh: float = 0.05,
    not_encoded: NotEncoded = "refuse",
) -> tuple[np.ndarray, np.ndarray]:
    """CLIP's probability of each re-scored detection's own label: what every c and fusion of a sweep shares.

    Arguments as in `apply_cm_clip`.

    Returns:
        Which detections are re-scored, bool [D], and their probabilities, float32 [number of them].
    """
    if len(detections) != len(similarities):
        raise DataError(
            f"{len(similarities)} rows of similarities for {len(detections)} detections: not the same run."
        )
    if isinstance(temperature, str) or not temperature > 0:
        raise ParamsError(
            f"temperature is {temperature!r}. Expected a number above 0; a CLIP knows its learned one."
        )
    if not_encoded not in get_args(NotEncoded):
        choices = ", ".join(get_args(NotEncoded))
        raise ParamsError(f"not_encoded is {not_encoded!r}. Expected one of: {choices}.")
    is_rescored = rescored_rows(detections, rescored_classes, score_thresh)
    lacking = is_rescored & ~similarities.encoded
    if not_encoded == "refuse" and lacking.any():
        lowest = float(detections.scores[lacking].min())
        raise DataError(
            f"{lacking.sum()} detections to re-score were not encoded, of {is_rescored.sum()} with a score above "
            f"{score_thresh:g}; the lowest has {lowest:.4g}. Encode with a threshold of {score_thresh:g}, or re-score "
            "above the one that was encoded with."
        )
    if not_encoded == "keep":
        is_rescored &= similarities.encoded
    own = _own_columns(detections, is_rescored, label_space)  # place in the label space, [n]
    columns = _stored_columns(similarities, label_space)
    rows, known = np.flatnonzero(is_rescored), np.flatnonzero(similarities.encoded[is_rescored])
    probs = np.zeros(len(rows), dtype=np.float32)
    for start in range(0, len(known), CHUNK):
        part = known[start : start + CHUNK]
        logits = similarities.cosines[rows[part]].take(columns, axis=1)  # [n, L]
        logits *= np.float32(temperature)
        probs[part] = _softmax_at(logits, own[part])
    return is_rescored, probs


def _own_columns(detections: Detections, rows: np.ndarray, label_space: Sequence[str]) -> np.ndarray:
    """The place of each detection's class in the label space, int64 [number of rows]."""
    labels, names = detections.labels[rows], detections.class_names
    absent = [names[label] for label in np.unique(labels) if names[label] not in label_space]
    if absent:
        raise DataError(
            f"class {absent[0]!r} is re-scored but stands not in the label space {list(label_space)}."
        )
    columns = [label_space.index(name) if name in label_space else -1 for name in names]
    return np.array(columns, dtype=np.int64)[labels]


def _stored_columns(similarities: Similarities, label_space: Sequence[str]) -> np.ndarray:
    """Where the similarities hold each name, int64 [L]."""
    similarities.keep(np.zeros(len(similarities), dtype=bool)).columns(label_space)  # refuses unknown names
    return np.array([similarities.label_names.index(name) for name in label_space], dtype=np.int64)


def _softmax_at(logits: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One column of each row of the softmax over logits [n, L], which are used up: float32 [n]."""
    logits -= logits.max(axis=1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(logits, out=logits)
    return exponentials[np.arange(len(columns)), columns] / exponentials.sum(axis=1)


def apply_cm_clip(
    detections: Detections,
    similarities: Similarities,
    *,
    c: float = 0.7,
    temperature: float = TEMPERATURE,
    label_space: Sequence[str],
    rescored_classes: Sequence[str] | None = None,
    score_thresh: float = 0.05,
    fusion: Fusion = "arithmetic",
    not_encoded: NotEncoded = "refuse",
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
        fusion: How the two scores become one, see `fuse`.
        not_encoded: What becomes of a detection to re-score without cosines: "refuse" it, take a probability of
            "zero", or "keep" its score. The last two are for budgets that leave boxes out on purpose.

    Returns:
        The detections with new scores, in the order of these.

    Raises:
        DataError: If the two files do not belong together, or a re-scored class has no column.
    """
    rows, label_probs = label_probabilities(
        detections,
        similarities,
        temperature=temperature,
        label_space=label_space,
        rescored_classes=rescored_classes,
        score_thresh=score_thresh,
        not_encoded=not_encoded,
    )
    scores = detections.scores.copy()
    scores[rows] = fuse(scores[rows], label_probs, c=c, fusion=fusion)
    return detections.with_scores(scores)
