"""The bootstrap over test images: against pycocotools, by hand, and from stored cells to rows."""

from types import SimpleNamespace

import numpy as np
import pytest

from risf_core.detections import Detections, Similarities
from risf_core.effects import Cell
from risf_core.errors import DataError, ParamsError
from risf_core.evaluation import Evaluator
from risf_core.paired_bootstrap import class_matches, paired_ap50
from risf_core.params import FineTuningParams
from risf_core.records import Rows
from risf_core.report.image_tables import image_intervals_table
from risf_core.studies import image_bootstrap as study
from risf_core.studies import stored_cells
from risf_core.studies.image_bootstrap import (
    Place,
    effect_samples,
    image_weights,
    mean_ap50,
    summarize,
    weighted_ap50,
    with_best_rates,
)
from risf_core.study_params import TestImagesParams as Params
from tests.synthetic_records import record
from tests.test_evaluation import data_of, image

NAMES = ("queen", "cat")


def world(num_images: int = 12, *, seed: int = 0, shift: float = 0.0):
    """Images with objects of two classes, and detections near some of them and elsewhere; some scores are equal."""
    generator = np.random.default_rng(seed)
    images, rows = [], []
    for number in range(1, num_images + 1):
        objects = []
        for label in generator.integers(0, 2, generator.integers(0, 4)):
            corner = generator.uniform(0, 60, 2)
            objects.append(([*corner, *(corner + generator.uniform(15, 35, 2))], int(label)))
        images.append(image(number, objects))
        for box, label in objects:
            for _ in range(generator.integers(0, 3)):  # several detections of one object, too
                near = np.array(box) + generator.normal(0, 2.5, 4)
                rows.append((number, near, label, round(generator.uniform(0.1, 1), 1)))
        for _ in range(2):
            corner = generator.uniform(0, 60, 2)
            rows.append(
                (number, [*corner, *(corner + 20)], generator.integers(0, 2), generator.uniform(0, 0.7))
            )
    scores = np.clip([row[3] + shift * (n % 3 == 0) for n, row in enumerate(rows)], 0.01, 1.0)
    found = Detections(
        [row[0] for row in rows], np.array([row[1] for row in rows]), scores, [row[2] for row in rows],
        np.zeros((len(rows), 3)), range(len(rows)), NAMES,
    )  # fmt: skip
    return data_of(*images, class_names=NAMES), found


@pytest.mark.parametrize("seed", range(4))
def test_all_images_give_the_evaluators_ap50(seed):
    data, found = world(seed=seed)
    expected = Evaluator(data, groups={"novel": NAMES}, max_dets=100).evaluate(found)["nAP50"]
    assert mean_ap50(found, data, np.ones((1, 12)))[0] == pytest.approx(expected, abs=1e-6)


def test_each_row_of_weights_is_what_one_resample_gives():
    """Also where an image is left out, a class is absent, and no detection is right."""
    data, found = world(seed=1)
    weights = image_weights(12, 40, seed=3)
    weights = np.concatenate([weights, np.eye(12), np.zeros((1, 12))])
    for matches in class_matches(found, data):
        expected = [matches.ap50(own) for own in weights]
        assert weighted_ap50(matches, weights) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    nothing = found.with_scores(found.scores)
    away = Detections(
        nothing.image_ids, nothing.boxes + 500, nothing.scores, nothing.labels, nothing.class_scores,
        nothing.proposals, NAMES,
    )  # fmt: skip
    assert mean_ap50(away, data, np.ones((1, 12))).tolist() == [0.0]
    assert np.isnan(mean_ap50(found, data, np.zeros((1, 12)))).all()


def test_interval_of_one_pair_is_that_of_the_paired_bootstrap():
    """The same statistic with other draws: both intervals of 2,000 resamples nearly agree."""
    data, before = world(40, seed=2)
    after = world(40, seed=2, shift=0.3)[1]
    other = paired_ap50(before, after, data, resamples=2000, seed=9)
    weights = image_weights(40, 2000, seed=4)
    found = summarize(
        {Place(1, "b", 0, 0, "kshot", 1): mean_ap50(after, data, weights) - mean_ap50(before, data, weights)}
    )
    assert found["mean"] == pytest.approx(other.difference)
    width = other.high - other.low
    assert abs(found["low"] - other.low) < 0.1 * width and abs(found["high"] - other.high) < 0.1 * width


def test_weights_draw_as_many_images_as_there_are():
    weights = image_weights(30, 50, seed=0)
    assert weights.shape == (51, 30) and (weights.sum(axis=1) == 30).all() and (weights[0] == 1).all()
    assert (weights == image_weights(30, 50, seed=0)).all()
    assert (weights[1:] != image_weights(30, 50, seed=1)[1:]).any()


def test_splits_count_the_same():
    first = {Place(1, base, 0, 0, "kshot", 1): np.full(3, 2.0) for base in "abc"}
    second = {Place(2, "a", 0, 0, "kshot", 1): np.array([6.0, 4.0, 8.0])}
    found = summarize(first | second)
    assert found["mean"] == 4.0 and found["cells"] == 4 and found["splits"] == 2 and found["resamples"] == 2
    assert found["low"] == pytest.approx(3.05) and found["high"] == pytest.approx(4.95)


def test_a_loss_without_a_rate_of_its_own_has_the_main_one_as_best():
    place = Place(1, "a", 0, 0, "kshot", 1)
    samples = {(place, Cell("ce")): 1, (place, Cell("ce", True)): 5, (place, Cell("bnrl")): 2}
    assert with_best_rates(samples)[place, Cell("bnrl", True)] == 2
    assert with_best_rates(samples)[place, Cell("ce", True)] == 5
    without = {key: value for key, value in samples.items() if not key[1].is_best}
    assert with_best_rates(without) == without
    (effect,) = [one for one in study.EFFECTS if one.name == "bnrl - ce, both at their best rate"]
    assert effect_samples(effect, with_best_rates(samples)) == {place: -3}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Stored cells of two base models, both losses; CLIP's cosines are drawn."""
    data, _ = world()
    space = (*NAMES, "background")
    benchmark = SimpleNamespace(novel_names=NAMES, base_names=(), test=data, evaluation={})
    monkeypatch.setattr(stored_cells, "open_benchmark", lambda data, split: benchmark)
    evaluator = Evaluator(data, groups={"novel": NAMES}, max_dets=100)
    upstreams = []
    for base in range(2):
        tuned = FineTuningParams(
            profile="t", base={"params": "b.yaml", "set": {"seed": base}}, seeds=(0,), clip={"run": "c.yaml"},
            cm_clip={"label_spaces": ["novel+background"]},
        )  # fmt: skip
        folder, rows = tmp_path / f"run{base}", []
        for place, loss in enumerate(("ce", "bnrl")):
            found = world(shift=0.1 * (base + 2 * place))[1]
            cosines = np.full((len(found), 3), 0.2)
            cosines += np.random.default_rng(place).uniform(0, 0.03, cosines.shape)
            similarities = Similarities(cosines, np.ones(len(found), dtype=bool), space)
            name = f"seed0-kshot-{loss}.npz"
            found.save(folder / "detections" / name)
            similarities.save(folder / "similarities" / name)
            results = study.results_by_rescoring(
                found, similarities, benchmark, tuned.cm_clip, score_thresh=0.05
            )
            key = {
                "split": 1,
                "shots": 5,
                "seed": 0,
                "loss": loss,
                "arm": "kshot",
                "setting": "fsod",
                "repeat": 0,
            }
            rows += [
                key | {"rescoring": how, "nAP50": evaluator.evaluate(one)["nAP50"]}
                for how, one in results.items()
            ]
        content = {"params": tuned.model_dump(mode="json"), "rows": rows}
        upstreams.append(SimpleNamespace(dir=folder, run_id=f"r{base}", record=content))
    params = Params(profile="t", fine_tuning=["a.yaml"], arms=["kshot"], resamples=30)

    def run():
        own = tmp_path / "own"
        own.mkdir(exist_ok=True)
        return SimpleNamespace(dir=own, rows=Rows(own / "rows.jsonl"), upstreams=lambda name: upstreams)

    return SimpleNamespace(params=params, run=run, upstreams=upstreams, data=data)


def test_rows_are_means_over_cells_with_their_interval(runs):
    run = runs.run()
    study.bootstrap_images(runs.params, run)
    rows = {(row["effect"], row["loss"]): row for row in run.rows.as_list()}
    assert set(rows) == {
        ("cm_clip - none", "ce"), ("cm_clip - none", "bnrl"), ("bnrl - ce", ""), ("bnrl - ce, with cm_clip", ""),
        ("interaction", ""),
    }  # fmt: skip
    values = {
        (upstream.run_id, row["loss"], row["rescoring"]): row["nAP50"]
        for upstream in runs.upstreams
        for row in upstream.record["rows"]
    }
    gain = np.mean(
        [values[f"r{base}", "ce", "cm_clip"] - values[f"r{base}", "ce", "none"] for base in range(2)]
    )
    row = rows["cm_clip - none", "ce"]
    assert row["mean"] == pytest.approx(gain, abs=1e-6) and gain != 0
    assert row["cells"] == 2 and row["resamples"] == 30 and row["low"] <= row["high"]
    table = image_intervals_table([record("43_test_images", "t", rows=list(rows.values()))])
    assert len(table.display) == 5 and "over 2 cells" in table.caption and "30 resamples" in table.caption


def test_runs_without_a_clip_take_part_where_nothing_is_rescored(runs):
    for upstream in runs.upstreams:
        upstream.record["params"]["clip"] = None
    run = runs.run()
    study.bootstrap_images(runs.params, run)
    assert {row["effect"] for row in run.rows.as_list()} == {"bnrl - ce"}


def test_a_killed_run_goes_on_with_the_same_numbers(runs, monkeypatch):
    first = runs.run()
    study.bootstrap_images(runs.params, first)
    expected = first.rows.as_list()
    (first.dir / "rows.jsonl").unlink()
    monkeypatch.setattr(study, "mean_ap50", lambda *args: pytest.fail("a finished cell was computed again"))
    again = runs.run()
    study.bootstrap_images(runs.params, again)
    assert again.rows.as_list() == expected


def test_cells_that_do_not_fit_their_record_are_refused(runs):
    runs.upstreams[1].record["rows"][0]["nAP50"] += 0.01
    with pytest.raises(DataError, match=r"r1, seed0-kshot-ce, none: AP50 is .* in its record"):
        study.bootstrap_images(runs.params, runs.run())
    with pytest.raises(ParamsError, match="no run of arm missing with ce"):
        study.bootstrap_images(runs.params.model_copy(update={"arms": ("missing",)}), runs.run())


def test_crowd_regions_are_refused():
    data = data_of(image(1, [([0, 0, 50, 50], 0, True)]), class_names=NAMES)
    with pytest.raises(DataError, match="crowd regions"):
        mean_ap50(world()[1], data, np.ones((1, 1)))
