"""Images of which only the names of what they show are known: no boxes, as captions and image folders give them.

Image-level supervision (Bangalath et al. 2022, section on image-level supervision) trains on them beside the images
with boxes. The negative controls change the names, never the images: of other images, or of base classes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """Images with the names of what they show.

    Attributes:
        data: The images, without any box, so that `risf_core.data.loader.load_batch` reads them; its classes are the
            columns of the classifier in training.
        labels: For each image the columns that it shows, int64 [n], ascending, n >= 1.
        without_label: How many images of the source have no label and are left out: there is nothing to learn from.
    """

    data: DetectionData
    labels: tuple[np.ndarray, ...]
    without_label: int = 0

    def __post_init__(self) -> None:
        name, num_classes = self.data.name, len(self.data.class_names)
        if len(self.labels) != len(self.data):
            raise DataError(
                f"{name}: {len(self.labels)} sets of labels for {len(self.data)} images. Expected one each."
            )
        if len(self.data.flat.labels):
            raise DataError(f"{name}: there are boxes in it. Expected images with labels alone.")
        for record, labels in zip(self.data.images, self.labels, strict=True):
            if not len(labels) or (np.diff(labels) <= 0).any() or labels[0] < 0 or labels[-1] >= num_classes:
                raise DataError(
                    f"{name}: image {record.image_id} has the labels {labels.tolist()}. Expected some of 0 to "
                    f"{num_classes - 1}, ascending, each once."
                )

    @classmethod
    def of(cls, images: DetectionData, names: Iterable[Iterable[str]]) -> ImageLabels:
        """Labels by name for all images of `images`, whose boxes, if any, are dropped.

        Args:
            images: The images; its class names are the columns.
            names: For each image what it shows; images without a name are left out and counted.

        Raises:
            SplitError: If a name is not a class of `images` (the nearest one is named).
        """
        column = {name: position for position, name in enumerate(images.class_names)}
        kept, labels = [], []
        for record, shown in zip(images.images, names, strict=True):
            unique = check_class_list(tuple(dict.fromkeys(shown)), images.class_names, where=images.name)
            if unique:
                kept.append(record.keep(np.zeros(len(record.labels), dtype=bool)))
                labels.append(np.array(sorted(column[name] for name in unique), dtype=np.int64))
        return cls(replace(images, images=tuple(kept)), tuple(labels), len(images) - len(kept))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The columns of the classifier in training."""
        return self.data.class_names

    def names(self, index: int) -> tuple[str, ...]:
        """What the image at this position shows."""
        return tuple(self.class_names[label] for label in self.labels[index])

    def image_counts(self) -> np.ndarray:
        """Number of images that show each class, int64 [C]."""
        every = np.concatenate([np.empty(0, np.int64), *self.labels])
        return np.bincount(every, minlength=len(self.class_names))

    def only(self, class_names: Sequence[str]) -> ImageLabels:
        """The labels of these classes alone; images that show none of them are left out."""
        check_class_list(class_names, self.class_names, where=self.data.name)
        kept = [[name for name in self.names(index) if name in class_names] for index in range(len(self))]
        chosen = ImageLabels.of(self.data, kept)
        return replace(chosen, without_label=chosen.without_label + self.without_label)

    def permuted(self, *, seed: int) -> ImageLabels:
        """The negative control: each image has the labels of another, a random cycle through all images.

        The same images and the same sets of labels; what an image shows has nothing to do with its labels, but by
        chance.

        Raises:
            DataError: If there are fewer than two images.
        """
        if len(self) < 2:
            raise DataError(
                f"{self.data.name}: the labels of {len(self)} images cannot be permuted. Expected two."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        source = np.empty(len(self), dtype=np.int64)
        source[order] = np.roll(order, 1)
        return replace(self, labels=tuple(self.labels[position] for position in source))
