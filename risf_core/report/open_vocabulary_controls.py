"""What each control of 50_open_vocabulary must show, and whether it does: a rule, not an opinion. Imports no torch.

An expectation is a sum of measured numbers that must be above 0, such as "a quarter of RKD's gain, less the control's".
It is computed for each seed; the 95 % interval over seeds decides: yes (wholly above 0), no (wholly below), unclear.
A control that lost much AP of base classes says so beside its answer: that a destroyed detector gains nothing tells
little.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from risf_core.report.open_vocabulary_rows import (
    CONTINUED,
    FIDELITY,
    ILS,
    METRICS,
    NAIVE,
    PLACE,
    RKD,
    SHARES,
    arm_cells,
    arm_of,
    arm_rows,
    part_rows,
    spread_of,
)
from risf_core.report.open_vocabulary_texts import (
    GROUP_NOTE,
    gain_texts,
    interval_note,
    level_texts,
    share_text,
)
from risf_core.report.table_format import Table, interval_text, readable

ALONE, POINTS = "relation_alone", "points_alone"  # each loss from a fresh projection that nothing else trains
NO_GAIN = 0.25  # a control "gains nothing" if it gains less than this share of what the real arm gains
TEACHER, SWAPPED, RIGHT_NAMES = "teacher", "names permuted at test time", "names as they are"
YES, NO, UNCLEAR, HIGHER, LOWER = "yes", "no", "unclear", "higher", "lower"
COLLAPSE = 10.0  # points of bAP50 below the matched base, paired per seed: more than this is a collapse


class Expectation(NamedTuple):
    """One thing a control must show.

    Attributes:
        control: The arm it is about.
        metric: What is measured of it.
        must: What it must show, in words; "" where nothing is expected and the difference is told alone.
        compared: The words for the other side.
        terms: (weight, source, metric): their weighted sum must be above 0.
    """

    control: str
    metric: str
    must: str
    compared: str
    terms: tuple[tuple[float, str, str], ...]


def _no_gain(control: str, real: str, *, metric: str = "nAP50", base: str = CONTINUED) -> Expectation:
    """The control's gain over the base is less than a quarter of the real arm's."""
    terms = ((NO_GAIN, real, metric), (1 - NO_GAIN, base, metric), (-1.0, control, metric))
    must = f"gain less than {NO_GAIN:.0%} of the gain of: {arm_of(real).text}".replace("%", " %")
    return Expectation(control, metric, must, f"that share of the gain over: {arm_of(base).text}", terms)


def _near_chance(metric: str) -> Expectation:
    """Relations alone tell nothing of texts: above chance by less than a quarter of what points alone are."""
    share = f"{NO_GAIN * 100:.0f} %"
    return Expectation(
        ALONE,
        metric,
        f"chance accuracy: above chance by less than {share} of what L1 alone is",
        "chance, and that share of its lead over it",
        ((NO_GAIN, POINTS, metric), (1 - NO_GAIN, TEACHER, "chance"), (-1.0, ALONE, metric)),
    )


def _above(control: str, metric: str, other: str, must: str) -> Expectation:
    return Expectation(
        control, metric, must, arm_of(other).text, ((1.0, control, metric), (-1.0, other, metric))
    )


def _told(control: str, metric: str, other: str) -> Expectation:
    return _above(control, metric, other, "")


EXPECTATIONS = (
    Expectation(
        "relation_only",
        "cka_novel",
        "high CKA: more than half-way from the base to RKD",
        f"half-way from {arm_of(CONTINUED).text} to {arm_of(RKD).text}",
        ((1.0, "relation_only", "cka_novel"), (-0.5, CONTINUED, "cka_novel"), (-0.5, RKD, "cka_novel")),
    ),
    Expectation(  # not chance: with novel names masked, a projection that knows none of them is above it
        "relation_only",
        "zero_shot_novel",
        f"no more accuracy than the base by {NO_GAIN * 100:.0f} % of RKD's lead over the base",
        "the base, and that share of RKD's lead over it",
        (
            (NO_GAIN, RKD, "zero_shot_novel"),
            (1 - NO_GAIN, CONTINUED, "zero_shot_novel"),
            (-1.0, "relation_only", "zero_shot_novel"),
        ),
    ),
    _no_gain("relation_only", RKD),
    Expectation(
        ALONE,
        "cka_novel",
        f"high CKA: more than three quarters of: {arm_of(POINTS).text}",
        f"three quarters of: {arm_of(POINTS).text}",
        ((1.0, ALONE, "cka_novel"), (-0.75, POINTS, "cka_novel")),
    ),
    *(_near_chance(metric) for metric in ("zero_shot_novel", "zero_shot_base")),
    _no_gain("rkd_shuffled", RKD),
    _no_gain("rkd_random_teacher", RKD),
    Expectation(
        "rkd_base_boxes",
        "nAP50",
        f"gain less than: {arm_of(RKD).text}",
        arm_of(RKD).text,
        ((1.0, RKD, "nAP50"), (-1.0, "rkd_base_boxes", "nAP50")),
    ),
    _no_gain("ils_permuted", ILS),
    _no_gain("ils_base_labels", ILS),
    Expectation(
        SWAPPED,
        "AP50",
        f"less than {NO_GAIN * 100:.0f} % of the AP50 with the right names",
        "that share of it",
        ((NO_GAIN, RIGHT_NAMES, "AP50"), (-1.0, SWAPPED, "AP50")),
    ),
    _above("strict", "nAP50", CONTINUED, "gain over the base, though no novel name was known"),
    _told("strict", "nAP50", NAIVE),
    _told("cone", "nAP50", CONTINUED),
    _told("cone", "nAP50", RKD),
    _told("cone", "gradient_cosine", RKD),
    _told("rkd_published_weights", "nAP50", RKD),
    _told("relation_l2", "nAP50", RKD),
    _told("relation_l2_mean", "nAP50", RKD),
)
EXPECTATION_COLUMNS = [
    *PLACE, "control", "metric", "must", "compared", "value", "value_half_width", "compared_value", "margin",
    "margin_half_width", "n", "answer",
]  # fmt: skip
AP_COLUMNS = [
    "bAP50", "bAP50_half_width", "against", "nAP50_difference", "nAP50_difference_half_width", "nAP50_difference_n",
    "nAP50_up", "bAP50_difference",
]  # fmt: skip


def measured(records: Sequence[Mapping]) -> pd.DataFrame:
    """Every number an expectation may name: split, variant, seed, source, metric, value; missing ones left out."""
    arms = arm_rows(records).rename(columns={"arm": "source"})
    keys = ["split", "seed"]
    teacher = part_rows(records, "teacher", keys, ["chance", "zero_shot_novel"]).assign(source=TEACHER)
    swaps = part_rows(records, "swap", [*keys, "arm", "renderer", "vocabulary"], ["AP50"])
    swaps = swaps[(swaps["renderer"] == "own") & (swaps["vocabulary"] == "permuted")]
    swaps = swaps[swaps["arm"] == (RKD if RKD in set(swaps["arm"]) else swaps["arm"].max())]  # one arm's
    right = arms[arms["source"].isin(swaps["arm"])].assign(source=RIGHT_NAMES)
    swaps = swaps.assign(source=SWAPPED)
    parts = []
    for frame, metrics in (
        (arms, [*METRICS, *FIDELITY]),
        (teacher, ["chance", "zero_shot_novel"]),
        (swaps, ["AP50"]),
        (right, ["AP50"]),
    ):
        long = frame.reindex(columns=[*PLACE, "seed", "source", *metrics])
        parts.append(long.melt([*PLACE, "seed", "source"], metrics, "metric", "value"))
    return pd.concat([part.astype({"value": float}) for part in parts], ignore_index=True).dropna(
        subset="value"
    )


def answer_of(mean: float, half_width: float, *, is_test: bool = True) -> str:
    """The rule: yes, no or unclear by the interval; of what is only told: higher, lower or unclear."""
    if math.isnan(half_width):
        return UNCLEAR
    if mean - half_width > 0:
        return YES if is_test else HIGHER
    return (NO if is_test else LOWER) if mean + half_width < 0 else UNCLEAR


def expectation_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Every expectation whose numbers are all there, for each split and variant, with the rule's answer.

    Returns:
        `EXPECTATION_COLUMNS`: value is the control's own number, compared_value what it is set against, margin the
        weighted sum that must be above 0, paired per seed; n counts the seeds that have all of its numbers. Then
        `AP_COLUMNS`: the control's bAP50 and its paired differences to its matched base, NaN and "" without one; and
        collapses: whether its bAP50 is lower by more than `COLLAPSE` points.
    """
    numbers, rows = measured(records), []
    for place, own in numbers.groupby(list(PLACE), sort=False):
        table = own.pivot_table(index="seed", columns=["source", "metric"], values="value", aggfunc="first")
        for one in EXPECTATIONS:
            if any((source, metric) not in table for _, source, metric in one.terms):
                continue
            whole = table.dropna(subset=[(source, metric) for _, source, metric in one.terms])
            margin = sum(weight * whole[source, metric] for weight, source, metric in one.terms)
            value = whole[one.control, one.metric]
            weight = next(
                w for w, source, metric in one.terms if (source, metric) == (one.control, one.metric)
            )
            mean, half_width, n, _ = spread_of(margin)
            compared = float((value - margin / weight).mean())
            answer = answer_of(mean, half_width, is_test=bool(one.must))
            rows.append(
                (*place, one.control, one.metric, one.must, one.compared, *spread_of(value)[:2], compared)
            )
            rows[-1] += (mean, half_width, n, answer)
    cells = pd.DataFrame(rows, columns=EXPECTATION_COLUMNS)
    differences = ("nAP50", "bAP50")
    levels = arm_cells(records, metrics=("bAP50",), differences=differences).rename(
        columns={"arm": "control"}
    )
    cells = cells.merge(levels[[*PLACE, "control", *AP_COLUMNS]], on=[*PLACE, "control"], how="left")
    cells["against"] = cells["against"].fillna("")
    return cells.assign(collapses=cells["bAP50_difference"] < -COLLAPSE)


def answer_text(answer: str, collapses: bool) -> str:
    """The answer, and whether the detector lost its base classes beside it."""
    if not collapses:
        return answer
    return f"{answer}{', but' if answer == YES else ';'} base AP collapses"


def expectations_table(records: Sequence[Mapping]) -> Table:
    """The negative controls, what each must show, and whether it does."""
    cells = expectation_cells(records)
    display = cells[[*PLACE]].copy()
    display["control"] = [arm_of(name).text for name in cells["control"]]
    display["must show"] = [must or "(nothing expected)" for must in cells["must"]]
    display["metric"] = cells["metric"]
    display["measured"] = _texts(cells, "value", "value_half_width")
    display["compared with"] = [
        f"{_level(metric, value)}: {text}"
        for metric, value, text in zip(cells["metric"], cells["compared_value"], cells["compared"])
    ]
    display["margin"] = _texts(cells, "margin", "margin_half_width", sign=True)
    display["bAP50 (%)"] = level_texts(cells, "bAP50")
    display["nAP50 − matched base"] = gain_texts(cells)
    display["n"] = [str(n) for n in cells["n"]]
    display["does it?"] = [answer_text(*pair) for pair in zip(cells["answer"], cells["collapses"])]
    caption = (
        "Controls of region distillation and image-level supervision. The margin is what the "
        "control has more (of a gain that must not be: less) than what it is compared with, paired per seed. The rule, "
        "fixed in code: yes if the margin's 95 % interval lies wholly above 0, no if wholly below, else unclear, also "
        "where one seed gives no interval; where nothing is expected: higher, lower or unclear. "
        "Beside classification base texts fix the rotation that relations leave open; with a fresh projection that "
        "nothing else trains (regions: annotated boxes) they do not. A control gains "
        f"nothing if it gains less than {NO_GAIN * 100:.0f} % of what the real arm gains over the base that was "
        "trained for as many steps, the matched base. bAP50 and nAP50 − matched base are the control's own, whatever "
        f"the metric of the row; where its bAP50 is more than {COLLAPSE:g} points below the matched base's in the mean "
        "over seeds, its base AP collapses: that a destroyed detector gains nothing is no evidence about the loss. "
        "–: no detector of its own, or no base of the same parameters. Chance is one divided by the number of names. "
        "AP and accuracy in percent, CKA and "
        f"cosine from 0 (−1) to 1. {GROUP_NOTE} {interval_note(cells)}"
    )
    return Table("open_vocabulary_controls", caption, cells, readable(display))


def _texts(cells: pd.DataFrame, mean: str, half_width: str, *, sign: bool = False) -> list[str]:
    values = cells[["metric", mean, half_width]].itertuples(index=False, name=None)
    return [
        share_text(*pair, sign=sign) if metric in SHARES else interval_text(*pair, sign=sign)
        for metric, *pair in values
    ]


def _level(metric: str, value: float) -> str:
    return (
        share_text(value, 0.0).split(" ")[0] if metric in SHARES else interval_text(value, 0.0).split(" ")[0]
    )
