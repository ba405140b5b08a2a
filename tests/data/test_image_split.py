"""The draw of a training and a test part."""

from pathlib import Path

import numpy as np
import pytest

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.image_split import split_images
from risf_core.errors import SplitError


def data_of(labels_of_images):
    records = tuple(
        ImageRecord(
            number,
            Path(f"{number}.png"),
            30,
            40,
            np.tile(np.array([1, 2, 3, 4], np.float32), (len(labels), 1)),
            np.array(labels, np.int64),
            np.zeros(len(labels), bool),
        )
        for number, labels in enumerate(labels_of_images)
    )
    return DetectionData("data", ("rare", "common", "other"), (1, 2, 3), records)


def ids(data):
    return {record.image_id for record in data.images}


def test_parts_are_disjoint_complete_and_of_the_right_size():
    data = data_of([[1]] * 30 + [[]] * 20)
    train, test = split_images(data, test_fraction=0.3, seed=0, class_names=("rare", "common"))
    assert ids(train) | ids(test) == set(range(50)) and not ids(train) & ids(test)
    assert len(test) == 15 and test.counts()["common"] == 9
    assert train.class_names == data.class_names


def test_rare_classes_are_shared_out_whatever_the_seed():
    data = data_of([[0, 1]] * 4 + [[1, 2]] * 20 + [[2]] * 30)
    for seed in range(20):
        train, test = split_images(
            data, test_fraction=0.5, seed=seed, class_names=("rare", "common", "other")
        )
        assert train.counts()["rare"] == test.counts()["rare"] == 2
        assert abs(train.counts()["common"] - test.counts()["common"]) <= 1


def test_seed_decides_and_the_order_of_classes_does_not():
    data = data_of([[0, 1], [0], [1], [2, 1], [2]] * 8)
    names = ("rare", "common", "other")
    draws = [
        ids(split_images(data, test_fraction=0.5, seed=seed, class_names=names)[1]) for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == ids(split_images(data, test_fraction=0.5, seed=0, class_names=names[::-1])[1])


def test_a_part_without_images_is_refused():
    with pytest.raises(SplitError, match="leave a part empty"):
        split_images(data_of([[0]]), test_fraction=0.5, seed=0, class_names=["rare"])
