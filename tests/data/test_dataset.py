"""The annotation form: counting, choosing classes, merging parts."""

from pathlib import Path

import numpy as np
import pytest

from risf_core.data.dataset import DetectionData, ImageRecord, merge_images, suggest, summarize
from risf_core.errors import DataError, SplitError


def record(image_id, labels, *, crowd=(), path=None, width=20):
    boxes = np.array([[label, 0, label + 2, 4] for label in labels], np.float32).reshape(-1, 4)
    is_crowd = np.isin(np.arange(len(labels)), crowd)
    return ImageRecord(
        image_id, Path(path or f"{image_id}.png"), 10, width, boxes, np.array(labels, np.int64), is_crowd
    )


def data_of(*records, names=("a", "b", "c")):
    return DetectionData("data", tuple(names), tuple(range(11, 11 + len(names))), tuple(records))


def test_counts_leave_out_crowd_and_empty_images_go():
    data = data_of(record(1, [0, 0, 2], crowd=[1]), record(2, [1], crowd=[0]), record(3, []))
    assert data.counts() == {"a": 1, "b": 0, "c": 1}
    assert [image.image_id for image in data.drop_empty().images] == [1]
    assert data.flat.images.tolist() == [0, 0, 0, 1] and data.flat.labels.tolist() == [0, 0, 2, 1]


def test_selected_classes_are_numbered_in_the_given_order_and_keep_their_ids():
    chosen = data_of(record(1, [0, 1, 2], crowd=[2]), record(2, [1])).select_classes(("c", "a"))
    assert chosen.category_ids == (13, 11)
    assert chosen.images[0].labels.tolist() == [1, 0] and chosen.images[0].is_crowd.tolist() == [False, True]
    assert chosen.images[0].boxes[:, 0].tolist() == [0, 2] and len(chosen.images[1].labels) == 0


def test_data_without_images_has_no_annotations():
    assert data_of().flat.boxes.shape == (0, 4) and data_of().counts() == {"a": 0, "b": 0, "c": 0}


def test_suggestion_is_the_nearest_name_or_the_list():
    assert suggest("Telephon", ("anchor", "telephone")) == "Did you mean 'telephone'?"
    assert suggest("zzz", ("anchor", "telephone")) == "Expected one of: anchor, telephone."


def test_columns_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="image 5"):
        ImageRecord(
            5, Path("5.png"), 1, 1, np.zeros((2, 4), np.float32), np.zeros(1, np.int64), np.zeros(1, bool)
        )
    with pytest.raises(DataError, match="2 class names but 1 category"):
        DetectionData("d", ("a", "b"), (1,), ())
    with pytest.raises(SplitError, match="'a' stands twice"):
        DetectionData("d", ("a", "a"), (1, 2), ())


def test_merging_joins_the_same_file_and_renumbers_another_with_its_id():
    first = data_of(record(1, [0], path="x.png"), record(2, [0], path="y.png"), names=["a"])
    second = data_of(record(1, [0], path="x.png"), record(2, [0], path="z.png"), names=["b"])
    merged = merge_images([first, second], name="both", class_names=["b", "a"])
    assert {image.path.name: image.labels.tolist() for image in merged.images} == {
        "x.png": [1, 0],
        "y.png": [1],
        "z.png": [0],
    }
    assert [image.image_id for image in merged.images] == [1, 2, 3]
    assert len(first.images[0].labels) == 1  # the parts stay as they were
    with pytest.raises(DataError, match="x.png"):
        merge_images(
            [first, data_of(record(1, [0], path="x.png", width=9), names=["a"])],
            name="both",
            class_names=["a"],
        )


def test_summary_counts_images_boxes_and_crowd():
    train = data_of(record(1, [0, 0, 1]), record(2, [1], crowd=[0]), record(3, []))
    table = summarize({"train": train, "novel": data_of(record(4, [0]), names=["c"])})
    assert table.index.tolist() == ["a", "b", "c", "all"]
    assert table["train", "images"].tolist() == [1, 1, 0, 3]
    assert table["train", "boxes"].tolist() == [2, 1, 0, 3]
    assert table["train", "crowd"].tolist() == [0, 1, 0, 1]
    assert table["novel", "boxes"].isna().tolist() == [True, True, False, False]
