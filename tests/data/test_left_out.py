"""What training leaves out is counted and named."""

import logging

from risf_core.data.coco import load_coco
from risf_core.data.left_out import left_out_of_training
from tests.data.coco_files import box_entry, image_entry, write_files


def test_each_kind_is_counted_and_named_in_the_log(tmp_path, caplog):
    boxes = [
        box_entry(1, 1, 1),
        box_entry(2, 1, 1, iscrowd=1),
        box_entry(3, 2, 7),
        box_entry(4, 3, 3),
        box_entry(5, 3, 7, iscrowd=1),
    ]
    whole = load_coco(write_files(tmp_path, [image_entry(n) for n in range(1, 5)], boxes), tmp_path)
    kept = whole.select_classes(["person", "cat"]).drop_empty()
    with caplog.at_level(logging.INFO):
        counts = left_out_of_training(whole, kept)
    assert counts == {
        "crowd_regions": 1,
        "boxes_of_other_classes": 1,
        "images_without_box": 2,
        "difficult_boxes": 0,
    }
    assert "1 crowd regions are no targets (image 1)" in caplog.text
    assert "1 boxes of other classes are background (hot dog)" in caplog.text
    assert "2 images without a box are not trained on (image 2, image 4)" in caplog.text
    assert "difficult" not in caplog.text
