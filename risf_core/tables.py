"""The tables of the fine-tuning runs: means over seeds, paired differences, the 2 x 2, classes, gFSOD, wider labels.

A table is a pure function of records. ``python -m risf_core.tables --profile mini`` writes all tables and figures
from the records alone; ``--show`` prints the headline, ``--publish`` copies what is to be committed. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from risf_core.report.backbone_tables import backbones_at_accuracy_table, backbones_cost_table
from risf_core.report.base_class_tables import base_class_tables
from risf_core.report.base_class_tables import rescored_table as rescored_table_of_bases
from risf_core.report.base_models import has_several_bases, of_one_base
from risf_core.report.control_tables import class_gain_table, class_rule_table, controls_table, size_table
from risf_core.report.crossed_tables import claims_effects_table, crossed_tables
from risf_core.report.distilled_tables import distilled_tables
from risf_core.report.evaluation_tables import evaluation_classes_table, evaluation_table
from risf_core.report.image_tables import image_intervals_table
from risf_core.report.label_space_tables import selection_table, single_changes_table
from risf_core.report.latency_tables import latency_tables
from risf_core.report.missing_part_tables import components_table, images_table
from risf_core.report.missing_rate_tables import missing_rate_images_table, missing_rate_table
from risf_core.report.missing_tables import fraction_table, map_table
from risf_core.report.open_vocabulary_tables import open_vocabulary_tables
from risf_core.report.other_detectors_tables import (
    other_detectors_files_table,
    other_detectors_scores_table,
    other_detectors_table,
)
from risf_core.report.plan import Plan, all_cells
from risf_core.report.rate_tables import rates_table
from risf_core.report.regime_tables import regimes_table
from risf_core.report.statistics import (
    LOSSES,
    REPRODUCTION,
    fine_tuning_rows,
    interactions,
    mean_over_shots,
    ordered,
    pair,
    repeats_note,
    sort_cells,
    student_interval,
    summarize_cells,
)
from risf_core.report.sweep_tables import (
    backbones_table,
    base_training_table,
    beta_omega_table,
    cost_table,
    gamma_epsilon_table,
    sensitivity_c_table,
    tiny_clip_table,
)
from risf_core.report.table_format import Table, cell_text, difference_text, interval_text, readable, spread
from risf_core.report.warned import warned
from risf_core.report.warning_signs import with_warnings

CM_CLIP_GAIN = "CM-CLIP − none"
ROW_KEYS = ["split", "setting", "arm", "loss", "variant", "rescoring"]
FOUR_AND_INTERACTION = ("ce_none", "ce_cm_clip", "bnrl_none", "bnrl_cm_clip", "interaction")
PAIR_KEYS = ["split", "setting", "arm", "variant", "comparison", "given"]
SEEDS_NOTE = (
    "± is the half-width of the 95 % Student-t interval over few-shot seeds of ONE base model per split and ONE CLIP; "
    "it holds no variation between base models or between CLIPs."
)
SEEDS_NOTE_WITHOUT_CLIP = SEEDS_NOTE.replace(" and ONE CLIP", "").replace(" or between CLIPs", "")
COUNT_NOTE = (
    "In brackets the number of seeds n; '3 of 5!' means that runs are missing, NO RUN that a wanted cell has no "
    "record, '–' that it was not planned."
)
GUESSED_NOTE = " No list of runs was given: wanted is every K, loss and arm seen, with every seed seen."
PATH_ONLY_NOTE = "PATH ONLY: the CLIP here has random weights, so that no row with CM-CLIP is a result."
RELEASED_NOTE = "ce_bg is what the released RISF code trains under the name of BNRL."
SETTING_NOTE = "fsod: the detector knows the novel classes only; gfsod: base and novel classes."


def takes_a_clip(frame: pd.DataFrame, plan: Plan | None = None) -> bool:
    """Whether a CLIP re-scored any of the fine-tuning rows, or was planned to."""
    planned = {key[4] for key in plan.seeds} if plan else set()
    return bool({*frame["rescoring"], *planned} - {"none"})


def _seeds_note(frame: pd.DataFrame, plan: Plan | None = None) -> str:
    return SEEDS_NOTE if takes_a_clip(frame, plan) else SEEDS_NOTE_WITHOUT_CLIP


def _notes(frame: pd.DataFrame, plan: Plan) -> str:
    guessed = "" if plan.is_known else GUESSED_NOTE
    return f"{_seeds_note(frame, plan)} {COUNT_NOTE} {SETTING_NOTE}{guessed}"


def main_table(records: Sequence[Mapping], *, metric: str = "nAP50", plan: Plan | None = None) -> Table:
    """Mean of ``metric`` over seeds for each arm, setting, loss and re-scoring, one column for each K."""
    frame = fine_tuning_rows(records)
    plan = plan or Plan.from_rows(frame)
    cells = all_cells(frame, metric, plan)
    fields = cells[["mean", "half_width", "n", "status", "expected"]].itertuples(index=False, name=None)
    texts = [cell_text(*values) for values in fields]
    heads = {shots: f"K={shots}" for shots in ordered("shots", cells["shots"])}
    caption = (
        f"{metric} (%) of the test images after fine-tuning with K boxes for each novel class. {RELEASED_NOTE} "
        f"{_notes(frame, plan)}"
    )
    return Table(f"main_{metric}", caption, cells, spread(cells, ROW_KEYS, "shots", texts, heads=heads))


def comparisons(frame: pd.DataFrame, plan: Plan) -> list[tuple[str, str, str, str, str, str]]:
    """All paired comparisons that the rows, or the runs that were wanted, ask for.

    Returns:
        Tuples (name, column that differs, subtracted value, other value, column held fixed, its value): CM-CLIP against
        none for each loss; bnrl and ce_bg against ce, and every other loss against ce and bnrl, for each re-scoring.
    """
    runs = set(zip(frame["loss"], frame["rescoring"], strict=True)) | {(key[3], key[4]) for key in plan.seeds}
    losses = ordered("loss", (loss for loss, _ in runs))
    rescorings = [value for value in REPRODUCTION if value in {rescoring for _, rescoring in runs}]
    against = [("bnrl", "ce"), ("ce_bg", "ce")]
    against += [(loss, other) for loss in losses if loss not in LOSSES for other in ("ce", "bnrl")]
    found = [
        (CM_CLIP_GAIN, "rescoring", "none", "cm_clip", "loss", loss)
        for loss in losses
        if {(loss, "none"), (loss, "cm_clip")} <= runs
    ]
    for second, first in against:
        if {first, second} <= set(losses):
            found += [
                (f"{second} − {first}", "loss", first, second, "rescoring", value) for value in rescorings
            ]
    return found


def paired_differences(frame: pd.DataFrame, metric: str, plan: Plan) -> pd.DataFrame:
    """The difference of every pair of runs, one row for each seed.

    Returns:
        split, setting, arm, variant, comparison, given, shots, seed, difference; ``given`` is the loss or re-scoring
        that both sides share.
    """
    columns = ["split", "setting", "arm", "variant", "comparison", "given", "shots", "seed", "difference"]
    parts = []
    for name, by, first, second, fixed, value in comparisons(frame, plan):
        keys = ["split", "setting", "arm", "variant", fixed, "shots", "seed"]
        pairs = pair(frame[frame[fixed] == value], by, first, second, metric, keys=keys)
        parts.append(pairs.rename(columns={fixed: "given"}).assign(comparison=name)[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _expected_pairs(plan: Plan, key: tuple, shots: Sequence[int]) -> int:
    """How many seeds are wanted on both sides of the comparison ``key`` (split, setting, arm, _, comparison, given)."""
    comparison, given = key[4:6]
    if comparison == CM_CLIP_GAIN:
        sides = [(given, rescoring) for rescoring in REPRODUCTION]
    else:
        sides = [(loss, given) for loss in comparison.split(" − ")]
    return min(plan.expected(*key[:3], *side, value) for side in sides for value in shots)


def paired_cells(frame: pd.DataFrame, metric: str, plan: Plan) -> pd.DataFrame:
    """Interval of the paired differences for each K, and of their mean over K within a seed (``shots`` = "all").

    Returns:
        split, setting, arm, variant, comparison, given, shots, mean, half_width, n, up, expected, status; ``up`` counts
        the seeds with a difference above 0. A comparison that was wanted and has no pair is there with n = 0.
    """
    pairs = paired_differences(frame, metric, plan)
    averages = mean_over_shots(pairs, PAIR_KEYS, "difference").assign(shots="all")
    shots_of = {key: sorted(set(group["shots"])) for key, group in pairs.groupby(PAIR_KEYS, sort=False)}
    differences = {
        key: group["difference"]
        for source in (pairs, averages)
        for key, group in source.groupby([*PAIR_KEYS, "shots"], sort=False)
        if key[-1] != "all" or len(shots_of[key[:-1]]) > 1
    }
    if plan.is_known:  # an average over fewer K than wanted is another quantity
        lacking = {key[:-1] for key in _wanted_pairs(frame, plan) if key not in differences}
        for key in lacking & {key[:-1] for key in differences if key[-1] == "all"}:
            differences[(*key, "all")] = pd.Series(dtype=float)
    wanted = {key: pd.Series(dtype=float) for key in _wanted_pairs(frame, plan) if key not in differences}
    rows = []
    for key, values in (differences | wanted).items():
        interval, up = student_interval(values), int((values > 0).sum())
        shots = shots_of[key[:-1]] if key[-1] == "all" else [key[-1]]
        expected = _expected_pairs(plan, key[:-1], shots)
        status = plan.status(interval.n, expected, is_variant=key[3] != "")
        rows.append((*key, interval.mean, interval.half_width, interval.n, up, expected, status))
    columns = [*PAIR_KEYS, "shots", "mean", "half_width", "n", "up", "expected", "status"]
    order = {(name, value): place for place, (name, *_, value) in enumerate(comparisons(frame, plan))}
    place = [order[row[4:6]] for row in rows]
    cells = pd.DataFrame(rows, columns=columns).assign(place=place)
    return sort_cells(cells, [*PAIR_KEYS[:4], "place", "shots"]).drop(columns="place")


def _wanted_pairs(frame: pd.DataFrame, plan: Plan) -> list[tuple]:
    """Keys (``PAIR_KEYS`` and shots) of the comparisons whose two sides were both wanted."""
    cells = sorted({(*key[:3], key[5]) for key in plan.seeds})
    names = [(name, value) for name, *_, value in comparisons(frame, plan)]
    keys = [(*cell[:3], "", *name, cell[3]) for cell in cells for name in names]
    return [key for key in keys if _expected_pairs(plan, key[:-1], [key[-1]])]


@warned
def paired_table(records: Sequence[Mapping], *, metric: str = "nAP50", plan: Plan | None = None) -> Table:
    """Paired differences of ``metric``: CM-CLIP against none, losses against ce, the user's own against ce and bnrl."""
    frame = fine_tuning_rows(records)
    plan = plan or Plan.from_rows(frame)
    cells = paired_cells(frame, metric, plan)
    fields = cells[["mean", "half_width", "up", "n", "status", "expected"]].itertuples(index=False, name=None)
    texts = [difference_text(*values) for values in fields]
    heads = {
        shots: "mean over K" if shots == "all" else f"K={shots}" for shots in ordered("shots", cells["shots"])
    }
    caption = (
        f"Paired differences of {metric} in points: both sides share split, K, few-shot seed and arm, and what "
        "stands under 'given'. 4/5 up: in 4 of 5 seeds the difference is above 0. 'mean over K' averages over K "
        f"within a seed first, over the seeds that have every K. {_notes(frame, plan)}"
    )
    return Table(f"paired_{metric}", caption, cells, spread(cells, PAIR_KEYS, "shots", texts, heads=heads))


def interaction_cells(frame: pd.DataFrame, metric: str, plan: Plan) -> pd.DataFrame:
    """Means of the 2 x 2 and the interaction for each (split, setting, arm, variant, shots).

    Returns:
        The keys, n, expected, ``{name}_mean`` and ``{name}_half_width`` for each name of ``FOUR_AND_INTERACTION``,
        and up.
    """
    keys = ["split", "setting", "arm", "variant", "shots"]
    seeds = interactions(frame, metric, keys=[*keys, "seed"])
    rows = []
    for key, group in seeds.groupby(keys, sort=False):
        intervals = [student_interval(group[name]) for name in FOUR_AND_INTERACTION]
        values = [value for interval in intervals for value in (interval.mean, interval.half_width)]
        sides = [(loss, rescoring) for loss in ("ce", "bnrl") for rescoring in REPRODUCTION]
        expected = min(plan.expected(*key[:3], *side, key[4]) for side in sides)
        rows.append((*key, len(group), expected, *values, int((group["interaction"] > 0).sum())))
    columns = [f"{name}_{part}" for name in FOUR_AND_INTERACTION for part in ("mean", "half_width")]
    return sort_cells(pd.DataFrame(rows, columns=[*keys, "n", "expected", *columns, "up"]), keys)


def interaction_table(
    records: Sequence[Mapping], *, metric: str = "nAP50", plan: Plan | None = None
) -> Table:
    """The 2 x 2 of {ce, bnrl} x {none, CM-CLIP} for each K and arm, with the interaction."""
    frame = fine_tuning_rows(records)
    data = interaction_cells(frame, metric, plan or Plan.from_rows(frame))
    display = data[["split", "setting", "arm", "variant", "shots"]].copy()
    counts = data[["variant", "n", "expected"]].itertuples(index=False, name=None)
    display["n"] = [
        f"{n} of {expected}!" if n < expected and not variant else f"{n}" for variant, n, expected in counts
    ]
    heads = ["ce", "ce + CM-CLIP", "bnrl", "bnrl + CM-CLIP", "interaction"]
    for name, head in zip(FOUR_AND_INTERACTION, heads, strict=True):
        pairs = zip(data[f"{name}_mean"], data[f"{name}_half_width"], strict=True)
        display[head] = [interval_text(*values, sign=name == "interaction") for values in pairs]
    display["up"] = [f"{up}/{n}" for up, n in zip(data["up"], data["n"], strict=True)]
    caption = (
        f"{metric} (%) of the four combinations over the n seeds that have all four, and the interaction in points, "
        "paired per seed: (bnrl with − without CM-CLIP) − (ce with − without CM-CLIP). Below 0 the two gains "
        f"overlap, above 0 they help each other. Nothing is pooled over K or arms. {SEEDS_NOTE}"
    )
    return Table(f"interaction_{metric}", caption, data, readable(display))


def per_class_table(records: Sequence[Mapping], *, setting: str = "fsod", metric: str = "AP50") -> Table:
    """``metric`` of each class, one column for each class."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == setting) & frame["rescoring"].isin(REPRODUCTION)]
    rows = []
    for row in frame[[*ROW_KEYS, "shots", "seed", "per_class"]].itertuples(index=False, name=None):
        rows += [(*row[:-1], name, (values or {}).get(metric)) for name, values in (row[-1] or {}).items()]
    keys = [*ROW_KEYS, "shots"]
    classes = pd.DataFrame(rows, columns=[*keys, "seed", "class", "value"])
    classes["value"] = pd.to_numeric(classes["value"])
    data = summarize_cells(classes, [*keys, "class"], "value")
    data = data.rename(columns={"mean": f"{metric}_mean", "half_width": f"{metric}_half_width"})
    pairs = zip(data[f"{metric}_mean"], data[f"{metric}_half_width"], strict=True)
    texts = [interval_text(*values) for values in pairs]
    heads = {name: name for name in ordered("class", data["class"])}
    caption = (
        f"{metric} (%) of each class, setting {setting}. n/a: no object of the class in the test images. "
        f"{_seeds_note(frame)}"
    )
    display = spread(data, keys, "class", texts, heads=heads, with_n=True)
    return Table(f"per_class_{setting}", caption, data, display)


def wide_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """The extension apart from the reproduction: CM-CLIP with novel + base + background as its label space."""
    frame = fine_tuning_rows(records)
    keys = ["split", "setting", "arm", "loss", "variant", "shots"]
    columns = {
        "none": "without re-scoring",
        "cm_clip": "CM-CLIP − none",
        "cm_clip_wide": "wider labels − none",
    }
    rows = []
    for first, second in [("none", "cm_clip"), ("none", "cm_clip_wide"), ("cm_clip", "cm_clip_wide")]:
        pairs = pair(frame, "rescoring", first, second, metric, keys=[*keys, "seed"])
        for key, group in pairs.groupby(keys, sort=False):
            interval = student_interval(group["difference"])
            up = int((group["difference"] > 0).sum())
            rows.append((*key, f"{second}-{first}", interval.mean, interval.half_width, interval.n, up))
    data = pd.DataFrame(rows, columns=[*keys, "difference", "mean", "half_width", "n", "up"])
    has_wide = data.loc[data["difference"] == "cm_clip_wide-none", keys].drop_duplicates()
    data = sort_cells(data.merge(has_wide, on=keys), keys)
    fields = data[["mean", "half_width", "up", "n"]].itertuples(index=False, name=None)
    texts = [difference_text(*values, "complete", 0) for values in fields]
    heads = {
        "cm_clip-none": columns["cm_clip"],
        "cm_clip_wide-none": columns["cm_clip_wide"],
        "cm_clip_wide-cm_clip": "wider labels − CM-CLIP",
    }
    caption = (
        f"EXTENSION, not part of the reproduction: paired differences of {metric} in points when CM-CLIP's softmax "
        "runs over novel + base + background names instead of the paper's novel + background; the novel classes stay "
        f"the ones re-scored. {SEEDS_NOTE}"
    )
    return Table(
        f"extension_wider_labels_{metric}",
        caption,
        data,
        spread(data, keys, "difference", texts, heads=heads),
    )


@warned
def gfsod_table(records: Sequence[Mapping]) -> Table:
    """AP, AP50 of all, base and novel classes of the generalised detector, with and without re-scoring."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == "gfsod") & frame["rescoring"].isin(REPRODUCTION)]
    metrics = ["AP", "bAP", "nAP", "AP50", "bAP50", "nAP50", "AP75", "bAP75", "nAP75"]
    keys = [*ROW_KEYS, "shots"]
    parts = []
    for metric in metrics:
        values = pd.to_numeric(frame[metric]) if metric in frame else math.nan
        parts.append(summarize_cells(frame.assign(value=values), keys, "value").assign(metric=metric))
    data = pd.concat(parts, ignore_index=True)[[*keys, "metric", "mean", "half_width", "n"]]
    texts = [interval_text(*values) for values in zip(data["mean"], data["half_width"], strict=True)]
    display = spread(data, keys, "metric", texts, heads={name: name for name in metrics}, with_n=True)
    rescored = "; CM-CLIP re-scores detections of novel classes only" if takes_a_clip(frame) else ""
    caption = (
        "Generalised few-shot detection (gfsod): one detector for base and novel classes, fine-tuned on K boxes of "
        f"each. AP (%) of all, base (b) and novel (n) classes{rescored}. "
        "head.start=released: all rows of the head start afresh, as in the released code, which lacks the tool. "
        f"{_seeds_note(frame)}"
    )
    return Table("gfsod", caption, data, display)


def rescored_table(records: Sequence[Mapping], *, plan: Plan | None = None) -> Table:
    """How many detections an image CM-CLIP re-scores: those above its threshold, for each arm, loss and K."""
    without = [
        {**record, "rows": [row for row in record["rows"] if row.get("rescoring") == "none"]}
        for record in records
        if any(row.get("rescoring", "none") != "none" for row in record["rows"])  # nothing is, without a CLIP
    ]
    if plan is not None:  # of the runs that take a CLIP alone
        wanted = {key: own for key, own in plan.seeds.items() if (*key[:4], "cm_clip", key[5]) in plan.seeds}
        plan = replace(plan, seeds=wanted)
    table = main_table(without, metric="above_thresh", plan=plan)
    caption = (
        "Detections an image above CM-CLIP's threshold, which alone are re-scored (not a percentage). Losses differ in "
        "it, since BNRL's scores are flatter than cross-entropy's: read their difference with CM-CLIP beside this. "
        f"{SEEDS_NOTE}{equal_boxes_note(without)}"
    )
    is_count = table.data["rescoring"] == "none"
    data, display = table.data[is_count], table.display[table.display["re-scoring"] == "none"]
    display = display.drop(columns="re-scoring")
    return replace(table, name="rescored_per_image", caption=caption, data=data, display=display)


def equal_boxes_note(records: Sequence[Mapping]) -> str:
    """How many boxes equal another one of their image, so that one crop serves both; nothing where no row says it."""
    crops = [row["crops"] for record in records for row in record["rows"] if "crops" in row]
    total, equal = (sum(count[name] for count in crops) for name in ("boxes", "equal"))
    return f" Of {total} boxes in all, {equal} equal another one of their image." if total else ""


def all_tables(records: Sequence[Mapping], *, plan: Plan | None = None) -> list[Table]:
    """Every table, also those without a row; `risf_core.report.selection.tables_of` leaves these out."""
    tables, costs = [*crossed_tables(records), image_intervals_table(records)], cost_table(records)
    if has_several_bases(records):
        records, plan = of_one_base(records), Plan(is_known=True)
    tables += [main_table(records, metric=metric, plan=plan) for metric in ("nAP50", "nAP", "nAP75")]
    tables += [paired_table(records, metric=metric, plan=plan) for metric in ("nAP50", "nAP", "nAP75")]
    tables += [interaction_table(records, metric=metric, plan=plan) for metric in ("nAP50", "nAP")]
    tables += [per_class_table(records, setting=setting) for setting in ("fsod", "gfsod")]
    tables += [sensitivity_c_table(records, metric=metric) for metric in ("nAP50", "nAP")]
    tables += [beta_omega_table(records), gamma_epsilon_table(records), backbones_table(records)]
    tables += [backbones_at_accuracy_table(records), backbones_cost_table(records)]
    tables += [wide_table(records), gfsod_table(records), rescored_table(records, plan=plan)]
    tables += [evaluation_table(records), evaluation_classes_table(records)]
    tables += [selection_table(records), single_changes_table(records), controls_table(records)]
    tables += [size_table(records), class_gain_table(records), class_rule_table(records)]
    tables += [other_detectors_table(records), other_detectors_scores_table(records)]
    tables += [other_detectors_files_table(records)]
    tables += [rates_table(records)]
    tables += [regimes_table(records), missing_rate_table(records), missing_rate_images_table(records)]
    tables += [fraction_table(records), map_table(records), components_table(records), images_table(records)]
    tables += base_class_tables(records)
    tables += open_vocabulary_tables(records)
    tables += distilled_tables(records)
    tables += [base_training_table(records), tiny_clip_table(records), *latency_tables(records)]
    tables += [costs]
    if note := repeats_note(records):
        tables = [replace(table, caption=f"{table.caption}{note}") for table in tables]
    if any((record["params"].get("clip") or {}).get("path_only") for record in records if "params" in record):
        tables = [replace(table, caption=f"{table.caption} {PATH_ONLY_NOTE}") for table in tables]
    return with_warnings(tables, records)


def watched_tables(records: Sequence[Mapping], *, plan: Plan | None = None) -> list[Table]:
    """The tables whose own data may show a sign of failure, of nAP50 where a table has a metric."""
    effects = claims_effects_table(records)
    if has_several_bases(records):
        records, plan = of_one_base(records), Plan(is_known=True)
    tables = [
        effects,
        paired_table(records, plan=plan),
        gfsod_table(records),
        rescored_table_of_bases(records),
        sensitivity_c_table(records),
        beta_omega_table(records),
        gamma_epsilon_table(records),
        fraction_table(records),
        map_table(records),
        components_table(records),
        regimes_table(records),
        rates_table(records),
        backbones_table(records),
        selection_table(records),
    ]
    return with_warnings(tables, records)


if __name__ == "__main__":
    from risf_core.report.publish import main

    main()
