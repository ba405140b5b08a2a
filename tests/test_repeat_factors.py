"""Repeat-factor sampling: hand-worked factors, how often images come, and resuming."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.errors import DataError
from risf_core.open_vocabulary.repeat_factors import (
    repeat_factors,
    repeated_batches,
    repeated_image_order,
)


def data_of(*labels, crowd=()):
    """Images with these labels, one box each; the images at the positions `crowd` hold crowd regions."""
    images = []
    for number, own in enumerate(labels):
        boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (len(own), 1))
        flags = np.full(len(own), number in crowd)
        width = 20 if number % 2 else 5
        images.append(
            ImageRecord(number, Path(f"{number}.png"), 10, width, boxes, np.array(own, np.int64), flags)
        )
    return DetectionData("toy", ("sun", "cat", "cup"), (1, 2, 3), tuple(images))


def test_the_factor_of_an_image_is_that_of_its_rarest_class():
    # sun in 8 of 16 images, cat in 1, cup in none
    data = data_of(*[[0]] * 7, [0, 1, 1], *[[]] * 8)
    factors = repeat_factors(data, threshold=0.25)
    assert factors[:7].tolist() == [1.0] * 7  # share 1/2 is above the threshold
    assert factors[7] == pytest.approx(2.0)  # sqrt(0.25 / (1/16)); two boxes of an image count once
    assert factors[8:].tolist() == [1.0] * 8


def test_crowd_regions_repeat_nothing_and_thresholds_are_checked():
    data = data_of([1], [0], [0], [0], crowd=(0,))
    assert repeat_factors(data, threshold=1.0).tolist() == pytest.approx([1.0] + [(4 / 3) ** 0.5] * 3)
    assert repeat_factors(data, threshold=0.0).tolist() == [1.0] * 4
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(DataError, match="threshold from 0 to 1"):
            repeat_factors(data, threshold=wrong)


def test_images_come_as_often_as_their_factors_say():
    factors = np.array([1.0, 1.5, 2.0, 3.25])
    passes = 400
    order = repeated_image_order(factors, 1, seed=0)
    seen = Counter(image for (image,) in islice(order, int(factors.sum() * passes)))
    assert seen[0] == pytest.approx(passes, abs=15) and seen[2] == pytest.approx(2 * passes, abs=30)
    assert seen[1] == pytest.approx(1.5 * passes, rel=0.08)  # a fair coin each pass: 3.4 standard deviations
    assert seen[3] == pytest.approx(3.25 * passes, rel=0.08)


def test_without_rare_classes_a_pass_has_each_image_once():
    order = repeated_image_order(np.ones(6), 3, seed=5)
    for _ in range(4):
        assert sorted(next(order) + next(order)) == list(range(6))


def test_a_pass_is_shuffled_and_follows_from_the_seed():
    factors = np.array([2.5] * 5)
    first, again, other = (list(islice(repeated_image_order(factors, 4, seed=s), 6)) for s in (1, 1, 2))
    assert first == again != other
    assert first[0] != sorted(first[0]) or first[1] != sorted(first[1])


def test_batches_of_one_group_and_resumed_ones():
    data = data_of(*[[0]] * 10, [1])
    whole = repeated_batches(data, 2, seed=3, threshold=0.5, group_by_aspect=True)
    batches = [whole(iteration) for iteration in range(12)]
    assert all(len({image % 2 for image in batch}) == 1 for batch in batches)  # odd ones are wide
    resumed = repeated_batches(data, 2, seed=3, threshold=0.5, group_by_aspect=True)
    assert [resumed(iteration) for iteration in range(7, 12)] == batches[7:]


@pytest.mark.parametrize("factors", [np.empty(0), np.array([0.5, 1.0]), np.array([1.0, np.inf])])
def test_impossible_factors_are_refused(factors):
    with pytest.raises(DataError, match="factors of 1 or more"):
        next(repeated_image_order(factors, 2, seed=0))
