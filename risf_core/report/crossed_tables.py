"""The tables of a profile with several base models: effects, levels, base models, components, CLIPs; from records."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.effects import CELLS, EFFECTS, SELECT_SPLIT
from risf_core.report.base_models import has_several_bases
from risf_core.report.crossed import (
    POWER,
    WIDE,
    CrossedInterval,
    crossed_interval,
    holm,
    holm_levels,
    is_underpowered,
    minimum_detectable_effect,
    per_base_model,
    variance_components,
)
from risf_core.report.crossed_rows import (
    FIRST,
    SECOND,
    all_effects,
    best_rates,
    cell_values,
    clip_differences,
    crossed_rows,
    mean_over_clips,
)
from risf_core.report.statistics import CONFIDENCE, drop_repeats, ordered, rows_of
from risf_core.report.table_format import (
    NOT_PLANNED,
    Table,
    interval_text,
    number,
    readable,
    spread,
)

KEYS = ["effect", "loss", "arm", "shots"]
NUMBERS = ["mean", "half_width", "standard_error", "df", "p"]
COUNTS = ["splits", "bases", "draws", "clips", "n", "left_out", "method"]
EFFECT_COLUMNS = [
    *KEYS, *NUMBERS, "p_holm", "level", "mde", "is_underpowered", "in_family", *COUNTS, "bootstrap_low",
    "bootstrap_high", "bootstrap_cells", "run_ids",
]  # fmt: skip
INTERVAL_NOTE = (
    "± is the half-width of the hierarchical 95 % interval: the splits are fixed and count the same; base models and "
    "draws of the K-shot images vary at random and are crossed within a split (Satterthwaite's degrees of freedom); "
    "the test images are the same throughout."
)
COUNT_NOTE = (
    "n: splits × base models of a split × draws × CLIPs; (k left out) where not every base model has a draw."
)
CLIP_NOTE = (
    "Values with CM-CLIP are means over the CLIPs, trainings of one tower and too few for a random factor."
)
UNDERPOWERED = "UNDERPOWERED"
WIDE_NOTE = f"{UNDERPOWERED}: the half-width exceeds {WIDE:.1f} points."


def _rates_note(records: Sequence[Mapping]) -> str:
    rates = best_rates(records)
    if not rates:
        return ""
    found = ", ".join(f"{loss} {rate}" for loss, rate in rates.items())
    return (
        f" Best learning rates: {found} (a loss that is not named has the main rate), chosen on split {SELECT_SPLIT}; "
        f"effects that take one are told on the other splits, and on split {SELECT_SPLIT} apart."
    )


def _counts(interval: CrossedInterval, clips: int) -> tuple:
    fields = interval.splits, interval.bases, interval.draws, clips, interval.n * max(clips, 1)
    return (*fields, interval.left_out * max(clips, 1), interval.method)


def count_text(row) -> str:
    """``3 × 3 × 10 × 2``: splits, base models, draws, CLIPs; what lacks a partner, or an interval, beside it."""
    parts = [row.splits, row.bases, row.draws, *([row.clips] if row.clips else [])]
    text = " × ".join(str(int(part)) for part in parts)
    text += f" ({int(row.left_out)} left out)" if row.left_out else ""
    return text if row.method == "crossed" else f"{text} ({row.method})"


def _effects(records: Sequence[Mapping], metric: str, effects: pd.DataFrame | None) -> pd.DataFrame:
    """``effects``, which several tables share, or what `all_effects` makes of the records."""
    return all_effects(records, metric=metric) if effects is None else effects


def effect_cells(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Every effect with its interval, tests and power; empty where no split has several base models.

    Returns:
        `EFFECT_COLUMNS`. ``p_holm`` is corrected over the rows with ``in_family``: those that claims rest on, of a
        single K, not of the split where rates were chosen. ``level`` is the level at which Holm tests the row (0.05
        outside the family), ``mde`` the smallest effect that would have been found at that level with a power of 0.8.
        ``clips`` is 0 where none takes part; ``n`` counts values; ``run_ids`` are joined by spaces. ``effects`` is what
        `all_effects` gives, where it is at hand.
    """
    if not has_several_bases(records):
        return pd.DataFrame(columns=EFFECT_COLUMNS)
    rows = []
    for key, own in _effects(records, metric, effects).groupby(KEYS, sort=False):
        interval = crossed_interval(mean_over_clips(own))
        clips = own.loc[own["clip"] != "", "clip"].nunique()
        numbers = [getattr(interval, name) for name in NUMBERS]
        runs = " ".join(sorted(frozenset().union(*own["run_ids"])))
        rows.append((*key, *numbers, *_counts(interval, clips), runs))
    cells = pd.DataFrame(rows, columns=[*KEYS, *NUMBERS, *COUNTS, "run_ids"])
    claims = {(effect.name, effect.loss) for effect in EFFECTS if effect.is_claim}
    keys = zip(cells["effect"], cells["loss"], cells["shots"], strict=True)
    cells["in_family"] = [(effect, loss) in claims and shots != "all" for effect, loss, shots in keys]
    tested = cells["p"].where(cells["in_family"])
    cells["p_holm"] = holm(tested)
    levels = holm_levels(tested)
    cells["level"] = [1 - CONFIDENCE if math.isnan(level) else level for level in levels]
    powers = zip(cells["standard_error"], cells["df"], cells["level"], strict=True)
    cells["mde"] = [minimum_detectable_effect(error, df, alpha=level) for error, df, level in powers]
    cells["is_underpowered"] = [is_underpowered(value) for value in cells["half_width"]]
    cells = cells.merge(_bootstrap(records), on=KEYS, how="left", validate="one_to_one")
    return cells[EFFECT_COLUMNS]


def _bootstrap(records: Sequence[Mapping]) -> pd.DataFrame:
    """The intervals over the test images that 43_test_images has, by `KEYS`."""
    names = {"low": "bootstrap_low", "high": "bootstrap_high", "cells": "bootstrap_cells"}
    frame = rows_of(records, "43_test_images", required=[*KEYS, *names])
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, *names.values()]).astype({"shots": object})
    frame = drop_repeats(frame, KEYS, list(names)).rename(columns=names)
    return frame[[*KEYS, *names.values()]].astype({"shots": object})


def p_text(value: float) -> str:
    """A p value with two digits that count, ``< 0.001`` below."""
    if math.isnan(value):
        return NOT_PLANNED
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _effect_text(row) -> str:
    text = interval_text(row.mean, row.half_width, sign=True)
    return f"{text} {UNDERPOWERED}" if row.is_underpowered else text


def claims_effects_table(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> Table:
    """Each effect of the family with its hierarchical interval, corrected test and the smallest effect visible."""
    cells = effect_cells(records, metric=metric, effects=effects)
    display = cells[KEYS].copy()
    display["effect"] = [name.replace(" - ", " − ") for name in cells["effect"]]
    display["mean"] = [_effect_text(row) for row in cells.itertuples()]
    display["n"] = [count_text(row) for row in cells.itertuples()]
    display["p"] = [p_text(value) for value in cells["p"]]
    display["p (Holm)"] = [p_text(value) for value in cells["p_holm"]]
    display["smallest effect visible"] = [number(float(value)) for value in cells["mde"]]
    if cells["bootstrap_low"].notna().any():
        pairs = zip(cells["bootstrap_low"], cells["bootstrap_high"], strict=True)
        display["test images alone"] = [
            NOT_PLANNED if math.isnan(low) else f"{number(low, sign=True)} to {number(high, sign=True)}"
            for low, high in pairs
        ]
    family = int(cells["in_family"].sum())
    images = (
        " Test images alone: 95 % percentile interval of the mean over some of these cells when the test images are "
        "drawn anew with replacement, the same for all cells, and nothing else varies (43_test_images)."
        if "test images alone" in display
        else ""
    )
    caption = (
        f"Effects on {metric} of the novel classes in points, setting fsod, paired within split, base model, draw and "
        f"CLIP. {INTERVAL_NOTE} {CLIP_NOTE} {COUNT_NOTE} p: two-sided, from the same t statistic; p (Holm): corrected "
        f"over the {family} effects that claims rest on; the rest describe. Smallest effect visible: the true mean "
        f"that this test, at Holm's level (0.05 outside the family), would find with a power of {POWER:g}. "
        f"interaction: what CM-CLIP adds to bnrl less what it adds to ce. K = all: mean over K within a cell. "
        f"{WIDE_NOTE}{_rates_note(records)}{images}"
    )
    return Table("claims_effects", caption, cells, readable(display))


def level_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """The level of each loss, rate and re-scoring: on each split, and the mean over the splits that all of them have.

    Returns:
        splits ("1", "1, 3"), arm, cell (its name), shots, mean, half_width, counts and method, run_ids.
    """
    columns = ["over", "arm", "cell", "shots", *NUMBERS[:2], *COUNTS, "run_ids"]
    if not has_several_bases(records):
        return pd.DataFrame(columns=columns)
    frame, rates = crossed_rows(records, metric=metric), best_rates(records)
    cells = [cell for cell in CELLS if not cell.is_best or cell.loss in rates]
    rows = []
    for (arm, shots), own in frame.groupby(["arm", "shots"], sort=False):
        found = {cell.name: cell_values(own, cell, rates) for cell in cells}
        found = {name: values.dropna(subset=["value"]) for name, values in found.items() if len(values)}
        shared = sorted(set.intersection(*(set(values["split"]) for values in found.values())))
        sets = [shared] if len(shared) > 1 else []
        sets += [[split] for split in sorted(set(own["split"]))]
        for place, splits in enumerate(sets):
            clips = _shared_clips(found, splits)
            shared_cells = set.intersection(*(_cells_of(values, splits) for values in found.values()))
            for name, values in found.items():
                values = values[values["split"].isin(splits) & values["clip"].isin(["", *clips])]
                if len(splits) > 1:  # lines that are compared are of the same draws
                    keys = zip(values["split"], values["base"], values["seed"], strict=True)
                    values = values[[key in shared_cells for key in keys]]
                if len(values):
                    rows.append((place, ", ".join(map(str, splits)), arm, name, shots, *_level(values)))
    data = pd.DataFrame(rows, columns=["place", *columns])
    order = [list(dict.fromkeys(ordered("arm", data["arm"]))), [cell.name for cell in cells]]
    by = zip(data["place"], data["arm"], data["cell"], data["shots"], strict=True)
    keys = [(place, order[0].index(arm), order[1].index(cell), shots) for place, arm, cell, shots in by]
    data = data.iloc[sorted(range(len(data)), key=keys.__getitem__)]
    return data[columns].reset_index(drop=True)


def _cells_of(values: pd.DataFrame, splits: Sequence[int]) -> set[tuple]:
    own = values[values["split"].isin(splits)]
    return set(zip(own["split"], own["base"], own["seed"], strict=True))


def _shared_clips(found: Mapping[str, pd.DataFrame], splits: Sequence[int]) -> set[str]:
    """The CLIPs with which every re-scored line has as many values on these splits as with the first one."""
    clips = {FIRST, SECOND}
    for values in found.values():
        counts = values.loc[values["split"].isin(splits), "clip"].value_counts()
        if len(counts) and "" not in counts:
            clips &= {clip for clip, count in counts.items() if count == counts.max()}
    return clips


def _level(values: pd.DataFrame) -> tuple:
    """Numbers, counts and runs of one level."""
    interval = crossed_interval(mean_over_clips(values))
    clips = values.loc[values["clip"] != "", "clip"].nunique()
    runs = " ".join(sorted(set(values["run_id"])))
    return interval.mean, interval.half_width, *_counts(interval, clips), runs


def claims_levels_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """nAP50 of each loss, of cross-entropy at its best rate too, with and without CM-CLIP."""
    cells = level_cells(records, metric=metric)
    texts = [
        f"{interval_text(row.mean, row.half_width)}{'' if row.method == 'crossed' else f' ({row.method})'}"
        for row in cells.itertuples()
    ]
    heads = {shots: f"K={shots}" for shots in ordered("shots", cells["shots"])}
    display = spread(cells, ["over", "arm", "cell"], "shots", texts, heads=heads)
    # in the order of the lines
    display["n"] = list(
        {(row.over, row.arm, row.cell): count_text(row) for row in cells.itertuples()}.values()
    )
    display = display.rename(columns={"over": "splits", "cell": "loss and re-scoring"})
    caption = (
        f"{metric} (%) of the novel classes on the test images, setting fsod. First the mean over the splits that "
        "every line has, of the draws that every line has; then each split. CLIPs: those of every line there. "
        "Cross-entropy at its best learning rate is the strongest simple control. "
        f"{INTERVAL_NOTE} {CLIP_NOTE} {COUNT_NOTE}{_rates_note(records)}"
    )
    return Table("claims_levels", caption, cells, display)


def base_model_cells(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The mean of each effect over draws and CLIPs for each base model: `KEYS`, split, base, mean, n (draws), clips."""
    columns = [*KEYS, "split", "base", "mean", "n", "clips"]
    if not has_several_bases(records):
        return pd.DataFrame(columns=columns)
    parts = []
    for key, own in _effects(records, metric, effects).groupby(KEYS, sort=False):
        clips = own.loc[own["clip"] != "", "clip"].nunique()
        parts.append(
            per_base_model(mean_over_clips(own)).assign(**dict(zip(KEYS, key, strict=True)), clips=clips)
        )
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def per_base_model_table(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> Table:
    """Each effect for each base model, so that a reader sees what one alone would have said."""
    cells = base_model_cells(records, metric=metric, effects=effects)
    shown = cells.assign(model=[f"{row.split}, {row.base}" for row in cells.itertuples()])
    shown["effect"] = [name.replace(" - ", " − ") for name in cells["effect"]]
    texts = [number(float(value), sign=True) for value in cells["mean"]]
    models = cells[["split", "base"]].drop_duplicates().sort_values(["split", "base"])
    names = [f"{row.split}, {row.base}" for row in models.itertuples()]
    heads = {name: f"split {name}" for name in names}
    display = spread(shown, KEYS, "model", texts, heads=heads, with_n=True)
    caption = (
        f"The effects on {metric} in points for each base model of each split: means over the n draws, and over the "
        "CLIPs where one takes part. A base model is a training of its own, pretraining included. No interval: the "
        "table claims_effects has it, over all of them."
    )
    return Table("per_base_model", caption, cells, display.rename(columns={"n": "n (draws)"}))


def component_cells(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Standard deviations by source for each effect, and their shares of the variance of its mean.

    Returns:
        `KEYS`, base, draw, residual, base_share, draw_share, residual_share (percent), clip (standard deviation between
        CLIPs, from the difference of two; NaN with one), splits, bases, draws, clips.
    """
    columns = [*KEYS, "base", "draw", "residual", "base_share", "draw_share", "residual_share", "clip"]
    columns += ["splits", "bases", "draws", "clips"]
    if not has_several_bases(records):
        return pd.DataFrame(columns=columns)
    rows = []
    for key, own in _effects(records, metric, effects).groupby(KEYS, sort=False):
        values = mean_over_clips(own)
        parts, interval = variance_components(values), crossed_interval(values)
        clips = own.loc[own["clip"] != "", "clip"].nunique()
        counts = interval.splits, interval.bases, interval.draws, clips
        rows.append((*key, *(getattr(parts, name) for name in columns[4:10]), _clip_component(own), *counts))
    return pd.DataFrame(rows, columns=columns)


def _clip_component(values: pd.DataFrame) -> float:
    """Standard deviation between CLIPs: half the squared difference of two, less what the difference's error makes."""
    differences = clip_differences(values)
    if differences.empty:
        return math.nan
    interval = crossed_interval(differences)
    return math.sqrt(max(0.0, (interval.mean**2 - interval.standard_error**2) / 2))


def variance_components_table(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> Table:
    """Which repeats matter: how far base models, draws, the rest and CLIPs make each effect vary."""
    cells = component_cells(records, metric=metric, effects=effects)
    display = cells[KEYS].copy()
    display["effect"] = [name.replace(" - ", " − ") for name in cells["effect"]]
    names = {"base": "base models", "draw": "draws", "residual": "rest", "clip": "CLIPs"}
    for name, head in names.items():
        display[head] = [
            NOT_PLANNED if math.isnan(value) else number(float(value), decimals=2) for value in cells[name]
        ]
    for name in ("base", "draw", "residual"):
        display[f"{names[name]} (% of the mean's variance)"] = [
            number(float(value), decimals=0) for value in cells[f"{name}_share"]
        ]
    caption = (
        f"Standard deviations of the effects on {metric} in points by source, and what share each has of the variance "
        "of the mean, which more repeats of that source would make smaller. Base models: other trainings of one split. "
        "Draws: other K-shot images. Rest: the training of the head, and how draws and base models go together. An "
        "estimate below 0 is 0. CLIPs: from the difference of two alone, one degree of freedom, an indication at most; "
        "it is in none of the shares."
    )
    return Table("variance_components", caption, cells, readable(display))


def clip_cells(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Each effect with each CLIP and second less first: `KEYS`, {first, second, difference}_{mean, half_width}, p."""
    sides = (FIRST, SECOND, "difference")
    columns = [*KEYS, *(f"{side}_{part}" for side in sides for part in ("mean", "half_width")), "p"]
    columns += [name for name in COUNTS if name != "clips"]
    if not has_several_bases(records):
        return pd.DataFrame(columns=columns)
    rows = []
    for key, own in _effects(records, metric, effects).groupby(KEYS, sort=False):
        differences = clip_differences(own)
        if len(differences):
            each = [crossed_interval(own[own["clip"] == clip]) for clip in (FIRST, SECOND)]
            each.append(crossed_interval(differences))
            numbers = [value for one in each for value in (one.mean, one.half_width)]
            counts = (getattr(each[-1], name) for name in COUNTS if name != "clips")
            rows.append((*key, *numbers, each[-1].p, *counts))
    return pd.DataFrame(rows, columns=columns)


def clip_difference_table(
    records: Sequence[Mapping], *, metric: str = "nAP50", effects: pd.DataFrame | None = None
) -> Table:
    """What each of the two CLIPs gives, and their difference."""
    cells = clip_cells(records, metric=metric, effects=effects)
    display = cells[KEYS].copy()
    display["effect"] = [name.replace(" - ", " − ") for name in cells["effect"]]
    for side, head in ((FIRST, "first CLIP"), (SECOND, "second CLIP"), ("difference", "second − first")):
        pairs = zip(cells[f"{side}_mean"], cells[f"{side}_half_width"], strict=True)
        display[head] = [interval_text(*pair, sign=True) for pair in pairs]
    display["p"] = [p_text(value) for value in cells["p"]]
    display["n"] = [count_text(row) for row in cells.assign(clips=0).itertuples()]
    caption = (
        f"Effects on {metric} in points with each of two CLIPs: one tower, trained twice with other seeds. The "
        f"difference is paired within split, base model and draw. {INTERVAL_NOTE} {COUNT_NOTE} p of the difference is "
        "not corrected."
    )
    return Table("clip_difference", caption, cells, readable(display))


def crossed_tables(records: Sequence[Mapping]) -> list[Table]:
    """All tables of this module; empty ones where no split has several base models."""
    effects = all_effects(records) if has_several_bases(records) else None
    return [
        claims_effects_table(records, effects=effects),
        claims_levels_table(records),
        per_base_model_table(records, effects=effects),
        variance_components_table(records, effects=effects),
        clip_difference_table(records, effects=effects),
    ]
