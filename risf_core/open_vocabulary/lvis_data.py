"""LVIS for open-vocabulary detection: 866 frequent and common classes are base, the 337 rare ones novel.

Which class is rare stands in the annotation file itself (``frequency`` of each category: r, c or f), so no list of ids
is kept here. LVIS is annotated federatedly: of each image it is known which classes are in it, which are not
(``neg_category_ids``) and which are in it but perhaps not with all boxes (``not_exhaustive_category_ids``); nothing is
known of the others. Boxes alone are read: mask AP and the FPN detector of the published LVIS numbers are left out, and
box AP of the C4 detector is never put beside published mask AP.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from risf_core.data.box_checks import check_boxes
from risf_core.data.coco import _assemble
from risf_core.data.coco_checks import (
    check_annotations,
    check_categories,
    check_images,
    check_references,
    read_json,
)
from risf_core.data.dataset import DetectionData
from risf_core.data.problems import Problems
from risf_core.errors import DataError, SplitError
from risf_core.open_vocabulary.coco_ovd import with_own_ids
from risf_core.open_vocabulary.image_label_files import read_image_labels, with_file_names
from risf_core.open_vocabulary.ovd_data import OvdData

logger = logging.getLogger(__name__)

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
V1_CLASSES, V1_COUNTS = 1203, {"r": 337, "c": 461, "f": 405}  # LVIS v1: 461 + 405 = 866 base classes


@dataclass(frozen=True, eq=False)
class LvisData:
    """An LVIS file.

    Attributes:
        data: Images with boxes; classes by category id.
        frequency: "r", "c" or "f" of each class.
        negative: For each image the classes that are not in it: ascending labels, int64 [n].
        not_exhaustive: For each image the classes that may have more objects in it than boxes: int64 [n].
        synonyms: For each class the words that stand for it.
    """

    data: DetectionData
    frequency: tuple[str, ...]
    negative: tuple[np.ndarray, ...]
    not_exhaustive: tuple[np.ndarray, ...]
    synonyms: tuple[tuple[str, ...], ...]

    def names(self, *letters: str) -> tuple[str, ...]:
        """The classes of some frequencies, in the order of the columns."""
        pairs = zip(self.data.class_names, self.frequency, strict=True)
        return tuple(name for name, letter in pairs if letter in letters)

    @property
    def base_names(self) -> tuple[str, ...]:
        """Common and frequent classes."""
        return self.names("c", "f")

    @property
    def novel_names(self) -> tuple[str, ...]:
        """Rare classes."""
        return self.names("r")

    def without_rare(self) -> DetectionData:
        """The boxes of base classes under all columns; every image stays, also where no box is left."""
        is_base = np.array([letter != "r" for letter in self.frequency], dtype=bool)
        images = tuple(record.keep(is_base[record.labels]) for record in self.data.images)
        return replace(self.data, name=f"{self.data.name} without rare classes", images=images)


def load_lvis(annotations: str | Path, images_dir: str | Path, *, drop_invalid: bool = True) -> LvisData:
    """Load an LVIS annotation file (v0.5 or v1, or one of the same form) and check all of it.

    Args:
        annotations: The JSON file; outlines are not kept.
        images_dir: Folder that the ``file_name`` of the images starts from; where they have none, as in v1, the last
            folder and name of their ``coco_url`` ("train2017/000000391895.jpg").
        drop_invalid: Drop impossible boxes and log how many, instead of refusing the file.

    Raises:
        DataError: If anything is wrong; the error's `problems` are all findings.
        SplitError: If a file of 1203 classes has not the numbers of rare, common and frequent classes of LVIS v1.
    """
    path, folder = Path(annotations), Path(images_dir)
    problems = Problems(path)
    content = read_json(path, problems)
    content["images"] = with_file_names(content["images"])
    categories = check_categories(content["categories"], problems)
    images = check_images(content["images"], folder, problems, look_for_files=True)
    columns = check_annotations(content["annotations"], problems)
    columns = columns.keep(check_references(columns, images, categories, problems))
    columns = columns.keep(check_boxes(columns, images, problems, drop_invalid=drop_invalid))
    frequency, synonyms = _category_fields(content["categories"], categories, problems)
    label = {key: position for position, key in enumerate(categories)}
    known = {
        key: [_labels(content["images"][image.position], key, label, problems) for image in images]
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    }
    problems.raise_if_any(f"{path} {images_dir}")
    _check_counts(path, frequency)
    data = replace(_assemble(path.stem, categories, images, columns), dropped=tuple(problems.dropped))
    return LvisData(
        data,
        frequency,
        tuple(known["neg_category_ids"]),
        tuple(known["not_exhaustive_category_ids"]),
        synonyms,
    )


def open_lvis_ovd(
    train_annotations: str | Path,
    train_images: str | Path,
    test_annotations: str | Path,
    test_images: str | Path,
    *,
    label_annotations: str | Path | None = None,
    label_images: str | Path | None = None,
) -> tuple[OvdData, LvisData]:
    """LVIS 866/337 from its files.

    The boxes of rare classes are taken out of the training images; images that have no box left are no training
    images, as detectron2's loader has it. `OvdData.image_counts` are then what the federated loss draws by, with 0 for
    rare classes, and `OvdData.class_mask` is False for these.

    Args:
        train_annotations: ``lvis_v1_train.json``, or the ``_norare`` copy.
        train_images: Folder of the images; for v1 that of the folders train2017 and val2017.
        test_annotations: ``lvis_v1_val.json``.
        test_images: Folder of the images.
        label_annotations: Image labels by category id (``imagenet_lvis_image_info.json``); None: none.
        label_images: Folder of their images; None: `train_images`.

    Returns:
        The data, and the test file, which `risf_core.open_vocabulary.lvis_evaluation.LvisEvaluator` takes.

    Raises:
        DataError: If a file is wrong.
        SplitError: If training and test file differ in classes or in their frequency.
    """
    train, test = load_lvis(train_annotations, train_images), load_lvis(test_annotations, test_images)
    columns = [(one.data.class_names, one.data.category_ids, one.frequency) for one in (train, test)]
    if columns[0] != columns[1]:
        raise SplitError(
            f"{train.data.name} and {test.data.name} differ in their classes or in the frequency of some. Expected "
            "two files of one version of LVIS."
        )
    labels = None
    names, ids = train.data.class_names, train.data.category_ids
    if label_annotations is not None:
        labels = read_image_labels(label_annotations, label_images or train_images, names, ids)
        labels = with_own_ids(labels, train.data)
    box_train = train.without_rare().drop_empty()
    counts = (len(train.base_names), len(train.novel_names))
    name = f"LVIS {counts[0]}/{counts[1]}"
    return OvdData(name, box_train, labels, test.data, train.base_names, train.novel_names), test


def _category_fields(
    entries: list, categories: Mapping[int, str], problems: Problems
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Frequency and synonyms of each category, in the order of their ids."""
    by_id = {entry["id"]: entry for entry in entries if isinstance(entry, dict) and "id" in entry}
    for key in categories:
        if by_id[key].get("frequency") not in FREQUENCIES:
            value = by_id[key].get("frequency")
            problems.add("wrong value", f"category {key}: frequency is {value!r:.60}; expected r, c or f")
    letters = tuple(str(by_id[key].get("frequency")) for key in categories)
    words = tuple(tuple(map(str, by_id[key].get("synonyms") or (categories[key],))) for key in categories)
    return letters, words


def _labels(entry: object, key: str, label: Mapping[int, int], problems: Problems) -> np.ndarray:
    """The labels of the category ids that an image has under a key, ascending."""
    ids = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(ids, list) or any(type(one) is not int or one not in label for one in ids):
        number = entry.get("id") if isinstance(entry, dict) else None
        line = f"image {number}: {key} is {ids!r:.60}; expected a list of category ids, as LVIS has for each image"
        problems.add("wrong value", line)
        return np.empty(0, np.int64)
    return np.array(sorted({label[one] for one in ids}), dtype=np.int64)


def _check_counts(path: Path, frequency: tuple[str, ...]) -> None:
    counts = dict(Counter(frequency))
    if len(frequency) == V1_CLASSES and counts != V1_COUNTS:
        raise SplitError(
            f"{path}: {counts} classes by frequency. Expected those of LVIS v1: {V1_COUNTS} (866 base, 337 novel)."
        )
    if not counts.get("r") or len(counts) == 1:
        raise DataError(f"{path}: {counts} classes by frequency. Expected rare ones and others.")
