"""What each CLIP costs, and gains at equal accuracy: interpolated where measured, nowhere else."""

import math

import pytest

from risf_core.report.backbone_figures import backbones_at_accuracy_figure
from risf_core.report.backbone_tables import (
    accuracy_curves,
    backbones_at_accuracy_table,
    backbones_cost_table,
    common_accuracies,
    gains_at_accuracy,
)
from risf_core.report.sweep_figures import backbones_figure
from tests.synthetic_records import backbones_record, record

RESNET, SWIN = "risf-tiny-resnet", "risf-tiny-swin"


def _row(tower: str, steps: int, accuracy: float, seed: int, gain: float) -> dict:
    key = {
        "split": 1,
        "arm": "kshot",
        "loss": "ce",
        "shots": 5,
        "seed": seed,
        "clip": f"{tower}, {steps} steps",
    }
    facts = {"tower": tower, "iterations": steps, "parameters": 10**6, "crop_accuracy": accuracy}
    return key | facts | {"nAP50": 50 + gain, "gain": gain}


def _record(*rows: dict) -> dict:
    return record("32_clip_backbones", "towers", rows=rows)


@pytest.fixture
def towers() -> dict:
    """Gains of the ResNet are a tenth of its accuracy, those of Swin a point below; another level for each seed."""
    rows = []
    for seed in (0, 1):
        rows += [_row(RESNET, steps, acc, seed, acc / 10 + seed) for steps, acc in ((150, 50), (700, 90))]
        rows += [
            _row(SWIN, steps, acc, seed, acc / 10 - 1) for steps, acc in ((150, 30), (350, 40), (700, 70))
        ]
    return _record(*rows)


def test_gains_are_read_at_accuracies_that_every_tower_passes_through(towers):
    cells = gains_at_accuracy([towers]).set_index(["tower", "place"])
    assert cells.loc[(RESNET, "lowest"), "accuracy"] == 50
    assert cells.loc[(SWIN, "highest"), "accuracy"] == 70
    assert cells.loc[(RESNET, "middle"), "gain"] == pytest.approx(6.5)  # 6 + seed
    assert cells.loc[(SWIN, "middle"), "gain"] == pytest.approx(5.0)
    row = cells.loc[(SWIN, "middle")]
    assert row["reference"] == RESNET and row["difference"] == pytest.approx(-1.5)  # -1 and -2
    assert row["difference_half_width"] == pytest.approx(12.706 * 0.5, rel=1e-3)  # t of one degree of freedom
    assert row["n"] == 2


def test_towers_that_never_meet_are_not_compared(towers):
    apart = _record(*(row for row in towers["rows"] if (row["tower"], row["iterations"]) != (SWIN, 700)))
    assert common_accuracies(accuracy_curves([apart])) == {}
    assert backbones_at_accuracy_table([apart]).data.empty
    assert backbones_at_accuracy_figure([apart]).caption.startswith("What CM-CLIP")


def test_clips_of_one_length_have_no_curve():
    assert backbones_at_accuracy_table([backbones_record(seeds=2)]).data.empty
    caption = backbones_at_accuracy_figure([backbones_record(seeds=2)]).caption
    assert caption.startswith("No record of towers")


def test_towers_of_several_lengths_stand_in_their_own_figure_alone(towers):
    assert "backbones_at_accuracy" in backbones_figure([towers]).caption
    both = [towers, backbones_record(seeds=2)]
    assert "backbones_at_accuracy" not in backbones_figure(both).caption


def test_time_and_memory_come_from_the_environment(towers):
    name = f"{SWIN}, 350 steps"
    note = {"precision": "bf16", "seconds": 3.0, "crops": 6000, "peak_mib": 80.4}
    towers["environment"]["clips"] = {name: note}
    data = backbones_cost_table([towers]).data.set_index("clip")
    assert data.loc[name, "ms_per_crop"] == pytest.approx(0.5) and data.loc[name, "precision"] == "bf16"
    assert data.loc[name, "peak_mib"] == pytest.approx(80.4) and data.loc[name, "rows"] == 2
    other = data.loc[f"{RESNET}, 150 steps"]
    assert math.isnan(other["ms_per_crop"]) and math.isnan(other["peak_mib"])
    assert backbones_cost_table([]).data.empty
