"""The one annotation form of the project: images with boxes, labels and crowd flags, and their class names.

Every source (COCO-format files, few-shot splits, the pictogram world) becomes a `DetectionData`. Class order
and ids come from the files and the parameters, never from the name of a data set.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from risf_core.errors import DataError, SplitError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image with its annotations.

    Attributes:
        image_id: Id in the annotation file.
        path: Image file.
        height: Height in pixels, EXIF orientation applied.
        width: Width in pixels.
        boxes: float32 [N, 4], corners x1, y1, x2, y2 in pixels of the image.
        labels: int64 [N], index into `DetectionData.class_names`.
        is_crowd: bool [N]; a crowd region is never a training target and is ignored in evaluation.
        is_difficult: bool [N]; VOC's mark: a training target like any other, but ignored in evaluation. None: none is.
    """

    image_id: int
    path: Path
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.is_difficult is None:
            object.__setattr__(self, "is_difficult", np.zeros(count, dtype=bool))
        flags = (self.is_crowd, self.is_difficult)
        if self.boxes.shape != (count, 4) or any(row.shape != (count,) for row in (self.labels, *flags)):
            raise DataError(
                f"image {self.image_id} ({self.path}): boxes {self.boxes.shape}, labels {self.labels.shape}, "
                f"is_crowd {self.is_crowd.shape} and is_difficult {self.is_difficult.shape} do not belong together. "
                "Expected [N, 4] and three times [N]."
            )

    def keep(self, mask: np.ndarray) -> ImageRecord:
        """The record with the annotations of a bool mask [N] alone."""
        columns = ("boxes", "labels", "is_crowd", "is_difficult")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})


class FlatAnnotations(NamedTuple):
    """The annotations of all images in one row: image position, boxes [A, 4], labels and crowd flags."""

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray


@dataclass(frozen=True, eq=False)
class DetectionData:
    """Annotated images of one part of a data set (a training part, a test part, a few-shot draw).

    Attributes:
        name: For messages and tables.
        class_names: The classes; a label is a position in this tuple. Background is not a class.
        category_ids: Id of each class in the data set's own files, in the order of `class_names`.
        images: The images with their annotations.
        dropped: A line for each impossible box that was dropped on request when the files were read.
        without_box: Ids of the images that `drop_empty` has dropped.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    dropped: tuple[str, ...] = ()
    without_box: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.category_ids):
            raise DataError(
                f"{self.name}: {len(self.class_names)} class names but {len(self.category_ids)} category "
                "ids. Expected one id for each class."
            )
        check_class_list(self.class_names, self.class_names, where=self.name)

    def __len__(self) -> int:
        return len(self.images)

    def select_classes(self, class_names: Sequence[str]) -> DetectionData:
        """Keep the boxes of these classes and number them in the given order; all images stay.

        Boxes of other classes are dropped: in training they become background, as published.

        Raises:
            SplitError: If a name is not a class of the data (the nearest one is named), or is listed twice.
        """
        names = check_class_list(class_names, self.class_names, where=self.name)
        old_labels = [self.class_names.index(name) for name in names]
        new_label = np.full(len(self.class_names), -1, dtype=np.int64)
        new_label[old_labels] = np.arange(len(names))
        images = []
        for record in self.images:
            labels = new_label[record.labels]
            images.append(replace(record, labels=labels).keep(labels >= 0))
        category_ids = tuple(self.category_ids[label] for label in old_labels)
        return replace(self, class_names=names, category_ids=category_ids, images=tuple(images))

    def drop_empty(self) -> DetectionData:
        """Drop the images that have no box, or only crowd regions."""
        kept = tuple(record for record in self.images if not record.is_crowd.all())
        gone = tuple(record.image_id for record in self.images if record.is_crowd.all())
        return replace(self, images=kept, without_box=self.without_box + gone)

    def counts(self) -> dict[str, int]:
        """Number of boxes of each class, crowd regions left out."""
        labels = self.flat.labels[~self.flat.is_crowd]
        per_class = np.bincount(labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, per_class, strict=True)}

    @cached_property
    def flat(self) -> FlatAnnotations:
        """All annotations in one row; the position there is an annotation's index."""
        lengths = np.array([len(record.labels) for record in self.images], dtype=np.int64)
        return FlatAnnotations(
            images=np.repeat(np.arange(len(lengths)), lengths),
            boxes=np.concatenate([np.empty((0, 4), np.float32), *(record.boxes for record in self.images)]),
            labels=np.concatenate([np.empty(0, np.int64), *(record.labels for record in self.images)]),
            is_crowd=np.concatenate([np.empty(0, bool), *(record.is_crowd for record in self.images)]),
        )


def check_class_list(class_names: Sequence[str], available: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Return the class list as a tuple if each name is available and stands there once.

    Raises:
        SplitError: Naming the first bad name; for an unknown one the nearest available name as well.
    """
    if isinstance(class_names, str):
        raise SplitError(f"{where}: the classes are {class_names!r}. Expected a list of names.")
    twice = [name for name, count in Counter(class_names).items() if count > 1]
    if twice:
        raise SplitError(
            f"{where}: class {twice[0]!r} stands twice in the list of classes. Expected each once."
        )
    known = set(available)
    unknown = [name for name in class_names if name not in known]
    if unknown:
        others = f" ({len(unknown)} unknown names in all)" if len(unknown) > 1 else ""
        raise SplitError(
            f"{where}: there is no class {unknown[0]!r}{others}. {suggest(unknown[0], available)}"
        )
    return tuple(class_names)


def suggest(name: str, available: Sequence[str]) -> str:
    """A sentence with the nearest available name, or with the first of the valid ones."""
    lower = {str(candidate).lower(): str(candidate) for candidate in available}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    if near:
        return f"Did you mean {lower[near[0]]!r}?"
    shown = ", ".join(str(candidate) for candidate in list(available)[:10])
    return f"Expected one of: {shown}{', ...' if len(available) > 10 else ''}."


def merge_images(parts: Sequence[DetectionData], *, name: str, class_names: Sequence[str]) -> DetectionData:
    """Put several parts into one, an image that stands in several of them once, with all its boxes.

    Images are the same if their files are. Another image with an id already taken gets a new id above all
    others.

    Args:
        parts: Data whose classes are among `class_names`.
        name: Name of the result.
        class_names: Classes of the result, in order; each must be a class of at least one part.
    """
    ids = {
        class_name: cid
        for part in parts
        for class_name, cid in zip(part.class_names, part.category_ids, strict=True)
    }
    names = check_class_list(class_names, tuple(ids), where=name)
    by_path: dict[Path, list[ImageRecord]] = {}
    for part in parts:
        to_label = np.array([names.index(class_name) for class_name in part.class_names], dtype=np.int64)
        for record in part.images:
            by_path.setdefault(record.path, []).append(replace(record, labels=to_label[record.labels]))
    merged = [_join_records(records) for records in by_path.values()]
    next_id = max((record.image_id for record in merged), default=0) + 1
    taken: set[int] = set()
    for position, record in enumerate(merged):
        if record.image_id in taken:
            merged[position] = replace(record, image_id=next_id)
            next_id += 1
        taken.add(merged[position].image_id)
    merged.sort(key=lambda record: record.image_id)
    dropped = tuple(line for part in parts for line in part.dropped)
    return DetectionData(name, names, tuple(ids[class_name] for class_name in names), tuple(merged), dropped)


def _join_records(records: list[ImageRecord]) -> ImageRecord:
    """One record with the annotations of several records of the same image file."""
    first = records[0]
    for record in records[1:]:
        if (record.height, record.width) != (first.height, first.width):
            raise DataError(
                f"{first.path}: {first.width}x{first.height} pixels in one annotation file and "
                f"{record.width}x{record.height} in another. Expected one size."
            )
    if len(records) == 1:
        return first
    return replace(
        first,
        boxes=np.concatenate([record.boxes for record in records]),
        labels=np.concatenate([record.labels for record in records]),
        is_crowd=np.concatenate([record.is_crowd for record in records]),
        is_difficult=np.concatenate([record.is_difficult for record in records]),
    )


def summarize(parts: Mapping[str, DetectionData]) -> pd.DataFrame:
    """Count images, boxes and crowd regions of each class in each part, for a notebook.

    Args:
        parts: Name of the part to its data, e.g. ``{"base training": ..., "test": ...}``.

    Returns:
        A table with one row for each class and a last row ``all``, and the columns ``(part, "images")``,
        ``(part, "boxes")`` and ``(part, "crowd")``. A class that a part does not have has no number there.
        An image of several classes counts once in ``all``; images without any box count there as well.
    """
    import pandas as pd

    columns = {}
    for part, data in parts.items():
        images, _, labels, crowd = data.flat
        rows = {"all": (len(data), int((~crowd).sum()), int(crowd.sum()))}
        for label, class_name in enumerate(data.class_names):
            own = labels == label
            rows[class_name] = (
                len(np.unique(images[own & ~crowd])),
                int((own & ~crowd).sum()),
                int((own & crowd).sum()),
            )
        for column, kind in enumerate(("images", "boxes", "crowd")):
            columns[part, kind] = {class_name: values[column] for class_name, values in rows.items()}
    classes = list(dict.fromkeys(class_name for data in parts.values() for class_name in data.class_names))
    table = pd.DataFrame(columns, index=[*classes, "all"]).astype("Int64")
    table.index.name = "class"
    return table
