import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from risf_core.report.plan import Plan
from risf_core.report.statistics import REPRODUCTION
from risf_core.report.table_format import escape_latex, number, text_table, to_markdown, write_table
from risf_core.tables import (
    all_tables,
    equal_boxes_note,
    gfsod_table,
    interaction_table,
    main_table,
    paired_table,
    per_class_table,
    wide_table,
)
from tests.synthetic_records import all_records, fine_tuning_record, fine_tuning_records, fine_tuning_row

CE, BNRL = (50, 52, 54, 56, 58), (51, 52, 56, 55, 61)  # differences 1, 0, 2, -1, 3


def two_losses(*, ce=CE, bnrl=BNRL, **more) -> list[dict]:
    """ce and bnrl without re-scoring, one value for each seed."""
    values = [("ce", seed, value) for seed, value in enumerate(ce)]
    values += [("bnrl", seed, value) for seed, value in enumerate(bnrl)]
    rows = [fine_tuning_row(loss=loss, seed=seed, nAP50=float(value), **more) for loss, seed, value in values]
    return [fine_tuning_record(rows)]


def cell(table, **keys) -> pd.Series:
    """The one row of a table's data with these values."""
    rows = table.data
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_main_table_holds_the_hand_worked_interval():
    table = main_table(two_losses())
    row = cell(table, loss="ce")
    assert (row["mean"], row["n"], row["status"]) == (54.0, 5, "complete")
    assert row["half_width"] == pytest.approx(3.9265, abs=1e-4)
    assert table.display["K=5"].iloc[0] == "54.0 ± 3.9 (5)"


def test_paired_difference_worked_by_hand():
    table = paired_table(two_losses())
    row = cell(table, comparison="bnrl − ce", given="none", shots=5)
    assert row["mean"] == 1.0
    assert row["half_width"] == pytest.approx(1.9632, abs=1e-4)  # t_4 * sqrt(2.5 / 5)
    assert (row["up"], row["n"]) == (3, 5)
    assert table.display["K=5"].iloc[0] == "+1.0 ± 2.0 (3/5 up)"


def test_pairs_never_cross_arms():
    records = two_losses(ce=(50, 50), bnrl=())
    records += [fine_tuning_record([fine_tuning_row(loss="bnrl", arm="missing", nAP50=60.0)], name="other")]
    assert (paired_table(records).data["n"] == 0).all()


def test_mean_over_k_counts_seeds_and_not_cells():
    rows = [
        fine_tuning_row(shots=shots, seed=seed, loss=loss, nAP50=50.0 + (loss == "bnrl") * gain)
        for shots, gain in ((1, 1.0), (5, 3.0))
        for seed in range(4)
        for loss in ("ce", "bnrl")
    ]
    row = cell(paired_table([fine_tuning_record(rows)]), shots="all")
    assert (row["mean"], row["half_width"], row["n"]) == (2.0, 0.0, 4)


def test_interaction_table_worked_by_hand():
    values = {("ce", "none"): 50, ("ce", "cm_clip"): 56, ("bnrl", "none"): 51, ("bnrl", "cm_clip"): 59}
    rows = [
        fine_tuning_row(
            loss=loss, rescoring=how, seed=seed, nAP50=value + seed * (how == "cm_clip" and loss == "bnrl")
        )
        for (loss, how), value in values.items()
        for seed in (0.0, 1.0)
    ]
    row = interaction_table([fine_tuning_record(rows)]).data.iloc[0]  # 2 for seed 0, 3 for seed 1
    assert row["interaction_mean"] == 2.5
    assert row["interaction_half_width"] == pytest.approx(12.7062 * 0.5, abs=1e-3)  # t_1 * s / sqrt(2)
    assert row["ce_none_mean"] == 50.0


def test_missing_runs_and_missing_seeds_are_marked():
    rows = [fine_tuning_row(shots=5, seed=seed) for seed in range(5)]
    rows += [fine_tuning_row(shots=1, seed=seed, nAP50=30.0) for seed in range(3)]
    rows += [fine_tuning_row(shots=5, seed=seed, loss="bnrl") for seed in range(5)]
    table = main_table([fine_tuning_record(rows)])
    shown = table.display.set_index("loss")
    assert shown.loc["ce", "K=1"] == "30.0 ± 0.0 (3 of 5!)"
    assert shown.loc["bnrl", "K=1"] == "NO RUN"
    assert cell(table, loss="bnrl", shots=1)["status"] == "no run"
    differences = paired_table([fine_tuning_record(rows)]).display
    assert differences["K=1"].tolist() == ["NO RUN"]


def test_a_list_of_runs_tells_missing_from_never_asked_for():
    params = {"split": 1, "setting": "fsod", "arms": ["kshot"], "seeds": [0, 1], "clip": None}
    runs = [
        params | {"losses": ["ce"], "shots": 1},
        params | {"losses": ["ce", "ideas/focal.py:focal"], "shots": 5},
    ]
    records = [fine_tuning_record([fine_tuning_row(shots=1, seed=seed, nAP50=30.0) for seed in (0, 1)])]
    shown = main_table(records, plan=Plan.from_params(runs)).display.set_index("loss")
    assert shown.loc["ce", ["K=1", "K=5"]].tolist() == ["30.0 ± 0.0 (2)", "NO RUN"]
    assert shown.loc["focal", ["K=1", "K=5"]].tolist() == ["–", "NO RUN"]


def test_a_mean_over_k_is_not_shown_where_a_wanted_k_is_missing():
    rows = [
        fine_tuning_row(shots=k, seed=seed, rescoring=how)
        for k in (1, 2)
        for seed in (0, 1)
        for how in REPRODUCTION
    ]
    params = {
        "split": 1,
        "setting": "fsod",
        "arms": ["kshot"],
        "seeds": [0, 1],
        "losses": ["ce"],
        "clip": "tiny",
    }
    for shots, shown in (([1, 2], "2/2 up"), ([1, 2, 5], "NO RUN")):
        display = paired_table(
            [fine_tuning_record(rows)], plan=Plan.from_params([params | {"shots": shots}])
        ).display
        assert shown in display["mean over K"].iloc[0]


def test_a_users_loss_appears_with_its_pairs():
    tables = {
        table.name: table for table in all_tables(fine_tuning_records(seeds=2, user_loss="my/own.py:huber"))
    }
    assert "huber" in set(tables["main_nAP50"].data["loss"])
    pairs = set(tables["paired_nAP50"].data["comparison"])
    assert {"huber − ce", "huber − bnrl", "bnrl − ce", "ce_bg − ce", "CM-CLIP − none"} <= pairs


def test_the_wider_label_space_stays_out_of_the_reproduction():
    records = fine_tuning_records(seeds=2)
    for table in (main_table(records), per_class_table(records), gfsod_table(records)):
        assert "cm_clip_wide" not in set(table.data["rescoring"])
    assert "cm_clip_wide-none" in set(wide_table(records).data["difference"])


def test_a_class_without_ground_truth_is_not_available():
    classes = {"cat": {"AP50": 40.0}, "queen": {"AP50": None}}
    rows = [fine_tuning_row(seed=seed, per_class=classes) for seed in (0, 1)]
    display = per_class_table([fine_tuning_record(rows)]).display
    assert display[["cat", "queen"]].iloc[0].tolist() == ["40.0 ± 0.0", "n/a"]


def test_formats_of_numbers():
    assert number(-0.04, sign=True) == "+0.0"
    assert number(-3.25) == "−3.2"
    assert number(7) == "7"
    assert number(None) == "n/a"
    assert escape_latex("50% of a_b & ± −1") == r"50\% of a\_b \& $\pm$ $-$1"
    assert "a\\|b" in to_markdown(pd.DataFrame({"x": ["a|b"]}))


def test_written_csv_has_fixed_digits_and_no_negative_zero(tmp_path):
    paths = write_table(
        pd.DataFrame({"value": [-0.00001, 1 / 3], "n": [1, 2]}), tmp_path, "small", "A caption."
    )
    assert [path.name for path in paths] == ["small.csv", "small.md", "small.tex"]
    assert paths[0].read_bytes() == b"value,n\n0.0000,1\n0.3333,2\n"
    assert "A caption." in paths[1].read_text() and r"\toprule" in paths[2].read_text()


def test_no_record_at_all_gives_empty_tables():
    assert all(len(table.data) == 0 for table in all_tables([]))


WRITE_ALL = """
import json, sys
from pathlib import Path
from risf_core.figures import backbones_figure, main_figure
from risf_core.tables import all_tables
records = json.loads(Path(sys.argv[1]).read_text())
for table in all_tables(records):
    table.write(Path(sys.argv[2]))
for name, drawing in (("main", main_figure(records)), ("backbones", backbones_figure(records))):
    drawing.save(Path(sys.argv[2]), name)
assert "torch" not in sys.modules
"""


def test_fresh_processes_write_identical_bytes(tmp_path):
    names = ("1shot", "5shot", "backbones", "base", "clip")  # enough for every kind of table, and quick
    records = [record for record in all_records(seeds=2) if any(name in record["run_id"] for name in names)]
    folders = []
    for number_of_run, order in enumerate((records, records[::-1])):
        source, folder = tmp_path / f"{number_of_run}.json", tmp_path / f"out{number_of_run}"
        source.write_text(json.dumps(order))
        environment = os.environ | {
            "PYTHONHASHSEED": str(number_of_run),
            "TZ": ("UTC", "Asia/Tokyo")[number_of_run],
        }
        command = [sys.executable, "-c", WRITE_ALL, str(source), str(folder)]
        folders.append((folder, subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[1])))
    assert [process.wait(timeout=120) for _, process in folders] == [0, 0]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder, _ in folders)
    assert first.keys() == second.keys() and "main.png" in first and "main_nAP50.csv" in first
    assert [name for name in first if first[name] != second[name]] == []


def test_rows_as_texts_have_whole_numbers_and_name_what_is_missing():
    table = text_table(
        [{"class": "sun", "split": 1, "share": 97.22222}, {"class": "cat", "split": None, "share": None}]
    )
    assert table.values.tolist() == [["sun", "1", "97.2"], ["cat", "n/a", "n/a"]]


def test_the_released_head_start_stands_beside_ours_in_the_table_of_gfsod():
    rows = [fine_tuning_row(seed=seed, setting="gfsod", nAP50=50.0 + seed) for seed in (0, 1)]
    worse = [fine_tuning_row(seed=seed, setting="gfsod", nAP50=40.0 + seed) for seed in (0, 1)]
    heads = {"copied": rows, "released": worse}
    records = [fine_tuning_record(own, name=start, head={"start": start}) for start, own in heads.items()]
    display = gfsod_table(records).display
    assert dict(zip(display["variant"], display["nAP50"])) == {
        "main": "50.5 ± 6.4",
        "head.start=released": "40.5 ± 6.4",
    }


def test_equal_boxes_are_counted_over_all_rows_that_say_it():
    row = {"crops": {"boxes": 300, "equal": 2, "shared": 0, "dropped": 0, "encoded": 298}}
    note = equal_boxes_note([{"rows": [row, row, {"nAP50": 1.0}]}, {"rows": [row]}])
    assert note == " Of 900 boxes in all, 6 equal another one of their image."
    assert equal_boxes_note([{"rows": [{"nAP50": 1.0}]}]) == ""
