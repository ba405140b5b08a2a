"""The rule by which a learning rate is chosen, and the table that shows it."""

import pytest

from risf_core.errors import RecordError
from risf_core.report.rate_tables import rate_cells
from risf_core.studies.learning_rates import best_rates, mean_by_rate
from tests.synthetic_records import record


def row(loss, rate, value, *, seed=0, arm="kshot", shots=1):
    key = {"split": 2, "shots": shots, "setting": "fsod", "seed": seed, "arm": arm, "loss": loss, "lr": rate}
    return key | {"nAP50": value, "nAP": value / 2, "nAP75": 0.0}


def made(rows):
    return record("38_learning_rates", "learning_rates-split2-1shot", rows=rows)


ROWS = [
    *(row("ce", rate, value) for rate, value in ((0.1, 30.0), (0.2, 36.0), (0.5, 20.0))),
    *(row("ce", rate, value, arm="missing") for rate, value in ((0.1, 34.0), (0.2, 20.0), (0.5, 10.0))),
    *(row("bnrl", rate, 10.0) for rate in (0.2, 0.1)),
]


def test_the_best_mean_over_arms_is_chosen_and_the_smaller_rate_in_a_tie():
    assert mean_by_rate(ROWS)["ce"] == {0.1: 32.0, 0.2: 28.0, 0.5: 15.0}
    assert mean_by_rate(ROWS, arm="kshot")["ce"] == {0.1: 30.0, 0.2: 36.0, 0.5: 20.0}
    assert best_rates([made(ROWS)]) == {"ce": 0.1, "bnrl": 0.1}


def test_rates_tried_on_other_cells_are_not_compared():
    with pytest.raises(RecordError, match="learning rates of ce"):
        best_rates([made([*ROWS, row("ce", 1.0, 99.0)])])
    with pytest.raises(RecordError, match="no row"):
        best_rates([made([])])


def test_the_table_marks_the_same_choice_and_an_edge():
    cells = rate_cells([made(ROWS)])
    chosen = cells[cells["is_best"]].set_index(["arm", "loss"])
    assert chosen.loc[("all", "ce"), "lr"] == 0.1 and chosen.loc[("all", "ce"), "at_edge"]
    assert chosen.loc[("kshot", "ce"), "lr"] == 0.2 and not chosen.loc[("kshot", "ce"), "at_edge"]
