"""VOC as a benchmark: parts, draws of both settings, metric, clean seeds and their missing rates."""

import json

import numpy as np
import pytest

from risf_core.data import clean_seeds
from risf_core.data.benchmark import open_benchmark
from risf_core.data.clean_seeds import count_missing, missing_rates, restore_instances, write_clean_seeds
from risf_core.data.few_shot import load_few_shot
from risf_core.data.splits import VOC_CLASSES, voc_partition
from risf_core.errors import DataError, ParamsError, SplitError
from risf_core.params import VocData
from risf_core.runs.run_specs import load_run, upstream
from risf_core.runs.state import run_id
from risf_core.voc_evaluation import VocEvaluator, evaluator_for
from tests.data.voc_files import write_devkit


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Image n of 2007 shows class n and a person; image 21 three birds, one of them difficult, and a dog.

    The lists have the image of each class, of the bird image 21.
    """
    root = tmp_path_factory.mktemp("voc")
    of_2007 = {
        f"{n:06d}": [(name, (1, 1, 10, 10)), ("person", (11, 11, 30, 30))]
        for n, name in enumerate(VOC_CLASSES, 1)
    }
    birds = [("bird", (1, 1, 5, 5)), ("bird", (6, 6, 9, 9)), ("bird", (10, 10, 14, 14), True)]
    of_2007["000021"] = [*birds, ("dog", (2, 2, 9, 9))]
    write_devkit(root / "VOC2007", of_2007, {"trainval": list(of_2007), "test": ["000003", "000021"]})
    write_devkit(root / "VOC2012", {"2009_000001": [("sofa", (1, 1, 9, 9))]}, {"trainval": ["2009_000001"]})
    for folder in ("vocsplit", "vocsplit/seed1"):
        (root / folder).mkdir()
        for n, name in enumerate(VOC_CLASSES, 1):
            line = f"datasets/VOC2007/JPEGImages/{21 if name == 'bird' else n:06d}.jpg\n"
            for shots in (1, 2):
                (root / folder / f"box_{shots}shot_{name}_train.txt").write_text(line)
    return root


def params(root, **changes):
    values = {"voc2007": str(root / "VOC2007"), "voc2012": str(root / "VOC2012")}
    values |= {"splits": str(root / "vocsplit"), "shots": [1, 2], "num_seeds": 2}
    return VocData(source="voc", **(values | changes))


def test_parts_and_classes_are_the_published_ones(root):
    benchmark = open_benchmark(params(root), split=3)
    base, novel = voc_partition(3)
    assert (benchmark.base_names, benchmark.novel_names) == (base, novel)
    assert benchmark.test.class_names == (*base, *novel)
    assert [record.image_id for record in benchmark.test.images] == [3, 21]
    assert len(benchmark.train) == 22 and benchmark.train.counts()["sofa"] == 2
    # the sofa of 2012 is novel in split 3: its image has no base box and goes
    assert benchmark.base_train.class_names == base and len(benchmark.base_train) == 21
    assert benchmark.base_train.counts()["person"] == 21
    with pytest.raises(SplitError, match="no split 4"):
        open_benchmark(params(root), split=4)


def test_draws_of_both_settings_have_one_object_a_record(root):
    benchmark = open_benchmark(params(root))
    fsod = benchmark.few_shot(1, 0)
    assert fsod.class_names == ("bird", "bus", "cow", "motorbike", "sofa")
    assert fsod.counts() == dict.fromkeys(fsod.class_names, 1)
    gfsod = benchmark.few_shot(2, 1, setting="gfsod")
    assert gfsod.class_names == (*benchmark.base_names, *benchmark.novel_names)
    counts = (
        gfsod.counts()
    )  # fewer than K are kept, as published; the image of the class person has two of it
    assert counts["bird"] == 2 and counts["person"] == 2 and counts["cow"] == 1
    assert all(len(record.labels) == 1 for record in gfsod.images)
    with pytest.raises(SplitError, match="no draw with seed 2"):
        benchmark.few_shot(1, 2)


def test_the_cut_depends_on_the_seed_of_the_parameters_alone(root):
    def bird(seed):
        data = open_benchmark(params(root, seed=seed)).few_shot(1, 0)
        return tuple(data.images[0].boxes[0])

    assert bird(0) == bird(0)
    assert len({bird(seed) for seed in range(8)}) > 1


def test_the_metric_is_voc_s(root):
    benchmark = open_benchmark(params(root, metric="voc_area", rounding="none", absent="published"))
    evaluator = evaluator_for(benchmark.test, **benchmark.evaluation)
    assert isinstance(evaluator, VocEvaluator)
    assert (evaluator.metric, evaluator.rounding, evaluator.absent) == ("voc_area", "none", "published")
    assert open_benchmark(params(root)).evaluation["absent"] == "left_out"
    bird = benchmark.test.class_names.index("bird")
    assert benchmark.test.images[1].is_difficult[benchmark.test.images[1].labels == bird].sum() == 1


def test_the_hash_follows_lists_and_annotations(root, tmp_path):
    first = open_benchmark(params(root)).hash
    assert open_benchmark(params(root, seed=5)).hash == first
    path = root / "vocsplit" / "seed1" / "box_1shot_cow_train.txt"
    text = path.read_text()
    path.write_text(text + text)
    assert open_benchmark(params(root)).hash != first
    path.write_text(text)
    assert open_benchmark(params(root)).hash == first


# ------------------------------------------------------------ clean seeds


def test_a_clean_set_has_every_instance_of_the_head_s_classes_once(root):
    benchmark = open_benchmark(params(root))
    few_shot = benchmark.few_shot(2, 0)
    clean = benchmark.few_shot(2, 0, arm="clean")
    assert clean.class_names == few_shot.class_names
    assert {record.path for record in clean.images} == {record.path for record in few_shot.images}
    assert (
        len(clean) == 5 < len(few_shot) == 6
    )  # the two birds of one image are two records of the K-shot set
    assert clean.counts() == {"bird": 3, "bus": 1, "cow": 1, "motorbike": 1, "sofa": 1}
    everything = benchmark.few_shot(2, 0, arm="clean", setting="gfsod")
    assert everything.counts()["person"] == 20 and everything.counts()["dog"] == 2


def test_the_missing_rate_by_hand(root):
    """2 shots: 7 novel instances in 5 images, one of the three birds missing; with 4 persons and a dog 12 objects."""
    benchmark = open_benchmark(params(root))
    few_shot = benchmark.few_shot(2, 0)
    assert count_missing(few_shot, restore_instances(few_shot, benchmark.train)) == (7, 1)
    table = missing_rates(benchmark)
    assert table[["K", "seed"]].to_numpy().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    row = table.iloc[2]
    assert (row["images"], row["novel boxes"], row["novel instances"]) == (5, 6, 7)
    assert row["novel missing %"] == pytest.approx(100 / 7)
    assert row["missing %"] == pytest.approx(100 * 6 / 12)


def test_the_missing_rate_of_gfsod_is_that_of_base_and_novel_classes(root):
    benchmark = open_benchmark(params(root))
    row = missing_rates(benchmark, setting="gfsod").iloc[2]
    few_shot = benchmark.few_shot(2, 0, setting="gfsod")
    shown, missing = count_missing(few_shot, benchmark.few_shot(2, 0, arm="clean", setting="gfsod"))
    assert (row["K"], row["seed"], row["boxes"], row["instances"]) == (2, 0, shown - missing, shown)
    assert missing > 1 and row["missing %"] == pytest.approx(100 * missing / shown)
    assert not any("novel" in name for name in row.index)


def test_an_object_listed_twice_is_annotated_once(root):
    benchmark = open_benchmark(params(root))
    few_shot = benchmark.few_shot(2, 0)
    twice = type(few_shot)("twice", few_shot.class_names, few_shot.category_ids, few_shot.images * 2)
    assert count_missing(twice, restore_instances(twice, benchmark.train)) == (7, 1)


def test_an_image_outside_the_training_images_is_named(root):
    benchmark = open_benchmark(params(root))
    few_shot = benchmark.few_shot(1, 0)
    part = type(few_shot)("part", VOC_CLASSES, tuple(range(20)), benchmark.train.images[:4])
    with pytest.raises(DataError, match="5 of 5 images are not among the training images"):
        restore_instances(few_shot, part)


def test_clean_sets_are_written_in_the_published_layout(root, tmp_path):
    benchmark = open_benchmark(params(root))
    assert write_clean_seeds(tmp_path, benchmark) == 2 * 2 * 5
    content = json.loads((tmp_path / "seed1" / "full_box_2shot_bird_trainval.json").read_text())
    assert len(content["annotations"]) == 3
    assert content["images"][0]["file_name"] == "VOC2007/JPEGImages/000021.jpg"
    again = load_few_shot(tmp_path, root, shots=2, seed=1, class_names=benchmark.novel_names)
    clean = benchmark.few_shot(2, 1, arm="clean")
    assert again.counts() == clean.counts()
    np.testing.assert_array_equal(np.sort(again.flat.boxes, axis=0), np.sort(clean.flat.boxes, axis=0))


def test_the_command_prints_the_rate_of_each_seed(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    data = "\n".join(
        f"  {key}: {json.dumps(value)}" for key, value in params(root).model_dump(mode="json").items()
    )
    file = tmp_path / "10_base_training.yaml"
    file.write_text(f"profile: voc\nsplit: 1\npretraining: null\ndata:\n{data}\n")
    assert clean_seeds.main([str(file), "--write", str(tmp_path / "clean")]) == 0
    shown = capsys.readouterr().out
    assert "novel missing %" in shown and "14.3" in shown and "20 files" in shown
    assert "base objects are not restored in fsod" in shown
    assert (tmp_path / "clean" / "seed0" / "full_box_1shot_cow_trainval.json").is_file()
    assert clean_seeds.main([str(file), "--setting", "gfsod"]) == 0
    shown = capsys.readouterr().out
    assert "novel missing %" not in shown and "Of base and novel classes" in shown
    file.write_text("profile: mini\n")
    monkeypatch.setattr(
        "risf_core.data.benchmark.open_benchmark",
        lambda data, split: type("B", (), {"arms": ("kshot", "full"), "name": "pictograms"})(),
    )
    assert clean_seeds.main([str(file)]) == 1
    assert "no clean one" in capsys.readouterr().err


def test_options_of_evaluation_and_of_the_cut_keep_the_base_model():
    """They change nothing in it; whatever else differs is refused."""
    file = "params/voc/20_fine_tuning.fsod_10shot.yaml"
    plain = load_run(file)
    for changes in ({"rounding": "none", "absent": "published"}, {"metric": "voc_area"}, {"seed": 1}):
        changed = load_run(file, {f"data.{name}": value for name, value in changes.items()})
        assert [run_id(spec.params) for spec in upstream(changed.params)] == [
            run_id(spec.params) for spec in upstream(plain.params)
        ]
        assert run_id(changed.params) != run_id(plain.params)
    with pytest.raises(ParamsError, match="data.voc2012"):
        upstream(load_run(file, {"data.voc2012": None}).params)
