"""What training leaves out is counted and named."""

import logging

from risf_core.data.benchmark import open_benchmark
from risf_core.data.coco import load_coco
from risf_core.data.left_out import left_out_of_training
from risf_core.data.loader import load_batch
from risf_core.data.voc import load_xml_folder
from risf_core.data_params import CocoData
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.data.voc_files import write_pair


def test_each_kind_is_counted_and_named_in_the_log(tmp_path, caplog):
    boxes = [
        box_entry(6, 3, 7, (1, 1, 0, 5)),
        box_entry(1, 1, 1),
        box_entry(2, 1, 1, iscrowd=1),
        box_entry(3, 2, 7),
        box_entry(4, 3, 3),
        box_entry(5, 3, 7, iscrowd=1),
    ]
    path = write_files(tmp_path, [image_entry(n) for n in range(1, 5)], boxes)
    whole = load_coco(path, tmp_path, drop_invalid=True)
    kept = whole.select_classes(["person", "cat"]).drop_empty()
    with caplog.at_level(logging.INFO):
        counts = left_out_of_training(whole, kept)
    assert counts == {
        "crowd_regions": 1,
        "boxes_of_other_classes": 1,
        "images_without_box": 2,
        "difficult_boxes": 0,
        "invalid_boxes": 1,
        "named": {
            "crowd_regions": [1],
            "boxes_of_other_classes": ["hot dog"],
            "images_without_box": [2, 4],
            "invalid_boxes": ["annotation 6 (image 3): box [1, 1, 0, 5] has zero width"],
        },
    }
    assert "1 crowd regions are no targets (image 1)" in caplog.text
    assert "1 boxes of other classes are background (hot dog)" in caplog.text
    assert "2 images without a box are not trained on (image 2, image 4)" in caplog.text
    assert "1 impossible boxes were dropped (annotation 6 (image 3): box" in caplog.text
    assert "difficult" not in caplog.text


def test_difficult_boxes_are_trained_on_and_named(tmp_path):
    """Those of a draw, of which nothing else is known; an object a record, as VOC's lists give them."""
    write_pair(tmp_path, "a", [("ten", (1, 1, 5, 5), True), ("ten", (1, 1, 9, 9), True)])
    write_pair(tmp_path, "b", [("ten", (1, 1, 5, 5))])
    draw = load_xml_folder(tmp_path)
    counts = left_out_of_training(draw, draw)
    assert counts["difficult_boxes"] == 2 and counts["named"] == {"difficult_boxes": [1]}
    _, targets = load_batch(draw, [0])
    assert len(targets[0]["boxes"]) == 2


def test_a_given_shot_set_knows_what_it_dropped(tmp_path):
    boxes = [box_entry(1, 1, 3), box_entry(2, 1, 3, iscrowd=1), box_entry(3, 2, 1)]
    boxes.append(box_entry(4, 1, 3, (3, 3, 0, 9)))
    write_files(tmp_path, [image_entry(1), image_entry(2)], boxes, name="1_shot.json")
    test = write_files(tmp_path, [image_entry(9)], [box_entry(1, 9, 1), box_entry(2, 9, 3)])
    data = CocoData(
        source="coco",
        root=str(tmp_path / "data"),
        annotations=str(test),
        images=str(tmp_path),
        test_annotations=str(test),
        novel_classes=("cat",),
        few_shot={"kind": "files", "pattern": str(tmp_path / "{shots}_shot.json")},
        drop_invalid=True,
        shots=(1,),
        num_seeds=1,
    )
    draw = open_benchmark(data).few_shot(1, 0)
    counts = left_out_of_training(draw, draw)
    assert (counts["crowd_regions"], counts["images_without_box"], counts["invalid_boxes"]) == (1, 1, 1)
    assert counts["named"]["images_without_box"] == [2] and counts["named"]["crowd_regions"] == [1]
