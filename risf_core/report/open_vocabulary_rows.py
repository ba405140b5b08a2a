"""The arms of 50_open_vocabulary: their names, what each is set against, and means and paired differences over seeds.

Pure functions of records; imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from risf_core.report.statistics import (
    drop_repeats,
    notebook_of,
    rows_of,
    sort_cells,
    student_interval,
    variants,
)
from risf_core.report.table_format import NOT_PLANNED

NOTEBOOK = "50_open_vocabulary"
# Parameters that may differ between runs of one table: what a seed has of its own, and which arms a run holds.
OWN_TO_A_RUN = ("seed", "base", "external", "kept", "swapped")
PLACE = ("split", "variant")
BASE, CONTINUED, TWICE = "base", "base_continued", "base_twice"
RKD, ILS, NAIVE, TRANSFER = "rkd_rpn", "ils_max_score", "naive", "weight_transfer"
METRICS = (*(f"{group}AP{iou}" for group in ("n", "b", "") for iou in ("", "50", "75")), "APr", "APc", "APf")
MAIN_METRICS = ("nAP50", "bAP50", "AP50")
FIDELITY = (
    "zero_shot_novel", "zero_shot_own_novel", "zero_shot_base", "head_novel", "cosine_novel", "cosine_base",
    "cka_novel", "cka_base", "spearman_novel", "gradient_cosine",
)  # fmt: skip
RECALLS = ("recall_novel_at_100", "recall_base_at_100")
COSTS = ("iterations", "total_iterations", "box_images", "cpu_seconds")
SHARES = frozenset(
    name for name in FIDELITY if not name.startswith(("zero_shot", "head"))
)  # 0 to 1, not percent


class Arm(NamedTuple):
    """How an arm is called, to which family it belongs, and the base trained for as many steps (None: itself one)."""

    text: str
    family: str
    reference: str | None = CONTINUED


_ORACLE = "ORACLE boxes"
ARMS = {
    BASE: Arm("base (S0)", "base", None),
    CONTINUED: Arm("base, trained on", "base", None),
    "rkd_rpn_l1": Arm("RKD, RPN boxes, L1", "RKD"),
    RKD: Arm("RKD, RPN boxes, L1 + relations", "RKD"),
    "rkd_objectness_l1": Arm("RKD, objectness boxes, L1", "RKD"),
    "rkd_objectness": Arm("RKD, objectness boxes, L1 + relations", "RKD"),
    "rkd_external_l1": Arm("RKD, external, L1", "RKD"),
    "rkd_external": Arm("RKD, external, L1 + relations", "RKD"),
    "rkd_external_filtered_l1": Arm("RKD, external without novel boxes, L1", "RKD"),
    "rkd_external_filtered": Arm("RKD, external without novel boxes, L1 + relations", "RKD"),
    "rkd_oracle": Arm(f"RKD, {_ORACLE}, L1 + relations", "oracle"),
    "ils_max_size": Arm("ILS, largest RPN box", "ILS"),
    ILS: Arm("ILS, RPN box of the highest class score", "ILS"),
    "ils_max_objectness": Arm("ILS, RPN box of the highest objectness", "ILS"),
    "ils_external": Arm("ILS, external", "ILS"),
    "ils_external_filtered": Arm("ILS, external without novel boxes", "ILS"),
    "ils_oracle": Arm(f"ILS, {_ORACLE}", "oracle"),
    NAIVE: Arm("RKD + ILS, one head (naive)", "both"),
    TRANSFER: Arm("RKD + ILS, weight transfer", "both", TWICE),
    TWICE: Arm("base, trained on twice", "base", None),
    "naive_from_rkd": Arm("RKD + ILS, one head, from RKD", "both", TWICE),
    "wt_free": Arm("free W_P, same residual", "control", TWICE),
    "wt_two_heads": Arm("two heads only", "control", TWICE),
    "wt_freeze": Arm("W_D frozen only", "control", TWICE),
    "wt_random_source": Arm("transfer from a random frozen W_D", "control", TWICE),
    "relation_only": Arm("relations without L1, beside classification", "control"),
    "relation_alone": Arm("relations alone, fresh f", "control"),
    "points_alone": Arm("L1 alone, fresh f", "control"),
    "relation_l2": Arm("relations, rows of Euclidean norm (l2)", "control"),
    "relation_l2_mean": Arm("the same, divided by N² (l2_mean)", "control"),
    "rkd_published_weights": Arm("RKD with the published weights", "control"),
    "rkd_shuffled": Arm("teacher's rows shuffled", "control"),
    "rkd_random_teacher": Arm("teacher with random weights", "control"),
    "rkd_base_boxes": Arm("RKD on annotated base boxes alone", "control"),
    "ils_permuted": Arm("image labels permuted across images", "control"),
    "ils_base_labels": Arm("image labels of base classes alone", "control"),
    "strict": Arm("strict: novel names unknown in training", "control"),
    "cone": Arm("RKD, texts moved into a narrow cone", "control"),
    "cone_base": Arm("base, texts moved into a narrow cone", "control"),
}
SIDES = {
    "rpn": "RPN",
    "objectness": "objectness",
    "external_filtered": "external without novel boxes",
    "external": "external",
    "base_boxes": "annotated base boxes",
    "oracle": _ORACLE,
}


def arm_of(name: str) -> Arm:
    """The known arm, or a user's own under its name, set against the base trained on."""
    return ARMS.get(name, Arm(name, "control"))


def part_rows(
    records: Sequence[Mapping], part: str, keys: Sequence[str], values: Sequence[str]
) -> pd.DataFrame:
    """Rows of one part of 50_open_vocabulary in a fixed order; an empty frame with these columns where there are none.

    Returns:
        The keys, ``variant`` ("" for the parameters of most runs of a split, else what differs) and the values as
        numbers; arms stand in the order of `ARMS`.

    Raises:
        RecordError: If a row lacks a key, or two records give different values for one row.
    """
    own = [record for record in records if notebook_of(record) == NOTEBOOK]
    of_part = [{**record, "rows": [row for row in record["rows"] if row["part"] == part]} for record in own]
    frame = rows_of(of_part, NOTEBOOK, required=keys)
    if frame.empty:
        return pd.DataFrame(columns=[*PLACE, *(key for key in keys if key != "split"), *values])
    params = {record["run_id"]: record.get("params") or {} for record in own}
    named = frame.assign(setting="", loss="", shots=0)
    frame["variant"] = variants(named, params, factors=OWN_TO_A_RUN)
    for name in values:
        frame[name] = pd.to_numeric(frame[name]) if name in frame else math.nan
    arms = list(ARMS)
    if "arm" in frame:
        frame["place"] = [arms.index(name) if name in arms else len(arms) for name in frame["arm"]]
    frame = drop_repeats(frame, [*keys, "variant"], list(values))
    order = [*PLACE, *(["place"] if "arm" in frame else []), *(key for key in keys if key not in PLACE)]
    return sort_cells(frame, order).drop(columns="place", errors="ignore")


def arm_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """One row for each (split, variant, arm, seed) with every metric as a number.

    ``total_iterations`` adds the steps of the arms that an arm started from; those of stage 0, which all share, are
    left out.
    """
    keys, values = (
        ["split", "seed", "arm"],
        [*METRICS, *RECALLS, *FIDELITY, "iterations", "box_images", "cpu_seconds"],
    )
    frame = part_rows(records, "arm", keys, values)
    for name in ("provider", "sees_novel", "settings"):
        known = frame[name] if name in frame else [None] * len(frame)
        frame[name] = [value if value or name != "settings" else {} for value in known]
    frame["total_iterations"] = math.nan
    for _, own in frame.groupby([*PLACE, "seed"], sort=False):
        steps = dict(zip(own["arm"], own["iterations"]))
        starts = {arm: settings.get("start", BASE) for arm, settings in zip(own["arm"], own["settings"])}
        frame.loc[own.index, "total_iterations"] = [_total(arm, steps, starts) for arm in own["arm"]]
    return frame


def _total(arm: str, steps: Mapping[str, float], starts: Mapping[str, str]) -> float:
    """Steps of an arm and of what it started from; NaN where one of these has no row."""
    start = starts.get(arm, BASE)
    before = 0.0 if start in (BASE, arm) else _total(start, steps, starts)
    return steps.get(arm, math.nan) + before


def spread_of(values: pd.Series) -> tuple[float, float, int, int]:
    """Mean, half-width of the interval, n, and how many values lie above 0."""
    interval = student_interval(values)
    return interval.mean, interval.half_width, interval.n, int((values > 0).sum())


def arm_cells(
    records: Sequence[Mapping],
    arms: Sequence[str] | None = None,
    *,
    metrics: Sequence[str] = MAIN_METRICS,
    differences: Sequence[str] = ("nAP50",),
    against: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Means of each arm over seeds, and its paired differences to another arm of the same seeds.

    Args:
        records: Of one profile.
        arms: Those wanted, in this order; None: all, in the order of `ARMS`.
        metrics: Columns to average.
        differences: Columns to subtract.
        against: Arm to the arm it is set against; None: its iteration-matched base.

    Returns:
        split, variant, arm, provider, sees_novel, n, ``{metric}``, ``{metric}_half_width``, against ("" for none),
        ``{metric}_difference``, ``_difference_half_width``, ``_difference_n``, ``_up``, and is_matched: whether both
        sides of the difference trained for equally many steps.
    """
    frame = arm_rows(records)
    wanted = (
        list(dict.fromkeys(frame["arm"])) if arms is None else [a for a in arms if a in set(frame["arm"])]
    )
    rows = []
    for place, own in frame.groupby(list(PLACE), sort=False):
        for arm in (name for name in wanted if (own["arm"] == name).any()):
            side = own[own["arm"] == arm]
            other = arm_of(arm).reference if against is None else against.get(arm)
            rows.append((*place, arm, *(_text(side[name]) for name in ("provider", "sees_novel")), len(side)))
            rows[-1] += tuple(value for metric in metrics for value in spread_of(side[metric])[:2])
            rows[-1] += _differences(side, own[own["arm"] == other], other or "", differences)
    columns = [*PLACE, "arm", "provider", "sees_novel", "n"]
    columns += [f"{metric}{end}" for metric in metrics for end in ("", "_half_width")]
    ends = ("_difference", "_difference_half_width", "_difference_n", "_up")
    columns += ["against", "is_matched", *(f"{metric}{end}" for metric in differences for end in ends)]
    return pd.DataFrame(rows, columns=columns)


def _text(values: pd.Series) -> str:
    """The value of all rows; several are joined, none is a dash."""
    return (
        ", ".join(dict.fromkeys(str(value) for value in values if value and not pd.isna(value)))
        or NOT_PLANNED
    )


def _differences(side: pd.DataFrame, other: pd.DataFrame, name: str, metrics: Sequence[str]) -> tuple:
    """Fields against, is_matched, and for each metric mean, half-width, n and up of the differences."""
    pairs = side.merge(other, on="seed", suffixes=("", "_other"), validate="one_to_one")
    is_matched = (
        bool((pairs["total_iterations"] == pairs["total_iterations_other"]).all()) if len(pairs) else False
    )
    values = (spread_of(pairs[metric] - pairs[f"{metric}_other"]) for metric in metrics)
    return (name if len(pairs) else "", is_matched, *(value for four in values for value in four))
