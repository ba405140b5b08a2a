"""Data for open-vocabulary detection: boxes of base classes, image labels, and a test set with novel classes too.

One form for the pictogram world, COCO-OVD 48/17 and LVIS 866/337. Novel objects are in the training images, but no
box says so (Zareian et al. 2021): they are unlabelled, not absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.errors import DataError, SplitError
from risf_core.open_vocabulary.image_labels import ImageLabels

if TYPE_CHECKING:
    from risf_core.data.world import World
    from risf_core.data_params import PictogramData

MIN_ROOT_COUNT = (
    1e-4  # released code: a class is trained on boxes if the root of its image count is above this
)
LABEL_VARIANTS = ("all", "base", "permuted", "strict")


@dataclass(frozen=True, eq=False)
class OvdData:
    """What an open-vocabulary detector is trained and tested on.

    Attributes:
        name: For messages and tables.
        box_train: Images with the boxes of base classes alone; its classes are all `class_names`, so that a label is
            a column of the classifier. Images without a base box are left out.
        label_train: Images with names alone, with the same columns; None where there are none.
        test: Test images; its classes are the columns of the classifier in the test.
        base_names: Classes with boxes in training.
        novel_names: Classes that are tested and have no box in training.
        grounding: Pictogram world alone: scenes in neither part, with the boxes of all classes, on which an external
            provider of regions may be trained; None elsewhere.
    """

    name: str
    box_train: DetectionData
    label_train: ImageLabels | None
    test: DetectionData
    base_names: tuple[str, ...]
    novel_names: tuple[str, ...]
    grounding: DetectionData | None = None

    def __post_init__(self) -> None:
        base = check_class_list(self.base_names, self.class_names, where=f"{self.name}, base classes")
        check_class_list(
            (*base, *self.novel_names), self.test.class_names, where=f"{self.name}, test classes"
        )
        boxed = {self.class_names[column] for column in np.flatnonzero(self.image_counts)}
        beyond = sorted(boxed - set(base))
        if beyond:
            raise SplitError(
                f"{self.name}: the training boxes have the class {beyond[0]!r} ({len(beyond)} such classes), which "
                "is not a base class. Expected boxes of base classes alone: the file may be that of all classes."
            )
        if self.label_train is not None and self.label_train.class_names != self.class_names:
            raise DataError(
                f"{self.name}: the image labels have {len(self.label_train.class_names)} columns and the boxes "
                f"{len(self.class_names)}, or in another order. Expected the same columns."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The columns of the classifier in training, C names; in the test they are `test.class_names`."""
        return self.box_train.class_names

    @cached_property
    def image_counts(self) -> np.ndarray:
        """Number of training images with a box of each column, int64 [C]."""
        flat = self.box_train.flat
        pairs = np.unique(
            np.stack([flat.images[~flat.is_crowd], flat.labels[~flat.is_crowd]], axis=1), axis=0
        )
        return np.bincount(pairs[:, 1], minlength=len(self.class_names))

    @property
    def class_mask(self) -> np.ndarray:
        """Which columns the detection loss counts, bool [C]: those with boxes in training."""
        return np.sqrt(self.image_counts) > MIN_ROOT_COUNT

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """For `risf_core.evaluation.Evaluator`: bAP50 is that of base, nAP50 that of novel classes."""
        return {"base": self.base_names, "novel": self.novel_names}


def with_columns(
    data: DetectionData, class_names: Sequence[str], category_ids: Sequence[int]
) -> DetectionData:
    """The same boxes under other columns: every class of `data` must be among them.

    Raises:
        SplitError: If a class of the data has no column.
    """
    check_class_list(data.class_names, class_names, where=f"{data.name}, columns")
    place = {name: position for position, name in enumerate(class_names)}
    new_label = np.array([place[name] for name in data.class_names], dtype=np.int64)
    images = tuple(replace(record, labels=new_label[record.labels]) for record in data.images)
    return replace(data, class_names=tuple(class_names), category_ids=tuple(category_ids), images=images)


def open_pictogram_ovd(
    data: PictogramData,
    split: int,
    *,
    num_box_images: int,
    num_label_images: int,
    seed: int,
    labels: str = "all",
) -> OvdData:
    """The pictogram world for open-vocabulary detection; its training scenes are cut into three disjoint parts.

    A permutation of all scenes that follows from the seed gives the images with boxes, then those with labels, and
    the rest, for an external provider. Base and novel classes are those of the few-shot split.

    Args:
        data: The world.
        split: 1, 2 or 3.
        num_box_images: Scenes with the boxes of base classes.
        num_label_images: Scenes with names alone; those without a name are left out afterwards.
        seed: Seed of the cut and of the permuted labels.
        labels: Which names the label scenes have. "all": of all base and novel objects; "base": of base objects;
            "permuted": those of "all", each image with the names of another; "strict": of base objects and of the
            clutter, whose 50 concepts are in no detection class. Then no column of the training is a novel class, and
            there are 65 columns for 15 base classes, 4.3 times as many (the paper's strict setting: about five times).

    Raises:
        SplitError: If there is no such split or kind of labels, or there are too few scenes.
    """
    from risf_core.data.benchmark import open_benchmark
    from risf_core.data.world import build_world

    if labels not in LABEL_VARIANTS:
        raise SplitError(
            f"pictograms: there are no image labels {labels!r}. Expected one of: {', '.join(LABEL_VARIANTS)}."
        )
    benchmark = open_benchmark(data, split=split)
    base, novel = benchmark.base_names, benchmark.novel_names
    train = benchmark.train.select_classes((*base, *novel))
    boxed, labelled, rest = _cut(train, num_box_images, num_label_images, seed)
    columns, ids = train.class_names, train.category_ids
    if labels == "strict":
        shown = _base_and_clutter(build_world(data), labelled, base)
        columns, ids = strict_columns(train.select_classes(base))
    else:
        shown = [[columns[label] for label in record.labels] for record in labelled.images]
    images = replace(labelled.select_classes(()), class_names=columns, category_ids=ids)
    label_train = ImageLabels.of(images, shown)
    if labels == "base":
        label_train = label_train.only(base)
    elif labels == "permuted":
        label_train = label_train.permuted(seed=seed)
    box_train = with_columns(boxed.select_classes(base).drop_empty(), columns, ids)
    return OvdData(benchmark.name, box_train, label_train, benchmark.test, base, novel, rest)


def strict_columns(base: DetectionData) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Columns of the strict setting in training: the base classes, then the 50 concepts of the clutter."""
    from risf_core.data.glyphs import CLASSES, EXTRA_CONCEPTS

    ids = range(len(CLASSES) + 1, len(CLASSES) + 1 + len(EXTRA_CONCEPTS))
    return (*base.class_names, *EXTRA_CONCEPTS), (*base.category_ids, *ids)


def _cut(
    train: DetectionData, num_box_images: int, num_label_images: int, seed: int
) -> tuple[DetectionData, DetectionData, DetectionData]:
    """Three disjoint parts, each in the order of its ids."""
    if min(num_box_images, num_label_images) < 1 or num_box_images + num_label_images > len(train):
        raise SplitError(
            f"{train.name}: {num_box_images} box images and {num_label_images} label images cannot be cut from "
            f"{len(train)} scenes. Expected at least one of each, and not more than there are."
        )
    order = np.random.default_rng(seed).permutation(len(train))
    ends = (num_box_images, num_box_images + num_label_images)
    parts = zip(np.split(order, ends), ("boxes", "labels", "grounding"), strict=True)
    return tuple(
        replace(
            train,
            name=f"{train.name} ({part})",
            images=tuple(train.images[position] for position in np.sort(chosen)),
        )
        for chosen, part in parts
    )


def _base_and_clutter(world: World, scenes: DetectionData, base: Sequence[str]) -> list[list[str]]:
    """What each scene shows of base classes and of the clutter's concepts."""
    from risf_core.open_vocabulary.scene_clutter import clutter_names

    names = scenes.class_names
    of_base = [[names[label] for label in record.labels if names[label] in base] for record in scenes.images]
    clutter = clutter_names(world, scenes)
    return [[*own, *more] for own, more in zip(of_base, clutter, strict=True)]
