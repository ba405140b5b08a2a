"""COCO for open-vocabulary detection: the generalised split of 48 base and 17 novel classes (Bansal et al. 2018).

The files are those of OVR-CNN (Zareian et al. 2021), ``instances_train2017_seen_2.json`` with the boxes of base classes
and ``instances_val2017_all_2.json`` with those of base and novel classes, or their ``_oriorder`` copies with all 80
categories. The classifier has 80 columns in the order of COCO's ids: the 15 classes that are neither base nor novel
stand in no box, so the detection loss masks them and they have no AP. Metrics: AP50 over the 17, 48 and 65 classes,
`Evaluator`'s nAP50, bAP50 and AP50 with `OvdData.groups`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from risf_core.data.coco import load_coco
from risf_core.data.dataset import DetectionData, check_class_list
from risf_core.errors import SplitError
from risf_core.open_vocabulary.image_label_files import read_image_labels
from risf_core.open_vocabulary.image_labels import ImageLabels
from risf_core.open_vocabulary.ovd_data import OvdData, with_columns

logger = logging.getLogger(__name__)

# fmt: off
BASE = {  # COCO id: name; the lists of Detic's and object-centric-ovd's coco_zeroshot.py
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 7: "train", 8: "truck", 9: "boat", 15: "bench", 16: "bird",
    19: "horse", 20: "sheep", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack", 31: "handbag", 33: "suitcase",
    34: "frisbee", 35: "skis", 38: "kite", 42: "surfboard", 44: "bottle", 48: "fork", 50: "spoon", 51: "bowl",
    52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 59: "pizza", 60: "donut",
    62: "chair", 65: "bed", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 78: "microwave",
    79: "oven", 80: "toaster", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 90: "toothbrush",
}
NOVEL = {
    5: "airplane", 6: "bus", 17: "cat", 18: "dog", 21: "cow", 22: "elephant", 28: "umbrella", 32: "tie",
    36: "snowboard", 41: "skateboard", 47: "cup", 49: "knife", 61: "cake", 63: "couch", 76: "keyboard", 81: "sink",
    87: "scissors",
}
UNUSED = {
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 37: "sports ball",
    39: "baseball bat", 40: "baseball glove", 43: "tennis racket", 46: "wine glass", 58: "hot dog",
    64: "potted plant", 67: "dining table", 77: "cell phone", 88: "teddy bear", 89: "hair drier",
}
# fmt: on
COLUMNS = dict(sorted((BASE | NOVEL | UNUSED).items()))  # the 80 columns: rows of the text file, by COCO's id
CATEGORY_IDS, CLASS_NAMES = tuple(COLUMNS), tuple(COLUMNS.values())
BASE_NAMES, NOVEL_NAMES = tuple(BASE.values()), tuple(NOVEL.values())


def open_coco_ovd(
    train_annotations: str | Path,
    train_images: str | Path,
    test_annotations: str | Path,
    test_images: str | Path,
    *,
    label_annotations: str | Path | None = None,
    label_images: str | Path | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    caption_rule: str = "words",
    from_all_classes: bool = False,
) -> OvdData:
    """COCO 48/17 from its files.

    Boxes without size, which COCO's own files have, are dropped and counted in the log.

    Args:
        train_annotations: ``instances_train2017_seen_2.json`` or its ``_oriorder`` copy.
        train_images: Folder of the training images.
        test_annotations: ``instances_val2017_all_2.json`` or its ``_oriorder`` copy.
        test_images: Folder of the test images.
        label_annotations: Image labels or captions (`read_image_labels`); None: none.
        label_images: Folder of their images; None: `train_images`.
        synonyms, caption_rule: Of captions, as `read_image_labels` takes them.
        from_all_classes: The files are COCO's own, of all 80 classes: boxes of other than base (test: base and novel)
            classes are left out, and then images without any, which is how OVR-CNN's notebook made its files.

    Raises:
        DataError: If a file is wrong.
        SplitError: If a category is not COCO's, or the training boxes have other than base classes.
    """
    box_train = _load(train_annotations, train_images, BASE_NAMES if from_all_classes else None)
    tested = (*BASE_NAMES, *NOVEL_NAMES)
    test = _load(test_annotations, test_images, tested if from_all_classes else None)
    beyond = [name for name, count in test.counts().items() if count and name not in tested]
    if beyond:
        raise SplitError(
            f"{test.name}: there are boxes of {beyond[0]!r}, which is neither base nor novel. Expected "
            "instances_val2017_all_2.json; from COCO's own file with from_all_classes."
        )
    labels = None
    if label_annotations is not None:
        labels = read_image_labels(
            label_annotations,
            label_images or train_images,
            CLASS_NAMES,
            CATEGORY_IDS,
            synonyms=synonyms,
            rule=caption_rule,
        )
        labels = with_own_ids(labels, box_train)
    return OvdData("COCO 48/17", box_train.drop_empty(), labels, test, BASE_NAMES, NOVEL_NAMES)


def _load(annotations: str | Path, images_dir: str | Path, keep: Sequence[str] | None) -> DetectionData:
    """A file under the 80 columns; of the classes `keep` alone, images without one dropped."""
    data = load_coco(annotations, images_dir, drop_invalid=True)
    check_class_list(data.class_names, CLASS_NAMES, where=data.name)
    wrong = [
        (key, name)
        for key, name in zip(data.category_ids, data.class_names, strict=True)
        if COLUMNS.get(key) != name
    ]
    if wrong:
        key, name = wrong[0]
        raise SplitError(
            f"{data.name}: category {key} is {name!r}. Expected COCO's ids: {COLUMNS.get(key)!r} there."
        )
    if keep is not None:
        kept = data.select_classes(keep)
        count = len(data.flat.labels) - len(kept.flat.labels)
        logger.info("%s: %d boxes of other classes than %d left out", data.name, count, len(keep))
        # as published: an image with a crowd region alone stays in the file
        data = replace(kept, images=tuple(record for record in kept.images if len(record.labels)))
    return with_columns(data, CLASS_NAMES, CATEGORY_IDS)


def with_own_ids(labels: ImageLabels, boxed: DetectionData) -> ImageLabels:
    """Image labels whose ids name no other image of the boxes: one that does gets an id above all others.

    COCO's captions are of the same images as its boxes and keep their ids; ImageNet's ids start at 1 anew.
    """
    paths = {record.image_id: record.path for record in boxed.images}
    records, changed = list(labels.data.images), 0
    next_id = max([*paths, *(record.image_id for record in records)], default=0) + 1
    for position, record in enumerate(records):
        if paths.get(record.image_id, record.path) != record.path:
            records[position] = replace(record, image_id=next_id)
            next_id, changed = next_id + 1, changed + 1
    if not changed:
        return labels
    logger.info("%s: %d images have ids of other images and get new ones", labels.data.name, changed)
    return replace(labels, data=replace(labels.data, images=tuple(records)))
