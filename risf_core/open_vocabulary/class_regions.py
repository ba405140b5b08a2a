"""Regions that have a class: under other class names, and the best one of each name of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from risf_core.data.dataset import check_class_list
from risf_core.open_vocabulary.regions import RegionSet


def with_classes(regions: RegionSet, class_names: Sequence[str]) -> RegionSet:
    """The regions with their labels as positions in other class names.

    Raises:
        SplitError: If a region has a class that is not among them.
    """
    old = regions.manifest["class_names"]
    used = [old[label] for label in np.unique(regions.labels) if label >= 0]
    check_class_list(used, class_names, where=f"regions of {regions.manifest['provider']}")
    place = {name: column for column, name in enumerate(class_names)}
    # the last one serves label -1
    new_label = np.array([*(place.get(name, -1) for name in old), -1], dtype=np.int64)
    facts = regions.manifest | {"class_names": list(class_names)}
    return replace(regions, labels=new_label[regions.labels], manifest=facts)


def best_of_class(
    regions: RegionSet,
    wanted: Mapping[int, Sequence[str]],
    *,
    class_names: Sequence[str],
    score_thresh: float = 0.0,
) -> RegionSet:
    """The best box of each name of each image: what image-level supervision with external boxes learns from.

    Args:
        regions: Regions with classes.
        wanted: Image id -> names of what the image shows; regions of other names are left out.
        class_names: The columns of the classifier, in which the labels of the result are.
        score_thresh: The least score that counts, exclusive: the released code has 0.95 for COCO's captions, 0 for
            ImageNet-LVIS.

    Returns:
        At most one region for each image and name. The manifest counts the names without one (``names_without_box``).

    Raises:
        DataError: If an image has no entry in `regions`.
        SplitError: If a name is not among `class_names`.
    """
    found = regions.select(list(wanted))
    place = {name: label for label, name in enumerate(found.manifest["class_names"])}
    mask, num_wanted = np.zeros(len(found), dtype=bool), 0
    for number, (image_id, names) in enumerate(wanted.items()):
        check_class_list(tuple(names), class_names, where=f"names of image {image_id}")
        num_wanted += len(names)
        rows = np.arange(found.starts[number], found.starts[number + 1])
        for name in names:
            own = rows[(found.labels[rows] == place.get(name)) & (found.scores[rows] > score_thresh)]
            mask[own[:1]] = True  # scores fall within an image
    facts = {"score_thresh": score_thresh, "names_without_box": num_wanted - int(mask.sum())}
    return with_classes(found.keep(mask), class_names).noted(**facts)
