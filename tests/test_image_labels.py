"""Image labels and the data of open-vocabulary detection: parts, columns, masks, and the controls of the labels."""

from pathlib import Path

import numpy as np
import pytest

from risf_core.data.benchmark import open_benchmark
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.glyphs import CLASSES, EXTRA_CONCEPTS, SPLITS
from risf_core.data.loader import load_batch
from risf_core.data.pictograms import render_scene
from risf_core.data.world import build_world
from risf_core.errors import DataError, SplitError
from risf_core.open_vocabulary.image_labels import ImageLabels
from risf_core.open_vocabulary.ovd_data import OvdData, open_pictogram_ovd
from risf_core.open_vocabulary.scene_clutter import clutter_names, objects_and_clutter
from risf_core.params import PictogramData

SMALL = {
    "image_size": 96, "num_base_images": 60, "num_test_images": 12, "num_classification": 100, "num_corpus": 200,
    "extra_novel": 3, "few_shot_seeds": 1, "shots": (1,),
}  # fmt: skip
PARTS = {"num_box_images": 30, "num_label_images": 20, "seed": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> PictogramData:
    return PictogramData(root=str(tmp_path_factory.mktemp("data")), **SMALL)


def empty_images(count, class_names=("sun", "cat", "cup")):
    none = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
    images = tuple(ImageRecord(number, Path(f"{number}.png"), 10, 10, *none) for number in range(count))
    return DetectionData("toy", class_names, tuple(range(len(class_names))), images)


# ------------------------------------------------------------ image labels


def test_labels_are_ascending_columns_and_images_without_one_are_counted():
    labels = ImageLabels.of(empty_images(4), [["cup", "sun", "cup"], [], ["cat"], []])
    assert [one.tolist() for one in labels.labels] == [[0, 2], [1]]
    assert [record.image_id for record in labels.data.images] == [0, 2]
    assert labels.without_label == 2 and len(labels) == 2
    assert labels.names(0) == ("sun", "cup")
    assert labels.image_counts().tolist() == [1, 1, 1]


def test_only_some_classes_leaves_out_images_that_show_none_of_them():
    labels = ImageLabels.of(empty_images(3), [["cup", "sun"], ["cat"], ["cat", "sun"]]).only(["sun"])
    assert [labels.names(index) for index in range(len(labels))] == [("sun",), ("sun",)]
    assert [record.image_id for record in labels.data.images] == [0, 2] and labels.without_label == 1
    assert labels.class_names == ("sun", "cat", "cup")  # the columns stay


def test_permuted_labels_are_those_of_another_image_and_the_same_in_all():
    names = [[name] for name in ("sun", "cat", "cup")] + [["sun", "cat"], ["cup", "cat"]]
    labels = ImageLabels.of(empty_images(5), names)
    permuted = labels.permuted(seed=3)
    own, other = ([tuple(one.tolist()) for one in part.labels] for part in (labels, permuted))
    assert sorted(own) == sorted(other)
    assert all(mine != theirs for mine, theirs in zip(own, other, strict=True))  # all five sets differ
    assert permuted.data is labels.data
    again = labels.permuted(seed=3)
    assert all((a == b).all() for a, b in zip(permuted.labels, again.labels, strict=True))
    with pytest.raises(DataError, match="cannot be permuted"):
        ImageLabels.of(empty_images(1), [["sun"]]).permuted(seed=0)


@pytest.mark.parametrize("bad", [[], [2, 0], [1, 1], [3], [-1]])
def test_labels_that_are_no_ascending_columns_are_refused(bad):
    with pytest.raises(DataError, match="image 0 has the labels"):
        ImageLabels(empty_images(1), (np.array(bad, dtype=np.int64),))


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(SplitError, match="'cut'.*'cup'|'cut'.*'cat'"):
        ImageLabels.of(empty_images(1), [["cut"]])


# ------------------------------------------------------------ the pictogram world


def test_the_parts_are_disjoint_and_only_base_classes_have_boxes(world):
    data = open_pictogram_ovd(world, 1, **PARTS)
    parts = [data.box_train, data.label_train.data, data.grounding]
    ids = [{record.image_id for record in part.images} for part in parts]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    assert len(ids[0]) <= 30 and len(ids[1]) + data.label_train.without_label == 20 and len(ids[2]) == 10
    assert data.novel_names == SPLITS[1] and len(data.base_names) == 15
    assert data.class_names == data.test.class_names == (*data.base_names, *data.novel_names)
    assert data.class_mask.tolist() == [True] * 15 + [False] * 5
    assert set(data.grounding.counts()) == set(CLASSES)


def test_novel_objects_are_in_the_box_images_without_a_box(world):
    data = open_pictogram_ovd(world, 1, **PARTS)
    full = {record.image_id: record for record in open_benchmark(world, split=1).train.images}
    novel = 0
    for record in data.box_train.images:
        whole = full[record.image_id]
        names = [CLASSES[label] for label in whole.labels]
        novel += sum(name in data.novel_names for name in names)
        expected = [box for box, name in zip(whole.boxes.tolist(), names) if name in data.base_names]
        assert record.boxes.tolist() == expected
        assert all(data.class_names[label] in data.base_names for label in record.labels)
    assert novel > 0


def test_image_counts_count_an_image_once(world):
    data = open_pictogram_ovd(world, 1, **PARTS)
    expected = [sum(label in record.labels for record in data.box_train.images) for label in range(20)]
    assert data.image_counts.tolist() == expected


def test_labels_are_the_names_of_all_objects(world):
    data = open_pictogram_ovd(world, 1, **PARTS)
    full = {record.image_id: record for record in open_benchmark(world, split=1).train.images}
    for index, record in enumerate(data.label_train.data.images):
        assert set(data.label_train.names(index)) == {CLASSES[n] for n in full[record.image_id].labels}
    images, targets = load_batch(data.label_train.data, [0, 1])
    assert images[0].shape == (3, 96, 96) and targets[0]["boxes"].shape == (0, 4)


def test_base_labels_hold_no_novel_name(world):
    data = open_pictogram_ovd(world, 1, **PARTS, labels="base")
    shown = {name for index in range(len(data.label_train)) for name in data.label_train.names(index)}
    assert shown and shown <= set(data.base_names)


def test_strict_training_never_sees_a_novel_name(world):
    data = open_pictogram_ovd(world, 1, **PARTS, labels="strict")
    assert data.class_names == (*data.base_names, *EXTRA_CONCEPTS)
    assert not set(data.class_names) & set(data.novel_names)
    assert data.test.class_names == (*data.base_names, *data.novel_names)
    assert data.class_mask.tolist() == [True] * 15 + [False] * 50
    counts = data.label_train.image_counts()
    assert counts[:15].sum() > 0 and counts[15:].sum() > 0
    same = open_pictogram_ovd(world, 1, **PARTS)  # the same box images whatever the labels
    for mine, theirs in zip(data.box_train.images, same.box_train.images, strict=True):
        assert (mine.labels == theirs.labels).all() and mine.image_id == theirs.image_id


def test_wrong_numbers_and_names_are_refused(world):
    with pytest.raises(SplitError, match="cannot be cut from 60 scenes"):
        open_pictogram_ovd(world, 1, num_box_images=50, num_label_images=20, seed=0)
    with pytest.raises(SplitError, match="Expected one of: all, base, permuted, strict"):
        open_pictogram_ovd(world, 1, **PARTS, labels="novel")


def test_boxes_of_novel_classes_in_training_are_refused(world):
    data = open_pictogram_ovd(world, 1, **PARTS)
    full = open_benchmark(world, split=1).train.select_classes(data.class_names)
    with pytest.raises(SplitError, match="not a base class"):
        OvdData("toy", full, None, data.test, data.base_names, data.novel_names)


# ------------------------------------------------------------ the clutter


def test_the_clutter_is_what_the_scene_places(monkeypatch):
    """The stock renderer places the same concepts, in the same order, at the same seeds."""
    from risf_core.data.canvas import Canvas

    placed, place = [], Canvas.place

    def noting(self, rng, concept, side, **options):
        drawn = place(self, rng, concept, side, **options)
        if drawn:
            placed.append((concept, options["labelled"], round(side, 6)))
        return drawn

    monkeypatch.setattr(Canvas, "place", noting)
    for index in range(12):
        placed.clear()
        render_scene((7, 1, index), size=96)
        stock = list(placed)
        placed.clear()
        _, clutter = objects_and_clutter((7, 1, index), size=96)
        assert placed == stock
        assert list(clutter) == [concept for concept, labelled, _ in stock if not labelled]


def test_scenes_of_another_world_are_refused(world):
    scenes = open_benchmark(world, split=1).train
    other = world.model_copy(update={"seed": 1})
    with pytest.raises(DataError, match="does not hold the objects"):
        clutter_names(build_world(other), scenes)
