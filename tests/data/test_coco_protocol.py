"""COCO in the layout and protocol of TFA, DeFRCN and RISF, through the project's own params file."""

import json
import logging
from pathlib import Path

import pytest

from risf_core.data.benchmark import open_benchmark
from risf_core.data.clean_seeds import missing_rates
from risf_core.errors import SplitError
from risf_core.runs.run_specs import load_run
from tests.data.coco_files import box_entry, image_entry, write_files

PARAMS = Path(__file__).resolve().parents[2] / "params" / "coco" / "20_fine_tuning.gfsod_1shot.yaml"
# the ids of the published code, DeFRCN's builtin_meta.py: the 20 classes that VOC has too, and the other 60
NOVEL_IDS = [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72]
BASE_IDS = [8, 10, 11, 13, 14, 15, 22, 23, 24, 25, 27, 28, *range(31, 44), *range(46, 62), 65, 70]
BASE_IDS += [*range(73, 83), *range(84, 91)]
PERSON, CAR, TRUCK, BENCH = 1, 3, 8, 15
NAMES = {PERSON: "person", CAR: "car", TRUCK: "truck", BENCH: "bench"}


def entry(image_id: int, part: str = "train2014") -> dict:
    return image_entry(image_id, file_name=f"COCO_{part}_{image_id:012d}.jpg")


TRAIN = [
    box_entry(1, 1, PERSON),
    box_entry(2, 1, CAR, (20, 5, 9, 9)),
    box_entry(3, 1, CAR, (1, 20, 9, 9)),
    box_entry(4, 2, CAR),
    box_entry(5, 2, TRUCK, (20, 5, 9, 9)),
    box_entry(6, 3, PERSON),  # no base box: no image of base training
    box_entry(7, 4, BENCH, iscrowd=1),  # a crowd region alone: none either
    box_entry(8, 5, BENCH),
    box_entry(9, 5, BENCH, (3, 3, 9, 0)),  # COCO's training file has such boxes
    box_entry(10, 6, PERSON),
]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """`data/coco` as the params file wants it, six training images and one test image; draws of 1 shot."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    coco = tmp_path / "data" / "coco"
    novel_names = load_run(PARAMS).params.data.novel_classes
    names = dict(zip(NOVEL_IDS, novel_names, strict=True)) | {n: NAMES.get(n, f"class {n}") for n in BASE_IDS}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    (coco / "cocosplit" / "datasplit").mkdir(parents=True)
    split = "../cocosplit/datasplit/"
    train = [entry(n) for n in range(1, 6)] + [entry(6, "val2014")]
    write_files(coco / "trainval2014", train, TRAIN, categories, name=f"{split}trainvalno5k.json")
    test = [box_entry(1, 7, TRUCK), box_entry(2, 7, CAR, (20, 5, 9, 9))]
    write_files(coco / "val2014", [entry(7, "val2014")], test, categories, name=f"{split}5k.json")

    def draw(folder: str, class_name: str, boxes: list[dict], images=None) -> None:
        path = coco / "cocosplit" / folder / f"full_box_{len(boxes)}shot_{class_name}_trainval.json"
        path.parent.mkdir(exist_ok=True)
        images = [entry(n) for n in images or sorted({box["image_id"] for box in boxes})]
        content = {"images": images, "annotations": boxes, "categories": categories}
        path.write_text(json.dumps(content))

    for number, name in names.items():
        chosen = {PERSON: TRAIN[0], CAR: TRAIN[1], TRUCK: TRAIN[4], BENCH: TRAIN[7]}
        box = chosen.get(number, box_entry(100 + number, 5, number, (9, 9, 5, 5)))
        draw("", name, [box])
        draw("seed9", name, [TRAIN[3] if number == CAR else box])
    return coco, draw


def opened(**changes):
    overrides = {f"data.{name}": value for name, value in changes.items()}
    return open_benchmark(load_run(PARAMS, overrides).params.data)


def test_labels_are_the_published_60_and_20_ids_each_ascending(root):
    benchmark = opened()
    assert len(benchmark.base_names) == 60 and benchmark.test.category_ids == (*BASE_IDS, *NOVEL_IDS)
    fsod = benchmark.few_shot(1, 0)
    assert fsod.category_ids == tuple(NOVEL_IDS) and fsod.class_names == benchmark.novel_names
    gfsod = benchmark.few_shot(1, 0, setting="gfsod")
    assert gfsod.class_names == benchmark.test.class_names and set(gfsod.counts().values()) == {1}


def test_base_training_sees_base_boxes_alone_and_drops_images_without_one(root, caplog):
    benchmark = opened()
    images = {record.image_id: record for record in benchmark.base_train.images}
    assert sorted(images) == [2, 5]
    assert images[2].boxes.tolist() == [[20, 5, 29, 14]]  # the car beside the truck is background
    assert images[5].boxes.tolist() == [[5, 6, 15, 18]]  # the box without height is left out and named
    assert "1 boxes are invalid and dropped" in caplog.text and "annotation 9" in caplog.text
    assert images[2].path == root[0] / "trainval2014" / "COCO_train2014_000000000002.jpg"
    assert [record.path.parent.name for record in benchmark.test.images] == ["val2014"]


def test_a_draw_is_merged_by_image_and_everything_else_has_no_box(root):
    draw = opened().few_shot(1, 0)
    first = {record.image_id: record for record in draw.images}[1]
    # image 1 was drawn for person and for car: it carries both boxes, and not the second car
    names = [draw.class_names[label] for label in first.labels]
    assert dict(zip(names, first.boxes.tolist(), strict=True)) == {
        "person": [5, 6, 15, 18],
        "car": [20, 5, 29, 14],
    }
    assert len(draw) == 2  # the other 18 boxes are in image 5, which is one record
    assert len({record.image_id: record for record in draw.images}[5].labels) == 18
    # drawn for a truck, image 2 is no image of the novel classes; in gfsod it has the truck and not the car
    both = {record.image_id: record for record in opened().few_shot(1, 0, setting="gfsod").images}
    assert [len(both[n].labels) for n in (1, 2)] == [2, 1]


def test_seed_9_has_a_folder_and_seed_10_is_none(root):
    car = opened().few_shot(1, 9).select_classes(["car"]).drop_empty()
    assert [record.image_id for record in car.images] == [2]
    with pytest.raises(
        SplitError, match="no draw with seed 10. Expected one of: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    ):
        opened().few_shot(1, 10)
    with pytest.raises(SplitError, match=r"no few-shot file .*seed4.*The folder has seeds \[9\] and shots 1"):
        opened().few_shot(1, 4)


def test_seed_0_is_in_the_root_or_in_its_folder_which_wins(root, caplog):
    _, draw = root

    def car_images():
        car = opened().few_shot(1, 0).select_classes(["car"]).drop_empty()
        return [record.image_id for record in car.images]

    assert car_images() == [1]
    draw("seed0", "car", [TRAIN[1]])  # one class alone: the others are still found in the root
    with caplog.at_level(logging.WARNING):
        assert car_images() == [1] and "is another file" not in caplog.text
        draw("seed0", "car", [TRAIN[3]])
        assert car_images() == [2]
    assert "seed0/full_box_1shot_car_trainval.json is read" in caplog.text


def test_an_image_without_a_box_of_a_known_class_is_dropped_from_a_draw(root):
    _, draw = root
    draw("seed9", "car", [TRAIN[3]], images=[2, 3])
    assert 3 not in {record.image_id for record in opened().few_shot(1, 9).images}


def test_clean_sets_and_their_missing_rates_by_hand(root):
    """Seed 0 shows a person and two cars of image 1; seed 9 the car and the truck of image 2 as well."""
    _, draw = root
    two = {"novel_classes": ["person", "car"], "shots": [1]}
    benchmark = opened(**two)
    clean = benchmark.few_shot(1, 0, arm="clean")
    assert clean.counts() == {"person": 1, "car": 2} and len(clean) == 1
    assert benchmark.few_shot(1, 9, arm="clean").counts() == {"person": 1, "car": 3}
    for seed in range(1, 9):
        draw(f"seed{seed}", "person", [TRAIN[0]])
        draw(f"seed{seed}", "car", [TRAIN[3]])
    rows = missing_rates(benchmark).to_dict("records")
    assert [(row["K"], row["seed"]) for row in rows] == [(1, seed) for seed in range(10)]
    shown = ("images", "novel boxes", "novel instances")
    assert [[row[name] for name in shown] for row in (rows[0], rows[9])] == [[1, 2, 3], [2, 2, 4]]
    assert [rows[seed]["novel missing %"] for seed in (0, 9)] == pytest.approx([100 / 3, 50])
    assert [rows[seed]["missing %"] for seed in (0, 9)] == pytest.approx([100 / 3, 60])
