"""Known signs of failure, each found in records or tables and said in a sentence under the tables concerned.

Base AP falls under re-scoring; BNRL below cross-entropy; an optimum at the edge of a sweep; a CLIP that is not good
enough for the novel classes; differences too wide to tell. Pure functions; imports no torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from risf_core.report.crossed import WIDE
from risf_core.report.plan import Plan
from risf_core.report.statistics import fine_tuning_rows, pair, student_interval
from risf_core.report.table_format import Table, interval_text, number
from risf_core.report.warning_edges import (
    EDGE_AXES,
    Sign,
    cell_text,
    edges_of_c,
    edges_of_map,
    edges_of_rates,
    edges_of_selection,
    edges_of_temperature,
    named,
)

WARNING = "WARNING:"
# Crop accuracy among the novel names, in percent. Of the 12 CLIPs of the study of backbones, four towers of three
# lengths, all below 61 % lost novel AP and all above 75 % gained (results/published/studies/tables/backbones.md).
LOW_ACCURACY = 70.0
NOT_IN_HEADLINE = "differences are underpowered"  # of a table: the headline names its own


def lies_below(mean: float, half_width: float) -> bool:
    """Whether an interval lies wholly below 0; never without an interval."""
    return mean + half_width < 0


def base_classes_fall(records: Sequence[Mapping]) -> list[Sign]:
    """Base AP of a generalised detector that is lower with CM-CLIP than without, paired per seed."""
    frame = fine_tuning_rows(records)
    keys = ["split", "setting", "arm", "loss", "variant", "shots"]
    cells = []
    for metric in ("bAP50", "bAP"):
        if metric in frame:
            values = frame.assign(**{metric: pd.to_numeric(frame[metric])})
            pairs = pair(values, "rescoring", "none", "cm_clip", metric, keys=[*keys, "seed"])
            for key, group in pairs.groupby(keys, sort=False):
                gain = student_interval(group["difference"])
                if lies_below(gain.mean, gain.half_width):
                    where = cell_text(dict(zip(keys, key, strict=True)), keys)
                    cells.append(f"{metric} {interval_text(gain.mean, gain.half_width, sign=True)} ({where})")
    if not cells:
        return []
    return [Sign("base classes", ("gfsod",), f"base AP falls under re-scoring: {named(cells)}.")]


def bnrl_below_ce(cells: pd.DataFrame, metric: str) -> list[Sign]:
    """BNRL, or ce_bg which the released code trains under its name, wholly below cross-entropy.

    Args:
        cells: The data of the table ``paired_{metric}``.
        metric: Its metric.
    """
    signs = []
    for comparison, what in (
        ("bnrl − ce", "BNRL is below cross-entropy on this set"),
        ("ce_bg − ce", "ce_bg, which the released code trains as BNRL, is below cross-entropy on this set"),
    ):
        found = [
            f"{comparison} {interval_text(row['mean'], row['half_width'], sign=True)} "
            f"({cell_text(row, ['split', 'setting', 'arm', 'variant', 'given', 'shots'])})"
            for row in cells.to_dict("records")
            if row["comparison"] == comparison and lies_below(row["mean"], row["half_width"])
        ]
        if found:
            text = f"{what} ({metric}, interval wholly below 0): {named(found)}."
            signs.append(Sign("bnrl", (f"paired_{metric}", f"main_{metric}"), text))
    return signs


def bnrl_effects_below_ce(effects: pd.DataFrame) -> list[Sign]:
    """The same for the effects over base models, splits and CLIPs (the data of ``claims_effects``)."""
    found = [
        f"{row['effect']} {interval_text(row['mean'], row['half_width'], sign=True)} "
        f"({cell_text(row, ['arm', 'shots'])})"
        for row in effects.to_dict("records")
        if str(row["effect"]).startswith("bnrl - ce") and lies_below(row["mean"], row["half_width"])
    ]
    if not found:
        return []
    text = (
        f"BNRL is below cross-entropy over base models and draws (interval wholly below 0): {named(found)}."
    )
    return [Sign("bnrl", ("claims_effects",), text)]


def signs_of_regimes(data: pd.DataFrame) -> list[Sign]:
    """BNRL below cross-entropy by what is trained, and chosen rates that are at an end (the data of ``regimes``)."""
    rows, signs = data.to_dict("records"), []
    below = [
        f"{interval_text(row['difference'], row['difference_half_width'], sign=True)} "
        f"({cell_text(row, ['regime', 'arm', 'shots'])}, rate {row['rate']})"
        for row in rows
        if lies_below(row["difference"], row["difference_half_width"])
    ]
    if below:
        text = f"BNRL is below cross-entropy (interval wholly below 0) in {len(below)} of {len(rows)} rows: "
        text += f"{named(below)}."
        signs.append(Sign("bnrl", ("regimes",), text))
    ends = [cell_text(row, ["regime", "arm", "shots"]) for row in rows if row["at_edge"]]
    if ends:
        text = f"a chosen learning rate is the smallest or largest tried: {named(ends)}."
        signs.append(Sign("edge", ("regimes",), text))
    return signs


def clips_too_weak(data: pd.DataFrame) -> list[Sign]:
    """CLIPs whose crops of novel objects are named right too rarely (the data of ``backbones``)."""
    if data.empty:
        return []
    rows = data.drop_duplicates(["split", "clip", "variant"])
    rows = rows[rows["crop_accuracy"] < LOW_ACCURACY]
    found = [
        f"{', '.join(filter(None, (row.clip, row.variant)))}: {number(float(row.crop_accuracy))} %"
        for row in rows.itertuples()
    ]
    if not found:
        return []
    text = (
        f"CLIP names fewer than {LOW_ACCURACY:g} % of the novel crops right, where CM-CLIP has been seen to lose "
        f"novel AP: {named(found)}."
    )
    return [Sign("clip", ("backbones",), text)]


def clips_without_training(records: Sequence[Mapping]) -> list[Sign]:
    """Runs that re-scored with random weights; captions say so already (``PATH_ONLY_NOTE``), so no table is named."""
    runs = {
        record["run_id"]
        for record in records
        if ((record.get("params") or {}).get("clip") or {}).get("path_only")
    }
    if not runs:
        return []
    text = f"CLIP has random weights (path_only) in {len(runs)} runs, so that nothing re-scored there is a result."
    return [Sign("clip", (), text)]


def several_processors(records: Sequence[Mapping]) -> list[Sign]:
    """Records made on processors of several kinds: base models of one seed differ then, so no table is named."""
    kinds: dict[str, int] = {}
    for record in records:
        device = (record.get("environment") or {}).get("device")
        if device and (record.get("params") or {}).get("base", record.get("rows")):
            kinds[device] = kinds.get(device, 0) + 1
    if len(kinds) < 2:
        return []
    counts = ", ".join(f"{count} on {device}" for device, count in sorted(kinds.items()))
    text = (
        f"the records come from processors of several kinds ({counts}), on which the same seed trains another base "
        "model: compare levels within one record alone."
    )
    return [Sign("processors", (), text)]


def too_wide(cells: pd.DataFrame, metric: str) -> list[Sign]:
    """Paired differences with a half-width above ``WIDE`` points (the data of ``paired_nAP50``)."""
    own = cells[(cells["variant"] == "") & (cells["n"] > 0)] if len(cells) else cells
    wide = own[[not half <= WIDE for half in own["half_width"]]]  # nor without an interval
    if wide.empty:
        return []
    text = f"{len(wide)} of {len(own)} {NOT_IN_HEADLINE}: half-width above {WIDE:g} {metric}, or one seed."
    return [Sign("power", (f"paired_{metric}",), text)]


def headline_too_wide(headline: pd.DataFrame) -> list[Sign]:
    """Differences of the headline that are underpowered, by name.

    Args:
        headline: `publish.headline`, with the columns quantity, value, mean and half_width.
    """
    is_difference = [
        str(row.value).startswith(("+", "−")) and "nAP50" in row.quantity and row.half_width is not None
        for row in headline.itertuples()
    ]
    own = headline[is_difference] if len(headline) else headline
    wide = own[[half > WIDE for half in own["half_width"]]]
    if wide.empty:
        return []
    text = (
        f"{len(wide)} of {len(own)} differences of the headline are underpowered (half-width above "
        f"{WIDE:g} nAP50): {named(wide['quantity'])}."
    )
    return [Sign("power", (), text)]


WATCHED: dict[str, Callable[[pd.DataFrame], list[Sign]]] = {
    "paired_nAP50": lambda data: [*bnrl_below_ce(data, "nAP50"), *too_wide(data, "nAP50")],
    "paired_nAP": lambda data: bnrl_below_ce(data, "nAP"),
    "paired_nAP75": lambda data: bnrl_below_ce(data, "nAP75"),
    "claims_effects": bnrl_effects_below_ce,
    "regimes": signs_of_regimes,
    "backbones": clips_too_weak,
    "learning_rates": edges_of_rates,
    **{
        table: lambda data, table=table: [*edges_of_c(data, table), *edges_of_temperature(data, table)]
        for table in ("sensitivity_c_nAP50", "sensitivity_c_nAP")
    },
    **{table: lambda data, table=table: edges_of_map(data, table) for table in EDGE_AXES},
}


def signs_of(records: Sequence[Mapping], tables: Mapping[str, pd.DataFrame]) -> list[Sign]:
    """Every sign that the records and these tables show, in a fixed order.

    Args:
        records: Records of one profile.
        tables: Data of the tables by name; one that is not there is not looked at.
    """
    signs = base_classes_fall(records) if "gfsod" in tables else []
    for name, find in WATCHED.items():
        if name in tables and len(tables[name]):
            signs += find(tables[name])
    if "label_space_selection" in tables:
        signs += edges_of_selection(tables["label_space_selection"], records)
    return signs


def with_warnings(tables: Sequence[Table], records: Sequence[Mapping]) -> list[Table]:
    """The tables, each caption with the warnings that concern it and that it has not yet."""
    signs = signs_of(records, {table.name: table.data for table in tables})
    return [replace(table, caption=_warned(table, signs)) for table in tables]


def _warned(table: Table, signs: Sequence[Sign]) -> str:
    texts = [f"{WARNING} {sign.text}" for sign in signs if table.name in sign.tables]
    return " ".join((table.caption, *(text for text in texts if text not in table.caption)))


def caption_warnings(caption: str) -> list[str]:
    """The sentences of a caption that a warning's mark begins, without it."""
    return re.findall(rf"{WARNING} (.*?\.)(?=\s|$)", caption)


def warning_sentences(records: Sequence[Mapping], *, plan: Plan | None = None) -> list[str]:
    """The warnings of a profile's records for its headline, each with the table that says it, without the mark.

    Of nAP50 alone where a table has metrics.

    Args:
        records: Records of one profile.
        plan: The few-shot cells that were wanted.
    """
    from risf_core.report.publish import headline  # which itself lists the warnings
    from risf_core.tables import watched_tables  # whose captions carry them

    found = [
        f"{text.removesuffix('.')} (table {table.name})."
        for table in watched_tables(records, plan=plan)
        for text in caption_warnings(table.caption)
        if NOT_IN_HEADLINE not in text
    ]
    found += [sign.text for sign in clips_without_training(records)]
    found += [sign.text for sign in several_processors(records)]
    found += [sign.text for sign in headline_too_wide(headline(records, plan=plan))]
    return [text[0].upper() + text[1:] for text in found]
