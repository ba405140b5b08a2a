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
PARAMS = {
    "select_split": 2,
    "cm_clip": {"temperature": 100.0, "c": 0.7},
    "temperatures": [1.0, 2.0, 100.0],
    "c": [0.1, 0.3, 0.9],
}
NONE = {0: 30.0, 1: 32.0, 2: 34.0}
GAINS = {  # over none, of each draw
    ("cm_clip", "published"): (10.0, 11.0, 12.0),
    ("cm_clip", "chosen"): (20.0, 22.0, 24.0),
    ("head:mlp", "chosen"): (10.0, 11.0, 12.0),
    ("head:mlp", "published"): (4.0, 4.0, 4.0),
    ("head:linear", "chosen"): (6.0, 6.0, 6.0),
    ("head:no_novel", "chosen"): (5.0, 5.5, 6.0),
    ("head:as_many", "chosen"): (8.0, 9.0, 9.4),
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
    for name, images, novel in (("mlp", 380, 200), ("no_novel", 180, 0), ("as_many", 180, 90)):
        rows.append({"part": "head", "head": name, "images": images, "images_with_novel": novel, "loss": 0.3})
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
        "params": PARAMS | {"split": split},
        "rows": rows,
        "environment": {"costs": costs},
        "metrics": {},
    }


def metrics(value: float) -> dict:
    return {"nAP50": value, "nAP": value / 2, "nAP75": value / 3}


def test_the_share_kept_is_told_like_for_like_and_the_mixed_one_last():
    """10, 11, 12 of 20, 22, 24 points is half; of CM-CLIP as published, 10, 11, 12, all, and that is temperature."""
    cells = retention_cells([made_record()])
    assert cells["shots"].tolist() == [1, 5] and cells["n"].tolist() == [3, 3]
    row = cells.iloc[0]
    assert (row["none"], row["distilled"], row["cm_clip_chosen"]) == (32.0, 43.0, 54.0)
    names = ("kept_mixed", "kept_mixed_low", "kept_mixed_high", "kept_chosen", "kept_chosen_low")
    assert [row[name] for name in names] == pytest.approx([1, 1, 1, 0.5, 0.5])
    assert row["kept_published"] == pytest.approx(4 / 11) and row["distilled_published"] == 36.0
    assert [row["kept_no_novel"], row["kept_as_many"]] == pytest.approx([0.25, 0.4])
    text = retention_table([made_record()]).display.iloc[0]
    assert text["kept, both tuned"] == "0.50 [0.50, 0.50]" and text["kept, both as published"].startswith(
        "0.36"
    )
    assert text["kept without novel, both tuned"] == "0.25 [0.25, 0.25]"
    assert text["kept on as many images, both tuned"].startswith("0.40 [0.3")
    assert text.index[-1] == "tuned head against CM-CLIP as published: mostly temperature"


def test_heads_that_were_not_trained_keep_nothing_that_is_known():
    record = made_record()
    record["rows"] = [
        row for row in record["rows"] if row.get("way") not in ("head:no_novel", "head:as_many")
    ]
    assert retention_table([record]).display["kept without novel, both tuned"].tolist() == ["n/a", "n/a"]
    names = [row[0] for row in study_numbers([record])]
    assert names and not [name for name in names if "without images that show novel" in name]


def test_captions_take_their_values_from_the_parameters():
    record, other = made_record(), made_record(split=3)
    for params in (record["params"], other["params"]):
        params |= {"select_split": 3, "cm_clip": {"temperature": 50.0, "c": 0.6}}
    for text in (
        retention_table([record]).caption,
        ways_table([record]).caption,
        distilled_figures([record])["distilled_retention"].caption,
    ):
        assert "T = 50, c = 0.6" in text and "split 3" in text and "split 2" not in text
        assert "200 of 380 of the base images" in text
    other["params"]["cm_clip"] = {"temperature": 100.0, "c": 0.6}
    assert "T = 50 or 100, c = 0.6" in retention_table([record, other]).caption
    other["params"] = record["params"] = {"split": 1}
    assert "T and c as published" in retention_table([record, other]).caption


@pytest.mark.parametrize("c, is_noise", [(0.1, True), (0.5, False)])
def test_permuted_probabilities_lose_by_construction_where_the_detector_has_little_of_the_score(c, is_noise):
    record = made_record()
    for row in record["rows"]:
        if row["part"] == "choice":
            row["c"] = c
    caption = ways_table([record]).caption
    assert ("large by construction" in caption) == is_noise
    assert ("With the chosen c of 0.1" in caption) == is_noise


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
    assert choices["c"].tolist() == ["0.1 [at its end]"] * 3
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
    assert set(display["c"]) == {"0.1"}  # what was given lies at no end of a search
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
    kept = {name: text for name, text in texts.items() if name.startswith("share of CM-CLIP's gain")}
    tuned, published, no_novel, as_many = kept  # like for like first, at K = 5 alone
    assert kept[tuned] == "0.50 [0.50, 0.50]" and "both chosen in the same way" in tuned
    assert kept[published].startswith("0.36 [") and "both as published (T = 100, c = 0.7)" in published
    assert kept[no_novel] == "0.25 [0.25, 0.25]" and "without images that show novel objects" in no_novel
    assert kept[as_many].startswith("0.40 [0.3") and all(name.endswith("K=5, novel names") for name in kept)
    (cost,) = [text for name, text in texts.items() if "detector's time" in name]
    assert cost == "0.5 %; CM-CLIP: 25.0 %"


def test_ways_and_shares_as_texts():
    assert way_text("targets_clip:0.5") == "CM-CLIP, few-shot visual targets (text 50%)"
    assert way_text("head:unknown") == "unknown" and way_text("none") == "none"
    assert kept_text(float("nan"), 0, 0) == "n/a"
    assert kept_text(0.5, float("nan"), float("nan")) == "0.50, no interval"
    assert kept_text(-0.5, float("-inf"), float("inf")) == "−0.50 [unbounded]"
