"""Controls on stored boxes, and the rule for when not to use CM-CLIP."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from risf_core import ablations
from risf_core.detections import Detections, Similarities
from risf_core.errors import ParamsError
from risf_core.evaluation import Evaluator
from risf_core.params import CmClipParams, FineTuningParams
from risf_core.report.control_tables import Rule, applied, choose_rule
from risf_core.studies import class_rule, stored_cells
from risf_core.studies import rescoring_controls as controls
from risf_core.studies.class_rule import class_accuracy
from risf_core.studies.stored_cells import check_same_clip
from risf_core.study_params import RescoringControlsParams
from tests.color_cells import color_cells
from tests.color_clip import color_clip
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

PARAMS = RescoringControlsParams(profile="t", fine_tuning=["a.yaml"], clip={"run": "c.yaml"})
WORLD = SimpleNamespace(novel_names=("queen", "cat", "cow"), base_names=())
SPACE = (*WORLD.novel_names, "background")


@pytest.fixture
def stored():
    """A queen, a cat and a cow, and CLIP's cosines; the last detection lies below the threshold."""
    found = Detections(
        [1, 1, 1, 1],
        [BOX] * 4,
        [0.9, 0.6, 0.5, 0.01],
        [0, 1, 2, 0],
        np.zeros((4, 4)),
        range(4),
        WORLD.novel_names,
    )
    cosines = np.log([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.2, 0.4], [1, 1, 1, 1]]) / 100
    cosines[3] = np.nan
    return found, Similarities(cosines, np.arange(4) < 3, SPACE)


def blended(scores, probs):
    return pytest.approx([*(0.7 * np.array(scores[:3]) + 0.3 * np.array(probs)), scores[3]], abs=1e-4)


def test_controls_by_hand(stored):
    found, similarities = stored
    own = dict(controls._Controls(PARAMS, WORLD, found).stored(similarities))
    scores = found.scores.tolist()
    assert own["none"][0].tolist() == scores
    assert own["paper"][0].tolist() == blended(scores, [0.7, 0.2, 0.2])
    assert own["background only"][0].tolist() == blended(scores, [0.9, 0.6, 0.6])
    first, second = own[
        "permuted names"
    ]  # queen is taken for cow, cat for queen, cow for cat; then the other way
    assert first.tolist() == blended(scores, [0.1, 0.1, 0.2])
    assert second.tolist() == blended(scores, [0.1, 0.3, 0.2])


def test_another_clip_than_the_stored_one_is_refused():
    tuned = FineTuningParams(profile="t", base="x.yaml", clip={"run": "c.yaml"})
    cell = SimpleNamespace(run_id="r", tuned=tuned)
    check_same_clip(cell, PARAMS.clip, PARAMS.cm_clip)
    for other in (
        {"clip": {"run": "d.yaml"}},
        {"cm_clip": CmClipParams(preprocess="released")},
        {"cm_clip": CmClipParams(score_thresh=0.01)},
    ):
        wrong = RescoringControlsParams.model_validate(PARAMS.model_dump() | other)
        with pytest.raises(ParamsError, match="Expected clip and cm_clip as in that run"):
            check_same_clip(cell, wrong.clip, wrong.cm_clip)


def test_jitter_moves_edges_within_the_image():
    data = data_of(image(1, []))  # 100 x 100
    found = detections_of(*[(1, BOX, 0, 0.5)] * 500, *[(1, [0, 0, 100, 100], 0, 0.4)] * 50)
    assert controls.jittered(found, data, 0.0, seed=0) is found.boxes
    moved = controls.jittered(found, data, 0.1, seed=0)
    assert (moved[:, 2:] - moved[:, :2] >= 1).all() and moved.min() >= 0 and moved.max() <= 100
    noise = (moved[:500] - np.array(BOX)) / 20  # sides of 20 pixels
    assert noise.std() == pytest.approx(0.1, rel=0.05)  # of 2,000 draws
    assert controls.jittered(found, data, 0.1, seed=0).tolist() == moved.tolist()
    assert controls.jittered(found, data, 0.1, seed=1).tolist() != moved.tolist()


def test_sizes_hold_equally_many_objects():
    sides = np.arange(1, 31)
    objects = [([0, 0, side, side], 0) for side in sides]
    data = data_of(image(1, [*objects, ([0, 0, 90, 90], 0, True)]))
    ranges = controls.size_ranges(data, 3)
    assert ranges[0][0] == 0 and ranges[-1][1] == 1e10
    counts = [sum(low < side**2 <= high for side in sides) for low, high in ranges]
    assert counts == [10, 10, 10]
    assert controls.size_ranges(data, 1) == [(0.0, 1e10)]


def test_class_accuracy_counts_each_classs_crops(tmp_path):
    from PIL import Image

    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[10:30, 10:30] = pixels[5:25, 60:80] = (255, 0, 0)
    pixels[50:70, 50:90] = (0, 255, 0)
    record = image(1, [(BOX, 0), (OTHER, 1), (FAR, 1)])  # red, green, and red that is called green
    object.__setattr__(record, "path", tmp_path / "1.png")
    Image.fromarray(pixels).save(record.path)
    data = data_of(record, class_names=("red", "green", "white"))
    from risf_core.data.loader import ImageCache

    clip = color_clip(("red", "green", "white"))
    assert class_accuracy(data, clip, ImageCache(0)) == {"red": 100.0, "green": 50.0, "white": None}


def test_rule_takes_the_threshold_with_the_largest_mean_gain():
    frame = pd.DataFrame({"accuracy": [20.0, 60.0, 90.0, 100.0], "gain": [-8.0, -2.0, 3.0, 10.0]})
    rule = choose_rule(frame, "accuracy")
    assert rule == Rule("accuracy", 75.0)
    assert applied(frame, rule).tolist() == [0.0, 0.0, 3.0, 10.0]
    assert choose_rule(frame.assign(gain=[1.0, 2.0, 3.0, 4.0]), "accuracy").threshold == -math.inf
    assert choose_rule(frame.assign(gain=-1.0), "accuracy").threshold == math.inf
    unknown = frame.assign(accuracy=[np.nan, 60.0, 90.0, 100.0])  # a class without a crop is not re-scored
    assert applied(unknown, Rule("accuracy", 50.0)).tolist() == [0.0, -2.0, 3.0, 10.0]


# ------------------------------------------------------------ the whole notebook on a picture of colours


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """Parameters, the run, and the names of controls and CLIPs in the order in which they load a CLIP."""
    cells, used = color_cells(tmp_path, monkeypatch), []

    def loads(name):
        def load(*args, **options):
            used.append(name)
            return ("colours", cells.loaded) if name != "random-weight CLIP" else cells.loaded

        return load

    monkeypatch.setattr(controls, "open_clip_source", loads("stored"))
    monkeypatch.setattr(controls, "load_clip", loads("random-weight CLIP"))
    monkeypatch.setattr(ablations, "open_clip_source", loads("compared"))
    cosines = np.eye(3)[[2, 0, 1]]  # the ground, the red and the green square
    for seed in (0, 1):
        path = tmp_path / "similarities" / f"seed{seed}-kshot-ce.npz"
        Similarities(cosines, np.ones(3, bool), ("red", "green", "background")).save(path)
    values = {
        "clip": {"run": "c.yaml"},
        "clips": [{"model": "colours", "path_only": True}],
        "jitters": [0.1],
        "num_sizes": 2,
    }
    params = RescoringControlsParams.model_validate(
        {"profile": "t", "fine_tuning": ["a.yaml"], "selection": ["b.yaml"], "rule_seeds": [0, 1]} | values
    )

    def work(run) -> list[dict]:
        controls.run_controls(params, run)
        class_rule.measure_classes(params, run)
        return run.rows.as_list()

    return cells, work, used


def test_the_controls_and_the_classes_have_a_row_each(colours):
    cells, work, _ = colours
    rows = work(cells.run())
    own = {row["control"]: row["nAP50"] for row in rows if row["part"] == "control" and row["seed"] == 0}
    names = ["none", "paper", "permuted names", "background only", "jitter 0.1", "random-weight CLIP"]
    assert list(own) == names
    evaluator = Evaluator(cells.test, groups={"novel": ("red", "green")})
    assert own["none"] == evaluator.evaluate(cells.found)["nAP50"] < 80
    assert own["paper"] == pytest.approx(100.0)  # 0.7 x 0.9 for the ground, 0.7 x 0.5 + 0.3 for the squares
    assert own["random-weight CLIP"] == pytest.approx(100.0)  # here it has the same weights
    classes = [row for row in rows if row["part"] == "class"]
    assert len(classes) == 2 * 2 * 2  # roles, seeds, names
    assert {row["accuracy"] for row in classes} == {100.0} == {row["shot_accuracy"] for row in classes}
    gains = {row["name"]: row["with"] - row["without"] for row in classes}
    assert gains["red"] > 40 and gains["green"] == pytest.approx(0.0)
    assert len([row for row in rows if row["part"] == "size"]) == 2 * 2


@pytest.mark.parametrize("kept", [3, 9, 18])
def test_a_killed_run_goes_on_where_it_was(colours, kept):
    """Killed among the controls of the first seed, of the second, and between the names of a class's cell."""
    cells, work, used = colours
    whole = work(cells.run())
    path = cells.run().dir / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    before, done = len(used), {row.get("control") for row in whole[:kept] if row["seed"] == 0}
    again = work(cells.run())
    assert sorted(map(str, again)) == sorted(map(str, whole)) and len(again) == len(whole)
    random = used[before:].count("random-weight CLIP")
    assert random == (2 if "random-weight CLIP" not in done else 1 if kept < 16 else 0)


# ------------------------------------------------------------ VOC's stored boxes


def test_boxes_marked_as_difficult_are_ignored(tmp_path, monkeypatch):
    cells = color_cells(tmp_path, monkeypatch)
    (record,) = cells.test.images
    marked = replace(cells.test, images=(replace(record, is_difficult=np.array([True, False])),))
    benchmark = SimpleNamespace(novel_names=("red", "green"), test=marked, evaluation={"metric": "voc07"})
    monkeypatch.setattr(stored_cells, "open_benchmark", lambda data, split: benchmark)
    (upstream,) = cells.run().upstreams("")
    cell, *_ = stored_cells.stored_cells([upstream], arm="kshot", loss="ce")
    _, test, evaluator = stored_cells.Splits().get(cell)
    assert test.images[0].is_crowd.tolist() == [True, False]
    metrics = evaluator.evaluate(cells.found)
    assert metrics["per_class"]["green"]["AP50"] == pytest.approx(100.0)
    assert metrics["per_class"]["red"]["AP50"] is None and metrics["nAP50"] == pytest.approx(100.0)
