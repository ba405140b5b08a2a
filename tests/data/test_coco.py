"""COCO files: what is loaded, what is refused and how it is said, and what is written."""

import json

import numpy as np
import pytest

from risf_core.data.coco import load_coco, write_coco
from risf_core.errors import DataError, SplitError
from tests.data.coco_files import CATEGORIES, box_entry, image_entry, write_files


def refused(folder, images, annotations, categories=CATEGORIES, **options):
    """Load a file that must be refused; return the error's problems (without the file) and its message."""
    path = write_files(folder, images, annotations, categories)
    with pytest.raises(DataError) as caught:
        load_coco(path, folder, **options)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems], str(caught.value)


def test_boxes_become_corners_and_classes_follow_category_ids(tmp_path):
    annotations = [box_entry(10, 2, 7, (1.5, 2, 10, 20)), box_entry(11, 1, 1), box_entry(9, 2, 3, iscrowd=1)]
    data = load_coco(write_files(tmp_path, [image_entry(2), image_entry(1)], annotations), tmp_path)
    assert data.class_names == ("person", "cat", "hot dog")
    assert data.category_ids == (1, 3, 7)
    assert [record.image_id for record in data.images] == [1, 2]
    second = data.images[1]
    assert second.path == tmp_path / "2.png" and (second.height, second.width) == (30, 40)
    np.testing.assert_array_equal(second.boxes, [[1.5, 2, 11.5, 22], [5, 6, 15, 18]])
    assert second.boxes.dtype == np.float32 and second.labels.dtype == np.int64
    assert second.labels.tolist() == [2, 1] and second.is_crowd.tolist() == [False, True]


def test_boxes_of_an_image_stay_in_the_order_of_the_file(tmp_path):
    boxes = [box_entry(n, 1 + n % 2, 1, (0, 0, 1 + n % 39, 1 + n % 28)) for n in range(1, 400)]
    data = load_coco(write_files(tmp_path, [image_entry(1), image_entry(2)], boxes), tmp_path)
    for parity, record in enumerate(data.images):
        own = [n for n in range(1, 400) if n % 2 == parity]
        np.testing.assert_array_equal(record.boxes[:, 2:], [(1 + n % 39, 1 + n % 28) for n in own])


def test_class_list_gives_labels_their_order_and_keeps_all_images(tmp_path):
    annotations = [box_entry(1, 1, 7), box_entry(2, 1, 3), box_entry(3, 2, 3), box_entry(4, 1, 1)]
    path = write_files(tmp_path, [image_entry(1), image_entry(2)], annotations)
    data = load_coco(path, tmp_path, class_names=["hot dog", "person"])
    assert data.category_ids == (7, 1)
    assert data.images[0].labels.tolist() == [0, 1] and data.images[1].labels.tolist() == []
    assert len(data.drop_empty()) == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [(["hotdog"], "'hot dog'"), (["cat", "cat"], "'cat' stands twice"), ("cat", "Expected a list")],
)
def test_wrong_class_lists_are_refused(tmp_path, names, said):
    path = write_files(tmp_path, [image_entry(1)], [])
    with pytest.raises(SplitError, match=said):
        load_coco(path, tmp_path, class_names=names)


@pytest.mark.parametrize(
    ("bbox", "said"),
    [
        ((10, 10, 0, 5), "has zero width"),
        ((10, 10, 4, -5), "has negative height"),
        ((10, float("nan"), 4, 5), "not finite"),
        ((10, 10, float("inf"), 5), "not finite"),
        ((10, 10, 32, 5), "outside its image of 40x30"),
        ((10, -2.5, 3, 5), "outside its image"),
        ((40, 10, 0.5, 5), "outside its image"),
        ((1, 2, 3), "no 'bbox'"),
        ((1, 2, 3, "4"), "expected four numbers"),
        ((1, 2, 3, True), "expected four numbers"),
        ({"x": 1}, "no 'bbox'"),
    ],
)
def test_bad_box_is_named(tmp_path, bbox, said):
    problems, message = refused(
        tmp_path, [image_entry(139)], [box_entry(4711, 139, 1, bbox), box_entry(1, 139, 1)]
    )
    assert len(problems) == 1
    assert "annotation 4711 (image 139)" in message and said in message and "instances.json" in message


def test_boxes_up_to_a_pixel_outside_are_cut_to_the_image(tmp_path):
    path = write_files(tmp_path, [image_entry(1)], [box_entry(1, 1, 1, (-0.5, 20, 41.25, 11))])
    np.testing.assert_array_equal(load_coco(path, tmp_path).images[0].boxes, [[0, 20, 40, 30]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_id": 99}, "image_id 99 is not among the 1 images"),
        ({"category_id": 5}, "category_id 5 is not among the 3 categories"),
        ({"image_id": "1"}, "image_id is '1'; expected a whole number"),
        ({"category_id": 1.0}, "category_id is 1.0; expected a whole number"),
        ({"id": True}, "id is True"),
        ({"id": 10**30}, "expected a whole number"),
        ({"iscrowd": 2}, "iscrowd is 2"),
        ({"id": 1}, "annotation id 1 stands twice"),
    ],
)
def test_bad_annotation_is_named(tmp_path, changes, said):
    problems, _ = refused(tmp_path, [image_entry(1)], [box_entry(1, 1, 1), box_entry(2, 1, 1) | changes])
    assert len(problems) == 1 and said in problems[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 0}, "image 2: width is 0"),
        ({"height": 3.5}, "image 2: height is 3.5"),
        ({"file_name": None}, "image 2: file_name is None"),
        ({"id": 1, "file_name": "x.png"}, "image id 1 stands twice"),
        ({"file_name": "1.png"}, "images 1 and 2 have the same file"),
    ],
)
def test_bad_image_entry_is_named_without_blaming_its_boxes(tmp_path, changes, said):
    images = [image_entry(1), image_entry(2) | changes]
    boxes = [box_entry(1, 1, 1), box_entry(2, images[1]["id"], 1)]
    problems, _ = refused(tmp_path, images, boxes)
    assert len(problems) == 1 and said in problems[0]


def test_missing_keys_and_doubled_categories_are_named(tmp_path):
    no_height = {key: value for key, value in image_entry(1).items() if key != "height"}
    no_box = {"id": 5, "image_id": 1, "category_id": 1}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 4}]
    problems, _ = refused(tmp_path, [no_height], [no_box, ["box"]], categories)
    assert [line.split(";")[0] for line in problems] == [
        "category 'cat' stands twice, under different ids",
        "category id 1 stands twice",
        "category number 3: has no 'name'",
        "image 1: has no 'height'",
        "annotation 5 (image 1): has no 'bbox' [x, y, width, height]",
        "annotation number 1: is ['box']",
    ]


def test_all_problems_are_counted_and_the_first_are_shown(tmp_path):
    boxes = [box_entry(number, 1, 1, (1, 1, 0, 3)) for number in range(1, 9)]
    problems, message = refused(tmp_path, [image_entry(1)], [*boxes, box_entry(9, 77, 1)])
    assert len(problems) == 9
    assert "9 problems in total" in message and "... 4 more" in message
    assert message.count("annotation") - message.count("annotations") <= 6


def test_invalid_boxes_are_dropped_on_request_alone(tmp_path):
    boxes = [
        box_entry(1, 1, 1, (1, 1, 0, 3)),
        box_entry(2, 1, 1),
        box_entry(3, 1, 1, (1, 1, 3, float("nan"))),
    ]
    path = write_files(tmp_path, [image_entry(1)], boxes)
    data = load_coco(path, tmp_path, drop_invalid=True)
    np.testing.assert_array_equal(data.flat.boxes, [[5, 6, 15, 18]])
    problems, _ = refused(tmp_path, [image_entry(1)], [*boxes, box_entry(4, 77, 1)], drop_invalid=True)
    assert len(problems) == 1 and "77" in problems[0]


def test_other_box_formats_are_suspected(tmp_path):
    corners = [box_entry(1, 1, 1, (20, 15, 38, 29)), box_entry(2, 1, 1, (2, 2, 39, 30))]
    assert "[x1, y1, x2, y2]" in refused(tmp_path, [image_entry(1)], corners)[1]
    fractions = [box_entry(1, 1, 1, (0.1, 0.2, 0.5, 0.5)), box_entry(2, 1, 1, (0.5, 0.5, 0.5, 0.5))]
    assert "fractions of the image size" in refused(tmp_path, [image_entry(1)], fractions)[1]
    turned = [box_entry(1, 1, 1, (5, 5, 20, 34))]
    assert "swapped" in refused(tmp_path, [image_entry(1)], turned)[1]
    assert (
        "swapped" not in refused(tmp_path, [image_entry(1)], [*turned, box_entry(2, 1, 1, (0, 0, 40, 5))])[1]
    )


def test_missing_image_files_are_found_when_loading(tmp_path):
    path = write_files(tmp_path, [image_entry(1), image_entry(2), image_entry(3)], [])
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").rename(tmp_path / "3.PNG")
    with pytest.raises(DataError) as caught:
        load_coco(path, tmp_path)
    assert [line.split(": ")[1] for line in caught.value.problems] == ["image 2", "image 3"]
    assert "the folder has '3.PNG'" in caught.value.problems[1]
    with pytest.raises(DataError, match="does not exist") as caught:
        load_coco(path, tmp_path / "nowhere")
    assert len(caught.value.problems) == 1


def test_missing_files_are_found_among_many_in_several_folders(tmp_path):
    images = [
        image_entry(number, width=1, height=1, file_name=f"{number % 2}/{number}.png")
        for number in range(1, 1002)
    ]
    path = write_files(tmp_path, images, [])
    assert len(load_coco(path, tmp_path)) == 1001
    (tmp_path / "1" / "501.png").unlink()
    with pytest.raises(DataError, match="image 501: file .*501.png does not exist"):
        load_coco(path, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a JSON file"),
        ('{"images": [', "not a JSON file"),
        ("[]", "a COCO results file"),
        ("3", "holds int"),
        ('{"images": [], "annotations": {}}', "'annotations' is not a list"),
        ('{"images": [], "annotations": []}', "'categories' is missing"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        load_coco(path, tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_coco(tmp_path / "b.json", tmp_path)


def test_written_data_comes_back_exactly(tmp_path):
    third = float(np.float32(1 / 3))
    boxes = [
        box_entry(7, 2, 7, (third, 1.37, 10.11, 20.2)),
        box_entry(8, 2, 3, iscrowd=1),
        box_entry(9, 1, 1),
    ]
    images = [image_entry(1, file_name="sub/a.png"), image_entry(2)]
    data = load_coco(write_files(tmp_path, images, boxes), tmp_path)
    write_coco(tmp_path / "new" / "copy.json", data, images_dir=tmp_path)
    copy = load_coco(tmp_path / "new" / "copy.json", tmp_path)
    assert copy.class_names == data.class_names and copy.category_ids == data.category_ids
    for mine, other in zip(copy.images, data.images, strict=True):
        assert (mine.image_id, mine.path, mine.width) == (other.image_id, other.path, other.width)
        np.testing.assert_array_equal(mine.boxes, other.boxes)
        assert (
            mine.labels.tolist() == other.labels.tolist()
            and mine.is_crowd.tolist() == other.is_crowd.tolist()
        )
    content = json.loads((tmp_path / "new" / "copy.json").read_text())
    assert [entry["id"] for entry in content["annotations"]] == [1, 2, 3]
    assert content["annotations"][0]["bbox"] == [5, 6, 10, 12]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy.json"]


def test_images_outside_the_folder_cannot_be_written(tmp_path):
    data = load_coco(write_files(tmp_path, [image_entry(1)], []), tmp_path)
    with pytest.raises(DataError, match="Expected all images in one folder"):
        write_coco(tmp_path / "copy.json", data, images_dir=tmp_path / "other")
