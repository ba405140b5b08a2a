"""Few-shot draws: the rule, the published layout, merging by image."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.data.few_shot import draw_few_shot, few_shot_file, load_few_shot, write_few_shot
from risf_core.errors import DataError, SplitError
from tests.data.coco_files import box_entry, image_entry, write_files


def data_of(*labels_of_images, names=("cat", "dog"), crowd=()):
    """Data with one image for each list of labels; `crowd` holds annotation indices."""
    records, index = [], 0
    for number, labels in enumerate(labels_of_images, start=1):
        boxes = np.tile(np.array([1, 2, 11, 12], np.float32), (len(labels), 1))
        flags = np.isin(np.arange(index, index + len(labels)), crowd)
        records.append(
            ImageRecord(number, Path(f"/i/{number}.png"), 30, 40, boxes, np.array(labels, np.int64), flags)
        )
        index += len(labels)
    return DetectionData("data", tuple(names), tuple(range(1, len(names) + 1)), tuple(records))


def test_draws_hold_exactly_k_boxes_are_nested_and_take_whole_images():
    rng = np.random.default_rng(0)
    data = data_of(*[[0] * rng.integers(0, 4) + [1] * rng.integers(0, 3) for _ in range(60)])
    for seed in range(5):
        draws = draw_few_shot(data, ("cat", "dog"), shots=(10, 1, 5, 2), seed=seed)
        assert list(draws) == [1, 2, 5, 10]
        for label, name in enumerate(("cat", "dog")):
            smaller = set()
            for k, classes in draws.items():
                indices = classes[name]
                assert len(indices) == len(set(indices.tolist())) == k
                assert (data.flat.labels[indices] == label).all()
                assert smaller <= set(indices.tolist())
                smaller = set(indices.tolist())
                for image, taken in Counter(data.flat.images[indices].tolist()).items():
                    assert taken == (data.images[image].labels == label).sum()


def test_a_crowd_region_is_never_drawn_nor_counted():
    data = data_of([0, 0], [0, 0], crowd=[1, 3])
    assert draw_few_shot(data, ["cat"], shots=[2], seed=0)[2]["cat"].tolist() == [0, 2]


def test_every_image_is_as_likely_for_one_shot():
    data = data_of([0], [0], [0], [0], [0, 0])
    drawn = Counter(
        int(draw_few_shot(data, ["cat"], shots=[1], seed=seed)[1]["cat"][0]) for seed in range(400)
    )
    # 400 draws of 4 images: mean 100, standard deviation 8.7; five of them leave a false alarm below 1 in 10,000
    assert sorted(drawn) == [0, 1, 2, 3] and all(abs(count - 100) < 44 for count in drawn.values())


def test_a_draw_repeats_and_does_not_depend_on_the_other_classes():
    data = data_of(*[[0, 1], [0], [1], [0], [1]] * 10)
    draw = draw_few_shot(data, ("cat", "dog"), shots=(1, 3), seed=4)
    alone = draw_few_shot(data, ["dog"], shots=(1, 3), seed=4)
    assert draw[3]["dog"].tolist() == alone[3]["dog"].tolist()
    seeds = {tuple(draw_few_shot(data, ["dog"], shots=[3], seed=seed)[3]["dog"]) for seed in range(10)}
    assert len(seeds) > 5


def test_a_choice_that_needs_several_tries_is_found():
    # 1, 2 and 3 shots need the three images with a single box, whatever order the others come in
    data = data_of(*[[0, 0]] * 10, [0], [0], [0])
    for seed in range(5):
        assert draw_few_shot(data, ["cat"], shots=(1, 2, 3), seed=seed)[3]["cat"].tolist() == [20, 21, 22]
    # 2 then 3 shots from images with 2, 1 and 1 boxes: the two single boxes first would leave only the pair
    for seed in range(10):
        draws = draw_few_shot(data_of([0, 0], [0], [0]), ["cat"], shots=(2, 3), seed=seed)
        assert draws[2]["cat"].tolist() == [0, 1] and len(draws[3]["cat"]) == 3


def test_classes_of_the_same_images_are_drawn_independently():
    data = data_of(*[[0, 1]] * 30)
    draws = [draw_few_shot(data, ("cat", "dog"), shots=[1], seed=seed)[1] for seed in range(10)]
    same = [data.flat.images[draw["cat"][0]] == data.flat.images[draw["dog"][0]] for draw in draws]
    assert sum(same) < 5


def test_too_few_boxes_name_class_wanted_and_available():
    data = data_of([0, 0, 0], [1], [1])
    with pytest.raises(SplitError, match="'dog' has 2 boxes. Expected at least K = 3"):
        draw_few_shot(data, ["dog"], shots=(1, 3), seed=0)
    with pytest.raises(SplitError, match="'cat' has 3 boxes, 3 to 3 in each of 1 images.*exactly 1"):
        draw_few_shot(data, ["cat"], shots=[1], seed=0)
    with pytest.raises(SplitError, match="no class 'dgo'.*'dog'"):
        draw_few_shot(data, ["dgo"], shots=[1], seed=0)
    with pytest.raises(SplitError, match="Expected at least one K"):
        draw_few_shot(data, ["dog"], shots=[0, 1], seed=0)


def drawn_files(folder: Path, *, seed: int = 3):
    """Write draws of four images by hand-known rules; return the root of the draws."""
    boxes = [box_entry(n, n, 1 if n < 5 else 3) for n in range(1, 9)] + [box_entry(9, 1, 3, (20, 5, 6, 7))]
    from risf_core.data.coco import load_coco

    data = load_coco(write_files(folder, [image_entry(n) for n in range(1, 9)], boxes), folder)
    draws = {1: {"person": np.array([0]), "cat": np.array([1])}}  # both in image 1
    write_few_shot(folder / "splits", data, draws, seed=seed, images_dir=folder)
    return folder / "splits"


def test_files_have_the_published_layout_and_hold_one_class_each(tmp_path):
    root = drawn_files(tmp_path)
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.json")) == [
        "seed3/full_box_1shot_cat_trainval.json",
        "seed3/full_box_1shot_person_trainval.json",
    ]
    content = json.loads((root / "seed3" / "full_box_1shot_cat_trainval.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["1.png"]
    assert [(entry["category_id"], entry["bbox"]) for entry in content["annotations"]] == [(3, [20, 5, 6, 7])]


def test_class_files_are_merged_by_image(tmp_path):
    data = load_few_shot(drawn_files(tmp_path), tmp_path, shots=1, seed=3, class_names=("cat", "person"))
    assert len(data) == 1 and data.class_names == ("cat", "person")
    assert sorted(data.images[0].labels.tolist()) == [0, 1]
    np.testing.assert_array_equal(data.images[0].boxes[data.images[0].labels == 0], [[20, 5, 26, 12]])


def test_seed_0_is_found_in_the_root_too(tmp_path):
    root = drawn_files(tmp_path, seed=0)
    for path in (root / "seed0").iterdir():
        path.rename(root / path.name)
    (root / "seed0").rmdir()
    assert len(load_few_shot(root, tmp_path, shots=1, seed=0, class_names=["cat"])) == 1
    with pytest.raises(SplitError, match=r"full_box_1shot_cat_trainval.json.*root alone.*shots 1"):
        load_few_shot(root, tmp_path, shots=1, seed=1, class_names=["cat"])


@pytest.mark.parametrize("count", [1, 3])
def test_given_files_with_another_number_of_boxes_are_kept_and_said(tmp_path, caplog, count):
    path = few_shot_file(tmp_path / "splits", "cat", shots=2, seed=1)
    path.parent.mkdir(parents=True)
    boxes = [box_entry(n, 1, 3, (n, 5, 9, 9)) for n in range(1, count + 1)]
    write_files(tmp_path, [image_entry(1)], boxes, name=path.relative_to(tmp_path).as_posix())
    data = load_few_shot(tmp_path / "splits", tmp_path, shots=2, seed=1, class_names=["cat"])
    assert data.counts() == {"cat": count}
    assert f"{path.name} has {count} boxes, not K = 2; all are kept, as published" in caplog.text


def test_missing_draws_say_what_there_is(tmp_path):
    root = drawn_files(tmp_path)
    with pytest.raises(SplitError, match=r"5shot_cat.*seeds \[3\] and shots 1"):
        load_few_shot(root, tmp_path, shots=5, seed=3, class_names=["cat"])
    with pytest.raises(SplitError, match="does not exist"):
        load_few_shot(root / "nowhere", tmp_path, shots=1, seed=3, class_names=["cat"])


def test_wrong_files_are_refused(tmp_path):
    root = drawn_files(tmp_path)
    path = few_shot_file(root, "cat", shots=1, seed=3)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "2.png"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="image id 1 is 2.png in one file and 1.png"):
        load_few_shot(root, tmp_path, shots=1, seed=3, class_names=("cat", "person"))
    content["annotations"][0]["category_id"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="boxes of class 'person'. Expected boxes of 'cat' alone"):
        load_few_shot(root, tmp_path, shots=1, seed=3, class_names=["cat"])


def test_class_names_with_a_slash_stay_in_the_folder(tmp_path):
    path = few_shot_file(tmp_path, "hot dog/bun", shots=2, seed=1)
    assert path == tmp_path / "seed1" / "full_box_2shot_hot dog%2Fbun_trainval.json"
