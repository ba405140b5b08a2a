"""What training leaves out of its images, counted and named: nothing is dropped without a word."""

from __future__ import annotations

import logging

import numpy as np

from risf_core.data.dataset import DetectionData

logger = logging.getLogger(__name__)

SHOWN = 5  # names in a line of the log; a record has all
WORDS = {
    "crowd_regions": "%d crowd regions are no targets (%s)",
    "boxes_of_other_classes": "%d boxes of other classes are background (%s)",
    "images_without_box": "%d images without a box are not trained on (%s)",
    "difficult_boxes": "%d difficult boxes are trained on (%s)",
    "invalid_boxes": "%d impossible boxes were dropped (%s)",
}


def left_out_of_training(whole: DetectionData, kept: DetectionData) -> dict:
    """Count and name what of the annotations is no target in training, for the record and in the log.

    Args:
        whole: The images with all their annotations; `kept` itself where nothing else is known.
        kept: Those that are trained on, with the classes that are trained; some of the same images.

    Returns:
        ``crowd_regions``: of the trained classes, never a target. ``boxes_of_other_classes``: background, as
        published. ``images_without_box``: not trained on. ``difficult_boxes``: trained on like any other, as published.
        ``invalid_boxes``: dropped on request. ``named``: for each of these the ids of the images that it is about, the
        names of the other classes, or the lines about the invalid boxes.
    """
    is_trained = np.isin(whole.flat.labels, [whole.class_names.index(name) for name in kept.class_names])
    is_crowd = whole.flat.is_crowd
    other = np.bincount(whole.flat.labels[~is_trained & ~is_crowd], minlength=len(whole.class_names))
    difficult = {image.image_id: int(image.is_difficult.sum()) for image in kept.images}
    named = {
        "crowd_regions": [
            whole.images[number].image_id for number in whole.flat.images[is_trained & is_crowd]
        ],
        "boxes_of_other_classes": [name for name, count in zip(whole.class_names, other) if count],
        "images_without_box": list(kept.without_box),
        "difficult_boxes": [image_id for image_id, count in difficult.items() if count],
        "invalid_boxes": list(kept.dropped),
    }
    counts = {what: len(names) for what, names in named.items()}
    counts |= {"boxes_of_other_classes": int(other.sum()), "difficult_boxes": sum(difficult.values())}
    named = {what: list(dict.fromkeys(names)) for what, names in named.items()}
    for what, count in counts.items():
        if count:
            shown = ", ".join(map(_text, named[what][:SHOWN])) + (", ..." if len(named[what]) > SHOWN else "")
            logger.info(f"%s: {WORDS[what]}", kept.name, count, shown)
    return counts | {"named": {what: names for what, names in named.items() if names}}


def _text(name: int | str) -> str:
    return f"image {name}" if isinstance(name, int) else name
