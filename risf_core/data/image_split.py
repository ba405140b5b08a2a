"""Divide the images of a data set into a training and a test part, so that rare classes are in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.errors import SplitError


def split_images(
    data: DetectionData, *, test_fraction: float, seed: int, class_names: Sequence[str]
) -> tuple[DetectionData, DetectionData]:
    """Draw a training and a test part that share no image.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML 2011): the images of the class with the fewest
    images left are given out first, each to the part that still lacks most of this class; chance decides ties.

    Args:
        data: All images.
        test_fraction: Share of the images, and of those of each class, for the test part; above 0 and below 1.
        seed: Seed of the draw.
        class_names: Classes to balance, in any order.

    Returns:
        The training and the test part, with all classes of the data.

    Raises:
        SplitError: If a part would have no image.
    """
    rng = np.random.default_rng(seed)
    labels = sorted(data.class_names.index(name) for name in class_names)
    has_class = _image_has_class(data, labels)  # [I, C]
    shares = np.array([1 - test_fraction, test_fraction])
    # [2, C] images of each class that each part still lacks
    lacking = shares[:, None] * has_class.sum(axis=0)
    room = shares * len(data)  # [2]
    part = np.full(len(data), -1)
    for image in _rarest_first(has_class, rng):
        label = image[1]
        want = lacking[:, label] if label >= 0 else room
        best = np.flatnonzero(np.isclose(want, want.max()))
        best = best[np.isclose(room[best], room[best].max())]
        chosen = int(rng.choice(best))
        part[image[0]] = chosen
        lacking[chosen] -= has_class[image[0]]
        room[chosen] -= 1
    if (np.bincount(part, minlength=2) == 0).any():
        raise SplitError(
            f"{data.name}: {len(data)} images with a test fraction of {test_fraction} leave a part empty. "
            "Expected at least one image in each: change test_fraction.",
            kind="image split",
        )
    train, test = (
        replace(
            data,
            name=f"{data.name} {name}",
            images=tuple(record for record, own in zip(data.images, part, strict=True) if own == number),
        )
        for number, name in enumerate(("train", "test"))
    )
    return train, test


def _image_has_class(data: DetectionData, labels: Sequence[int]) -> np.ndarray:
    """bool [I, C]: whether an image has a box of a class, crowd regions left out."""
    has_class = np.zeros((len(data), len(data.class_names)), dtype=bool)
    targets = ~data.flat.is_crowd
    has_class[data.flat.images[targets], data.flat.labels[targets]] = True
    return has_class[:, list(labels)]


def _rarest_first(has_class: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield each image once, with the column of the class it is given out for; -1 for no class, at the end."""
    waiting = has_class.copy()
    while waiting.any():
        left = waiting.sum(axis=0)
        label = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        images = rng.permutation(np.flatnonzero(waiting[:, label]))
        waiting[images] = False
        for image in images:
            yield int(image), label
    for image in rng.permutation(np.flatnonzero(~has_class.any(axis=1))):
        yield int(image), -1
