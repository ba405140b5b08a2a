import math

import pandas as pd
import pytest
from scipy import stats

from risf_core.errors import RecordError
from risf_core.report.plan import Plan, all_cells
from risf_core.report.statistics import (
    fine_tuning_rows,
    interactions,
    mean_over_shots,
    ordered,
    pair,
    repeats_note,
    short_loss_names,
    student_interval,
)
from tests.synthetic_records import fine_tuning_record, fine_tuning_row


def test_interval_of_five_values_worked_by_hand():
    interval = student_interval([50, 52, 54, 56, 58])  # s = sqrt(10), t_4 = 2.7764, 2.7764 * sqrt(10 / 5)
    assert interval.mean == 54
    assert interval.half_width == pytest.approx(3.9265, abs=1e-4)
    assert interval.n == 5


def test_interval_uses_the_quantile_of_scipy_stats():
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=stats.tmean(values), scale=stats.sem(values))
    assert student_interval(values).half_width == pytest.approx((high - low) / 2, rel=1e-12)


def test_interval_leaves_out_missing_values_and_needs_two():
    assert student_interval([3.0, None, math.nan, 5.0]).n == 2
    single, empty = student_interval([3.0]), student_interval([])
    assert single.mean == 3.0 and math.isnan(single.half_width)
    assert empty.n == 0 and math.isnan(empty.mean)


def test_pairs_join_the_same_seed_and_leave_out_the_lonely():
    frame = pd.DataFrame(
        {"loss": ["ce", "ce", "ce", "bnrl", "bnrl"], "seed": [0, 1, 2, 2, 0], "nAP50": [50.0, 60, 70, 71, 53]}
    )
    pairs = pair(frame, "loss", "ce", "bnrl", "nAP50", keys=["seed"])
    assert pairs["seed"].tolist() == [0, 2]
    assert pairs["difference"].tolist() == [3.0, 1.0]


def test_interaction_is_the_difference_of_the_two_gains():
    cells = {("ce", "none"): 50.0, ("ce", "cm_clip"): 56.0, ("bnrl", "none"): 51.0, ("bnrl", "cm_clip"): 59.0}
    rows = [
        {"loss": loss, "rescoring": how, "seed": 0, "nAP50": value} for (loss, how), value in cells.items()
    ]
    rows.append({"loss": "ce", "rescoring": "none", "seed": 1, "nAP50": 40.0})  # has no partners
    found = interactions(pd.DataFrame(rows), "nAP50", keys=["seed"])
    assert found["seed"].tolist() == [0]
    assert found["interaction"].tolist() == [2.0]  # (59 - 51) - (56 - 50)


def test_mean_over_shots_takes_only_seeds_with_every_k():
    pairs = pd.DataFrame(
        {"arm": "kshot", "shots": [1, 5, 1], "seed": [0, 0, 1], "difference": [2.0, 4.0, 9.0]}
    )
    averages = mean_over_shots(pairs, ["arm"], "difference")
    assert averages["seed"].tolist() == [0]
    assert averages["difference"].tolist() == [3.0]


def test_known_names_come_first_then_the_users_own():
    assert ordered("loss", ["zeta", "bnrl", "focal", "ce"]) == ["ce", "bnrl", "focal", "zeta"]
    assert ordered("shots", [10, 2, "all", 1]) == [1, 2, 10, "all"]


def test_two_losses_of_one_name_keep_their_files():
    names = short_loss_names(["ce", "a.py:focal", "b.py:focal", "c.py:huber"])
    assert names == {
        "ce": "ce",
        "a.py:focal": "a.py:focal",
        "b.py:focal": "b.py:focal",
        "c.py:huber": "huber",
    }


def test_equal_rows_of_two_records_count_once():
    records = [fine_tuning_record([fine_tuning_row(nAP50=50.0)], name=name) for name in ("first", "second")]
    assert len(fine_tuning_rows(records)) == 1


def test_contradicting_rows_are_refused_with_both_records_named():
    records = [
        fine_tuning_record([fine_tuning_row(nAP50=value)], name=name)
        for name, value in (("first", 50.0), ("second", 51.0))
    ]
    with pytest.raises(RecordError, match="first-.*second-.*50.00 and 51.00.*seed=0"):
        fine_tuning_rows(records)


def test_other_parameters_make_a_variant_and_never_share_a_mean():
    main = fine_tuning_record([fine_tuning_row(seed=seed, nAP50=50.0) for seed in range(3)], name="main")
    other = fine_tuning_record([fine_tuning_row(seed=0, nAP50=40.0)], name="other", solver={"lr": 0.05})
    frame = fine_tuning_rows([other, main])
    assert frame.groupby("variant")["nAP50"].mean().to_dict() == {"": 50.0, "solver.lr=0.05": 40.0}


def test_a_parameter_that_follows_k_makes_no_variant():
    records = [
        fine_tuning_record(
            [fine_tuning_row(shots=shots)], name=f"{shots}shot", solver={"iterations": 100 * shots}
        )
        for shots in (1, 5)
    ]
    assert fine_tuning_rows(records)["variant"].unique().tolist() == [""]


def test_a_row_without_a_field_is_refused():
    row = fine_tuning_row()
    del row["arm"]
    record = fine_tuning_record([fine_tuning_row()])
    record["rows"] = [row]
    with pytest.raises(RecordError, match="no field arm"):
        fine_tuning_rows([record])


def test_repeats_of_a_draw_are_seeds_of_their_own_and_planned():
    rows = [fine_tuning_row(seed=0, nAP50=50.0 + repeat) | {"repeat": repeat} for repeat in range(3)]
    frame = fine_tuning_rows([fine_tuning_record(rows)])
    assert frame["seed"].nunique() == 3
    run = {
        "split": 1,
        "setting": "fsod",
        "arms": ["kshot"],
        "losses": ["ce"],
        "shots": 5,
        "seeds": [0],
        "repeats": 4,
    }
    cells = all_cells(frame, "nAP50", Plan.from_params([run]), rescorings=["none"])
    (cell,) = cells.to_dict("records")
    assert (cell["mean"], cell["n"], cell["expected"], cell["status"]) == (51.0, 3, 4, "incomplete")


def test_another_training_seed_is_another_variant():
    records = [
        fine_tuning_record([fine_tuning_row(seed=seed, nAP50=50.0) for seed in (0, 1)], seed=0),
        fine_tuning_record([fine_tuning_row(seed=0, nAP50=60.0)], name="again", seed=1),
    ]
    frame = fine_tuning_rows(records)
    assert sorted(frame["variant"]) == ["", "", "seed=1"]


def test_repeats_beside_a_grid_leave_its_row_complete():
    """As the heads of the COCO and VOC profiles offer it: ten trainings of seed 0 beside seeds 0 to 9."""
    run = {
        "split": 1,
        "setting": "fsod",
        "arms": ["kshot"],
        "losses": ["ce"],
        "shots": 5,
        "seeds": [0, 1, 2, 3],
    }
    plan = Plan.from_params([run | {"repeats": 1}, run | {"seeds": [0], "repeats": 3}])
    grid = [fine_tuning_row(seed=seed, nAP50=50.0) | {"repeat": 0} for seed in range(4)]
    again = [fine_tuning_row(seed=0, nAP50=50.0 + repeat) | {"repeat": repeat} for repeat in range(3)]
    records = [fine_tuning_record(grid, repeats=1), fine_tuning_record(again, name="again", repeats=3)]
    cells = all_cells(fine_tuning_rows(records), "nAP50", plan, rescorings=["none"])
    main, other = cells[["variant", "n", "expected", "status"]].to_dict("records")
    assert main == {"variant": "", "n": 4, "expected": 4, "status": "complete"}
    assert (other["variant"], other["n"], other["status"]) == ("repeats=3", 3, "complete")
    assert "Repeated trainings" in repeats_note(records) and repeats_note(records[:1]) == ""
