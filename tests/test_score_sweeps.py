"""Score sweeps: every number of the evaluators and of pycocotools' stock path, with overlaps computed once."""

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from risf_core import score_sweeps
from risf_core.cm_clip.scores import apply_cm_clip, label_probabilities
from risf_core.detections import Detections, Similarities
from risf_core.errors import DataError
from risf_core.evaluation import Evaluator
from risf_core.score_sweeps import ScoreSweep, sweep_c, sweep_scores
from risf_core.voc_evaluation import evaluator_for
from tests.test_evaluation import coco_dataset, data_of, detections_of, image, random_case, stock_precision

EXACT = 1e-12  # what pycocotools' own numbers are held to


def groups_of(data):
    return {"base": data.class_names[:4], "novel": data.class_names[4:]}


def score_vectors(detections, seed, count=8):
    """Scores that move many rows, with many ties within and across images and classes; the stored ones come first."""
    rng = np.random.default_rng(seed)
    vectors = [detections.scores]
    vectors += [np.round(rng.random(len(detections)), decimals) for decimals in (0, 1, 1, 2, 6, 6)]
    return [*vectors, np.full(len(detections), 0.5)][:count]


def with_difficult(data, seed):
    rng = np.random.default_rng(seed)
    return replace(
        data,
        images=tuple(replace(r, is_difficult=rng.random(len(r.labels)) < 0.3) for r in data.images),
    )


def assert_same(result, precision, data):
    """All means over pycocotools' precision [T, R, K] are those of the result."""
    pairs = [(result, slice(None), ""), (result, slice(0, 4), "b"), (result, slice(4, None), "n")]
    pairs += [(result["per_class"][name], [k], "") for k, name in enumerate(data.class_names)]
    for values, columns, prefix in pairs:
        for metric, places in (("AP", slice(None)), ("AP50", 0), ("AP75", 5)):
            stock = precision[places][..., columns]
            stock = stock[stock > -1]
            found = values[prefix + metric]
            assert (found is None) == (stock.size == 0)
            assert found is None or found == pytest.approx(100 * stock.mean(), rel=EXACT, abs=EXACT)


@pytest.mark.parametrize("max_dets", [100, 6])
@pytest.mark.parametrize("seed", range(4))
def test_every_score_vector_equals_the_stock_path(seed, max_dets):
    data, detections = random_case(seed)
    sweep = ScoreSweep(Evaluator(data, groups=groups_of(data), max_dets=max_dets), detections)
    for scores in score_vectors(detections, seed):
        counting = detections.with_scores(scores).top(max_dets)
        precision = stock_precision(coco_dataset(data), counting.to_coco_results(data.category_ids))
        assert_same(sweep.evaluate(scores), precision, data)


@pytest.mark.parametrize("metric", ["coco", "voc07", "voc_area"])
@pytest.mark.parametrize("max_dets", [100, 5])
def test_equals_the_evaluator_with_difficult_boxes_and_crowds(metric, max_dets):
    data, detections = random_case(11)
    data = with_difficult(data, 11)
    options = {} if metric == "coco" else {"rounding": "none" if max_dets == 5 else "published"}
    evaluator = evaluator_for(data, metric=metric, groups=groups_of(data), max_dets=max_dets, **options)
    sweep = ScoreSweep(evaluator, detections)
    results = [sweep.evaluate(scores) for scores in score_vectors(detections, 11)]
    assert results == [
        evaluator.evaluate(detections.with_scores(scores)) for scores in score_vectors(detections, 11)
    ]
    assert len({result["AP"] for result in results}) > 4


def test_a_forgotten_matching_is_made_again(monkeypatch):
    data, detections = random_case(3)
    vectors = score_vectors(detections, 3)
    sweep = ScoreSweep(Evaluator(data), detections)
    expected = [sweep.evaluate(scores) for scores in vectors]
    monkeypatch.setattr(score_sweeps, "MEMORY", 2)
    assert [ScoreSweep(Evaluator(data), detections).evaluate(scores) for scores in vectors] == expected
    assert [sweep.evaluate(scores) for scores in reversed(vectors)] == expected[::-1]


def test_overlaps_are_computed_once(monkeypatch):
    data, detections = random_case(5)
    sweep = ScoreSweep(Evaluator(data), detections)
    monkeypatch.setattr(score_sweeps.coco_mask, "iou", None)
    monkeypatch.setattr(score_sweeps, "best_overlaps", None)
    assert sweep.evaluate(detections.scores)["AP"] > 0


@pytest.mark.parametrize("metric", ["coco", "voc07"])
@pytest.mark.parametrize("wanted", [("AP50",), ("AP75", "AP50"), ("AP",), ("AP75",)])
def test_fewer_metrics_are_the_same_numbers(metric, wanted):
    data, detections = random_case(7)
    evaluator = evaluator_for(data, metric=metric, groups=groups_of(data))
    sweep = ScoreSweep(evaluator, detections, metrics=wanted)
    for scores in score_vectors(detections, 7):
        full = evaluator.evaluate(detections.with_scores(scores))
        found = sweep.evaluate(scores)
        names = {prefix + name for prefix in ("", "b", "n") for name in wanted}
        assert found == {name: full[name] for name in names} | {
            "per_class": {
                key: {name: row[name] for name in wanted} for key, row in full["per_class"].items()
            },
            "num_detections": full["num_detections"],
        }


@pytest.mark.parametrize("metric", ["coco", "voc07"])
def test_nothing_found_and_nothing_to_find(metric):
    box, data = [10, 10, 30, 30], data_of(image(1, [([10, 10, 30, 30], 0)]), image(2, []))
    for rows in ((), ((2, box, 1, 0.5),), ((2, box, 0, 0.5), (1, box, 0, 0.5))):
        detections = detections_of(*rows)
        evaluator = evaluator_for(data, metric=metric)
        result = ScoreSweep(evaluator, detections).evaluate(detections.scores)
        assert result == evaluator.evaluate(detections)
    no_images = evaluator_for(data_of(), metric=metric)
    assert ScoreSweep(no_images, detections_of()).evaluate(np.empty(0)) == no_images.evaluate(detections_of())


def test_equal_scores_stand_in_the_order_of_proposals():
    """Two boxes of one score, of which the second proposal's is the hit: precision 1/2, whatever row comes first."""
    data = data_of(image(1, [([10, 10, 30, 30], 0)]))
    rows = [(1, [50, 50, 70, 70], 0, 0.3), (1, [10, 10, 30, 30], 0, 0.9)]
    detections = detections_of(*rows)  # the hit is stored first, its proposal is the second
    assert detections.proposals.tolist() == [1, 0]
    result = ScoreSweep(Evaluator(data), detections).evaluate(np.array([0.4, 0.4]))
    assert result["AP"] == pytest.approx(50.0)


def test_a_detector_of_some_classes_is_evaluated_on_these():
    data, detections = random_case(2)
    names = data.class_names[4:]
    own = detections.keep(detections.labels >= 4)
    scores = np.column_stack([own.class_scores[:, 4:]])
    own = Detections(
        own.image_ids, own.boxes, own.scores, own.labels - 4, scores, own.proposals, class_names=names
    )
    evaluator = Evaluator(data, groups=groups_of(data))
    for vector in score_vectors(own, 2):
        assert ScoreSweep(evaluator, own).evaluate(vector) == evaluator.evaluate(own.with_scores(vector))


def test_what_does_not_fit_is_refused():
    data, detections = random_case(0)
    evaluator = Evaluator(data)
    with pytest.raises(DataError, match="metrics are"):
        ScoreSweep(evaluator, detections, metrics=["AR"])
    with pytest.raises(DataError, match="which is not in the data"):
        ScoreSweep(evaluator, replace(detections, image_ids=detections.image_ids + 1000))
    sweep = ScoreSweep(evaluator, detections)
    with pytest.raises(DataError, match=r"shape \(3,\).*Expected finite numbers"):
        sweep.evaluate(np.ones(3))
    with pytest.raises(DataError, match="not finite"):
        sweep.evaluate(np.full(len(detections), np.nan))


@pytest.mark.parametrize("fusion", ["arithmetic", "geometric"])
def test_sweep_over_c_is_what_single_rescorings_give(fusion):
    data, detections = random_case(9)
    rng = np.random.default_rng(9)
    space = (*data.class_names, "background")
    similarities = Similarities(
        rng.uniform(0.1, 0.3, (len(detections), len(space))), np.ones(len(detections), dtype=bool), space
    )
    evaluator, weights = Evaluator(data), [i / 20 for i in range(21)]
    options = {"label_space": space, "temperature": 30.0, "score_thresh": 0.15}
    rows, probs = label_probabilities(detections, similarities, **options)
    vectors = sweep_scores(detections.scores, rows, probs, c=weights, fusion=fusion)
    assert vectors.shape == (21, len(detections)) and vectors.dtype == np.float32
    results = sweep_c(ScoreSweep(evaluator, detections), similarities, c=weights, fusion=fusion, **options)
    for c, vector, result in zip(weights, vectors, results, strict=True):
        single = apply_cm_clip(detections, similarities, c=c, fusion=fusion, **options)
        assert np.array_equal(detections.with_scores(vector).scores, single.scores)
        assert result == evaluator.evaluate(single)
    assert len({result["AP"] for result in results}) > 5


def test_the_benchmark_compares_with_pycocotools_itself(capsys):
    path = Path(__file__).parents[1] / "tools" / "benchmark_rescoring.py"
    spec = importlib.util.spec_from_file_location("benchmark_rescoring", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.sweep(argparse.Namespace(record=None, images=20, detections=40, classes=5, check=3, stock=True))
    printed = capsys.readouterr().out
    assert "20 images, 800 detections" in printed and "% of one evaluation" in printed
    for against in ("the evaluation", "pycocotools' stock path"):
        (line,) = [line for line in printed.splitlines() if f"largest difference to {against}" in line]
        assert float(line.partition(": ")[2].partition(",")[0]) < 1e-10  # percent
