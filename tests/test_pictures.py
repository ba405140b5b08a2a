import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.report.pictures import (
    Boxes,
    Picture,
    before_after_figure,
    box_iou,
    class_row,
    few_shot_figure,
    image_grid,
    most_changed_images,
    scenes,
)

NAMES = ("cat", "queen")


def make_data(folder: Path, count: int = 4) -> DetectionData:
    """Grey images with a cat and a queen."""
    records = []
    for image_id in range(count):
        path = folder / f"{image_id}.png"
        Image.fromarray(np.full((40, 60, 3), 40 * image_id, np.uint8)).save(path)
        boxes = np.array([[5, 5, 25, 25], [30, 10, 50, 30]], np.float32)
        records.append(ImageRecord(image_id, path, 40, 60, boxes, np.array([0, 1]), np.zeros(2, bool)))
    return DetectionData("grey", NAMES, (1, 2), tuple(records))


def make_detections(scores: list[float]) -> Detections:
    """One detection for each image: a cat on the cat."""
    count = len(scores)
    boxes = np.tile(np.array([[5, 5, 25, 25]], np.float32), (count, 1))
    class_scores, zeros = np.full((count, 3), 1 / 3, np.float32), np.zeros(count, np.int64)
    return Detections(np.arange(count), boxes, np.array(scores), zeros, class_scores, zeros, NAMES)


def texts(drawing) -> list[str]:
    return [text.get_text() for ax in drawing.figure.axes for text in ax.texts]


def test_scenes_show_every_box_with_its_name(tmp_path):
    drawing = image_grid(scenes(make_data(tmp_path), count=2), "Two scenes.")
    assert texts(drawing) == ["cat", "queen", "cat", "queen"]
    assert sum(len(ax.patches) for ax in drawing.figure.axes) == 4
    assert not drawing.figure.legends  # one kind of box needs none


def test_an_unreadable_image_is_named(tmp_path):
    data = make_data(tmp_path, 1)
    data.images[0].path.write_bytes(b"no image")
    with pytest.raises(DataError, match="0.png"):
        scenes(data)


def test_class_row_titles_each_image():
    drawing = class_row([np.zeros((8, 8, 3), np.uint8)] * 2, NAMES, "Classes.")
    assert [ax.get_title() for ax in drawing.figure.axes] == ["cat", "queen"]


def test_boxes_nobody_annotated_are_drawn_dashed(tmp_path):
    full = make_data(tmp_path, 1)
    missing = dataclasses.replace(full, images=(full.images[0].keep(np.array([True, False])),))
    drawing = few_shot_figure({"missing": missing, "full": full}, shots=1, seed=0, count=1)
    dashed = [[box.get_linestyle() != "-" for box in ax.patches] for ax in drawing.figure.axes]
    assert dashed == [[True, False], [False, False]]
    assert texts(drawing) == ["cat", "cat", "queen"]


def test_images_are_the_largest_rises_then_the_largest_falls():
    before = make_detections([0.5, 0.5, 0.5, 0.5])
    after = before.with_scores(np.array([0.6, 0.9, 0.1, 0.4]))
    assert most_changed_images(before, after, num_up=1, num_down=2) == [1, 2, 3]
    assert most_changed_images(before, after, num_up=3, num_down=0) == [1, 0]  # only two rise
    assert most_changed_images(before, before) == []
    assert most_changed_images(before, after, score_thresh=0.55) == [1, 0]  # the falls start below it


def test_without_a_change_to_show_the_figure_says_so(tmp_path):
    before = make_detections([0.5, 0.2])
    drawing = before_after_figure(before, before.with_scores(np.array([0.5, 0.25])), make_data(tmp_path, 2))
    assert drawing.caption == "Re-scoring changed no detection with a score above 0.3."


def test_a_name_near_the_right_edge_stays_inside_the_picture(tmp_path):
    (ax,) = image_grid(scenes(make_data(tmp_path), count=1), "One scene.").figure.axes
    cat, queen = ax.texts
    assert (cat.get_ha(), cat.get_position()[0]) == ("left", 5)
    assert (queen.get_ha(), queen.get_position()[0]) == ("right", 50)


@pytest.mark.parametrize("corner", [(5, 5), (30, 20), (2, 36)])  # top, middle, bottom of 60 x 40 pixels
def test_names_of_boxes_at_one_corner_do_not_overlap(corner):
    boxes = np.array([[*corner, 58, 39]] * 3)
    layers = (
        Boxes(boxes[:2], ("telephone 0.44", "cat 0.32"), "wrong"),
        Boxes(boxes[2:], ("queen 0.35",), "right"),
    )
    picture = Picture(np.zeros((40, 60, 3), np.uint8), layers=layers)
    (ax,) = image_grid([picture], "Three at one corner.").figure.axes
    patches = [text.get_window_extent().padded(0.8 * ax.figure.dpi / 72) for text in ax.texts]
    assert not any(first.overlaps(other) for first, other in itertools.combinations(patches, 2))
    assert all(ax.bbox.y0 <= patch.y0 and patch.y1 <= ax.bbox.y1 for patch in patches)


def test_before_stands_over_after_and_right_boxes_are_told_from_wrong(tmp_path):
    before = make_detections([0.5, 0.5])
    wrong = dataclasses.replace(before, labels=np.array([0, 1]))  # image 1: a queen where the cat is
    after = wrong.with_scores(np.array([0.8, 0.35]))
    drawing = before_after_figure(wrong, after, make_data(tmp_path, 2))
    assert [ax.get_title() for ax in drawing.figure.axes] == [
        "before, image 0", "before, image 1", "after, image 0", "after, image 1",
    ]  # fmt: skip
    assert texts(drawing) == ["cat 0.50", "queen 0.50", "cat 0.80", "queen 0.35"]
    right, mistaken = (ax.patches[-1].get_edgecolor() for ax in drawing.figure.axes[:2])
    assert right != mistaken


def test_iou_by_hand():
    iou = box_iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2]]))
    np.testing.assert_allclose(iou, [[1 / 7, 0, 1]])
