"""Training regimes: what learns in each, and that steps from the backbone's maps are those of the whole detector."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from risf_core.data.loader import load_batch
from risf_core.detecting import detect_images
from risf_core.detector.faster_rcnn import FasterRCNN, scale_targets
from risf_core.errors import ParamsError
from risf_core.params import DetectorParams, SolverParams
from risf_core.records import Rows
from risf_core.report.regime_figures import regimes_figure
from risf_core.report.regime_tables import chosen_rates, regime_cells, regimes_table
from risf_core.studies import training_regimes
from risf_core.studies.training_regimes import (
    backbone_maps,
    detect_from_maps,
    losses_from_maps,
    set_regime,
    train_from_maps,
    train_regimes,
)
from risf_core.study_params import TrainingRegimesParams
from risf_core.training import seed_everything, train_detector

from .detector.conftest import TINY, square_data  # noqa: F401

SOLVER = SolverParams(iterations=12, batch_size=2, lr=0.05, precision="fp32")


def _detector(regime: str, **changes) -> FasterRCNN:
    torch.manual_seed(0)
    detector = FasterRCNN(DetectorParams(**(TINY | {"cls_dropout": 0.5, "roi_batch": 8} | changes)), 3)
    torch.manual_seed(1)  # affine layers that do something, statistics that are not those of a fresh network
    for layer in (detector.affine_rpn, detector.affine_rcnn):
        torch.nn.init.normal_(layer.weight, 1.0, 0.3)
        torch.nn.init.normal_(layer.bias, 0.0, 0.3)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    set_regime(detector, regime)
    return detector


def _both_maps(detector, data):
    return tuple(backbone_maps(detector, data, flipped=flip) for flip in (False, True))


def test_each_regime_trains_what_its_name_says(square_data):  # noqa: F811
    parts = {
        "frozen": {"box_predictor"},
        "rpn": {"box_predictor", "proposal_generator", "affine_rpn", "affine_rcnn"},
    }
    parts["res5"] = parts["rpn"] | {"res5"}
    for regime, expected in parts.items():
        detector = _detector(regime)
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        train_from_maps(detector, square_data, _both_maps(detector, square_data), SOLVER, seed=4, desc="t")
        changed = [
            name for name, value in detector.state_dict().items() if not torch.equal(value, before[name])
        ]
        found = {name.removeprefix("roi_heads.").split(".")[0] for name in changed}
        assert found == expected, regime
        norms = [
            name for name, module in detector.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
        ]
        assert norms and not any(name.rpartition(".")[0] in norms for name in changed)


def test_unknown_regime_is_refused():
    with pytest.raises(ParamsError, match="no regime 'res4'; expected frozen, rpn or res5"):
        _detector("res4")


@pytest.mark.parametrize("regime", ["rpn", "res5"])
def test_training_from_maps_equals_training_through_the_detector(square_data, regime):  # noqa: F811
    through, cached = _detector(regime), _detector(regime)
    maps = _both_maps(cached, square_data)
    curve_cached = train_from_maps(cached, square_data, maps, SOLVER, seed=4, desc="cached")
    curve_through = train_detector(through, square_data, SOLVER, seed=4, desc="through")
    for a, b in zip(curve_through, curve_cached, strict=True):
        # equal but for the order of sums: a backbone's batch of one, RoIAlign before the affine layer
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for (name, a), b in zip(through.state_dict().items(), cached.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=5e-5), name
    start = _detector(regime).state_dict()
    assert not torch.equal(start["affine_rcnn.bias"], cached.state_dict()["affine_rcnn.bias"])


def test_the_affine_layer_may_come_after_roi_align(square_data):  # noqa: F811
    """Also for boxes at the rim, where RoIAlign takes points outside the map as 0."""
    detector = _detector("res5")
    with torch.no_grad():
        detector.affine_rcnn.bias.fill_(3.0)
    images, targets = load_batch(square_data, [0, 1])
    targets[0] = {"boxes": torch.tensor([[0.0, 0.0, 64.0, 20.0]]), "labels": torch.tensor([1])}
    sizes = [(64, 64)] * 2
    batch, _ = detector.batch(images)
    seed_everything(3)
    whole = detector.losses(batch, sizes, scale_targets(targets, images, sizes, 3))
    seed_everything(3)
    parts = losses_from_maps(detector, detector.backbone(batch).detach(), sizes, targets)
    assert whole.keys() == parts.keys() and len(parts) == 4
    for name, value in whole.items():
        assert float(value.detach()) == pytest.approx(float(parts[name].detach()), rel=1e-5), name


def test_detections_from_maps_equal_the_detector(square_data):  # noqa: F811
    detector = _detector("res5")
    found = detect_from_maps(detector, square_data, backbone_maps(detector, square_data))
    direct = detect_images(detector, square_data)
    assert len(found) == len(direct) > 0
    for name in ("image_ids", "labels", "boxes", "scores"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(direct, name), rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_maps_of_several_sizes_are_refused(square_data):  # noqa: F811
    with pytest.raises(ParamsError, match="one size that are not resized; found 1 sizes and min_size"):
        backbone_maps(_detector("rpn", min_size=(96,)), square_data)
    first = replace(square_data.images[0], height=96)
    data = replace(square_data, images=(first, *square_data.images[1:]))
    with pytest.raises(ParamsError, match="found 2 sizes"):
        backbone_maps(_detector("rpn"), data)


# ------------------------------------------------------------ parameters, table and figure


def _record(rows, *, num_test_images=150):
    params = {"num_test_images": num_test_images}
    return {"run_id": "r", "notebook": "39_training_regimes", "params": params, "rows": rows}


def _row(role, seed, loss, rate, value, *, arm="missing", regime="res5"):
    split = 1 if role == "reported" else 2
    key = {"role": role, "split": split, "shots": 5, "seed": seed, "arm": arm, "regime": regime}
    return key | {"loss": loss, "lr": rate, "nAP50": value, "nAP": value / 2, "nAP75": 0.0}


def _records():
    """CE 30 at .01 and 33 at .002; BNRL 35 and 36 at .01 and .02, in both seeds but for one point."""
    values = {("ce", 0.002): (33.0, 33.0), ("ce", 0.01): (30.0, 31.0), ("bnrl", 0.01): (35.0, 37.0)}
    values[("bnrl", 0.02)] = (36.0, 36.0)
    rows = [_row("reported", seed, *key, value[seed]) for key, value in values.items() for seed in (0, 1)]
    chosen = {("ce", 0.002): 20.0, ("ce", 0.01): 19.0, ("bnrl", 0.01): 21.0, ("bnrl", 0.02): 21.0}
    return [_record(rows + [_row("selection", 0, *key, value) for key, value in chosen.items()])]


def test_rates_are_chosen_on_the_other_split():
    chosen = chosen_rates(_records()).set_index("loss")
    assert chosen["lr"].to_dict() == {"ce": 0.002, "bnrl": 0.01}  # of two equal ones the smaller
    assert set(chosen["select_split"]) == {2} and chosen["at_edge"].all()


def test_differences_are_paired_at_the_same_rate_and_at_the_chosen_ones():
    cells = regime_cells(_records()).set_index("rate")
    assert list(cells.index) == ["0.002", "0.01", "0.02", "chosen"]
    same = cells.loc["0.01"]
    assert (same["ce_mean"], same["bnrl_mean"], same["difference"]) == (30.5, 36.0, 5.5)  # 5 and 6
    assert same["difference_half_width"] == pytest.approx(
        12.7062 * 0.5, rel=1e-4
    )  # t of one degree of freedom
    assert (same["difference_up"], same["difference_n"], same["reference_lr"]) == (2, 2, 0.01)
    small = cells.loc["0.002"]
    assert small["step"] == 2.5 and small["bnrl_n"] == 0 and np.isnan(small["difference"])
    assert cells.loc["0.02", "bnrl_step"] == 5.5 and np.isnan(cells.loc["0.02", "step"])
    best = cells.loc["chosen"]  # bnrl at .01 against ce at .002
    assert best["difference"] == 3.0 and (best["ce_lr"], best["bnrl_lr"]) == (0.002, 0.01)


def test_table_and_figure_say_what_was_compared():
    table = regimes_table(_records())
    assert table.display["rate"].tolist() == ["0.002", "0.01", "0.02", "chosen!: ce 0.002, bnrl 0.01"]
    assert table.display["bnrl − ce"].tolist()[0] == "–"
    assert table.display["bnrl − ce"].tolist()[3] == "+3.0 ± 12.7 (2/2 up)"
    assert (
        "chosen on split 2, 1 draw, for each arm" in table.caption
        and "first 150 test images" in table.caption
    )
    drawing = regimes_figure(_records())
    lines = [line.get_label() for line in drawing.figure.axes[0].containers]
    assert lines == ["ce (the control: the step alone)", "bnrl"]
    assert len(regimes_table([]).data) == 0 and "No record" in regimes_figure([]).caption


def test_choosing_on_the_reported_split_is_said():
    (record,) = _records()
    rows = [row | {"split": 1} for row in record["rows"]]
    assert "split 1 (THE REPORTED ONE)" in regimes_table([record | {"rows": rows}]).caption


@pytest.mark.parametrize(
    "rates, message",
    [
        ({"res5": {"ce": [0.01]}}, "needs ce and bnrl"),
        ({"res5": {"ce": [0.01], "bnrl": [0.02]}}, "a rate that both have"),
        ({"rpn": {"ce": [0.01, 0.01], "bnrl": [0.01]}}, "ce has a rate twice"),
    ],
)
def test_rates_that_cannot_be_compared_are_refused(rates, message):
    with pytest.raises(ValidationError, match=message):
        TrainingRegimesParams(profile="t", base="a.yaml", select_base="b.yaml", rates=rates)


def test_a_killed_run_trains_no_cell_twice(tmp_path, monkeypatch):
    params = TrainingRegimesParams(
        profile="t",
        data={"source": "pictograms", "few_shot_splits": (1, 2)},
        base="a.yaml",
        select_base="b.yaml",
        seeds=(0, 1),
        rates={"res5": {"ce": (0.002, 0.01), "bnrl": (0.01,)}},
    )
    trained = []

    class Side:
        def __init__(self, context, *_):
            self.split = context.params.split

        def judge(self, loss, solver, *, seed, arm, regime):
            if len(trained) == 7:
                trained.append(None)
                raise KeyboardInterrupt
            trained.append((self.split, seed, arm, regime, solver.lr))
            return {"nAP50": float(len(trained)), "nAP": 0.0, "nAP75": 0.0}

    def contexts(params, run):
        for role, split in (("reported", 1), ("selection", 2)):
            yield role, SimpleNamespace(params=params.few_shot_params(split, role=role))

    monkeypatch.setattr(training_regimes, "_Side", Side)
    monkeypatch.setattr(training_regimes, "_contexts", contexts)
    with pytest.raises(KeyboardInterrupt):
        train_regimes(params, SimpleNamespace(rows=Rows(tmp_path / "rows.jsonl")))
    rows = train_regimes(params, SimpleNamespace(rows=Rows(tmp_path / "rows.jsonl")))
    cells = [cell for cell in trained if cell is not None]
    assert len(rows) == len(cells) == 2 * 2 * 3 + 1 * 2 * 3  # draws, arms, settings of each role
    assert Counter(cells).most_common(1)[0][1] == 2  # ce and bnrl at .01
    assert {(row["role"], row["split"]) for row in rows} == {("reported", 1), ("selection", 2)}
    assert {row["lr"] for row in rows if row["loss"] == "ce"} == {0.002, 0.01}
