"""VOC's average precision: hand-worked numbers, and those of the published evaluators."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.evaluation import Evaluator, evaluate, proposal_recall
from risf_core.voc_evaluation import (
    VocEvaluator,
    average_precision,
    devkit_numbers,
    evaluator_for,
    pixel_iou,
)

CLASSES = ("anchor", "star")
BOX, FAR = [10, 10, 30, 30], [60, 5, 80, 25]
CASE = Path(__file__).parent / "data_reference" / "voc_case.json"


def image(image_id, *objects):
    """An image record from (box, label) or (box, label, is_difficult) tuples."""
    boxes = np.array([row[0] for row in objects], dtype=np.float32).reshape(-1, 4)
    labels = np.array([row[1] for row in objects], dtype=np.int64)
    difficult = np.array([len(row) > 2 and row[2] for row in objects], dtype=bool)
    none = np.zeros(len(objects), dtype=bool)
    return ImageRecord(image_id, Path(f"{image_id}.jpg"), 100, 100, boxes, labels, none, difficult)


def data_of(*images, class_names=CLASSES):
    return DetectionData("test", class_names, tuple(range(1, len(class_names) + 1)), images)


def detections_of(*rows, class_names=CLASSES):
    """Detections from (image id, box, label, score) tuples."""
    image_ids, boxes, labels, scores = zip(*rows) if rows else ((), (), (), ())
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    class_scores = np.zeros((len(rows), len(class_names) + 1))
    return Detections(image_ids, boxes, scores, labels, class_scores, np.arange(len(rows)), class_names)


def ap50(data, *rows, **options):
    return VocEvaluator(data, **options).evaluate(detections_of(*rows))["per_class"]["anchor"]["AP50"]


# ------------------------------------------------------------ hand-worked


@pytest.mark.parametrize(("metric", "expected"), [("voc07", 100 * 6 / 11), ("voc_area", 50.0)])
def test_half_of_the_objects_found(metric, expected):
    """Recall 1/2 at precision 1: six of the eleven points 0, .1, ... .5 count 1; the area is 1/2."""
    data = data_of(image(1, (BOX, 0)), image(2, (FAR, 0)))
    assert ap50(data, (1, BOX, 0, 0.9), metric=metric) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "expected"), [("voc07", 100 * (6 + 5 * 2 / 3) / 11), ("voc_area", 100 * (0.5 + 0.5 * 2 / 3))]
)
def test_true_false_true(metric, expected):
    """Recalls 1/2, 1/2, 1 at precisions 1, 1/2, 2/3: six points see 1, five see 2/3; the area is 1/2 + 1/2 * 2/3."""
    data = data_of(image(1, (BOX, 0)), image(2, (FAR, 0)))
    rows = [(1, BOX, 0, 0.9), (1, FAR, 0, 0.8), (2, FAR, 0, 0.7)]
    assert ap50(data, *rows, metric=metric) == pytest.approx(expected)


def test_a_second_detection_of_an_object_is_false_even_beside_a_free_one():
    """The published rule: each detection goes to the object it overlaps most, taken or not (COCO's differs)."""
    data = data_of(image(1, ([0, 0, 20, 20], 0), ([0, 0, 20, 18], 0)))
    rows = [(1, [0, 0, 20, 20], 0, 0.9), (1, [0, 0, 20, 19.8], 0, 0.8)]
    assert ap50(data, *rows, metric="voc_area") == pytest.approx(50.0)
    assert evaluate(detections_of(*rows), data)["per_class"]["anchor"]["AP50"] == pytest.approx(100.0)


def test_the_overlap_must_exceed_the_threshold():
    """A box of 200 pixels in one of 400: IoU exactly 1/2, which VOC refuses and COCO takes."""
    data = data_of(image(1, (BOX, 0)))
    half, more = (1, [10, 10, 30, 20], 0, 0.9), (1, [10, 10, 30, 20.2], 0, 0.9)
    assert ap50(data, half) == 0.0 and ap50(data, more) == pytest.approx(100.0)
    assert evaluate(detections_of(half), data)["per_class"]["anchor"]["AP50"] == pytest.approx(100.0)


def test_boxes_of_whole_pixels_overlap_by_the_pixels_they_share():
    """Devkit corners 1..10 and 6..15 share 5 of 15 columns: IoU 1/3, not the 4/14 of their differences."""
    assert pixel_iou(np.array([[1, 1, 10, 10.0]]), np.array([[6, 1, 15, 10.0]])) == pytest.approx(1 / 3)
    apart = pixel_iou(np.array([[1, 1, 10, 10.0]]), np.array([[11, 1, 15, 10.0]]))
    assert apart == 0.0


def test_difficult_boxes_count_neither_way():
    """One plain object, found second; the first detection goes to a difficult one and is left out."""
    data = data_of(image(1, (BOX, 0), (FAR, 0, True)))
    rows = [(1, FAR, 0, 0.9), (1, FAR, 0, 0.85), (1, BOX, 0, 0.8)]
    assert ap50(data, *rows) == pytest.approx(100.0)
    plain = data_of(image(1, (BOX, 0), (FAR, 0)))
    assert ap50(plain, *rows, metric="voc_area") == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    recall, precision = VocEvaluator(data).curve(detections_of(*rows), "anchor", iou_thresh=0.5)
    assert recall.tolist() == [0, 0, 1] and precision.tolist() == [0, 0, 1]


def test_coco_metrics_and_recall_leave_difficult_boxes_out_too():
    data = data_of(image(1, (BOX, 0), (FAR, 0, True)))
    assert evaluate(detections_of((1, FAR, 0, 0.9), (1, BOX, 0, 0.8)), data)["AP50"] == pytest.approx(100.0)
    assert proposal_recall({1: np.array([BOX], np.float32)}, data, ["anchor"]) == 100.0


def test_ap_is_the_mean_over_ten_thresholds():
    """IoU 0.72: right at .50 to .70, five of the ten thresholds."""
    data = data_of(image(1, ([0, 0, 100, 100], 0)))
    result = VocEvaluator(data).evaluate(detections_of((1, [0, 0, 100, 72], 0, 0.9)))
    assert (result["AP50"], result["AP75"]) == pytest.approx((100.0, 0.0))
    assert result["AP"] == pytest.approx(50.0)


def test_groups_have_prefixes_and_classes_without_detection_have_zero():
    data = data_of(image(1, (BOX, 0), (FAR, 1)))
    groups = {"base": ["anchor"], "novel": ["star"]}
    result = VocEvaluator(data, groups=groups).evaluate(detections_of((1, BOX, 0, 0.9)))
    assert (result["bAP50"], result["nAP50"], result["AP50"]) == pytest.approx((100.0, 0.0, 50.0))
    assert result["num_detections"] == 1.0


def test_a_class_without_countable_objects_is_left_out_or_as_published():
    data = data_of(image(1, (BOX, 0), (FAR, 1, True)))
    rows = [(1, BOX, 0, 0.9), (1, FAR, 1, 0.8)]
    left_out = VocEvaluator(data).evaluate(detections_of(*rows))
    assert left_out["AP50"] == pytest.approx(100.0) and left_out["per_class"]["star"]["AP50"] is None
    eleven = VocEvaluator(data, absent="published").evaluate(detections_of(*rows))
    assert eleven["AP50"] == pytest.approx(50.0)
    area = VocEvaluator(data, absent="published", metric="voc_area").evaluate(detections_of(*rows))
    assert math.isnan(area["AP50"])


def test_only_the_best_detections_of_an_image_count():
    data = data_of(image(1, (BOX, 0)))
    rows = [(1, FAR, 1, 0.9), (1, BOX, 0, 0.8)]
    assert ap50(data, *rows, max_dets=2) == pytest.approx(100.0)
    assert ap50(data, *rows, max_dets=1) == 0.0


def test_rounding_is_what_text_with_one_and_three_decimals_gives():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 500, (500, 4)).astype(np.float32)
    boxes[:4] = np.array(
        [[0.25, 0.75, 10.25, 10.75], [0.05, 0.15, 9.35, 9.45], [0, 0, 0, 0], [1e-4, 0, 499.95, 2]]
    )
    scores = np.concatenate([rng.uniform(0, 1, 496), [0.0005, 0.0625, 0.9995, 1.0]]).astype(np.float32)
    found, found_scores = devkit_numbers(boxes, scores)
    shifted = boxes + np.array([1, 1, 0, 0], np.float32)
    assert found.tolist() == [[float(f"{value:.1f}") for value in row] for row in shifted]
    assert found_scores.tolist() == [float(f"{value:.3f}") for value in scores]
    exact, exact_scores = devkit_numbers(boxes, scores, rounding="none")
    assert exact[5, 2] == boxes[5, 2] and exact[5, 0] == np.float64(boxes[5, 0]) + 1
    assert exact_scores.tolist() == scores.tolist()


def test_rounding_may_change_what_counts_and_keeps_ties_in_order_of_images():
    """Scores .8004 and .8001 are both written .800: the wrong one of image 1 then comes before the right one."""
    data = data_of(image(1), image(2, (BOX, 0)))
    rows = [(2, BOX, 0, 0.8004), (1, BOX, 0, 0.8001)]
    assert ap50(data, *rows, rounding="none") == pytest.approx(100.0)
    assert ap50(data, *rows) == pytest.approx(50.0)


def test_the_eleven_points_are_the_sums_of_the_devkit():
    """0.3 is below the fourth point, 0.30000000000000004, as the published loop over 0, .1, ... has it."""
    assert average_precision(np.array([0.3]), np.array([1.0]), metric="voc07") == pytest.approx(3 / 11)
    assert average_precision(np.array([]), np.array([]), metric="voc07") == 0.0
    assert average_precision(np.array([]), np.array([]), metric="voc_area") == 0.0


def test_the_metric_is_chosen_by_name():
    data = data_of(image(1, (BOX, 0)))
    assert type(evaluator_for(data)) is Evaluator
    chosen = evaluator_for(data, metric="voc_area", rounding="none", max_dets=7)
    assert (chosen.metric, chosen.rounding, chosen.max_dets) == ("voc_area", "none", 7)
    with pytest.raises(DataError, match="metric is 'voc12'. Expected one of: voc07, voc_area"):
        evaluator_for(data, metric="voc12")


# ------------------------------------------------------------ the published evaluators


def published(case, *, without=()):
    """Test set and detections of the case, without some classes."""
    names = tuple(name for name in case["classes"] if name not in without)
    images, rows = [], []
    for image_id, objects in case["gts"].items():
        own = [entry for entry in objects if entry["name"] in names]
        boxes = [np.array(entry["bbox"]) - [1, 1, 0, 0] for entry in own]
        labels = [names.index(entry["name"]) for entry in own]
        images.append(image(int(image_id), *zip(boxes, labels, [entry["difficult"] for entry in own])))
        found = case["dets"][image_id]
        for box, score, label in zip(found["boxes"], found["scores"], found["classes"]):
            if case["classes"][label] in names:
                rows.append((int(image_id), box, names.index(case["classes"][label]), score))
    return data_of(*images, class_names=names), detections_of(*rows, class_names=names)


@pytest.fixture(scope="module")
def case():
    return json.loads(CASE.read_text())


@pytest.mark.parametrize(("key", "metric"), [("2007", "voc07"), ("2012", "voc_area")])
@pytest.mark.parametrize(("suffix", "without", "base"), [("", (), 1), ("_no_sofa", ("sofa",), 2)])
def test_means_equal_the_published_evaluators(case, key, metric, suffix, without, base):
    data, detections = published(case, without=without)
    groups = {"base": data.class_names[:base], "novel": data.class_names[base:]}
    evaluator = VocEvaluator(data, groups=groups, metric=metric, absent="published")
    result = evaluator.evaluate(detections)
    for name, value in case["evaluator"][f"risf_{key}{suffix}"].items():
        assert result[name] == pytest.approx(float("nan") if value is None else value, abs=1e-9, nan_ok=True)
    detectron2 = case["evaluator"][f"detectron2_{key}{suffix}"]
    assert sorted(detectron2) == ["AP", "AP50", "AP75"]
    assert all(detectron2[name] == case["evaluator"][f"risf_{key}{suffix}"][name] for name in detectron2)


def test_average_precisions_equal_the_published_ones(case):
    data, detections = published(case)
    metrics = {"07": "voc07", "area": "voc_area"}
    assert len(case["average_precision"]) == 40
    for key, expected in case["average_precision"].items():
        metric, class_name, thresh = key.split("/")
        evaluator = VocEvaluator(data, metric=metrics[metric], absent="published")
        curve = evaluator.curve(detections, class_name, iou_thresh=float(thresh))
        value = average_precision(*curve, metric=metrics[metric])
        expected = float("nan") if expected is None else expected
        assert value == pytest.approx(expected, abs=1e-9, nan_ok=True), key


def test_curves_and_text_equal_the_whole_reference():
    """Every recall and precision, and every number of the published text files."""
    folder = Path(os.environ.get("RISF_REFERENCE", "none")) / "voc"
    if not folder.is_dir():
        pytest.skip("RISF_REFERENCE does not point at the folder with voc/")
    whole = json.loads((folder / "voc_ref.json").read_text())
    data, detections = published(whole)
    for key, expected in whole["voc_eval"].items():
        _, class_name, thresh = key.split("/")
        recall, precision = VocEvaluator(data).curve(detections, class_name, iou_thresh=float(thresh))
        np.testing.assert_allclose(precision, expected["prec"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(recall, expected["rec"], rtol=0, atol=1e-12)
    for label, name in enumerate(whole["classes"]):
        lines = [line.split() for line in (folder / "dets" / f"{name}.txt").read_text().splitlines()]
        own = detections.keep(detections.labels == label)
        boxes, scores = devkit_numbers(own.boxes, own.scores)
        rows = sorted(zip(own.image_ids.tolist(), scores.tolist(), *boxes.T.tolist()))
        assert rows == sorted((int(line[0]), *map(float, line[1:])) for line in lines)
