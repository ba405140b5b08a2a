"""LVIS's box AP: hand-worked cases, faster-coco-eval's LVIS mode, and a recomputation in plain Python."""

import numpy as np
import pytest

from risf_core.detections import Detections, xyxy_to_xywh
from risf_core.errors import DataError
from risf_core.evaluation import evaluate
from risf_core.open_vocabulary.lvis_data import load_lvis
from risf_core.open_vocabulary.lvis_evaluation import LVIS_MAX_DETS, LvisEvaluator
from tests.lvis_files import CATEGORIES, SIZE, random_content, write_lvis

NAMES = tuple(entry["name"] for entry in CATEGORIES)
ANCHOR, BAT, SOFA, KITE, GEAR, GLASS = range(6)


def detections_of(rows):
    """Detections from (image id, box, label, score) tuples."""
    ids, boxes, labels, scores = zip(*rows) if rows else ((), (), (), ())
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    class_scores = np.zeros((len(rows), len(NAMES) + 1))
    return Detections(ids, boxes, scores, labels, class_scores, np.arange(len(rows)), NAMES)


def file_of(tmp_path, images):
    """An LVIS file from ``{image id: ([(box, label)], negative labels, not exhaustive labels)}``."""
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for image_id, (objects, negative, open_) in images.items():
        content["images"].append(
            {
                "id": image_id, "width": SIZE, "height": SIZE, "coco_url": f"x/val2017/{image_id}.png",
                "neg_category_ids": [label + 1 for label in negative],
                "not_exhaustive_category_ids": [label + 1 for label in open_],
            }
        )  # fmt: skip
        for (x1, y1, x2, y2), label in objects:
            box = [x1, y1, x2 - x1, y2 - y1]
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                }
            )
    return load_lvis(write_lvis(tmp_path, content), tmp_path)


def random_detections(lvis, seed, *, count=25):
    """Boxes near the objects and anywhere, of all classes, with scores that never tie."""
    rng = np.random.default_rng(seed)
    rows = []
    for record in lvis.data.images:
        for box, label in zip(record.boxes, record.labels):
            if rng.random() < 0.8:
                moved = box + rng.normal(0, 1.5, 4)
                wrong = rng.integers(len(NAMES)) if rng.random() < 0.2 else label
                rows.append((record.image_id, np.clip(moved, 0, SIZE), int(wrong)))
        for _ in range(rng.integers(0, count)):
            x, y = rng.uniform(0, SIZE - 20, 2)
            width, height = rng.uniform(6, 20, 2)
            rows.append((record.image_id, [x, y, x + width, y + height], int(rng.integers(len(NAMES)))))
    rows = [row for row in rows if row[1][2] > row[1][0] and row[1][3] > row[1][1]]
    scores = rng.permutation(len(rows)) / len(rows) * 0.9 + 0.05
    return detections_of([(*row, score) for row, score in zip(rows, scores)])


# ------------------------------------------------------------ hand-worked

BOX, FAR = (5, 5, 25, 25), (35, 35, 60, 60)


def test_a_class_that_an_image_says_nothing_of_does_not_count(tmp_path):
    lvis = file_of(tmp_path, {1: ([(BOX, ANCHOR)], [], []), 2: ([(BOX, KITE)], [], [])})
    found = [(1, BOX, ANCHOR, 0.5), (2, FAR, ANCHOR, 0.9), (2, BOX, KITE, 0.8)]
    result = LvisEvaluator(lvis).evaluate(detections_of(found))
    assert result["per_class"]["anchor"]["AP50"] == pytest.approx(100.0)
    assert result["per_class"]["kite"]["AP50"] == pytest.approx(100.0)
    # COCO's rules count the better-scored one in image 2 as wrong: precision 1/2
    assert evaluate(detections_of(found), lvis.data)["per_class"]["anchor"]["AP50"] == pytest.approx(50.0)


def test_a_class_known_not_to_be_in_an_image_counts(tmp_path):
    lvis = file_of(tmp_path, {1: ([(BOX, ANCHOR)], [], []), 2: ([(BOX, KITE)], [ANCHOR], [])})
    found = [(1, BOX, ANCHOR, 0.5), (2, FAR, ANCHOR, 0.9)]
    result = LvisEvaluator(lvis).evaluate(detections_of(found))
    assert result["per_class"]["anchor"]["AP50"] == pytest.approx(50.0)
    assert result["per_class"]["kite"]["AP50"] == 0.0


def test_further_boxes_of_a_class_without_all_its_boxes_are_ignored(tmp_path):
    objects = {1: ([(BOX, SOFA)], [], [SOFA])}
    found = [(1, FAR, SOFA, 0.9), (1, BOX, SOFA, 0.5)]
    lvis = file_of(tmp_path, objects)
    assert LvisEvaluator(lvis).evaluate(detections_of(found))["APc"] == pytest.approx(100.0)
    complete = file_of(tmp_path, {1: (objects[1][0], [], [])})
    assert LvisEvaluator(complete).evaluate(detections_of(found))["per_class"]["sofa"][
        "AP50"
    ] == pytest.approx(50.0)


def test_groups_are_rare_common_frequent_base_and_novel(tmp_path):
    objects = [(BOX, ANCHOR), (BOX, BAT), (BOX, SOFA), (FAR, GEAR)]
    lvis = file_of(tmp_path, {1: (objects, [], [])})
    result = LvisEvaluator(lvis).evaluate(detections_of([(1, BOX, ANCHOR, 0.9), (1, BOX, BAT, 0.8)]))
    assert {key: round(result[key], 6) for key in ("AP", "APr", "APc", "APf", "nAP50", "bAP50")} == {
        "AP": 50.0, "APr": 50.0, "APc": 0.0, "APf": 100.0, "nAP50": 50.0, "bAP50": 50.0,
    }  # fmt: skip
    assert not any(key.startswith(("rAP", "cAP", "fAP")) for key in result)
    assert result["per_class"]["kite"]["AP"] is None


def test_the_best_300_of_an_image_count(tmp_path):
    lvis = file_of(tmp_path, {1: ([(BOX, ANCHOR)], [KITE], [])})
    others = [(1, FAR, KITE, 0.9 - n * 1e-4) for n in range(LVIS_MAX_DETS)]
    last = (1, BOX, ANCHOR, 0.5)
    assert LvisEvaluator(lvis).evaluate(detections_of([*others[1:], last]))["APf"] == pytest.approx(100.0)
    assert LvisEvaluator(lvis).evaluate(detections_of([*others, last]))["APf"] == 0.0


def test_no_detection_at_all_gives_0(tmp_path):
    lvis = file_of(tmp_path, {1: ([(BOX, ANCHOR), (FAR, GEAR)], [], [])})
    result = LvisEvaluator(lvis).evaluate(detections_of([]))
    assert (result["AP"], result["APr"], result["APf"], result["APc"]) == (0.0, 0.0, 0.0, None)
    with pytest.raises(DataError, match="image 9"):
        LvisEvaluator(lvis).evaluate(detections_of([(9, BOX, ANCHOR, 0.5)]))


# ------------------------------------------------------------ other implementations


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_of_a_recomputation_in_plain_python(tmp_path, seed):
    lvis = load_lvis(write_lvis(tmp_path, random_content(seed)), tmp_path)
    detections = random_detections(lvis, seed)
    result = LvisEvaluator(lvis).evaluate(detections)
    expected = plain_ap(lvis, detections)
    assert 5 < result["AP"] < 80  # neither trivial nor perfect
    for name, values in expected.items():
        assert [result["per_class"][name][key] for key in ("AP", "AP50")] == pytest.approx(
            values, abs=1e-9
        ), name
    for letter in "rcf":
        mean = np.mean([expected[name][0] for name in lvis.names(letter) if name in expected])
        assert result[f"AP{letter}"] == pytest.approx(mean, abs=1e-9)
    assert result["AP"] != pytest.approx(
        evaluate(detections, lvis.data)["AP"], abs=0.1
    )  # COCO's rules differ


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_of_faster_coco_eval(tmp_path, seed):
    package = pytest.importorskip("faster_coco_eval")
    content = random_content(seed)
    lvis = load_lvis(write_lvis(tmp_path, content), tmp_path)
    detections = random_detections(lvis, seed)
    result = LvisEvaluator(lvis).evaluate(detections)
    truth = package.COCO(content)
    found = truth.loadRes(detections.to_coco_results(lvis.data.category_ids))
    other = package.COCOeval_faster(
        truth, found, iouType="bbox", lvis_style=True, print_function=lambda *_: None
    )
    other.params.maxDets = [LVIS_MAX_DETS]
    other.evaluate()
    other.accumulate()
    other.summarize()
    names = {"AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", "APr": "APr", "APc": "APc", "APf": "APf"}
    for ours, theirs in names.items():
        assert result[ours] == pytest.approx(100 * other.stats_as_dict[theirs], abs=1e-6), ours


def plain_ap(lvis, detections):
    """AP and AP50 of each class with objects, in percent, written out anew from the rules."""
    thresholds, found = np.arange(0.5, 0.96, 0.05), {}
    for label, name in enumerate(lvis.data.class_names):
        aps = [ap_of_class(lvis, detections, label, threshold) for threshold in thresholds]
        if aps[0] is not None:
            found[name] = [100 * float(np.mean(aps)), 100 * aps[0]]
    return found


def ap_of_class(lvis, detections, label, threshold):
    outcomes, num_objects = [], 0
    for image, negative, open_ in zip(lvis.data.images, lvis.negative, lvis.not_exhaustive):
        objects = image.boxes[image.labels == label]
        num_objects += len(objects)
        if not len(objects) and label not in negative:
            continue
        own = (detections.image_ids == image.image_id) & (detections.labels == label)
        taken = set()
        for row in sorted(np.flatnonzero(own), key=lambda row: -detections.scores[row]):
            overlaps = [
                (overlap(detections.boxes[row], box), n) for n, box in enumerate(objects) if n not in taken
            ]
            best, n = max(overlaps, default=(0.0, -1))
            if best >= threshold - 1e-12:
                taken.add(n)
                outcomes.append((detections.scores[row], True))
            elif label not in open_:
                outcomes.append((detections.scores[row], False))
    if not num_objects:
        return None
    right = np.array([hit for _, hit in sorted(outcomes, key=lambda one: -one[0])], dtype=float)
    precision, recall = np.cumsum(right) / (np.arange(len(right)) + 1), np.cumsum(right) / num_objects
    # no tolerance at the recall points: COCO compares the numbers as they are
    points = [precision[recall >= at].max(initial=0.0) for at in np.linspace(0, 1, 101)]
    return float(np.mean(points))


def overlap(box, other):
    (x1, y1, w1, h1), (x2, y2, w2, h2) = xyxy_to_xywh(np.stack([box, other])).tolist()
    width = max(0.0, min(x1 + w1, x2 + w2) - max(x1, x2))
    height = max(0.0, min(y1 + h1, y2 + h2) - max(y1, y2))
    return width * height / (w1 * h1 + w2 * h2 - width * height)
