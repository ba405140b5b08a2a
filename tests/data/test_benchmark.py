"""Benchmarks: partition, what is drawn and written, K-shot data of both settings."""

import json
import logging
import shutil

import pytest

from risf_core.data.benchmark import open_benchmark, partition
from risf_core.errors import DataError, SplitError
from risf_core.params import CocoData, PictogramData
from tests.data.coco_files import box_entry, image_entry, write_files

NAMES = ("person", "cat", "hot dog")


def coco_params(folder, **changes):
    """Twelve images: image n holds a person, images 1 to 8 a cat as well, image 12 a hot dog."""
    boxes = [box_entry(n, n, 1, (1, 1, 5 + n, 9)) for n in range(1, 13)]
    boxes += [box_entry(20 + n, n, 3, (20, 3, 9, 9)) for n in range(1, 9)] + [
        box_entry(40, 12, 7, (20, 3, 9, 9))
    ]
    annotations = write_files(folder / "images", [image_entry(n) for n in range(1, 13)], boxes)
    values = {"root": str(folder / "data"), "annotations": str(annotations), "images": str(folder / "images")}
    values |= {"base_classes": ["person"], "novel_classes": ["cat"], "shots": [1, 2], "num_seeds": 2}
    return CocoData(source="coco", **(values | changes))


def test_coco_data_is_split_drawn_and_written(tmp_path):
    benchmark = open_benchmark(coco_params(tmp_path), split=1)
    assert benchmark.arms == ("kshot", "clean") and benchmark.test.class_names == ("person", "cat")
    train, test = ({record.image_id for record in part.images} for part in (benchmark.train, benchmark.test))
    assert train | test == set(range(1, 13)) and not train & test
    assert benchmark.test.counts() == {"person": 6, "cat": 4}
    assert benchmark.base_train.class_names == ("person",) and benchmark.base_train.counts() == {"person": 6}
    root = next((tmp_path / "data").iterdir())
    assert root.name.startswith("instances-") and (root / "annotations" / "test.json").is_file()
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("full_box*"))
    assert len(names) == 8 and "few_shot/kshot/seed1/full_box_2shot_cat_trainval.json" in names


def test_base_training_has_images_with_base_boxes_alone_and_seeds_draw_anew(tmp_path):
    params = coco_params(tmp_path, base_classes=["cat"], novel_classes=["person"], num_seeds=8)
    benchmark = open_benchmark(params)
    assert (
        len(benchmark.train) == 6 and len(benchmark.base_train) == benchmark.base_train.counts()["cat"] == 4
    )
    assert len({benchmark.few_shot(1, seed).images[0].image_id for seed in range(8)}) > 1


def test_few_shot_data_of_both_settings(tmp_path):
    benchmark = open_benchmark(coco_params(tmp_path))
    train = {record.image_id for record in benchmark.train.images}
    novel = benchmark.few_shot(2, 1)
    assert novel.class_names == ("cat",) and novel.counts() == {"cat": 2}
    assert {record.image_id for record in novel.images} <= train
    both = benchmark.few_shot(2, 1, setting="gfsod")
    assert both.class_names == ("person", "cat") and both.counts() == {"person": 2, "cat": 2}
    one, two = (benchmark.few_shot(shots, 0) for shots in (1, 2))
    assert {record.image_id for record in one.images} < {record.image_id for record in two.images}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shots": 3, "seed": 0}, "shots 3. Expected one of: 1, 2"),
        ({"shots": 1, "seed": 2}, "seed 2. Expected one of: 0, 1"),
        ({"shots": 1, "seed": 0, "arm": "full"}, "arm 'full'. Expected one of: kshot"),
        ({"shots": 1, "seed": 0, "setting": "fsd"}, "setting 'fsd'. Expected one of: fsod, gfsod"),
    ],
)
def test_draws_that_are_not_there_are_refused(tmp_path, arguments, said):
    benchmark = open_benchmark(coco_params(tmp_path))
    with pytest.raises(SplitError, match=said):
        benchmark.few_shot(**arguments)


def test_hash_and_files_repeat_and_follow_the_seed(tmp_path):
    first = open_benchmark(coco_params(tmp_path))
    root = next((tmp_path / "data").iterdir())
    before = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.json")}
    assert open_benchmark(coco_params(tmp_path)).hash == first.hash
    shutil.rmtree(root)
    moved = open_benchmark(coco_params(tmp_path, root=str(tmp_path / "elsewhere")))
    again = next((tmp_path / "elsewhere").iterdir())
    assert again.name == root.name and moved.hash == first.hash
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*.json")} == before
    assert open_benchmark(coco_params(tmp_path, seed=1)).hash != first.hash


def test_an_interrupted_preparation_is_taken_up_again(tmp_path):
    first = open_benchmark(coco_params(tmp_path))
    root = next((tmp_path / "data").iterdir())
    (root / "done.json").unlink()
    (root / "annotations" / "train.json").write_text("{")
    assert open_benchmark(coco_params(tmp_path)).hash == first.hash


def test_a_draw_that_lost_a_box_is_refused(tmp_path):
    benchmark = open_benchmark(coco_params(tmp_path))
    path = next((tmp_path / "data").rglob("seed0/full_box_2shot_cat_trainval.json"))
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError, match="1 boxes of 'cat'. Expected 2"):
        benchmark.few_shot(2, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"novel_classes": ["cat", "person"]}, "class 'person' is a base and a novel class"),
        ({"novel_classes": ["hotdog"]}, "no class 'hotdog'. Did you mean 'hot dog'"),
        ({"shots": [1, 9]}, "'cat' has 4 boxes. Expected at least K = 9"),
        ({"base_classes": None, "novel_classes": list(NAMES)}, "0 base and 3 novel classes"),
    ],
)
def test_impossible_partitions_give_one_line(tmp_path, changes, said):
    with pytest.raises(SplitError, match=said) as caught:
        open_benchmark(coco_params(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_rare_base_classes_stop_gfsod_alone(tmp_path):
    benchmark = open_benchmark(coco_params(tmp_path, base_classes=None))
    assert benchmark.base_names == ("person", "hot dog")
    assert benchmark.few_shot(1, 0).counts() == {"cat": 1}
    with pytest.raises(SplitError, match="1 base classes are too rare.*'hot dog'"):
        benchmark.few_shot(1, 0, setting="gfsod")
    benchmark = open_benchmark(coco_params(tmp_path, base_classes=None, shots=[1, 4], novel_classes=["cat"]))
    with pytest.raises(SplitError, match=r"'hot dog' has [01] boxes. Expected at least K = 4"):
        benchmark.few_shot(1, 0, setting="gfsod")


def test_a_class_without_test_boxes_is_said_and_not_refused(tmp_path, caplog):
    params = coco_params(tmp_path)
    images = [image_entry(n, file_name=f"test/{n}.png") for n in (1, 2)]
    test_file = write_files(tmp_path / "images", images, [box_entry(1, 1, 1)], name="test.json")
    with caplog.at_level(logging.WARNING):
        benchmark = open_benchmark(params.model_copy(update={"test_annotations": str(test_file)}))
    assert benchmark.test.counts() == {"person": 1, "cat": 0} and len(benchmark.train) == 12
    assert "no test image has a box of cat" in caplog.text


def test_images_in_training_and_test_are_refused(tmp_path):
    params = coco_params(tmp_path)
    with pytest.raises(SplitError, match="12 images are for training and for testing"):
        open_benchmark(params.model_copy(update={"test_annotations": params.annotations}))


def test_bad_images_and_missing_files_are_found_before_training(tmp_path):
    params = coco_params(tmp_path)
    (tmp_path / "images" / "5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="5.png cannot be decoded"):
        open_benchmark(params)
    with pytest.raises(DataError, match="nowhere.json does not exist"):
        open_benchmark(params.model_copy(update={"annotations": str(tmp_path / "nowhere.json")}))
    with pytest.raises(SplitError, match="no split 2"):
        open_benchmark(params, split=2)


def test_summary_says_what_base_training_leaves_out(tmp_path):
    table = open_benchmark(coco_params(tmp_path)).summary()
    assert table["", "group"].tolist()[:2] == ["base", "novel"]
    assert table.loc["person", ("base training", "boxes")] == 6 and table.loc["cat", ("test", "boxes")] == 4
    # of the 6 + 4 training boxes and the hot dog, if it fell there, only the persons are seen
    left_out = table.loc["left out of base training", ("base training", "boxes")]
    assert left_out == len(open_benchmark(coco_params(tmp_path)).train.flat.labels) - 6 >= 4


def test_partition_takes_all_other_classes_as_base():
    assert partition(None, ["cat"], NAMES, where="x") == (("person", "hot dog"), ("cat",))
    assert partition(["hot dog"], ["cat", "person"], NAMES, where="x") == (("hot dog",), ("cat", "person"))


def test_pictograms_go_through_the_same_files(tmp_path):
    params = PictogramData(
        root=str(tmp_path),
        image_size=96,
        num_base_images=40,
        num_test_images=8,
        few_shot_seeds=1,
        shots=(1,),
        extra_novel=2,
    )
    benchmark = open_benchmark(params, split=2)
    assert benchmark.arms == ("kshot", "missing", "full")
    assert len(benchmark.base_names) == 15 and len(benchmark.novel_names) == 5
    assert benchmark.test.class_names == (*benchmark.base_names, *benchmark.novel_names)
    assert set(benchmark.base_train.class_names) == set(benchmark.base_names)
    assert not any(record.is_crowd.all() for record in benchmark.base_train.images)
    for arm in ("kshot", "missing"):
        assert set(benchmark.few_shot(1, 0, arm=arm).counts().values()) == {1}
    full = benchmark.few_shot(1, 0, arm="full")
    assert full.class_names == benchmark.novel_names and sum(full.counts().values()) == 5 * (1 + 2)
    both = benchmark.few_shot(1, 0, arm="missing", setting="gfsod")
    assert both.class_names == benchmark.test.class_names and set(both.counts().values()) == {1}
    assert open_benchmark(params, split=2).hash == benchmark.hash
    with pytest.raises(SplitError, match="no split 4. Expected one of: 1, 2, 3"):
        open_benchmark(params, split=4)
