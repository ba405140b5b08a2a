"""COCO 48/17: the lists, the files in their forms, image labels by id and from captions, and the means of AP50."""

import json
from pathlib import Path

import numpy as np
import pytest

from risf_core.detections import Detections
from risf_core.errors import DataError, SplitError
from risf_core.evaluation import evaluate
from risf_core.open_vocabulary.coco_ovd import (
    BASE_NAMES,
    CATEGORY_IDS,
    CLASS_NAMES,
    COLUMNS,
    NOVEL_NAMES,
    UNUSED,
    open_coco_ovd,
)
from risf_core.open_vocabulary.image_label_files import (
    caption_tags,
    read_image_labels,
    synonyms_from_lvis,
    write_image_labels,
)
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.real_data import real_data

ALL = [{"id": key, "name": name} for key, name in COLUMNS.items()]
SEEN = [{"id": key, "name": name} for key, name in COLUMNS.items() if name in BASE_NAMES]
TESTED = [entry for entry in ALL if entry["name"] in (*BASE_NAMES, *NOVEL_NAMES)]
PERSON, BICYCLE, CAT, DOG, WINE_GLASS = 1, 2, 17, 18, 46


def train_file(folder, categories=SEEN, more=(), name="instances_train2017_seen_2.json"):
    boxes = [box_entry(1, 1, PERSON), box_entry(2, 1, BICYCLE), box_entry(3, 2, PERSON), *more]
    return write_files(folder, [image_entry(n) for n in (1, 2, 3)], boxes, categories, name=name)


def test_file(folder, categories=TESTED, more=(), name="instances_val2017_all_2.json"):
    boxes = [box_entry(1, 11, PERSON), box_entry(2, 11, CAT), box_entry(3, 12, DOG), *more]
    return write_files(folder, [image_entry(n) for n in (11, 12)], boxes, categories, name=name)


test_file.__test__ = False  # no test, for all its name


# ------------------------------------------------------------ lists and files


def test_the_lists_have_48_17_and_15_classes_and_no_class_twice():
    assert (len(BASE_NAMES), len(NOVEL_NAMES), len(UNUSED), len(CLASS_NAMES)) == (48, 17, 15, 80)
    assert len({*BASE_NAMES, *NOVEL_NAMES, *UNUSED.values()}) == 80
    assert list(CATEGORY_IDS) == sorted(CATEGORY_IDS) and CATEGORY_IDS[0] == 1 and CATEGORY_IDS[-1] == 90


def test_the_names_and_ids_are_cocos():
    content = json.loads((real_data("coco_permissive") / "instances.json").read_text())
    for entry in content["categories"]:
        assert COLUMNS[entry["id"]] == entry["name"]


@pytest.mark.parametrize("ordered", [False, True])
def test_both_forms_of_the_files_give_80_columns(tmp_path, ordered):
    """The published files list their own classes, in another order; the _oriorder copies all 80."""
    categories = (ALL, ALL) if ordered else (SEEN[::-1], TESTED[::-1])
    data = open_coco_ovd(
        train_file(tmp_path, categories[0]), tmp_path, test_file(tmp_path, categories[1]), tmp_path
    )
    assert data.class_names == data.test.class_names == CLASS_NAMES
    assert [record.image_id for record in data.box_train.images] == [1, 2]  # one has no box
    assert data.box_train.counts()["person"] == 2 and data.test.counts()["cat"] == 1
    assert data.image_counts.sum() == 3 and data.class_mask.sum() == 2
    assert not any(data.class_mask[CLASS_NAMES.index(name)] for name in (*NOVEL_NAMES, *UNUSED.values()))


def test_novel_boxes_in_the_training_file_are_refused_or_left_out(tmp_path):
    train = train_file(tmp_path, ALL, [box_entry(4, 2, CAT), box_entry(5, 3, WINE_GLASS)])
    test = test_file(tmp_path, ALL, [box_entry(4, 12, WINE_GLASS)])
    with pytest.raises(SplitError, match="'wine glass', which is neither base nor novel"):
        open_coco_ovd(train, tmp_path, test, tmp_path)
    with pytest.raises(SplitError, match="not a base class"):
        open_coco_ovd(train, tmp_path, test_file(tmp_path), tmp_path)
    test = test_file(tmp_path, ALL, [box_entry(4, 12, WINE_GLASS)])
    data = open_coco_ovd(train, tmp_path, test, tmp_path, from_all_classes=True)
    assert sum(data.box_train.counts().values()) == 3 and len(data.box_train) == 2
    assert sum(data.test.counts().values()) == 3 and data.test.counts()["wine glass"] == 0


def test_categories_under_other_ids_are_refused(tmp_path):
    moved = [entry | {"id": 91} if entry["name"] == "toothbrush" else entry for entry in SEEN]
    with pytest.raises(SplitError, match="category 91 is 'toothbrush'"):
        open_coco_ovd(train_file(tmp_path, moved), tmp_path, test_file(tmp_path), tmp_path)
    other = [*SEEN, {"id": 92, "name": "dragon"}]
    with pytest.raises(SplitError, match="no class 'dragon'"):
        open_coco_ovd(train_file(tmp_path, other), tmp_path, test_file(tmp_path), tmp_path)


# ------------------------------------------------------------ the metrics


def test_ap50_is_the_mean_over_novel_base_and_both(tmp_path):
    data = open_coco_ovd(
        train_file(tmp_path),
        tmp_path,
        test_file(tmp_path, more=[box_entry(4, 12, BICYCLE, (20, 10, 9, 9))]),
        tmp_path,
    )
    label = {name: position for position, name in enumerate(CLASS_NAMES)}
    box = (5, 6, 15, 18)
    rows = [  # person and cat found, bicycle and dog not; a wine glass where nothing of the kind counts
        (11, box, "person", 0.9), (11, box, "cat", 0.8), (12, (1, 1, 3, 3), "dog", 0.7), (12, box, "wine glass", 0.95),
    ]  # fmt: skip
    ids, boxes, names, scores = zip(*rows)
    found = Detections(
        ids,
        np.array(boxes),
        scores,
        [label[name] for name in names],
        np.zeros((4, 81)),
        np.arange(4),
        CLASS_NAMES,
    )
    result = evaluate(found, data.test, groups=data.groups)
    assert result["bAP50"] == pytest.approx(50.0) and result["nAP50"] == pytest.approx(50.0)
    assert result["AP50"] == pytest.approx(50.0) and result["per_class"]["wine glass"]["AP50"] is None
    # with every class of the 65 in the test, AP50 is (48 bAP50 + 17 nAP50) / 65: the published table's column "AP"
    assert (48 * 53.2 + 17 * 1.7) / 65 == pytest.approx(39.7, abs=0.05)


# ------------------------------------------------------------ image labels


def label_file(folder, ids=((1, [CAT, PERSON]), (2, []), (3, [WINE_GLASS])), categories=ALL, **changes):
    images = [image_entry(number, pos_category_ids=list(own)) for number, own in ids]
    path = write_files(folder, images, [], categories, name="tags.json")
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))
    return path


def test_labels_by_category_id(tmp_path):
    labels = read_image_labels(label_file(tmp_path), tmp_path, CLASS_NAMES, CATEGORY_IDS)
    assert [labels.names(index) for index in range(2)] == [("person", "cat"), ("wine glass",)]
    assert labels.without_label == 1
    write_image_labels(tmp_path / "again.json", labels, images_dir=tmp_path)
    again = read_image_labels(tmp_path / "again.json", tmp_path, CLASS_NAMES, CATEGORY_IDS)
    assert [again.names(index) for index in range(2)] == [labels.names(index) for index in range(2)]


def test_captions_become_labels_of_the_same_images(tmp_path):
    images = [image_entry(1), image_entry(2)]
    captions = [(1, "A man on a couch."), (1, "Two dogs, one cat"), (2, "Nothing that counts")]
    path = write_files(tmp_path, images, [], name="captions.json")
    entries = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    path.write_text(json.dumps({"images": images, "annotations": entries}))
    words = {name: (name,) for name in CLASS_NAMES} | {"person": ("person", "man")}
    data = open_coco_ovd(
        train_file(tmp_path), tmp_path, test_file(tmp_path), tmp_path, label_annotations=path, synonyms=words
    )
    assert data.label_train.names(0) == ("person", "cat", "couch") and len(data.label_train) == 1
    assert data.label_train.data.images[0].image_id == 1  # the boxes' own image
    broken = json.loads(path.read_text())
    broken["annotations"].append({"id": 9, "image_id": 77, "caption": "a cat"})
    path.write_text(json.dumps(broken))
    with pytest.raises(DataError, match="caption number 3 is of no image"):
        read_image_labels(path, tmp_path, CLASS_NAMES, CATEGORY_IDS)


@pytest.mark.parametrize(
    ("caption", "words", "released"),
    [
        ("a dog on the grass", True, True),
        ("dog", True, True),
        ("A DOG", True, True),
        ("a dog.", True, False),
        ("a man, his dog, and a kite", True, False),
        ("the dog's bowl", True, False),
        ("hotdog stand", False, False),
        ("two dogs", False, False),
        ("a hot dog", True, True),  # of dog; both rules read names, not meanings
    ],
)
def test_the_rules_for_captions(caption, words, released):
    synonyms = {"dog": ("dog",)}
    assert (caption_tags([caption], synonyms) == ["dog"]) is words
    assert (caption_tags([caption], synonyms, rule="released") == ["dog"]) is released


def test_synonyms_lose_brackets_and_do_not_reach_across_captions():
    synonyms = {"bat": ("bat_(animal)",), "wine glass": ("wine_glass",)}
    assert caption_tags(["a bat flies", "wine  glass"], synonyms) == ["bat", "wine glass"]
    assert caption_tags(["red wine", "glass of water"], synonyms) == []
    assert caption_tags(["red wine", "glass of water"], synonyms, rule="released") == ["wine glass"]
    with pytest.raises(SplitError, match="Expected one of: words, released"):
        caption_tags([""], synonyms, rule="detic")


def test_synonyms_come_from_the_categories_that_share_a_word():
    categories = [
        {"name": "sofa", "synonyms": ["sofa", "couch", "lounge"]},
        {"name": "cup", "synonyms": ["cup"]},
        {"name": "mouse_(computer_equipment)", "synonyms": ["mouse_(computer_equipment)", "computer_mouse"]},
    ]
    found = synonyms_from_lvis(["couch", "mouse", "kite"], categories)
    assert found == {
        "couch": ("couch", "sofa", "lounge"), "mouse": ("mouse", "computer mouse"), "kite": ("kite",)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ids": ((1, [91]),)}, DataError, "image 1: pos_category_ids is .91."),
        ({"ids": ((1, ["cat"]),)}, DataError, "expected a list of category ids"),
        ({"categories": [{"id": 17, "name": "dog"}]}, SplitError, "category 17 is 'dog'.*'cat' there"),
        ({"images": None}, DataError, "no list 'images'"),
    ],
)
def test_wrong_label_files_are_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        read_image_labels(label_file(tmp_path, **changes), tmp_path, CLASS_NAMES, CATEGORY_IDS)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match="do not exist"):
        read_image_labels(tmp_path / "none.json", tmp_path, CLASS_NAMES, CATEGORY_IDS)
    path = Path(tmp_path / "half.json")
    path.write_text('{"images": [')
    with pytest.raises(DataError, match="not a JSON file"):
        read_image_labels(path, tmp_path, CLASS_NAMES, CATEGORY_IDS)
    with pytest.raises(DataError, match="file .* does not exist|is in"):
        broken = label_file(tmp_path)
        (tmp_path / "2.png").unlink()
        read_image_labels(broken, tmp_path, CLASS_NAMES, CATEGORY_IDS)
