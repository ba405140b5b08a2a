"""Stored detections and similarities: every step after the detector is a filter on these two files.

Detections are stored far below the published cuts (score > 0.001, at most 300 an image). The published ones
(score > 0.05, the best 100 of an image) are made by `cut`, so a sweep over them, over c or over the label space costs
no forward pass.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from risf_core.errors import DataError

MAX_DETECTIONS = 100  # an image, for every loss and re-scoring alike (COCO's maxDets)
ARRAY_TYPES = {
    "image_ids": np.int64,
    "boxes": np.float32,
    "scores": np.float32,
    "labels": np.int64,
    "class_scores": np.float32,
    "proposals": np.int64,
}


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of a set of images as flat arrays, sorted by image id, then by descending score.

    Equal scores stand in the order of proposal, then label, so that the same detections are always the same file.
    Arrays are put into this order and type when the object is made; the caller's own stay as they are.

    Attributes:
        image_ids: int64 [D].
        boxes: float32 [D, 4], corners x1, y1, x2, y2 in pixels of the original image.
        scores: float32 [D], final confidence.
        labels: int64 [D], index into `class_names`.
        class_scores: float32 [D, C+1], the detector's softmax of the proposal, background last.
        proposals: int64 [D], index of the RPN proposal within its image.
        class_names: The C classes of the detector.
    """

    image_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_scores: np.ndarray
    proposals: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        arrays = {name: np.asarray(getattr(self, name), dtype=dtype) for name, dtype in ARRAY_TYPES.items()}
        object.__setattr__(self, "class_names", tuple(self.class_names))
        _check_detections(arrays, self.class_names)
        order = _canonical_order(arrays)
        for name, array in arrays.items():
            object.__setattr__(self, name, array if order is None else array[order])

    @classmethod
    def from_images(
        cls, image_ids: Sequence[int], outputs: Sequence[Mapping], class_names: Sequence[str]
    ) -> Detections:
        """Collect what the detector returns for each image.

        Args:
            image_ids: One id for each image.
            outputs: For each image ``boxes`` [d, 4], ``scores`` [d], ``labels`` [d], ``class_scores`` [d, C+1] and
                ``proposal`` [d], as tensors on the CPU or as arrays.
            class_names: The C classes.
        """
        if len(set(image_ids)) != len(image_ids) or len(image_ids) != len(outputs):
            counts = (
                f"{len(image_ids)} image ids ({len(set(image_ids))} different) for {len(outputs)} outputs"
            )
            raise DataError(f"detections: {counts}. Expected one id for each, none twice.")
        keys = {
            "boxes": (4,),
            "scores": (),
            "labels": (),
            "class_scores": (len(class_names) + 1,),
            "proposal": (),
        }
        flat = {}
        for key, width in keys.items():
            parts = [np.asarray(output[key]) for output in outputs]
            flat[key] = np.concatenate(parts) if parts else np.empty((0, *width))
        lengths = [len(output["scores"]) for output in outputs]
        flat_ids = np.repeat(np.asarray(image_ids, dtype=np.int64), lengths)
        return cls(flat_ids, *flat.values(), tuple(class_names))

    def __len__(self) -> int:
        return len(self.scores)

    def keep(self, mask: np.ndarray) -> Detections:
        """The detections of a bool mask [D]."""
        mask = np.asarray(mask)
        if mask.shape != (len(self),) or mask.dtype != bool:
            raise DataError(f"detections: mask is {mask.dtype} {mask.shape}; expected bool ({len(self)},).")
        return replace(self, **{name: getattr(self, name)[mask] for name in ARRAY_TYPES})

    def top(self, max_per_image: int) -> Detections:
        """The best detections of each image, all classes together."""
        start = np.searchsorted(self.image_ids, self.image_ids)  # [D], where the own image begins
        is_best = np.arange(len(self)) - start < max_per_image
        return self if is_best.all() else self.keep(is_best)

    def counting(self, *, score_thresh: float = 0.0, max_per_image: int) -> np.ndarray:
        """Which detections the published cuts leave: bool [D], above the threshold and the best of their image."""
        rows = np.flatnonzero(self.scores > score_thresh)
        start = np.searchsorted(
            self.image_ids[rows], self.image_ids[rows]
        )  # where the own image begins among them
        counts = np.zeros(len(self), dtype=bool)
        counts[rows[np.arange(len(rows)) - start < max_per_image]] = True
        return counts

    def with_scores(self, scores: np.ndarray) -> Detections:
        """The same detections with new scores [D]; the order follows them, so rows move within their image."""
        if np.shape(scores) != (len(self),):
            raise DataError(f"detections: new scores have shape {np.shape(scores)}; expected ({len(self)},).")
        return replace(self, scores=scores)

    def to_coco_results(self, category_ids: Sequence[int]) -> list[dict]:
        """The standard results list of COCO.

        Args:
            category_ids: The data set's id of each class, in the order of `class_names`.
        """
        if len(category_ids) != len(self.class_names):
            counts = f"{len(category_ids)} category ids for {len(self.class_names)} classes"
            raise DataError(f"detections: {counts}; expected one for each.")
        categories = np.asarray(category_ids, dtype=np.int64)[self.labels]
        columns = (self.image_ids, categories, xyxy_to_xywh(self.boxes), self.scores)
        keys = ("image_id", "category_id", "bbox", "score")
        return [dict(zip(keys, row)) for row in zip(*(column.tolist() for column in columns))]

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file; it appears whole or not at all, and the same detections give the same bytes."""
        arrays = {name: getattr(self, name) for name in ARRAY_TYPES}
        _save_npz(Path(path), arrays | {"class_names": _as_text(self.class_names)})

    @classmethod
    def load(cls, path: str | Path) -> Detections:
        """Read a file that `save` wrote.

        Raises:
            DataError: If it is missing, unreadable, or holds anything else; the file is named.
        """
        arrays = _load_npz(Path(path), (*ARRAY_TYPES, "class_names"))
        with _named(path):
            return cls(**arrays | {"class_names": tuple(arrays["class_names"].tolist())})


@dataclass(frozen=True, eq=False)
class Similarities:
    """Cosines of detections' crops with the texts of a label list; row d belongs to row d of a `Detections`.

    Attributes:
        cosines: float32 [D, L] in [-1, 1]; NaN in the rows that were not encoded.
        encoded: bool [D], whether the crop was encoded (detections at or below the score cut are not).
        label_names: The L labels, in the order of the columns.
    """

    cosines: np.ndarray
    encoded: np.ndarray
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        cosines, encoded = np.asarray(self.cosines, dtype=np.float32), np.asarray(self.encoded)
        for name, value in (
            ("cosines", cosines),
            ("encoded", encoded),
            ("label_names", tuple(self.label_names)),
        ):
            object.__setattr__(self, name, value)
        expected = (*encoded.shape, len(self.label_names))
        if encoded.ndim != 1 or encoded.dtype != bool or cosines.shape != expected:
            found = f"cosines {cosines.shape}, encoded {encoded.dtype} {encoded.shape}, {len(self.label_names)} labels"
            raise DataError(f"similarities: {found} do not belong together. Expected [D, L], bool [D] and L.")
        if len(set(self.label_names)) != len(self.label_names):
            raise DataError("similarities: a label stands twice in the list. Expected each once.")
        if not np.array_equal(np.isfinite(cosines), np.broadcast_to(encoded[:, None], expected)):
            raise DataError(
                "similarities: expected finite cosines in the encoded rows and NaN in all others."
            )

    def __len__(self) -> int:
        return len(self.encoded)

    def keep(self, mask: np.ndarray) -> Similarities:
        """The rows of a bool mask [D], as `Detections.keep` takes it."""
        return Similarities(self.cosines[mask], self.encoded[mask], self.label_names)

    def columns(self, label_names: Sequence[str]) -> np.ndarray:
        """Cosines with these labels, in this order, float32 [D, len(label_names)].

        Raises:
            DataError: If a label has no column.
        """
        missing = [name for name in label_names if name not in self.label_names]
        if missing:
            known = ", ".join(self.label_names)
            raise DataError(
                f"similarities: no column for {', '.join(map(repr, missing))}; there are {known}."
            )
        return self.cosines[:, [self.label_names.index(name) for name in label_names]]

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file, as `Detections.save` does."""
        arrays = {"cosines": self.cosines, "encoded": self.encoded, "label_names": _as_text(self.label_names)}
        _save_npz(Path(path), arrays)

    @classmethod
    def load(cls, path: str | Path) -> Similarities:
        """Read a file that `save` wrote; errors as in `Detections.load`."""
        arrays = _load_npz(Path(path), ("cosines", "encoded", "label_names"))
        with _named(path):
            return cls(**arrays | {"label_names": tuple(arrays["label_names"].tolist())})


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Corner boxes as COCO's x, y, width, height, float64 [N, 4]."""
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _check_detections(arrays: dict[str, np.ndarray], class_names: tuple[str, ...]) -> None:
    count, num_classes = len(arrays["scores"]), len(class_names)
    widths = {"boxes": (4,), "class_scores": (num_classes + 1,)}
    for name, array in arrays.items():
        expected = (count, *widths.get(name, ()))
        if array.shape != expected:
            found = f"{name} has shape {array.shape}"
            raise DataError(f"detections: {found}; expected {expected} for {num_classes} classes.")
    if len(set(class_names)) != num_classes:
        raise DataError("detections: a class stands twice in class_names. Expected each once.")
    if not (np.isfinite(arrays["boxes"]).all() and np.isfinite(arrays["scores"]).all()):
        raise DataError("detections: a box or a score is not finite.")
    if (arrays["boxes"][:, 2:] < arrays["boxes"][:, :2]).any():
        raise DataError("detections: a box has x2 < x1 or y2 < y1. Expected corners x1, y1, x2, y2.")
    labels = arrays["labels"]
    if count and (labels.min() < 0 or labels.max() >= num_classes):
        found = f"labels reach from {labels.min()} to {labels.max()}"
        raise DataError(f"detections: {found}; expected 0 to {num_classes - 1}.")


def _canonical_order(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """The permutation that sorts by image, descending score, proposal, label; None for the order they have."""
    keys = (arrays["image_ids"], -arrays["scores"], arrays["proposals"], arrays["labels"])
    is_tie = np.ones(max(len(keys[0]) - 1, 0), dtype=bool)  # neighbours equal in all keys so far
    for key in keys:
        if (is_tie & (key[1:] < key[:-1])).any():
            return np.lexsort(keys[::-1])  # the last key of lexsort is the first to sort by
        is_tie &= key[1:] == key[:-1]
    return None


def _as_text(names: Sequence[str]) -> np.ndarray:
    return np.array(names, dtype=np.str_)


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same folder, so that replacing is atomic
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != set(keys):
                found = ", ".join(sorted(file.files))
                raise DataError(f"{path}: holds {found}; expected {', '.join(sorted(keys))}.")
            return {key: file[key] for key in keys}
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; run the notebook that stores it.") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({error}); delete it and run again.") from error


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Put the file's name before an error about its content."""
    try:
        yield
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def cut(
    detections: Detections,
    similarities: Similarities | None,
    *,
    score_thresh: float,
    max_detections: int = MAX_DETECTIONS,
) -> tuple[Detections, Similarities | None]:
    """The detections that count, with their similarities; published code cuts before it re-scores."""
    counts = detections.counting(score_thresh=score_thresh, max_per_image=max_detections)
    return detections.keep(counts), None if similarities is None else similarities.keep(counts)
