"""Repeat-factor sampling: images with rare classes are drawn more often (Gupta et al. 2019, appendix B).

A class that stands in a share f of the images has the factor ``max(1, sqrt(t / f))``, an image the largest factor of
its classes. In each pass an image comes as often as its factor says, the fraction by chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import torch

from risf_core.data.dataset import DetectionData
from risf_core.errors import DataError
from risf_core.training import batches_by_iteration

LVIS_THRESHOLD = 0.001  # t of the published LVIS configurations


def repeat_factors(data: DetectionData, *, threshold: float = LVIS_THRESHOLD) -> np.ndarray:
    """How often each image comes in a pass, float64 [I], 1 or more; 1 for an image without a box.

    Crowd regions count as no box.

    Raises:
        DataError: If the threshold is not in 0..1, or there is no image.
    """
    if not 0 <= threshold <= 1 or not len(data):
        raise DataError(
            f"{data.name}: repeat factors of {len(data)} images at the threshold {threshold}. Expected some images "
            "and a threshold from 0 to 1."
        )
    own = [np.unique(record.labels[~record.is_crowd]) for record in data.images]
    images = np.bincount(np.concatenate([np.empty(0, np.int64), *own]), minlength=len(data.class_names))
    share = np.maximum(images, 1) / len(data)  # [C]; a class without a box is in no image
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([of_class[labels].max() if len(labels) else 1.0 for labels in own])


def repeated_image_order(
    factors: np.ndarray, batch_size: int, *, seed: int, groups: Sequence[Hashable] | None = None
) -> Iterator[list[int]]:
    """Yield batches of image positions without end, as `risf_core.data.loader.image_order` does, images repeated.

    Args:
        factors: Of each image, float [I], 1 or more.
        batch_size: Images of a batch.
        seed: Seed of the order and of the rounding, which is drawn anew in each pass.
        groups: A group for each image; a batch has images of one group. None: all are of one.

    Raises:
        DataError: If there is no image, or a factor is below 1 (at the first batch).
    """
    if len(factors) < 1 or batch_size < 1 or not np.isfinite(factors).all() or (factors < 1).any():
        raise DataError(
            f"cannot draw batches of {batch_size} from {len(factors)} images with such factors. Expected at least one "
            "image, and factors of 1 or more."
        )
    generator = torch.Generator().manual_seed(seed)
    whole = torch.from_numpy(np.floor(factors).astype(np.int64))
    part = torch.from_numpy(factors - np.floor(factors))
    positions = torch.arange(len(factors))
    waiting: defaultdict[Hashable, list[int]] = defaultdict(list)
    while True:
        times = whole + (torch.rand(len(factors), generator=generator, dtype=torch.float64) < part)
        images = positions.repeat_interleave(times)
        for image in images[torch.randperm(len(images), generator=generator)].tolist():
            group = groups[image] if groups is not None else None
            waiting[group].append(image)
            if len(waiting[group]) == batch_size:
                yield waiting.pop(group)


def repeated_batches(
    data: DetectionData,
    batch_size: int,
    *,
    seed: int,
    threshold: float = LVIS_THRESHOLD,
    group_by_aspect: bool = False,
) -> Callable[[int], list[int]]:
    """The positions of each iteration's images, by iteration; a resumed run draws what an undisturbed one would."""
    groups = [image.width > image.height for image in data.images] if group_by_aspect else None
    factors = repeat_factors(data, threshold=threshold)
    return batches_by_iteration(repeated_image_order(factors, batch_size, seed=seed, groups=groups))
