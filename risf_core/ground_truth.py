"""The test images of a data set with their objects as a thing of its own: hashed, written to a file, and read back.

What results may be compared with each other hangs on it: only those that were judged on the same images and objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError, RisfError
from risf_core.runs.state import digest

if TYPE_CHECKING:
    from risf_core.data.benchmark import Benchmark


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Test images with the objects of base and novel classes.

    Attributes:
        data: The images; classes are `base_names`, then `novel_names`.
        base_names: Base classes, none where the base model comes from other data.
        novel_names: Novel classes.
        evaluation: Options of VOC's metric; empty for COCO's.
        has_images: Whether the image files are on this machine.
    """

    data: DetectionData
    base_names: tuple[str, ...]
    novel_names: tuple[str, ...]
    evaluation: Mapping[str, str]
    has_images: bool = True

    @classmethod
    def of_benchmark(cls, benchmark: Benchmark) -> GroundTruth:
        """That of an opened data set."""
        base, novel = benchmark.base_names, benchmark.novel_names
        return cls(benchmark.test.select_classes((*base, *novel)), base, novel, dict(benchmark.evaluation))

    def classes(self, setting: str) -> tuple[str, ...]:
        """The classes that a head of a setting has: novel alone (``fsod``), or base and novel (``gfsod``)."""
        return (*self.base_names, *self.novel_names) if setting == "gfsod" else self.novel_names

    def hash(self, setting: str = "fsod") -> str:
        """SHA-256 over the images and the objects of the setting's classes; where files lie does not matter."""
        return _hash(self, setting)

    def to_json(self) -> dict[str, Any]:
        """All of it but the pixels, as JSON has it; equal data give an equal text."""
        images = [
            {
                "id": record.image_id,
                "file": record.path.name,
                "height": record.height,
                "width": record.width,
                "boxes": record.boxes.tolist(),
                "labels": record.labels.tolist(),
                "is_crowd": record.is_crowd.tolist(),
                "is_difficult": record.is_difficult.tolist(),
            }
            for record in sorted(self.data.images, key=lambda record: record.image_id)
        ]
        return {
            "name": self.data.name,
            "base_names": list(self.base_names),
            "novel_names": list(self.novel_names),
            "category_ids": list(self.data.category_ids),
            "evaluation": dict(self.evaluation),
            "images": images,
        }

    @classmethod
    def from_json(cls, content: Any, *, where: str) -> GroundTruth:
        """What `to_json` gave, without images.

        Raises:
            DataError: If it is anything else; ``where`` names the file.
        """
        try:
            base, novel = tuple(content["base_names"]), tuple(content["novel_names"])
            images = tuple(_record(entry, len(base) + len(novel)) for entry in content["images"])
            ids = tuple(int(one) for one in content["category_ids"])
            data = DetectionData(str(content["name"]), (*base, *novel), ids, images)
            if len({record.image_id for record in images}) < len(images):
                raise DataError("an image stands twice in it")
            return cls(data, base, novel, dict(content["evaluation"]), has_images=False)
        except (KeyError, TypeError, ValueError, OverflowError, RisfError) as error:
            raise DataError(
                f"{where}: not the test data of a pack ({error}). Ask for the pack anew."
            ) from None

    def save(self, path: Path) -> None:
        """Write it as a JSON file."""
        path.write_text(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")), encoding="utf-8")

    def with_images_of(self, other: GroundTruth) -> GroundTruth:
        """The same with the image files of ``other``, which has to be the same test data."""
        paths = {record.image_id: record.path for record in other.data.images}
        images = (replace(record, path=paths[record.image_id]) for record in self.data.images)
        return replace(self, data=replace(self.data, images=tuple(images)), has_images=other.has_images)

    def __str__(self) -> str:
        count = int((~self.data.flat.is_crowd).sum())
        return f"{self.data.name}: {len(self.data)} images, {count} objects (hash {self.hash()[:8]})"


@cache
def _hash(truth: GroundTruth, setting: str) -> str:
    data = truth.data.select_classes(truth.classes(setting))
    images = [
        [record.image_id, record.height, record.width, _objects(record)]
        for record in sorted(data.images, key=lambda record: record.image_id)
    ]
    return digest({"classes": list(data.class_names), "images": images, "evaluation": dict(truth.evaluation)})


def _objects(record: ImageRecord) -> list:
    columns = (record.labels, record.is_crowd, record.is_difficult, record.boxes)
    return sorted([*flags, *box] for *flags, box in zip(*(column.tolist() for column in columns)))


def _record(entry: Mapping[str, Any], num_classes: int) -> ImageRecord:
    """An image with its objects from JSON; ValueError for numbers that no image has."""
    boxes = np.array(entry["boxes"], dtype=np.float32).reshape(-1, 4)
    labels = np.array(entry["labels"], dtype=np.int64)
    flags = [_flags(entry[name]) for name in ("is_crowd", "is_difficult")]
    numbers = [entry[name] for name in ("id", "height", "width")]
    if not all(type(number) is int and 0 <= number < 2**53 for number in numbers) or 0 in numbers[1:]:
        raise ValueError(f"image {str(numbers[0])[:40]} has no id or no size")
    is_box = np.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
    if not is_box or (labels < 0).any() or (labels >= num_classes).any():
        raise ValueError(f"image {numbers[0]} has an impossible box or label")
    return ImageRecord(numbers[0], Path(Path(str(entry["file"])).name), *numbers[1:], boxes, labels, *flags)


def _flags(values: Sequence[bool]) -> np.ndarray:
    if not all(isinstance(value, bool) for value in values):
        raise ValueError("a flag is neither true nor false")
    return np.array(values, dtype=bool)
