"""What training leaves out of its images, counted and named: nothing is dropped without a word."""

from __future__ import annotations

import logging

import numpy as np

from risf_core.data.dataset import DetectionData

logger = logging.getLogger(__name__)

SHOWN = 5  # names in a line of the log


def left_out_of_training(whole: DetectionData, kept: DetectionData) -> dict[str, int]:
    """Count what of the annotations is no target in training, and name it in the log.

    Args:
        whole: The images with all their annotations.
        kept: Those that are trained on, with the classes that are trained; some of the same images.

    Returns:
        ``crowd_regions``: of the trained classes, never a target. ``boxes_of_other_classes``: background, as
        published. ``images_without_box``: not trained on. ``difficult_boxes``: trained on like any other, as published.
    """
    is_trained = np.isin(whole.flat.labels, [whole.class_names.index(name) for name in kept.class_names])
    paths = {record.path for record in kept.images}
    gone = [record for record in whole.images if record.path not in paths]
    crowd = is_trained & whole.flat.is_crowd
    counts = {
        "crowd_regions": int(crowd.sum()),
        "boxes_of_other_classes": int((~is_trained & ~whole.flat.is_crowd).sum()),
        "images_without_box": len(gone),
        "difficult_boxes": sum(int(record.is_difficult.sum()) for record in kept.images),
    }
    names = {
        "crowd_regions": [f"image {whole.images[number].image_id}" for number in whole.flat.images[crowd]],
        "boxes_of_other_classes": [name for name in whole.class_names if name not in kept.class_names],
        "images_without_box": [f"image {record.image_id}" for record in gone],
        "difficult_boxes": [
            f"image {record.image_id}" for record in kept.images if record.is_difficult.any()
        ],
    }
    words = {
        "crowd_regions": "%d crowd regions are no targets (%s)",
        "boxes_of_other_classes": "%d boxes of other classes are background (%s)",
        "images_without_box": "%d images without a box are not trained on (%s)",
        "difficult_boxes": "%d difficult boxes are trained on (%s)",
    }
    for what, count in counts.items():
        if count:
            named = list(dict.fromkeys(names[what]))
            shown = ", ".join(named[:SHOWN]) + (", ..." if len(named) > SHOWN else "")
            logger.info(f"%s: {words[what]}", kept.name, count, shown)
    return counts
