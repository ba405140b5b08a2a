"""LVIS's files: classes by frequency, what is known of an image, rare classes taken out, image labels."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from risf_core.data.loader import read_image
from risf_core.errors import DataError, SplitError
from risf_core.open_vocabulary import lvis_data
from risf_core.open_vocabulary.classifier import federated_mask
from risf_core.open_vocabulary.lvis_data import load_lvis, open_lvis_ovd
from tests.lvis_files import CATEGORIES, random_content, write_lvis

RARE = ("bat_(animal)", "gear")


@pytest.fixture
def content():
    return random_content(0)


def test_what_the_file_says_of_images_and_classes(tmp_path, content):
    lvis = load_lvis(write_lvis(tmp_path, content), tmp_path)
    assert lvis.frequency == ("f", "r", "c", "f", "r", "c")
    assert lvis.novel_names == RARE and lvis.base_names == ("anchor", "sofa", "kite", "wine_glass")
    assert lvis.names("c") == ("sofa", "wine_glass")
    assert lvis.synonyms[2] == ("sofa", "couch", "lounge")
    for entry, record, negative, open_ in zip(
        content["images"], lvis.data.images, lvis.negative, lvis.not_exhaustive, strict=True
    ):
        assert record.image_id == entry["id"]
        assert [lvis.data.category_ids[label] for label in negative] == entry["neg_category_ids"]
        assert [lvis.data.category_ids[label] for label in open_] == entry["not_exhaustive_category_ids"]
        assert record.path == tmp_path / "val2017" / f"{entry['id']:06d}.png"
    assert len(lvis.data.flat.labels) == len(content["annotations"])
    assert read_image(lvis.data.images[0].path).shape == (3, 64, 64)


def test_rare_boxes_go_and_images_stay(tmp_path, content):
    lvis = load_lvis(write_lvis(tmp_path, content), tmp_path)
    rest = lvis.without_rare()
    assert [one.image_id for one in rest.images] == [one.image_id for one in lvis.data.images]
    counts, all_counts = rest.counts(), lvis.data.counts()
    assert all(counts[name] == (0 if name in RARE else all_counts[name]) for name in all_counts)
    assert any(len(one.labels) == 0 and len(full.labels) for one, full in zip(rest.images, lvis.data.images))
    assert rest.class_names == lvis.data.class_names


def test_the_training_has_no_rare_box_and_the_test_has(tmp_path, content):
    train = write_lvis(tmp_path, content, name="lvis_v1_train.json")
    test = write_lvis(tmp_path, random_content(1), name="lvis_v1_val.json")
    data, lvis = open_lvis_ovd(train, tmp_path, test, tmp_path)
    assert data.name == "LVIS 4/2" and data.novel_names == RARE and data.label_train is None
    assert data.class_mask.tolist() == [True, False, True, True, False, True]
    expected = [
        len({one["image_id"] for one in content["annotations"] if one["category_id"] == entry["id"]})
        * (entry["frequency"] != "r")
        for entry in CATEGORIES
    ]
    assert data.image_counts.tolist() == expected
    assert all(len(record.labels) for record in data.box_train.images)
    assert data.test is lvis.data and data.test.counts()["gear"] > 0


def test_the_federated_loss_never_draws_a_rare_class(tmp_path, content):
    train = write_lvis(tmp_path, content)
    data, _ = open_lvis_ovd(train, tmp_path, train, tmp_path)
    counts = torch.from_numpy(data.image_counts)
    torch.manual_seed(0)
    for _ in range(20):
        drawn = federated_mask(torch.tensor([0, 6]), counts, num_classes=3)
        assert drawn.sum() == 3 and drawn[0] and not drawn[1] and not drawn[4]


def test_image_labels_of_another_data_set_get_ids_of_their_own(tmp_path, content):
    train = write_lvis(tmp_path, content)
    for number in (1, 2):
        folder = tmp_path / "imagenet" / "n01"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(folder / f"{number}.png")
    images = [
        {
            "id": n,
            "file_name": f"n01/{n}.png",
            "width": 20,
            "height": 20,
            "pos_category_ids": [5 if n == 1 else 2],
        }
        for n in (1, 2)
    ]
    labels = tmp_path / "imagenet_lvis_image_info.json"
    labels.write_text(json.dumps({"images": images, "annotations": [], "categories": CATEGORIES}))
    data, _ = open_lvis_ovd(
        train, tmp_path, train, tmp_path, label_annotations=labels, label_images=tmp_path / "imagenet"
    )
    assert [data.label_train.names(index) for index in range(2)] == [("gear",), ("bat_(animal)",)]
    own = {record.image_id for record in data.label_train.data.images}
    taken = {record.image_id for record in data.box_train.images} | {
        entry["id"] for entry in content["images"]
    }
    assert len(own) == 2 and not own & taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["categories"][1].update(frequency="x"), "category 2: frequency is 'x'"),
        (lambda c: c["images"][3].pop("neg_category_ids"), "image 4: neg_category_ids is None"),
        (lambda c: c["images"][0].update(not_exhaustive_category_ids=[77]), "image 1: not_exhaustive"),
        (lambda c: c["images"][2].pop("coco_url"), "file_name"),
        (lambda c: c["annotations"][0].update(category_id=99), "category_id 99 is not among"),
        (lambda c: [one.update(frequency="f") for one in c["categories"]], "Expected rare ones and others"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, content, change, message):
    path = write_lvis(tmp_path, content)
    changed = copy.deepcopy(content)
    change(changed)
    path.write_text(json.dumps(changed))
    with pytest.raises(DataError, match=message):
        load_lvis(path, tmp_path)


def test_a_file_of_1203_classes_must_be_lvis_v1(monkeypatch, tmp_path, content):
    assert sum(lvis_data.V1_COUNTS.values()) == lvis_data.V1_CLASSES
    assert lvis_data.V1_COUNTS["f"] + lvis_data.V1_COUNTS["c"] == 866
    monkeypatch.setattr(lvis_data, "V1_CLASSES", 6)
    with pytest.raises(SplitError, match="866 base, 337 novel"):
        load_lvis(write_lvis(tmp_path, content), tmp_path)
    monkeypatch.setattr(lvis_data, "V1_COUNTS", dict(Counter(one["frequency"] for one in CATEGORIES)))
    assert len(load_lvis(tmp_path / "lvis_v1_val.json", tmp_path).data) == 24


def test_two_files_of_other_classes_are_refused(tmp_path, content):
    train = write_lvis(tmp_path, content)
    other = copy.deepcopy(content)
    other["categories"][0]["frequency"] = "c"
    test = write_lvis(tmp_path, other, name="other.json")
    with pytest.raises(SplitError, match="differ in their classes or in the frequency"):
        open_lvis_ovd(train, tmp_path, test, tmp_path)
    assert np.array_equal(load_lvis(test, tmp_path).data.category_ids, range(1, 7))
