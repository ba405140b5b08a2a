"""Kinds of error: each by hand, and what must hold whatever is detected."""

import numpy as np
import pytest

from risf_core.error_kinds import KINDS, judge, overlap
from risf_core.errors import DataError, ParamsError
from risf_core.evaluation import Evaluator
from tests.test_evaluation import data_of, detections_of, image

CLASSES = ("anchor", "star")
BOX, FAR = [0, 0, 20, 20], [60, 60, 80, 80]
SHIFTED = [10, 0, 30, 20]  # overlaps BOX by 200 of 600: an IoU of 1/3
HALF = 100 * 51 / 101  # AP50 where precision 1 ends at recall 1/2
TWO = image(1, [(BOX, 0), (FAR, 0)])


def judged(objects, *rows):
    """One image with objects (box, label) and detections (box, label, score)."""
    data = data_of(image(1, objects), class_names=CLASSES)
    return judge(detections_of(*((1, *row) for row in rows), class_names=CLASSES), data)


def kinds_of(found):
    return [KINDS[kind] if kind >= 0 else "right" for kind in found.kinds]


def check(found, kinds, counts, gains):
    assert kinds_of(found) == kinds
    assert {kind: count for kind, count in found.counts().items() if count} == counts
    expected = dict.fromkeys(KINDS, 0.0) | gains
    assert found.gains() == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------ hand-worked


def test_perfect_detections_have_no_errors():
    found = judged([(BOX, 0), (FAR, 1)], (BOX, 0, 0.9), (FAR, 1, 0.2))
    check(found, ["right", "right"], {}, {})
    assert found.ap50() == pytest.approx(100.0)


def test_a_wrong_class_on_the_right_box():
    """The star alone is found (100) and the anchor is called a star first (precision 1/2); corrected, all is right."""
    found = judged([(BOX, 0), (FAR, 1)], (BOX, 1, 0.9), (FAR, 1, 0.8))
    assert found.ap50() == pytest.approx((0 + 50) / 2)
    check(found, ["classification", "right"], {"classification": 1}, {"classification": 75.0})


def test_the_right_class_on_a_shifted_box():
    """The box overlaps its object by 1/3 and stands first: precision 1/2 at recall 1/2; corrected, all is right."""
    found = judged([(BOX, 0), (FAR, 0)], (SHIFTED, 0, 0.9), (FAR, 0, 0.8))
    assert found.ap50() == pytest.approx(HALF / 2)
    check(found, ["localisation", "right"], {"localisation": 1}, {"localisation": 100 - HALF / 2})


def test_wrong_class_and_shifted_box():
    """It overlaps an object of another class by 1/3. Without it the star has 100; the anchor stays missed."""
    found = judged([(BOX, 0), (FAR, 1)], (SHIFTED, 1, 0.9), (FAR, 1, 0.8))
    check(found, ["both", "right"], {"both": 1, "missed": 1}, {"both": 25.0, "missed": 50.0})


def test_a_second_detection_of_a_found_object():
    """Right, duplicate, right: precision 1 up to recall 1/2, then 2/3; without the duplicate 100."""
    found = judged([(BOX, 0), (FAR, 0)], (BOX, 0, 0.9), (BOX, 0, 0.8), (FAR, 0, 0.7))
    gain = 100 - 100 * (51 + 50 * 2 / 3) / 101
    check(found, ["right", "duplicate", "right"], {"duplicate": 1}, {"duplicate": gain})


def test_a_detection_of_the_background():
    found = judged([(BOX, 0)], ([40, 40, 50, 50], 0, 0.9), (BOX, 0, 0.8))
    check(found, ["background", "right"], {"background": 1}, {"background": 50.0})


def test_an_object_that_nothing_points_to_is_missed():
    found = judged([(BOX, 0), (FAR, 0)], (BOX, 0, 0.9))
    check(found, ["right"], {"missed": 1}, {"missed": 100 - HALF})


def test_thresholds_are_tides():
    """IoU 0.1 belongs to an object, a little less to the background, and 0.5 is enough: 200 of 400 pixels."""
    tenth = [20 * 9 / 11, 0, 20 * 9 / 11 + 20, 20]
    assert overlap(np.array([tenth]), np.array([BOX])).item() == pytest.approx(0.1)
    shapes = [([0, 0, 20, 10], "right"), ([0, 0, 20, 9.9], "localisation")]
    shapes += [([16.3, 0, 36.3, 20], "localisation"), ([16.5, 0, 36.5, 20], "background")]
    assert [kinds_of(judged([(BOX, 0)], (box, 0, 0.9))) for box, _ in shapes] == [
        [kind] for _, kind in shapes
    ]


def test_the_first_kind_that_fits_holds():
    """Over a star by 1 and over an anchor by 1/3, called an anchor: its box could be corrected, so localisation."""
    found = judged([(BOX, 0), (SHIFTED, 1)], (SHIFTED, 0, 0.9))
    assert kinds_of(found) == ["localisation"]
    # a duplicate that covers an object of another class as well is a wrong class
    found = judged([(BOX, 0), (BOX, 1)], (BOX, 0, 0.9), (BOX, 0, 0.8))
    assert kinds_of(found) == ["right", "classification"]


def test_of_a_corrected_detection_and_the_right_one_the_better_score_stays():
    """The shifted box stands first; corrected it is right, and the detection at 0.5 would be its duplicate."""
    found = judged([(BOX, 0), (FAR, 0)], (SHIFTED, 0, 0.9), (FAR, 0, 0.7), (BOX, 0, 0.5))
    assert found.ap50(fixed=["localisation"]) == pytest.approx(100.0)
    labels, is_right, is_kept = found._fixed(["localisation"])
    assert is_kept.tolist() == [True, True, False] and is_right.tolist() == [True, True, False]


def test_an_object_with_a_correctable_detection_is_not_missed():
    assert judged([(BOX, 0)], (SHIFTED, 0, 0.9)).counts()["missed"] == 0
    assert judged([(BOX, 0)], (BOX, 1, 0.9)).counts()["missed"] == 0
    assert judged([(BOX, 0)], (SHIFTED, 1, 0.9)).counts()["missed"] == 1


def test_contributions_by_hand():
    """Ranks: right in image 1, wrong in image 2, right in image 1. The wrong one costs the last 1/3 of its half."""
    data = data_of(image(1, [(BOX, 0), (FAR, 0)]), image(2, []), class_names=CLASSES)
    rows = [(1, BOX, 0, 0.9), (2, BOX, 0, 0.8), (1, FAR, 0, 0.7)]
    found = judge(detections_of(*rows, class_names=CLASSES), data)
    assert found.contributions() == pytest.approx({1: 100.0, 2: -100 / 6})


def test_a_crowd_region_counts_neither_way():
    crowd = image(1, [(BOX, 0), ([40, 40, 90, 90], 0, True)])
    rows = [(1, [45, 45, 60, 60], 0, 0.9), (1, [65, 65, 80, 80], 0, 0.8), (1, BOX, 0, 0.7)]
    found = judge(detections_of(*rows, class_names=CLASSES), data_of(crowd, class_names=CLASSES))
    check(found, ["right"], {}, {})
    assert found.rows.tolist() == [2] and len(found.object_labels) == 1


# ------------------------------------------------------------ whatever is detected


def random_case(seed, *, num_images=12, crowds=False):
    """Images of 100 pixels with up to four objects, and detections around objects and anywhere."""
    rng = np.random.default_rng(seed)

    def box():
        corner = rng.integers(0, 70, 2)
        return [*corner, *(corner + rng.integers(8, 30, 2))]

    images, rows = [], []
    for image_id in range(1, num_images + 1):
        objects = [
            (box(), int(rng.integers(2)), crowds and rng.random() < 0.25) for _ in range(rng.integers(5))
        ]
        images.append(image(image_id, objects))
        for own, label, _ in objects:
            for _ in range(rng.integers(4)):
                moved = np.array(own) + np.tile(rng.integers(-8, 9, 2), 2)
                rows.append((image_id, moved, label if rng.random() < 0.7 else 1 - label, rng.random()))
        rows += [(image_id, box(), int(rng.integers(2)), rng.random()) for _ in range(rng.integers(4))]
    return detections_of(*rows, class_names=CLASSES), data_of(*images, class_names=CLASSES)


@pytest.mark.parametrize("seed", range(8))
def test_ap50_is_that_of_coco(seed):
    detections, data = random_case(seed, crowds=seed % 2 == 1)
    found = judge(detections, data)
    assert found.ap50() == pytest.approx(Evaluator(data).evaluate(detections)["AP50"], abs=1e-9)
    novel = Evaluator(data, groups={"novel": ("star",)}).evaluate(detections)["nAP50"]
    assert found.ap50(classes=("star",)) == pytest.approx(novel, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_fixing_everything_gives_100_and_no_fix_does_harm(seed):
    detections, data = random_case(seed, crowds=seed % 2 == 1)
    found = judge(detections, data)
    assert found.ap50(fixed=KINDS) == pytest.approx(100.0)
    assert min(found.gains().values()) >= -1e-9 and max(found.gains().values()) > 0
    assert (
        sum(count for kind, count in found.counts().items() if kind != "missed") == (found.kinds >= 0).sum()
    )


@pytest.mark.parametrize("seed", range(4))
def test_contributions_sum_to_the_average_precision(seed):
    detections, data = random_case(seed)
    found = judge(detections, data)
    values = []
    for k in range(2):
        rows = np.flatnonzero(found.labels == k)
        is_right = found.kinds[rows[np.argsort(-found.scores[rows], kind="stable")]] < 0
        precision = np.cumsum(is_right) / np.arange(1, len(rows) + 1)
        values.append(100 * precision[is_right].sum() / (found.object_labels == k).sum())
    assert sum(found.contributions().values()) == pytest.approx(np.mean(values))


def test_a_detector_that_finds_nothing_has_missed_all():
    data = data_of(image(1, [(BOX, 0), (FAR, 1)]), class_names=CLASSES)
    found = judge(detections_of(class_names=CLASSES), data)
    check(found, [], {"missed": 2}, {"missed": 100.0})


# ------------------------------------------------------------ wrong input


def test_wrong_input_is_refused():
    detections, data = random_case(0)
    with pytest.raises(DataError, match="Expected the same, in the same order"):
        judge(detections, data.select_classes(("star", "anchor")))
    with pytest.raises(DataError, match="detections of image 99"):
        judge(detections_of((99, BOX, 0, 0.5), class_names=CLASSES), data)
    with pytest.raises(ParamsError, match="'dupe' is no kind of error"):
        judge(detections, data).ap50(fixed=["dupe"])
    empty = data_of(image(1, [(BOX, 0)]), class_names=CLASSES)
    with pytest.raises(DataError, match="no image has an object of star"):
        judge(detections_of(class_names=CLASSES), empty).ap50(classes=("star",))
