"""The few numbers of 50_open_vocabulary to look at first, in the form of `study_numbers`. Imports no torch."""

from collections.abc import Mapping, Sequence

from risf_core.report.open_vocabulary_controls import ALONE, answer_text, expectation_cells
from risf_core.report.open_vocabulary_rows import (
    CONTINUED,
    ILS,
    NAIVE,
    NOTEBOOK,
    RKD,
    SHARES,
    TRANSFER,
    TWICE,
    arm_cells,
    arm_of,
)
from risf_core.report.open_vocabulary_texts import share_text
from risf_core.report.statistics import notebook_of
from risf_core.report.table_format import difference_text, interval_text

# (arm, the arm that is subtracted, metric); the first six are what the second system claims
GAINS = (
    (RKD, CONTINUED, "nAP50"),
    (ILS, CONTINUED, "nAP50"),
    ("rkd_external", CONTINUED, "nAP50"),
    ("ils_external", CONTINUED, "nAP50"),
    (NAIVE, CONTINUED, "nAP50"),
    (TRANSFER, TWICE, "nAP50"),
    (TRANSFER, "naive_from_rkd", "nAP50"),
    (TRANSFER, "wt_free", "nAP50"),
    (TRANSFER, "wt_two_heads", "nAP50"),
    (TRANSFER, "wt_random_source", "nAP50"),
    (RKD, f"{RKD}_l1", "nAP50"),
    (RKD, CONTINUED, "bAP50"),
    (ILS, CONTINUED, "recall_novel_at_100"),
)
METRIC_TEXTS = {"recall_novel_at_100": "proposal recall@100 of novel objects"}


def open_vocabulary_numbers(records: Sequence[Mapping]) -> list[tuple]:
    """Gains of the arms and margins of the controls, with the fields of `HeadlineNumber`."""
    runs = tuple(sorted(record["run_id"] for record in records if notebook_of(record) == NOTEBOOK))
    return [*_gains(records, runs), *_controls(records, runs)] if runs else []


def _gains(records: Sequence[Mapping], runs: tuple[str, ...]) -> list[tuple]:
    rows = []
    for arm, other, metric in GAINS:
        cells = arm_cells(records, (arm,), metrics=(metric,), differences=(metric,), against={arm: other})
        cells = cells[(cells["against"] != "") & (cells["variant"] == "")]
        for row in cells.to_dict("records"):
            gain = row[f"{metric}_difference"], row[f"{metric}_difference_half_width"]
            n, up = int(row[f"{metric}_difference_n"]), int(row[f"{metric}_up"])
            what = f"{arm_of(arm).text}: gain over {arm_of(other).text}, {METRIC_TEXTS.get(metric, metric)}"
            text = difference_text(*gain, up, n, "complete", 0)
            rows.append((f"{what}{_place(row)}", text, n, NOTEBOOK, runs, *gain))
    return rows


def _controls(records: Sequence[Mapping], runs: tuple[str, ...]) -> list[tuple]:
    """What each control must show: the margin that must be above 0, and the rule's answer."""
    rows, cells = [], expectation_cells(records)
    is_main = (cells["variant"] == "") | (
        cells["control"] == ALONE
    )  # which has a stage 0 of its own by its nature
    cells = cells[(cells["must"] != "") & is_main].drop_duplicates(["split", "control", "metric", "must"])
    for row in cells.to_dict("records"):
        margin = row["margin"], row["margin_half_width"]
        write = share_text if row["metric"] in SHARES else interval_text
        what = f"{arm_of(row['control']).text}, {row['metric']}: {row['must']}; margin"
        text = f"{write(*margin, sign=True)} ({answer_text(row['answer'], row['collapses'])})"
        rows.append((f"{what}{_place(row)}", text, row["n"], NOTEBOOK, runs, *margin))
    return rows


def _place(row: Mapping) -> str:
    """The split where it is not the reported one."""
    return "" if row["split"] == 1 else f", split {row['split']}"
