"""33_missing_annotations: the known share with constant labels, what errors are, what is chosen, and its tables."""

import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from risf_core.bnrl import bnrl_loss, cross_entropy
from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detector.faster_rcnn import FasterRCNN
from risf_core.detector.roi_heads import BoxPredictor
from risf_core.errors import CheckpointError, DataError, ParamsError, RecordError
from risf_core.head_training import RegionFeatures, train_box_head
from risf_core.params import DetectorParams, SolverParams
from risf_core.records import Rows
from risf_core.report import missing_figures, missing_part_tables, missing_tables
from risf_core.report.study_numbers import study_numbers
from risf_core.studies import missing_annotations as study
from risf_core.studies.annotated_share import (
    CrowdedDraw,
    further_objects,
    keep_boxes,
    known_objects,
    object_probabilities,
    train_on_regions,
)
from risf_core.studies.novel_errors import error_rates, kinds_of
from risf_core.studies.share_choices import at_edge, choose
from risf_core.study_params import MissingAnnotationsParams
from tests.detector.conftest import TINY
from tests.missing_records import RATES, missing_record, missing_row
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

SOLVER = SolverParams(iterations=12, batch_size=2, lr=0.05, precision="fp32")
CORNERS = ((2, 2), (38, 4), (6, 38), (36, 36))


def _detector() -> FasterRCNN:
    torch.manual_seed(0)
    detector = FasterRCNN(DetectorParams(**(TINY | {"cls_dropout": 0.5, "roi_batch": 8})), 3)
    detector.set_trainable("box_head")
    return detector


@pytest.fixture(scope="module")
def draw() -> CrowdedDraw:
    """Five images with four squares each, of which the second is the shot; candidates lie on and beside the squares."""
    boxes = np.array([(x, y, x + 22, y + 22) for x, y in CORNERS], dtype=np.float32)
    flags, records = np.zeros(4, dtype=bool), []
    for number in range(5):
        labels = np.array([number % 3, (number + 1) % 3, number % 2, 2])
        records.append(ImageRecord(number + 1, Path(f"{number}.png"), 64, 64, boxes, labels, flags))
    everything = DetectionData("all", ("red", "green", "blue"), (1, 2, 3), tuple(records))
    is_shot = np.arange(4) == 1
    shots = keep_boxes(everything, [is_shot] * 5)
    return CrowdedDraw(
        shots, everything, _regions(boxes, is_shot), _regions(boxes, np.ones(4, dtype=bool)), seed=3
    )


def _regions(boxes: np.ndarray, is_annotated: np.ndarray) -> RegionFeatures:
    """Four candidates around each box, eight elsewhere, and the annotated boxes, with features drawn at random."""
    generator, parts = np.random.default_rng(0), defaultdict(list)
    for image_id, is_flipped in itertools.product(range(1, 6), (False, True)):
        own = boxes.copy()
        if is_flipped:
            own[:, [0, 2]] = 64 - own[:, [2, 0]]
        around = np.repeat(own, 4, axis=0) + generator.integers(-6, 7, (16, 4))
        corners = generator.integers(0, 30, (8, 2))
        elsewhere = np.concatenate([corners, corners + generator.integers(8, 34, (8, 2))], axis=1)
        features = generator.normal(size=(24 + 4, 16)).astype(np.float32)
        parts["boxes"].append(np.concatenate([around, elsewhere]).astype(np.float32))
        parts["features"].append(features[:24])
        parts["gt_boxes"].append(own[is_annotated])
        parts["gt_features"].append(features[24:][is_annotated])
        numbers = {
            "image_ids": image_id,
            "flipped": is_flipped,
            "counts": 24,
            "gt_counts": is_annotated.sum(),
        }
        for name, value in numbers.items():
            parts[name].append([value])
        for name in ("sizes", "output_sizes"):
            parts[name].append([(64, 64)])
    return RegionFeatures(**{name: np.concatenate(values) for name, values in parts.items()})


def _weights(train) -> dict[str, torch.Tensor]:
    detector = _detector()
    train(detector)
    return detector.state_dict()


def _same(first: dict, second: dict) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


# ------------------------------------------------------------ the known share


def test_with_nothing_known_training_is_that_of_the_images_as_drawn(draw):
    """Bit for bit; and with all known and labelled that of the images with every object annotated."""

    def ours(treatment: str, share: float) -> dict:
        data, regions = getattr(draw, treatment)(share)
        return _weights(lambda detector: train_on_regions(detector, data, regions, SOLVER, seed=4))

    def plain(data, cache) -> dict:
        return _weights(lambda detector: train_box_head(detector, data, cache, SOLVER, seed=4))

    missing, full = plain(draw.shots, draw.shot_regions), plain(draw.everything, draw.all_regions)
    assert _same(ours("ignored", 0.0), missing)
    assert _same(ours("labelled", 1.0), full)
    assert not _same(ours("ignored", 1.0), missing) and not _same(ours("ignored", 1.0), full)
    assert not _same(missing, full)


def test_labels_and_positives_stay_while_background_on_known_objects_goes(draw):
    counts = {}
    for share in (0.0, 0.4, 1.0):
        data, regions = draw.ignored(share)
        assert data is draw.shots and sum(data.counts().values()) == 5
        positives = {key: region.rois.boxes[region.rois.labels < 3] for key, region in regions.items()}
        counts[share] = sum(len(region.rois.labels) for region in regions.values()), positives
    for share in (0.4, 1.0):
        for key, boxes in counts[share][1].items():
            assert torch.equal(boxes, counts[0.0][1][key])
    assert counts[0.0][0] > counts[0.4][0] > counts[1.0][0]
    labelled, _ = draw.labelled(0.4)
    assert sum(labelled.counts().values()) == 5 + 6


def test_what_is_left_out_overlaps_a_known_object_by_half(draw):
    known = draw.known(0.4)
    _, before = draw.ignored(0.0)
    _, after = draw.ignored(0.4)
    for record, mask in zip(draw.everything.images, known, strict=True):
        for flip in (False, True):
            own, boxes = before[record.image_id, flip].rois, record.boxes[mask].copy()
            if flip:
                boxes[:, [0, 2]] = 64 - boxes[:, [2, 0]]
            overlaps = [max((_iou(box, other) for other in boxes), default=0) for box in own.boxes.numpy()]
            is_kept = [iou < 0.5 or label < 3 for iou, label in zip(overlaps, own.labels.tolist())]
            assert torch.equal(after[record.image_id, flip].rois.boxes, own.boxes[torch.tensor(is_kept)])


def _iou(a, b) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inside = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inside / (sum(areas) - inside)


def test_what_is_known_stays_known_at_larger_shares():
    further = [np.array([True, False, True]), np.zeros(0, dtype=bool), np.array([True, True])]
    before = [np.zeros(3, dtype=bool), np.zeros(0, dtype=bool), np.zeros(2, dtype=bool)]
    for share, number in ((0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        known = known_objects(further, share, seed=1)
        assert sum(int(mask.sum()) for mask in known) == number
        for mask, old, own in zip(known, before, further, strict=True):
            assert (mask >= old).all() and (mask <= own).all()
        before = known
    assert [mask.tolist() for mask in before] == [mask.tolist() for mask in further]
    orders = {str([mask.tolist() for mask in known_objects(further, 0.25, seed=seed)]) for seed in range(12)}
    assert len(orders) > 1  # another draw, other objects first


def test_further_objects_are_those_without_a_shot():
    everything = data_of(image(1, [(BOX, 0), (OTHER, 1), (FAR, 1, True)]), image(2, [(BOX, 2)]))
    shots = data_of(image(2, [(BOX, 2)]), image(1, [(OTHER, 1)]))
    masks = further_objects(shots, everything)
    assert [mask.tolist() for mask in masks] == [[True, False, False], [False]]
    with pytest.raises(DataError, match="the same images"):
        further_objects(data_of(image(1, [(OTHER, 1)])), everything)
    with pytest.raises(DataError, match=r"image 2 .* lacks a box"):
        further_objects(data_of(image(1, []), image(2, [(BOX, 1)])), everything)


def test_features_of_other_proposals_are_refused(draw):
    moved = replace(draw.all_regions, boxes=draw.all_regions.boxes + 1)
    with pytest.raises(CheckpointError, match="other proposals"):
        replace(draw, all_regions=moved).ignored(0.5)


def test_scores_of_the_objects_of_the_training_images(draw):
    """Logits are three features: their softmax is worked out by hand for every object."""
    predictor = BoxPredictor(16, 3, dropout=0.5, class_agnostic=False)
    with torch.no_grad():
        predictor.cls_score.weight.copy_(torch.eye(4, 16) * 3)
        predictor.cls_score.bias.zero_()
    cache, further = draw.all_regions, draw.further()
    objects = cache.gt_features.reshape(5, 2, 4, 16)[:, 0]  # [images, boxes, D], unmirrored
    logits = 3 * objects[:, :, :4].astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    labels = np.stack([record.labels for record in draw.everything.images])
    true = np.take_along_axis(probs, labels[:, :, None], axis=2)[:, :, 0]
    found = object_probabilities(predictor, draw)
    is_further = np.stack(further)
    assert found["shot_score"] == pytest.approx(100 * true[~is_further].mean(), rel=1e-4)
    assert found["further_score"] == pytest.approx(100 * true[is_further].mean(), rel=1e-4)
    assert found["further_background"] == pytest.approx(100 * probs[is_further, 3].mean(), rel=1e-4)
    assert len(set(found.values())) == 3


# ------------------------------------------------------------ errors of detection


NEAR = [14, 10, 34, 30]  # IoU 2/3 with BOX
LOOSE = [24, 10, 44, 30]  # 3/17 with BOX
AWAY = [5, 70, 25, 90]
NOVEL = ("star", "key")


def test_each_detection_has_one_kind():
    test = data_of(image(1, [(BOX, 1), (OTHER, 0), (FAR, 2, True)]), image(2, []))
    rows = [(1, NEAR, 0, 0.9), (1, BOX, 1, 0.8), (1, OTHER, 0, 0.7), (1, LOOSE, 0, 0.6), (1, AWAY, 1, 0.5)]
    rows += [(1, FAR, 1, 0.4), (2, BOX, 0, 0.3)]
    found = detections_of(*rows, class_names=NOVEL)
    kinds = ["right", "confused", "on_base", "loose", "background", "", "background"]
    assert kinds_of(found, test, NOVEL).tolist() == kinds


def test_error_rates_by_hand():
    """Two novel objects; the two best detections are right and on background."""
    test = data_of(image(1, [(BOX, 1), (FAR, 2), (OTHER, 0)]), image(2, []))
    rows = [(1, BOX, 0, 0.9), (2, BOX, 0, 0.8), (1, NEAR, 1, 0.7), (1, FAR, 1, 0.6), (1, OTHER, 1, 0.5)]
    found = error_rates(detections_of(*rows, class_names=NOVEL), test, NOVEL)
    assert found == pytest.approx(
        {
            "confusion": 100 / 3,
            "background": 0.5,
            "background_per_object": 0.5,
            "on_base": 0.5,
            "detections": 2.5,
            "confusion_top": 0.0,
            "background_top": 50.0,
        }
    )
    nothing = error_rates(detections_of(class_names=NOVEL), test, NOVEL)
    assert nothing["confusion"] is None and nothing["background"] == 0 and nothing["background_top"] is None


# ------------------------------------------------------------ choices


def test_the_best_mean_is_chosen_for_each_place():
    values = {(0.0, 0.2): (50, 40), (0.0, 0.8): (46, 45), (1.0, 0.2): (40, 40), (1.0, 0.8): (30, 50)}
    rows = [
        {"fraction": share, "beta": beta, "seed": seed, "nAP50": value}
        for (share, beta), own in values.items()
        for seed, value in enumerate(own)
    ]
    assert choose(rows, by=["fraction"], among=["beta"]) == {
        (0.0,): (0.8,),
        (1.0,): (0.2,),
    }  # 40 = 40: the smaller
    with pytest.raises(RecordError, match=r"not tried on the same seeds at \(1.0,\)"):
        choose(rows[:-1], by=["fraction"], among=["beta"])
    with pytest.raises(RecordError, match="no row to choose beta"):
        choose([], by=["fraction"], among=["beta"])
    assert (
        at_edge(0.2, (0.2, 0.8, 3.2)) and at_edge(3.2, (0.2, 0.8, 3.2)) and not at_edge(0.8, (0.2, 0.8, 3.2))
    )
    assert not at_edge(0.2, (0.2, 0.2))  # a single value has no edge


PARAMS = {"profile": "t", "base": "a.yaml", "select_base": "b.yaml", "rates": ["c.yaml"]}


@pytest.mark.parametrize(
    ("loss", "letters"),
    [
        ("ce", None),
        ("ce_bg", 0.2),
        ("focal", {"beta": 0.0, "background_weight": 1.0}),
        ("focal_mirror", {"beta": 0.8, "background_weight": 1.0}),
        ("focal_omega", {"beta": 0.0, "background_weight": 0.2}),
        ("bnrl", {}),
    ],
)
def test_each_part_is_bnrl_with_these_letters(loss, letters):
    params = MissingAnnotationsParams.model_validate(PARAMS)
    torch.manual_seed(1)
    logits, labels = torch.randn(20, 4), torch.arange(20) % 4
    value = study.loss_of(study.recipe(loss, params, 0.1), params)(logits, labels)
    if loss.startswith("ce"):
        expected = cross_entropy(logits, labels, background_weight=letters or 1.0)
    else:
        expected = bnrl_loss(logits, labels, **letters)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    others = [study.recipe(name, params, 0.1) for name in RATES if name != loss]
    assert all(
        float(study.loss_of(other, params)(logits, labels)) != pytest.approx(float(value), rel=1e-3)
        for other in others
    )


def test_unknown_losses_are_refused():
    params = MissingAnnotationsParams.model_validate(PARAMS)
    with pytest.raises(ParamsError, match="no loss 'focus' here; choose from ce, ce_bg"):
        study.recipe("focus", params, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": [0.5, 1.0]}, "expected 0 among them"),
        ({"fractions": [0.0, 0.0]}, "holds a value twice"),
        ({"component_fractions": [0.3]}, "not in fractions"),
        ({"betas": [0.2, 0.5]}, "betas lacks 0.8"),
        ({"background_weights": [1.0]}, "background_weights lacks 0.2"),
        ({"shots": 4}, "data.shots"),
        ({"select_seeds": [99]}, "seeds has 99"),
        ({"arms": ["missing", "clean"]}, "has the arms"),
    ],
)
def test_wrong_parameters_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        MissingAnnotationsParams.model_validate(PARAMS | change)


# ------------------------------------------------------------ the whole study with made trainings


class _MadeSide:
    """In place of a base model: nAP50 is known for each recipe, and what is trained is noted."""

    splits, trained = {"reported": 1, "selection": 2}, []

    def __init__(self, params, run, role):
        self.params, self.role, self.split = params, role, self.splits[role]
        self.seeds = params.seeds if role == "reported" else params.select_seeds
        self.benchmark = SimpleNamespace(test=data_of(image(1, [])), novel_names=NOVEL)
        self.evaluator = self

    def draw(self, seed):
        return seed

    def evaluate(self, value):
        return dict.fromkeys(study.METRICS, value)

    def train(self, tried, seed, treatment, share):
        self.trained.append((self.role, seed, treatment, share, *tried))
        value = 40.0 + seed - abs(np.log(tried.lr / RATES[tried.loss]))
        if tried.loss == "bnrl":  # the fixed weights are best but where nothing is known
            best = (3.2, 0.05) if share == 0 else (0.8, 0.2)
            value += (tried.beta, tried.background_weight) == best
        return value, None, {"labels": 5}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The parameters, and a run whose trainings are made; ``_MadeSide.trained`` begins empty."""
    monkeypatch.setattr(study, "_Side", _MadeSide)
    monkeypatch.setattr(_MadeSide, "trained", [])
    monkeypatch.setattr(_MadeSide, "splits", {"reported": 1, "selection": 2})
    monkeypatch.setattr(study, "object_probabilities", lambda head, draw: {"further_score": 10.0})
    monkeypatch.setattr(study, "error_rates", lambda found, test, novel_names: {"confusion": 1.0})
    best = RATES | {("ce", "missing"): 0.05}  # over both arms the rates of RATES are best
    cells = itertools.product(("ce", "ce_bg", "bnrl"), ("missing", "kshot"), (0.02, 0.05))
    rows = []
    for loss, arm, rate in cells:
        is_best = rate == best.get((loss, arm), best[loss])
        value = 50.0 + is_best * (3 if arm == "kshot" else 2)
        key = {"split": 2, "shots": 5, "seed": 0, "arm": arm, "loss": loss, "lr": rate}
        rows.append(key | {"nAP50": value})
    upstream = SimpleNamespace(record={"rows": rows})
    changes = {"seeds": [0, 1], "select_seeds": [0, 1], "fractions": [0.0, 0.5, 1.0]}
    params = MissingAnnotationsParams.model_validate(PARAMS | changes)

    def start():
        return SimpleNamespace(rows=Rows(tmp_path / "rows.jsonl"), upstreams=lambda name: [upstream])

    return params, start


def test_what_split_2_chooses_is_reported_on_split_1(made):
    params, start = made
    rows = study.run_missing_annotations(params, start())
    assert study.chosen_rates(params, start()) == {loss: RATES[loss] for loss in ("ce", "ce_bg", "bnrl")}
    reported = [row for row in rows if row["role"] == "reported"]
    assert {row["split"] for row in reported} == {1}
    assert {(row["loss"], row["lr"]) for row in reported} == set(RATES.items())  # also those of the parts
    other = {
        (row["fraction"], row["beta"], row["background_weight"]) for row in reported if not row["is_fixed"]
    }
    assert other == {(0.0, 3.2, 0.05)}
    curves, arms, parts, chosen = 3 * (3 + 2) * 2, 3 * 2, 3 * 2 * 2, 2
    rates, grid = 3 * 4 * 2, 9 * 3 * 2
    own = {(row["fraction"], row["loss"], row["lr"]) for row in rows if row["role"] == "control"}
    assert own == {(0.0, "ce", 0.05), (0.0, "bnrl", 0.05), (1.0, "ce", 0.02), (1.0, "bnrl", 0.05)}
    assert len(reported) == curves + arms + parts + chosen
    assert len(rows) == len(reported) + rates + grid + len(own) * 2
    again = 3 * 2  # at a share where the best rate is the chosen one
    assert len(_MadeSide.trained) == len(set(_MadeSide.trained)) == len(rows) - again


@pytest.mark.parametrize("kept", [5, 40, 80, 125])
def test_a_killed_study_goes_on_where_it_was(made, kept):
    params, start = made
    whole = study.run_missing_annotations(params, start())
    path = start().rows.path
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    first = list(_MadeSide.trained)
    _MadeSide.trained.clear()
    assert study.run_missing_annotations(params, start()) == whole
    names = ("seed", "treatment", "fraction", "loss", "beta", "background_weight", "lr")
    roles = {"control": "reported"}  # the control is trained on the reported base model
    before = {(roles.get(row["role"], row["role"]), *map(row.get, names)) for row in whole[:kept]}
    assert _MadeSide.trained == [cell for cell in first if cell not in before] != []


def test_choosing_on_what_is_reported_is_refused(made):
    params, start = made
    _MadeSide.splits["selection"] = 1
    with pytest.raises(ParamsError, match="seeds and select_seeds share a draw"):
        study.run_missing_annotations(params, start())
    assert not _MadeSide.trained


def test_rates_of_every_loss_are_needed(made):
    params, start = made
    run = start()
    rows = [row for row in run.upstreams("rates")[0].record["rows"] if row["loss"] != "ce_bg"]
    run.upstreams = lambda name: [SimpleNamespace(record={"rows": rows})]
    with pytest.raises(ParamsError, match="tried bnrl, ce, but not ce_bg"):
        study.run_missing_annotations(params, run)


# ------------------------------------------------------------ tables and figures


@pytest.fixture(scope="module")
def records():
    return [missing_record()]


def _cell(cells, **wanted):
    for name, value in wanted.items():
        cells = cells[cells[name] == value]
    (row,) = cells.itertuples()
    return row


def test_fraction_cells_by_hand(records):
    """Seeds add −1, 0.5, 1 and, at share s, 0.2 s times the seed."""
    cells = missing_tables.fraction_cells(records)
    assert _cell(cells, treatment="ignored", what="ce", fraction="0").mean == pytest.approx(40 + 0.5 / 3)
    for treatment in ("ignored", "labelled"):  # with nothing known both are the same training
        row = _cell(cells, treatment=treatment, what="bnrl − ce", fraction="0")
        assert (row.mean, row.half_width, row.n, row.up) == (pytest.approx(3.0), pytest.approx(0.0), 3, 3)
    assert _cell(cells, treatment="ignored", what="bnrl − ce", fraction="1").mean == pytest.approx(1.0)
    change = _cell(cells, treatment="ignored", what="ce", fraction="last − first")
    assert change.mean == pytest.approx(4.2) and change.half_width == pytest.approx(
        4.3027 * 0.2 / 3**0.5, abs=1e-4
    )
    assert _cell(cells, treatment="labelled", what="ce", fraction="last − first").mean == pytest.approx(10.2)
    assert _cell(cells, treatment="ignored", what="bnrl − ce", fraction="last − first").mean == pytest.approx(
        -2.0
    )


def test_each_loss_at_its_own_rate_stands_beside(records):
    cells = missing_tables.fraction_cells(records)
    name = "bnrl − ce at their own rates"
    assert [_cell(cells, what=name, fraction=share).mean for share in ("0", "1")] == pytest.approx(
        [2.0, -1.0]
    )
    assert _cell(cells, what="ce at its own rate", fraction="0").mean == pytest.approx(41 + 0.5 / 3)
    caption = missing_tables.fraction_table(records).caption
    assert "(last share): at share 0 bnrl 0.01, ce 0.01; at share 1 bnrl 0.1, ce 0.1." in caption
    assert "WARNING: bnrl lies below ce at ignored 1 at their own rates." in caption


def test_bnrl_below_ce_is_said(records):
    record = records[0] | {"rows": [row for row in records[0]["rows"] if row["role"] != "control"]}
    assert "WARNING" not in missing_tables.fraction_table([record]).caption
    rows = [
        row | {"nAP50": row["nAP50"] - 9 * (row["loss"] == "bnrl" and row["fraction"] == 1.0)}
        for row in record["rows"]
    ]
    caption = missing_tables.fraction_table([record | {"rows": rows}]).caption
    assert "WARNING: bnrl lies below ce at ignored 1, labelled 1." in caption
    assert "ce 0.02, ce_bg 0.02, bnrl 0.05" in caption


def test_regret_by_hand(records):
    """On split 1 the weights that split 2 chose at share 0 gain 1, 2 and 3 points."""
    cells = missing_tables.map_cells(records)
    first = _cell(cells, fraction=0.0)
    assert (first.beta, first.background_weight, first.split, first.select_split) == (3.2, 0.05, 1, 2)
    assert first.regret == pytest.approx(2.0) and first.regret_half_width == pytest.approx(
        4.3027 / 3**0.5, abs=1e-4
    )
    assert (
        (first.n, first.up, first.is_fixed) == (3, 3, False) and first.beta_at_edge and first.weight_at_edge
    )
    assert first.select_chosen - first.select_fixed == pytest.approx(9 - 2 * 2.4 - 0.15)
    last = _cell(cells, fraction=1.0)
    assert last.is_fixed and last.regret == 0 and not last.beta_at_edge and not last.weight_at_edge
    table = missing_tables.map_table(records)
    assert "WARNING: the optimum lies at the edge of the grid at known share 0." in table.caption
    assert table.display["chosen β, ω_bg"].tolist() == ["3.2!, 0.05!", "0.8, 0.2", "0.8, 0.2"]
    assert table.display["regret of the fixed"].tolist()[0] == "+2.0 ± 2.5 (3/3 up)"


def test_parts_are_compared_with_what_they_are_added_to(records):
    cells = missing_part_tables.component_cells(records)
    changes = {"focal term − ce": -3.0, "+ mirror to focal": 4.0, "+ ω_bg to focal": 1.0, "bnrl − ce": 3.0}
    changes |= {"+ mirror to focal + ω_bg": 5.0, "+ ω_bg to focal + mirror": 2.0, "+ ω_bg to ce": -1.0}
    for what, mean in changes.items():
        assert _cell(cells, fraction=0.0, what=what, metric="nAP50").mean == pytest.approx(mean)
    assert _cell(cells, fraction=1.0, what="focal", metric="further_score").mean == pytest.approx(26.0)
    assert set(cells["fraction"]) == {0.0, 1.0}  # 0.5 has no parts
    assert missing_part_tables.parts_at_edge(records) == ["focal_mirror", "focal_omega"]
    rates = missing_part_tables.components_table(records).display["rate"].tolist()[:6]
    assert rates == ["0.02", "0.02", "0.2", "0.05!", "0.5!", "0.05"]


def test_random_and_clean_images_are_compared(records):
    cells = missing_part_tables.image_cells(records)
    names = list(missing_part_tables.IMAGES.values())
    assert list(dict.fromkeys(cells["images"])) == names
    assert [_cell(cells, images=name, what="ce").labels for name in names] == [25, 25, 125, 25]
    gains = [_cell(cells, images=name, what="ce: less random").mean for name in names[1:]]
    assert gains == pytest.approx([4.2, 10.2, 5.7])
    assert _cell(cells, images=names[3], what="bnrl − ce").mean == pytest.approx(1.0)


def test_an_arm_of_its_own_data_keeps_its_name():
    rows = [
        missing_row("ce", seed, treatment, share)
        for seed in (0, 1)
        for treatment, share in (("ignored", 0.0), ("clean", None))
    ]
    cells = missing_part_tables.image_cells([missing_record() | {"rows": rows}])
    assert list(dict.fromkeys(cells["images"])) == ["random: others stand there, unannotated", "clean"]


def test_headline_numbers_have_their_values(records):
    rows = {row[0]: row for row in study_numbers(records)}
    share = "known share 0 of the missing annotations, known objects ignored"
    assert rows[f"bnrl − ce, nAP50, K=5, {share}"][5:] == (pytest.approx(3.0), pytest.approx(0.0))
    (regret,) = [row for name, row in rows.items() if "known share 0: less than 3.2, 0.05" in name]
    assert regret[1] == "+2.0 ± 2.5 (3/3 up)" and regret[5] == pytest.approx(2.0)


def test_tables_and_figures_without_a_record_say_so():
    tables = (missing_tables.fraction_table, missing_tables.map_table)
    tables += (missing_part_tables.components_table, missing_part_tables.images_table)
    assert [len(table([]).data) for table in tables] == [0] * 4
    for drawing in missing_figures.missing_figures([]).values():
        assert drawing.caption == "No record of 33_missing_annotations yet."


def test_figures_show_what_the_tables_hold(records):
    figures = missing_figures.missing_figures(records)
    curves = figures["missing_fraction"].figure.axes
    assert [ax.get_title() for ax in curves][:2] == [
        "known objects ignored (labels constant)",
        "known objects labelled (more shots, too)",
    ]
    means = [container[0].get_ydata().tolist() for container in curves[0].containers]
    cells = missing_tables.fraction_cells(records)
    own = cells[
        (cells["treatment"] == "ignored") & (cells["what"] == "ce") & (cells["fraction"] != "last − first")
    ]
    assert means[0] == own["mean"].tolist()
    heat = figures["missing_map"].figure.axes
    assert [ax.get_title() for ax in heat[:3]] == ["known share 0", "known share 0.5", "known share 1"]
    assert [len(ax.patches) for ax in heat[:3]] == [3, 3, 3]  # chosen; fixed, white on black
    bars = figures["missing_components"].figure.axes[0]
    assert [text.get_text() for text in bars.get_yticklabels()] == list(
        missing_part_tables.COMPONENTS.values()
    )
    assert len(figures["missing_clean"].figure.axes[1].containers) == 1
