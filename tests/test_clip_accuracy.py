"""Zero-shot accuracy: crops and photos whose class is their colour, so that every number is known."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from risf_core.clip_accuracy import crop_accuracy, photo_accuracy, split_by_design
from risf_core.clip_models import LoadedClip
from risf_core.data.dataset import DetectionData, ImageRecord
from tests.color_clip import ColorClip, color_tokens

CLIP = LoadedClip(ColorClip(), color_tokens, None)
RED_HALF, GREEN_HALF = (0, 0, 20, 20), (20, 0, 40, 20)


def data_of(folder: Path, labels, *, crowd=(False, False, False)) -> DetectionData:
    """Two images, red on the left and green on the right; the boxes are both halves, then the left one."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0], pixels[:, 20:, 1] = 255, 255
    records = []
    for image_id, boxes, part in ((1, [RED_HALF, GREEN_HALF], slice(0, 2)), (2, [RED_HALF], slice(2, 3))):
        path = folder / f"{image_id}.png"
        Image.fromarray(pixels).save(path)
        boxes = np.array(boxes, np.float32)
        records.append(
            ImageRecord(image_id, path, 20, 40, boxes, np.array(labels[part]), np.array(crowd[part]))
        )
    return DetectionData("halves", ("green", "red", "white"), (1, 2, 3), tuple(records))


def test_every_crop_right_and_a_wrong_one(tmp_path):
    right = crop_accuracy(CLIP, data_of(tmp_path, [1, 0, 1]), ["red", "green"])
    assert right["accuracy"] == 100.0 and right["num_crops"] == 3
    assert right["confusion"] == [[2, 0], [0, 1]]  # in the order of the names: red, green
    # a red box that is called green
    wrong = crop_accuracy(CLIP, data_of(tmp_path, [1, 0, 0]), ["red", "green"])
    assert wrong["accuracy"] == pytest.approx(200 / 3) and wrong["confusion"] == [[1, 0], [1, 1]]
    assert wrong["per_class"] == {"red": 100.0, "green": 50.0}


def test_other_classes_and_crowds_are_left_out(tmp_path):
    result = crop_accuracy(CLIP, data_of(tmp_path, [1, 2, 1], crowd=(False, False, True)), ["red", "green"])
    assert result["num_crops"] == 1 and result["per_class"] == {"red": 100.0, "green": None}
    nothing = crop_accuracy(CLIP, data_of(tmp_path, [2, 2, 2]), ["red", "green"])
    assert nothing["accuracy"] is None and nothing["num_crops"] == 0


def test_jitter_moves_boxes_over_the_border_of_the_colours(tmp_path):
    data = data_of(tmp_path, [1, 0, 1])
    results = [
        crop_accuracy(CLIP, data, ["red", "green"], box_jitter=1.0, seed=seed)["accuracy"]
        for seed in range(8)
    ]
    assert min(results) < 100.0  # noise as wide as the boxes takes some to the other colour
    assert results[0] == crop_accuracy(CLIP, data, ["red", "green"], box_jitter=1.0, seed=0)["accuracy"]
    assert crop_accuracy(CLIP, data, ["red", "green"], box_jitter=0.01)["accuracy"] == 100.0


@dataclass
class FakeWorld:
    test_annotations: Path


def test_boxes_are_split_by_the_design_they_show(tmp_path):
    path = tmp_path / "test.json"
    box = {"image_id": 1, "bbox": [1, 2, 10, 10]}
    items = [
        box | {"category_id": 2, "design": 0x2655},  # the white queen is for the test alone
        box | {"category_id": 2, "design": 0x265B, "bbox": [2, 2, 10, 10]},
        box | {"category_id": 1, "design": 0x2655, "bbox": [3, 2, 10, 10]},  # not a design of its class
    ]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "queen"}]
    path.write_text(json.dumps({"annotations": items, "categories": categories}))
    boxes = np.array([[1, 2, 11, 12], [2, 2, 12, 12], [3, 2, 13, 12]], np.float32)
    record = ImageRecord(1, tmp_path / "1.png", 50, 50, boxes, np.array([1, 1, 0]), np.zeros(3, bool))
    parts = split_by_design(DetectionData("test", ("cup", "queen"), (1, 2), (record,)), FakeWorld(path))
    assert parts["held_out"].images[0].boxes.tolist() == [[1, 2, 11, 12]]
    assert parts["seen"].images[0].boxes.tolist() == [[2, 2, 12, 12], [3, 2, 13, 12]]


def test_whole_photos_without_those_of_background():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[0, ..., 0] = images[1, ..., 1] = images[2, ..., 1] = 255
    assert photo_accuracy(CLIP, images, np.array([0, 1, 0, -1]), ["red", "green"]) == pytest.approx(200 / 3)
    assert photo_accuracy(CLIP, images, np.full(4, -1), ["red", "green"]) is None
