"""The tables, figures and headline numbers of 51_distilled_rescoring, from made records with hand-worked numbers."""

import pytest

from risf_core.report.distilled_figures import distilled_figures
from risf_core.report.distilled_rows import cell_rows, kept_text, retention_cells, way_cells, way_text
from risf_core.report.distilled_tables import (
    choices_table,
    costs_table,
    distilled_tables,
    fidelity_table,
    retention_table,
    ways_table,
)
from risf_core.report.selection import tables_of
from risf_core.report.study_numbers import study_numbers
from risf_core.tables import all_tables

CELL = {
    "split": 1,
    "arm": "kshot",
    "loss": "ce",
    "setting": "fsod",
    "repeat": 0,
    "label_space": "novel+background",
}
NONE = {0: 30.0, 1: 32.0, 2: 34.0}
GAINS = {  # over none, of each draw
    ("cm_clip", "published"): (10.0, 11.0, 12.0),
    ("cm_clip", "chosen"): (20.0, 22.0, 24.0),
    ("head:mlp", "chosen"): (10.0, 11.0, 12.0),
    ("head:mlp", "published"): (4.0, 4.0, 4.0),
    ("head:linear", "chosen"): (6.0, 6.0, 6.0),
    ("permuted", "chosen"): (-10.0, -12.0, -14.0),
}


def made_record(*, split: int = 1, shots: tuple[int, ...] = (1, 5)) -> dict:
    rows = []
    for k in shots:
        for seed, none in NONE.items():
            key = CELL | {"part": "cell", "split": split, "shots": k, "seed": seed}
            rows.append(key | {"way": "none", "values": "published"} | metrics(none))
            rows += [
                key | {"way": way, "values": values} | metrics(none + gains[seed])
                for (way, values), gains in GAINS.items()
            ]
            found = {"agreement": 50.0 + seed, "kl": 1.0, "spearman": 0.5, "boxes": 100}
            rows.append(key | {"part": "detections", "head": "mlp"} | found)
    place = {"part": "choice", "label_space": "novel+background", "chosen_on": 2, "mean": 44.4, "cells": 6}
    for way in ("head:mlp", "cm_clip", "head:linear"):
        rows.append(place | {"way": way, "is_main": way == "head:mlp", "temperature": 2.0, "c": 0.1})
    for group, value in (("base", 0.8), ("novel", 0.6)):
        fidelity = {
            "boxes": 40,
            "cosine": value,
            "agreement": 70.0,
            "kl": 0.4,
            "right": 71.0,
            "right_clip": 95.0,
        }
        rows.append({"part": "fidelity", "head": "mlp", "group": group} | fidelity)
    cost = {"part": "cost", "num_images": 10, "boxes": 55, "weights_mib": 1.5, "split": split, "shots": 5}
    rows += [cost | {"way": way} for way in ("detector", "cm_clip", "distilled")]
    times = {"detector": (20.0, 1.0), "cm_clip": (5.0, 0.25), "distilled": (0.1, 0.005)}
    costs = [
        {"part": "cost", "way": way, "ms": ms, "share_of_detector": share, "peak_mib": 3.0}
        for way, (ms, share) in times.items()
    ]
    return {
        "notebook": "51_distilled_rescoring",
        "run_id": f"distilled_rescoring-split{split}",
        "params": {"split": split},
        "rows": rows,
        "environment": {"costs": costs},
        "metrics": {},
    }


def metrics(value: float) -> dict:
    return {"nAP50": value, "nAP": value / 2, "nAP75": value / 3}


def test_the_share_kept_is_told_against_both_kinds_of_cm_clip():
    """10, 11, 12 of 10, 11, 12 points is all, and of 20, 22, 24 half; both hold in every draw."""
    cells = retention_cells([made_record()])
    assert cells["shots"].tolist() == [1, 5] and cells["n"].tolist() == [3, 3]
    row = cells.iloc[0]
    assert (row["none"], row["distilled"], row["cm_clip_chosen"]) == (32.0, 43.0, 54.0)
    kept = [row[name] for name in ("kept", "kept_low", "kept_high", "kept_chosen", "kept_chosen_low")]
    assert kept == pytest.approx([1, 1, 1, 0.5, 0.5])
    text = retention_table([made_record()]).display.iloc[0]
    assert text["kept of published"] == "1.00 [1.00, 1.00]" and text["kept of chosen"] == "0.50 [0.50, 0.50]"


def test_the_main_head_stands_under_its_own_name_and_as_distilled():
    cells = way_cells([made_record()])
    own = cells[(cells["shots"] == 5) & (cells["values"] == "chosen")].set_index("way")
    assert own.loc["distilled", "gain"] == own.loc["head:mlp", "gain"] == pytest.approx(11)
    assert own.loc["permuted", ["gain", "up"]].tolist() == [-12, 0]
    assert own.loc["head:linear", "gain_half_width"] == pytest.approx(0)
    assert own.loc["cm_clip", "kept_chosen"] == pytest.approx(1)
    assert [*own.index[:2], own.index[-1]] == ["cm_clip", "distilled", "permuted"]
    assert "+11.0 ± 2.5 (3/3 up)" in ways_table([made_record()]).display["gain over none"].tolist()


def test_splits_and_base_models_are_not_mixed():
    records = [made_record(), made_record(split=3)]
    assert retention_cells(records)["split"].tolist() == [1, 1, 3, 3]
    assert len(cell_rows(records)) == 2 * len(cell_rows(records[:1]))


def test_choices_fidelity_and_costs_read_as_they_are():
    record = made_record()
    choices = choices_table([record]).display
    assert choices["way"].tolist()[0].endswith("(main)") and choices["T"].tolist() == ["2"] * 3
    assert choices["chosen on split"].tolist() == ["2"] * 3
    fidelity = fidelity_table([record]).display
    assert fidelity["boxes of"].tolist() == [
        "base classes",
        "detections, K=1",
        "detections, K=5",
        "novel classes",
    ]
    assert fidelity["same best name (%)"].tolist() == ["70.0", "51.0", "51.0", "70.0"]
    costs = costs_table([record]).display.set_index("way")
    assert costs.loc["+ distilled, proposal's feature", "of the detector's time"] == "0.5 %"
    assert set(costs["boxes an image"]) == {"5.5"}


def test_settings_that_were_given_say_so():
    record = made_record()
    for row in record["rows"]:
        if row["part"] == "choice":
            row |= {"chosen_on": None, "mean": None, "cells": 0}
    display = choices_table([record]).display
    assert set(display["chosen on split"]) == {"given"} and set(display["mean nAP50 there (%)"]) == {"n/a"}


def test_every_table_is_there_without_a_record_and_is_written_with_one():
    names = {table.name for table in distilled_tables([])}
    assert names == {f"distilled_{what}" for what in ("retention", "ways", "choices", "fidelity", "costs")}
    assert names <= {table.name for table in all_tables([])}
    assert names <= {table.name for table in tables_of([made_record()])}
    assert set(distilled_figures([])) <= names


def test_figures_are_drawn_and_repeat():
    first, second = distilled_figures([made_record()]), distilled_figures([made_record()])
    assert all(first[name].png() == second[name].png() for name in first)
    assert "SPLIT 2" not in first["distilled_ways"].caption and "split 2" in first["distilled_ways"].caption


def test_the_headline_tells_what_is_kept_and_what_it_costs():
    rows = [row for row in study_numbers([made_record()]) if row[3] == "51_distilled_rescoring"]
    texts = {row[0]: row[1] for row in rows}
    (kept,) = [text for name, text in texts.items() if "chosen T and c" in name and "K=5" in name]
    assert kept == "0.50 [0.50, 0.50]"
    (cost,) = [text for name, text in texts.items() if "detector's time" in name]
    assert cost == "0.5 %; CM-CLIP: 25.0 %"


def test_ways_and_shares_as_texts():
    assert way_text("targets_clip:0.5") == "CM-CLIP, few-shot visual targets (text 50%)"
    assert way_text("head:unknown") == "unknown" and way_text("none") == "none"
    assert kept_text(float("nan"), 0, 0) == "n/a"
    assert kept_text(0.5, float("nan"), float("nan")) == "0.50, no interval"
    assert kept_text(-0.5, float("-inf"), float("inf")) == "−0.50 [unbounded]"
