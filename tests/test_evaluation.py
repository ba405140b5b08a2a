"""Average precision: hand-worked numbers, and every number of the stock pycocotools path."""

import contextlib
import copy
import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.errors import DataError, SplitError
from risf_core.evaluation import Evaluator, evaluate, proposal_recall
from risf_core.voc_evaluation import evaluator_for
from tests.real_data import real_data

CLASSES = ("anchor", "star", "key")
GROUPS = {"base": ("anchor",), "novel": ("star", "key")}
BOX, OTHER, FAR = [10, 10, 30, 30], [50, 50, 90, 70], [60, 5, 80, 25]


def image(image_id, objects):
    """An image record from (box, label) or (box, label, is_crowd) tuples."""
    boxes = np.array([row[0] for row in objects], dtype=np.float32).reshape(-1, 4)
    labels = np.array([row[1] for row in objects], dtype=np.int64)
    crowd = np.array([len(row) > 2 and row[2] for row in objects], dtype=bool)
    return ImageRecord(image_id, Path(f"{image_id}.png"), 100, 100, boxes, labels, crowd)


def data_of(*images, class_names=CLASSES):
    return DetectionData("test", class_names, tuple(range(1, len(class_names) + 1)), tuple(images))


def detections_of(*rows, class_names=CLASSES):
    """Detections from (image id, box, label, score) tuples."""
    image_ids, boxes, labels, scores = zip(*rows) if rows else ((), (), (), ())
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    class_scores = np.zeros((len(rows), len(class_names) + 1))
    return Detections(image_ids, boxes, scores, labels, class_scores, np.arange(len(rows)), class_names)


# ------------------------------------------------------------ hand-worked


def test_perfect_boxes_give_100():
    data = data_of(image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(FAR, 0), (BOX, 2)]))
    rows = [(1, BOX, 0, 0.9), (1, OTHER, 1, 0.5), (2, FAR, 0, 0.2), (2, BOX, 2, 0.01)]
    result = evaluate(detections_of(*rows), data, groups=GROUPS)
    means = [f"{prefix}{metric}" for prefix in ("", "b", "n") for metric in ("AP", "AP50", "AP75")]
    assert [result[name] for name in means] == pytest.approx([100.0] * 9)
    assert result["num_detections"] == 2.0


def test_half_of_the_objects_found():
    """Recall reaches 1/2 at precision 1: of the 101 recall points, 0 to 0.50 count, 51 of them."""
    data = data_of(image(1, [(BOX, 0)]), image(2, [(FAR, 0)]))
    result = evaluate(detections_of((1, BOX, 0, 0.9)), data)
    assert result["per_class"]["anchor"]["AP50"] == pytest.approx(100 * 51 / 101)
    assert result["AP"] == pytest.approx(100 * 51 / 101)  # the other classes have no object: outside the mean


def test_a_duplicate_is_a_false_positive():
    """Ranked hit, duplicate, hit: precision 1 up to recall 1/2 (51 points), then 2/3 (50 points)."""
    data = data_of(image(1, [(BOX, 0)]), image(2, [(FAR, 0)]))
    rows = [(1, BOX, 0, 0.9), (1, BOX, 0, 0.8), (2, FAR, 0, 0.7)]
    assert evaluate(detections_of(*rows), data)["AP50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_a_wrong_class_is_no_hit():
    data = data_of(image(1, [(BOX, 0), (FAR, 1)]))
    result = evaluate(detections_of((1, BOX, 1, 0.9), (1, FAR, 1, 0.8)), data, groups=GROUPS)
    assert result["bAP"] == 0.0
    assert result["nAP50"] == pytest.approx(50.0)  # the false one stands first: precision 1/2 at every recall
    assert result["per_class"]["star"]["AP50"] == pytest.approx(50.0)
    assert result["AP50"] == pytest.approx(25.0)


def test_overlap_decides_at_each_threshold():
    """A box of 20 x 20 found as 20 x 12: overlap 0.6, a hit at .50, .55 and .60 of the ten thresholds."""
    data = data_of(image(1, [(BOX, 0)]))
    result = evaluate(detections_of((1, [10, 10, 30, 22], 0, 0.9)), data)
    assert (result["AP"], result["AP50"], result["AP75"]) == pytest.approx((30.0, 100.0, 0.0))


def test_a_detection_in_a_crowd_counts_neither_way():
    data = data_of(image(1, [([0, 0, 50, 50], 0, True), (FAR, 0)]))
    inside = (1, [5, 5, 20, 20], 0, 0.9)
    assert evaluate(detections_of(inside, (1, FAR, 0, 0.8)), data)["AP"] == pytest.approx(100.0)
    outside = (1, [5, 60, 20, 80], 0, 0.9)
    assert evaluate(detections_of(outside, (1, FAR, 0, 0.8)), data)["AP"] == pytest.approx(50.0)


def test_no_detections_are_zero_and_no_ground_truth_is_none():
    data = data_of(image(1, [(BOX, 0)]), image(2, []))
    empty = evaluate(detections_of(), data, groups=GROUPS)
    assert (empty["AP"], empty["bAP50"], empty["nAP"], empty["num_detections"]) == (0.0, 0.0, None, 0.0)
    assert empty["per_class"]["anchor"] == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert empty["per_class"]["star"] == {"AP": None, "AP50": None, "AP75": None}
    wrong = evaluate(detections_of((1, BOX, 0, 0.5), (2, BOX, 1, 0.9)), data, groups=GROUPS)
    # detections alone do not make a class count
    assert (wrong["AP"], wrong["nAP"]) == (
        pytest.approx(100.0),
        None,
    )
    assert evaluate(detections_of(), data_of())["AP"] is None


def test_only_the_best_detections_of_an_image_count():
    data = data_of(image(1, [(BOX, 0)]), image(2, [(FAR, 0)]))
    noise = [
        (1, OTHER, 1, 0.5 + n / 100) for n in range(3)
    ]  # of another class, yet they use up the image's limit
    detections = detections_of(*noise, (1, BOX, 0, 0.4), (2, FAR, 0, 0.3))
    assert evaluate(detections, data, max_dets=4)["per_class"]["anchor"]["AP"] == pytest.approx(100.0)
    cut = evaluate(detections, data, max_dets=3)
    assert cut["per_class"]["anchor"]["AP"] == pytest.approx(100 * 51 / 101)
    assert cut["num_detections"] == 2.0


def test_fsod_evaluates_the_detectors_classes_alone():
    data = data_of(image(1, [(BOX, 0), (OTHER, 1), (FAR, 2)]))
    own = ("key", "star")  # another order than the data's
    detections = detections_of((1, FAR, 0, 0.9), (1, BOX, 1, 0.8), class_names=own)
    result = evaluate(detections, data, groups=GROUPS)
    assert result["bAP"] is None and list(result["per_class"]) == ["star", "key"]
    assert (
        result["per_class"]["key"]["AP"] == pytest.approx(100.0) and result["per_class"]["star"]["AP"] == 0.0
    )
    assert result["AP"] == result["nAP"] == pytest.approx(50.0)


def test_what_does_not_belong_together_is_refused():
    data = data_of(image(1, [(BOX, 0)]))
    with pytest.raises(DataError, match="image 5, which is not in the data"):
        evaluate(detections_of((5, BOX, 0, 0.9)), data)
    with pytest.raises(SplitError, match="no class 'stars'. Did you mean 'star'"):
        evaluate(detections_of(class_names=("stars",)), data)
    with pytest.raises(SplitError, match="no class 'Kay'"):
        Evaluator(data, groups={"novel": ["Kay"]})
    with pytest.raises(
        DataError, match="group novel: the detector knows only some of its classes; 'key' is missing"
    ):
        evaluate(detections_of(class_names=("star",)), data, groups=GROUPS)
    with pytest.raises(DataError, match="first letter"):
        Evaluator(data, groups={"novel": ["star"], "new": ["key"]})


# ------------------------------------------------------------ the stock path of pycocotools


def stock_precision(dataset, results):
    """pycocotools used as its own demo does, with its defaults; precision for area all and 100 detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(dataset)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2]


def mean_of(precision):
    return pytest.approx(100 * precision[precision > -1].mean(), rel=1e-12)


def random_case(seed, *, num_images=25, num_classes=6, crowd_share=0.1):
    """Objects, detections near them and elsewhere, equal scores, images and classes without objects."""
    generator = np.random.default_rng(seed)
    images, rows = [], []
    for image_id in range(1, num_images + 1):
        objects = []
        for _ in range(generator.integers(0, 5)):
            corner, size = generator.integers(0, 60, 2), generator.integers(5, 40, 2)
            label = int(generator.integers(0, num_classes - 1))  # the last class has no object
            objects.append(([*corner, *(corner + size)], label, generator.random() < crowd_share))
            for _ in range(generator.integers(0, 4)):
                moved = corner + generator.normal(0, 4, 2)
                rows.append((image_id, [*moved, *(moved + size)], label, round(generator.random(), 1)))
        for _ in range(generator.integers(0, 30)):
            corner, size = generator.integers(0, 60, 2), generator.integers(5, 40, 2)
            rows.append((image_id, [*corner, *(corner + size)], int(generator.integers(0, num_classes)), 0.2))
        images.append(image(image_id, objects))
    names = tuple(f"class {label}" for label in range(num_classes))
    return data_of(*images, class_names=names), detections_of(*rows, class_names=names)


def coco_dataset(data):
    annotations = []
    for record in data.images:
        for box, label, crowd in zip(record.boxes.astype(float), record.labels, record.is_crowd):
            size = box[2:] - box[:2]
            row = {"id": len(annotations) + 1, "image_id": record.image_id, "category_id": int(label) + 1}
            annotations.append(row | {"bbox": [*box[:2], *size], "area": size.prod(), "iscrowd": int(crowd)})
    categories = [{"id": category_id} for category_id in data.category_ids]
    images = [{"id": record.image_id} for record in data.images]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_stock_path(seed):
    data, detections = random_case(seed)
    precision = stock_precision(coco_dataset(data), detections.to_coco_results(data.category_ids))
    groups = {"base": data.class_names[:4], "novel": data.class_names[4:]}
    result = evaluate(detections, data, groups=groups)
    assert result["AP"] == mean_of(precision) and 3 < result["AP"] < 97
    assert result["AP50"] == mean_of(precision[0]) and result["AP75"] == mean_of(precision[5])
    assert result["bAP"] == mean_of(precision[:, :, :4]) and result["nAP50"] == mean_of(precision[0, :, 4:])
    for label, name in enumerate(data.class_names[:-1]):
        assert result["per_class"][name]["AP"] == mean_of(precision[:, :, label])
        assert result["per_class"][name]["AP75"] == mean_of(precision[5, :, label])
    assert (precision[:, :, -1] == -1).all() and result["per_class"][data.class_names[-1]]["AP"] is None


def test_an_evaluator_can_be_used_again_and_changes_nothing():
    data, detections = random_case(0)
    boxes, scores = detections.boxes.copy(), detections.scores.copy()
    evaluator = Evaluator(data)
    first = evaluator.evaluate(detections)
    other = evaluator.evaluate(detections.with_scores(1 - detections.scores))
    assert other["AP"] != first["AP"]
    assert evaluator.evaluate(detections) == first == evaluate(detections, data)
    np.testing.assert_array_equal(detections.boxes, boxes)
    np.testing.assert_array_equal(detections.scores, scores)


@pytest.fixture(scope="module")
def parity():
    """The 100-image ground truth and the fake results that come with pycocotools: as it reads them, and as ours."""
    folder = real_data("coco_eval_parity")
    content = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    ids = sorted(category["id"] for category in content["categories"])
    names = tuple(str(category_id) for category_id in ids)
    objects = {entry["id"]: [] for entry in content["images"]}

    def corners(box):
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]

    for row in content["annotations"]:
        label = ids.index(row["category_id"])
        objects[row["image_id"]].append((corners(row["bbox"]), label, bool(row["iscrowd"])))
    images = tuple(image(key, rows) for key, rows in objects.items())
    data = DetectionData(
        "voc_2007_test_novel1", names, tuple(ids), images
    )  # a name that should decide nothing
    rows = [
        (row["image_id"], corners(row["bbox"]), ids.index(row["category_id"]), row["score"])
        for row in results
    ]
    return data, detections_of(*rows, class_names=names), content, results


def test_equals_pycocotools_on_its_own_files(parity):
    """Exactly; base and novel are the classes that are listed, whatever the data set is called."""
    data, detections, content, results = parity
    groups = {"base": data.class_names[3::2], "novel": data.class_names[2::2]}
    result = evaluate(detections, data, groups=groups)
    precision = stock_precision(content, results)
    for prefix, columns in (("", slice(None)), ("b", slice(3, None, 2)), ("n", slice(2, None, 2))):
        for metric, thresholds in (("AP", slice(None)), ("AP50", 0), ("AP75", 5)):
            assert result[prefix + metric] == mean_of(precision[thresholds][..., columns])
    assert result["AP"] == pytest.approx(50.46, abs=0.005) and len({result["bAP"], result["nAP"]}) == 2
    for label, name in enumerate(data.class_names):
        found = precision[:, :, label]
        assert result["per_class"][name]["AP"] == (mean_of(found) if (found > -1).any() else None)


# ------------------------------------------------------------ faster-coco-eval


def numbers(result):
    """All numbers of a result, those of the classes too, in one list."""
    return [x for value in result.values() for x in (numbers(value) if isinstance(value, dict) else [value])]


def assert_engines_agree(detections, data, **options):
    pytest.importorskip("faster_coco_eval", reason="the optional package faster-coco-eval is not installed")
    stock, faster = (
        numbers(evaluator_for(data, engine=engine, **options).evaluate(detections))
        for engine in ("pycocotools", "faster-coco-eval")
    )
    assert len(stock) > 20 and [value is None for value in stock] == [value is None for value in faster]
    pairs = [pair for pair in zip(stock, faster, strict=True) if pair[0] is not None]
    assert max(abs(one - other) for one, other in pairs) <= 1e-12


@pytest.mark.parametrize("max_dets", [5, 100])
def test_engines_agree(max_dets):
    for seed in range(4):
        data, detections = random_case(seed)
        groups = {"base": data.class_names[:4], "novel": data.class_names[4:]}
        assert_engines_agree(detections, data, groups=groups, max_dets=max_dets)
        assert_engines_agree(detections.keep(detections.scores > 1), data, groups=groups)  # none


def test_engines_agree_on_files_of_pycocotools(parity):
    data, detections = parity[:2]
    assert_engines_agree(detections, data, groups={"novel": data.class_names[2::2]})


def test_faster_engine_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(DataError, match=r"pip install faster-coco-eval.*engine: pycocotools"):
        evaluator_for(data_of(image(1, [(BOX, 0)])), engine="faster-coco-eval")
    record = image(1, [(BOX, 0)])
    difficult = dataclasses.replace(record, is_difficult=np.array([True]))
    with pytest.raises(DataError, match=r"difficult boxes.*Take engine: pycocotools"):
        evaluator_for(data_of(difficult), engine="faster-coco-eval")


# ------------------------------------------------------------ proposals


def test_proposal_recall():
    data = data_of(image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(FAR, 1), (BOX, 1, True)]))
    half = [10, 10, 30, 20]  # overlap 0.5 with BOX
    proposals = {2: np.array([OTHER, FAR], dtype=np.float32), 1: np.array([half, FAR], dtype=np.float32)}
    assert proposal_recall(proposals, data, ("anchor",)) == pytest.approx(100.0)
    assert proposal_recall(proposals, data, ("anchor",), iou_thresh=0.51) == 0.0
    assert proposal_recall(proposals, data, ("star",)) == pytest.approx(50.0)  # the crowd is no object
    assert proposal_recall(proposals, data, ("star",), top=1) == 0.0
    assert proposal_recall(proposals, data, CLASSES) == pytest.approx(100 * 2 / 3)
    assert proposal_recall({1: np.empty((0, 4)), 2: np.empty((0, 4))}, data, CLASSES) == 0.0
    assert proposal_recall(proposals, data, ("key",)) is None
    with pytest.raises(DataError, match="1 images have no proposals, the first is 2"):
        proposal_recall({1: proposals[1]}, data, CLASSES)
