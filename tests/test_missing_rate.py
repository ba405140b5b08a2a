"""The missing rate: places, the estimate by hand, its settings, cross-fitting, planted truth, tables and figures."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from risf_core.detections import Detections
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.errors import DataError, ParamsError
from risf_core.head_training import extract_region_features
from risf_core.params import DetectorParams, SolverParams
from risf_core.report.missing_rate_figures import missing_rate_figure, suspected_figure
from risf_core.report.missing_rate_tables import (
    estimate_rows,
    missing_rate_cells,
    missing_rate_images_table,
    missing_rate_table,
)
from risf_core.studies import missing_rate
from risf_core.studies.missing_estimate import (
    Places,
    bootstrap,
    choose_settings,
    estimate,
    places_of,
    point_at,
)
from risf_core.studies.missing_rate import folds_of, held_out_detections, planted_sets, regions_of
from risf_core.study_params import MissingRateParams
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

from .detector.conftest import TINY, square_data  # noqa: F401


def _places(annotated, claimed, unclaimed, image_id=1):
    scores = np.array([*claimed, *unclaimed], dtype=np.float32)
    is_claimed = np.arange(len(scores)) < len(claimed)
    boxes = np.zeros((len(scores), 4), dtype=np.float32)
    return Places(image_id, annotated, boxes, np.zeros(len(scores), np.int64), scores, is_claimed)


# ------------------------------------------------------------ the estimate


def test_places_are_one_for_each_spot_and_claimed_by_annotated_boxes():
    near = [BOX[0] + 2, BOX[1], BOX[2] + 2, BOX[3]]  # overlaps BOX by far more than 0.3
    data = data_of(image(1, [(BOX, 0)]), image(2, [(FAR, 1, True), (OTHER, 0)]))
    found = detections_of(
        (1, BOX, 1, 0.5), (1, near, 0, 0.9), (1, FAR, 1, 0.4), (2, FAR, 1, 0.8), (2, OTHER, 1, 0.3)
    )
    first, second = places_of(found, data)
    assert first.scores.tolist() == pytest.approx([0.9, 0.4])  # the weaker of two at one spot is gone
    assert first.is_claimed.tolist() == [True, False] and first.num_annotated == 1
    assert second.scores.tolist() == pytest.approx([0.3])  # nobody knows what stands in a crowd region
    assert second.is_claimed.tolist() == [True] and second.num_annotated == 1  # whatever the class


def test_estimate_by_hand():
    """Four annotated boxes; at recall 0.5 the score is 0.6: n = 2/4, and three places there are not claimed."""
    places = [_places(3, [0.9, 0.3], [0.8, 0.7]), _places(1, [0.6], [0.6, 0.2])]
    found = estimate(places, recall=0.5)
    assert found.point.threshold == pytest.approx(0.6)
    assert (found.point.found_per_box, found.point.unclaimed) == (0.5, 3)
    assert found.unannotated == 3 / 0.5 and found.rate == 6 / 10
    assert estimate(places, recall=0.5, false_per_image=0.5).unannotated == (3 - 2 * 0.5) / 0.5
    assert estimate(places, recall=0.5, false_per_image=9.0).rate == 0.0
    assert point_at(places, 1.0).found_per_box == 0.75  # as far as it goes


def test_estimate_is_right_where_the_assumptions_hold():
    """Objects annotated by chance, found with one probability and score alike, no false places."""
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        places = []
        for number in range(400):
            is_annotated, is_found = rng.random(5) >= share, rng.random(5) < 0.7
            scores = rng.random(5)
            claimed, rest = scores[is_annotated & is_found], scores[~is_annotated & is_found]
            places.append(_places(int(is_annotated.sum()), claimed, rest, number))
        assert estimate(places, recall=0.5).rate == pytest.approx(
            share, abs=0.04
        )  # about two standard errors
        interval = bootstrap(places, recall=0.5, false_per_image=0.0, resamples=200, seed=0)
        assert interval["low"] < share < interval["high"] and interval["high"] - interval["low"] < 0.12
        assert interval["per_image_low"] < 5 * share < interval["per_image_high"]


def test_nothing_found_is_an_error():
    with pytest.raises(DataError, match="0 annotated boxes in 1 images"):
        point_at([_places(0, [], [0.5])], 0.5)
    with pytest.raises(DataError, match="2 annotated boxes in 1 images, of which the detector found none"):
        point_at([_places(2, [], [0.5])], 0.5)


def _cell(unannotated, points):
    points = [
        {"c": None, "recall": recall, "found_per_box": recall, "unclaimed": count} for recall, count in points
    ]
    return {"score": "detector", "annotated": 10, "unannotated": unannotated, "images": 5, "points": points}


def test_settings_are_those_with_the_smallest_error():
    """At recall 0.8 there are four false places in each set, which are taken off; at 0.4 counts are off by chance."""
    cells = [_cell(0, [(0.4, 2), (0.8, 4)]), _cell(10, [(0.4, 8), (0.8, 12)])]
    chosen = choose_settings(cells)["detector"]
    assert chosen == {"c": None, "recall": 0.8, "false_per_image": 0.8, "rmse": pytest.approx(0.0, abs=1e-6)}
    exact = [_cell(0, [(0.4, 0)]), _cell(10, [(0.4, 4)])]
    assert choose_settings(exact)["detector"]["false_per_image"] == 0.0


# ------------------------------------------------------------ cross-fitting


def _context():
    torch.manual_seed(0)
    state = FasterRCNN(DetectorParams(**(TINY | {"cls_dropout": 0.0, "roi_batch": 8})), 3).state_dict()

    def detector(seed, loss):
        model = FasterRCNN(
            DetectorParams(**(TINY | {"cls_dropout": 0.0, "roi_batch": 8})), 3, classification_loss=loss
        )
        model.load_state_dict(state)
        return model

    solver = SolverParams(iterations=30, batch_size=2, lr=0.2, precision="fp32")
    params = SimpleNamespace(solver=solver)
    return SimpleNamespace(
        params=params, detector=detector, training_seed=lambda seed, repeat: 100 * seed + repeat
    )


def test_folds_hold_each_image_once_and_spread_the_classes(square_data):  # noqa: F811
    folds = folds_of(square_data, 2, seed=3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(square_data)))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    firsts = [[int(square_data.images[place].labels[0]) for place in fold] for fold in folds]
    for label in range(3):
        counts = [fold.count(label) for fold in firsts]
        assert max(counts) - min(counts) <= 1
    assert len(folds_of(square_data, 99, seed=3)) == len(square_data)  # at most one for each image
    with pytest.raises(ParamsError, match="at least two"):
        folds_of(replace(square_data, images=square_data.images[:1]), 2, seed=0)


def test_an_image_is_judged_without_its_own_annotations(square_data, monkeypatch):  # noqa: F811
    """Leaving out an image's boxes changes what is trained for the others, and nothing about itself."""
    context, trained = _context(), []
    regions = extract_region_features(context.detector(0, None), square_data, training=True)
    train = missing_rate.train_box_head

    def spy(detector, data, *args, **options):
        trained.append({record.image_id for record in data.images})
        return train(detector, data, *args, **options)

    monkeypatch.setattr(missing_rate, "train_box_head", spy)
    found = held_out_detections(context, square_data, regions, seed=1, folds=2, loss="ce")
    everyone = {record.image_id for record in square_data.images}
    assert len(trained) == 2 and trained[0] | trained[1] == everyone and not trained[0] & trained[1]
    first = square_data.images[0]
    moved = replace(first, labels=(first.labels + 1) % 3)
    changed = replace(square_data, images=(moved, *square_data.images[1:]))
    monkeypatch.setattr(
        missing_rate, "folds_of", lambda data, folds, seed: folds_of(square_data, folds, seed=seed)
    )
    again = held_out_detections(context, changed, regions, seed=1, folds=2, loss="ce")
    own = [(one.image_ids == first.image_id) for one in (found, again)]
    assert own[0].any() and np.array_equal(found.scores[own[0]], again.scores[own[1]])
    rest = [one.scores[~mask] for one, mask in zip((found, again), own)]
    assert not np.array_equal(*rest)


def test_regions_are_those_of_the_images_as_they_are(square_data):  # noqa: F811
    detector = _context().detector(0, None)
    both = extract_region_features(detector, square_data, training=True)
    ids = [record.image_id for record in square_data.images][1:3]
    own = regions_of(both, ids)
    assert sorted(own.image_ids.tolist()) == sorted(ids) and not own.flipped.any()
    row = int(np.flatnonzero((both.image_ids == ids[0]) & ~both.flipped)[0])
    start = int(both.counts[:row].sum())
    mine = int(np.flatnonzero(own.image_ids == ids[0])[0])
    at = int(own.counts[:mine].sum())
    size = int(both.counts[row])
    np.testing.assert_array_equal(own.features[at : at + size], both.features[start : start + size])
    assert len(own.features) == own.counts.sum() == len(own.boxes) and len(own.gt_boxes) == 0


def test_planted_truth_is_what_the_other_arms_hold():
    full = data_of(image(1, [(BOX, 0), (OTHER, 1), (FAR, 0)]), image(2, [(BOX, 1)]))
    missing = data_of(image(1, [(OTHER, 1)]), image(2, [(BOX, 1)]))
    alone = data_of(image(7, [(BOX, 0)]))
    object.__setattr__(alone.images[0], "path", alone.images[0].path.with_name("other.png"))
    arms = {"full": full, "missing": missing, "kshot": alone}
    context = SimpleNamespace(few_shot=lambda seed, arm: arms[arm])
    params = SimpleNamespace(arms=("missing", "kshot"), dropped_shares=(0.0, 0.5))
    first, second, whole, half = planted_sets(context, params, 0)
    assert {i: len(boxes) for i, boxes in first.hidden.items()} == {1: 2, 2: 0}
    assert sorted(first.hidden[1].tolist()) == sorted([[float(x) for x in BOX], [float(x) for x in FAR]])
    assert {i: len(boxes) for i, boxes in second.hidden.items()} == {7: 0}
    assert sum(len(boxes) for boxes in whole.hidden.values()) == 0 and whole.dropped == 0.0
    kept = sum(len(record.labels) for record in half.data.images)
    assert kept == 2 and all(len(record.labels) for record in half.data.images)
    left = {record.image_id for record in half.data.images}
    assert half.hidden.keys() == left and kept + sum(map(len, half.hidden.values())) <= 4


# ------------------------------------------------------------ parameters, tables, figures


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shots": 1}, "expected 2 or more"),
        ({"settings": {"detector": {}}, "clip": {"run": "c.yaml"}}, "settings has none for cm_clip"),
        ({"settings": {"detector": {}, "cm_clip": {}}}, "cm_clip needs c"),
        ({"recalls": (0.5, 0.5)}, "twice"),
        ({"seeds": (30,)}, "seeds has 30"),
    ],
)
def test_wrong_parameters_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MissingRateParams(**({"profile": "t", "base": "a.yaml"} | changes))


def _rows():
    def row(seed, arm, dropped, unannotated, rate, low, high):
        key = {"part": "cell", "role": "reported", "split": 1, "shots": 5, "seed": seed, "arm": arm}
        values = {"images": 10, "annotated": 10, "unannotated": unannotated, "estimated": 5.0}
        return (
            key | {"dropped": dropped, "score": "detector", "rate": rate, "low": low, "high": high} | values
        )

    rows = [row(0, "missing", None, 10, 0.6, 0.4, 0.7), row(1, "missing", None, 10, 0.5, 0.4, 0.45)]
    rows += [row(0, "full", 0.0, 0, 0.1, 0.0, 0.2), row(1, "full", 0.0, 0, 0.0, 0.0, 0.1)]
    rows.append(
        rows[0]
        | {"role": "selection", "split": 2, "rate": None, "low": None, "high": None, "estimated": None}
    )
    chosen = {
        "part": "setting",
        "score": "detector",
        "c": None,
        "recall": 0.4,
        "false_per_image": 0.25,
        "rmse": 7.0,
    }
    shown = {
        "part": "image",
        "role": "reported",
        "split": 1,
        "shots": 5,
        "seed": 0,
        "arm": "missing",
        "dropped": None,
    }
    shown |= {"score": "detector", "annotated": 1}
    images = [
        {
            "image_id": 1,
            "file": "one.png",
            "suspected": 0,
            "boxes": [],
            "names": [],
            "scores": [],
            "unannotated": 1,
        },
        {"image_id": 2, "file": "two.png", "suspected": 1, "boxes": [[1, 2, 30, 40]], "names": ["cat"]}
        | {"scores": [0.8], "unannotated": 2},
    ]
    return [*rows, chosen, *(shown | one for one in images)]


def _record(rows=None):
    params = {"settings": {"detector": {"c": None, "recall": 0.5, "false_per_image": 0.0}}}
    return {"run_id": "r", "notebook": "42_missing_rate", "params": params, "rows": rows or _rows()}


def test_table_holds_bias_error_and_coverage():
    cells = missing_rate_cells([_record()]).set_index("arm")
    missing, full, over_all = cells.loc["missing"], cells.loc["full"], cells.loc["all"]
    assert (missing["true_rate"], missing["rate"], missing["bias"]) == (
        50.0,
        pytest.approx(55.0),
        pytest.approx(5.0),
    )
    assert missing["rmse"] == pytest.approx(np.sqrt(50)) and missing["covered"] == 1  # errors 10 and 0
    assert full["rmse"] == pytest.approx(np.sqrt(50)) and full["covered"] == 2
    assert over_all["n"] == 4 and over_all["covered"] == 3 and over_all["bias"] == pytest.approx(5.0)
    table = missing_rate_table([_record()])
    assert (
        "chosen on split 2: detector alone: recall 0.4, 0.25 false places an image, error there 7.0"
        in table.caption
    )
    assert table.display["images"].tolist() == ["full, 0 % left out", "missing", "all of these"]
    assert table.display["holds the truth"].tolist() == ["2/2", "1/2", "3/4"]
    assert len(missing_rate_table([]).data) == 0 == len(missing_rate_images_table([]).data)


def test_without_truth_the_table_says_so():
    rows = [
        row | {"role": "own", "arm": "kshot", "dropped": None, "unannotated": None}
        for row in _rows()
        if row["part"] == "cell" and row["role"] == "reported" and row["dropped"] is None
    ]
    table = missing_rate_table([_record(rows)])
    assert table.display["planted (%)"].tolist() == ["n/a"] and table.display["RMSE"].tolist() == ["n/a"]
    assert table.display["estimated (%)"].tolist() == ["55.0 ± 63.5"]
    assert "Settings, given: detector alone: recall 0.5" in table.caption
    assert "No record of planted truth" in missing_rate_figure([_record(rows)]).caption
    assert estimate_rows([_record(rows)])["error"].isna().all()


def test_images_with_most_suspected_places_come_first(tmp_path):
    from PIL import Image

    table = missing_rate_images_table([_record()])
    assert table.display["file"].tolist() == ["two.png", "one.png"]
    assert table.display["planted"].tolist() == ["2", "1"] and "seed 0, K = 5" in table.caption
    records = []
    for number in (1, 2):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (100, 100)).save(path)
        record = image(number, [(BOX, 0)])
        object.__setattr__(record, "path", path)
        records.append(record)
    data = data_of(*records)
    drawing = suspected_figure([_record()], data, hidden={2: np.array([OTHER], dtype=np.float32)})
    assert "Dashed" in drawing.caption and "2 images of few-shot seed 0" in drawing.caption
    assert [text.get_text() for ax in drawing.figure.axes for text in ax.texts] == ["cat 0.80"]
    with pytest.raises(DataError, match="no image 1"):
        suspected_figure([_record()], data_of(records[1]))


def test_figure_has_the_line_of_truth_and_every_set():
    drawing = missing_rate_figure([_record()])
    (ax,) = drawing.figure.axes
    assert ax.get_title() == "detector alone" and "2 for each set" in drawing.caption
    labels = ax.get_legend_handles_labels()[1]
    assert labels[0] == "estimate = truth" and "arm missing, as drawn" in labels


def test_detections_of_no_fold_are_lost(square_data):  # noqa: F811
    context = _context()
    regions = extract_region_features(context.detector(0, None), square_data, training=True)
    found = held_out_detections(context, square_data, regions, seed=0, folds=3, loss="bnrl")
    assert isinstance(found, Detections) and found.class_names == square_data.class_names
    assert set(found.image_ids.tolist()) == {record.image_id for record in square_data.images}
