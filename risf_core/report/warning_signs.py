"""Known signs of failure, each found in records or tables and said in a sentence under the tables concerned.

Base AP falls under re-scoring; BNRL below cross-entropy; an optimum at the edge of a sweep; a CLIP that is not good
enough for the novel classes; differences too wide to tell. Pure functions; imports no torch.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from risf_core.report.crossed import WIDE
from risf_core.report.label_space_tables import KEYS as LABEL_SPACE_KEYS
from risf_core.report.label_space_tables import NOTEBOOK as LABEL_SPACE
from risf_core.report.label_space_tables import at_ends
from risf_core.report.plan import Plan
from risf_core.report.statistics import fine_tuning_rows, notebook_of, pair, student_interval
from risf_core.report.sweep_tables import PAPER_RESCORING, SWEEP_NAMES
from risf_core.report.table_format import Table, interval_text, number

WARNING = "WARNING:"
# Crop accuracy among the novel names, in percent. Of the 12 CLIPs of the study of backbones, each trained to three
# lengths, all below 61 % lost novel AP and all above 75 % gained (results/published/studies/tables/backbones.md).
LOW_ACCURACY = 70.0
NOT_IN_HEADLINE = "differences are underpowered"  # of a table: the headline names its own
MOST_NAMED = 4  # cells in one sentence
EDGE_AXES = {  # table of a sweep: its axes and the columns that separate its curves
    "sensitivity_beta_omega": (("beta", "β"), ("background_weight", "ω_bg")),
    "sensitivity_gamma_epsilon": (("gamma", "γ"), ("epsilon", "ε")),
}


@dataclass(frozen=True)
class Sign:
    """One sign of failure.

    Attributes:
        kind: base classes, bnrl, edge, clip or power.
        tables: Names of the tables under which it is said.
        text: The sentence.
    """

    kind: str
    tables: tuple[str, ...]
    text: str


def named(items: Iterable[str]) -> str:
    """The first few of a list of cells, and how many more there are."""
    items = list(dict.fromkeys(items))
    more = f"; and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else ""
    return "; ".join(items[:MOST_NAMED]) + more


def lies_below(mean: float, half_width: float) -> bool:
    """Whether an interval lies wholly below 0; never without an interval."""
    return mean + half_width < 0


def _cell(row: Mapping, names: Sequence[str]) -> str:
    """``split 1, kshot, ce, K=5`` of a row."""
    texts = {
        "split": "split {}",
        "shots": "K={}",
        "variant": "{}",
        "given": "re-scoring {}",
        "c": "c={:g}",
        "temperature": "T={:g}",
    }
    found = []
    for name in names:
        value = row.get(name, "")
        if value == "all" and name == "shots":
            found.append("mean over K")
        elif value != "":
            found.append(texts.get(name, "{}").format(value))
    return ", ".join(found)


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
                    where = _cell(dict(zip(keys, key, strict=True)), keys)
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
    found = [
        f"{row['comparison']} {interval_text(row['mean'], row['half_width'], sign=True)} "
        f"({_cell(row, ['split', 'setting', 'arm', 'variant', 'given', 'shots'])})"
        for row in cells.to_dict("records")
        if row["comparison"] in ("bnrl − ce", "ce_bg − ce") and lies_below(row["mean"], row["half_width"])
    ]
    if not found:
        return []
    text = f"BNRL is below cross-entropy on this set ({metric}, interval wholly below 0): {named(found)}"
    text += "; ce_bg is what the released code trains as BNRL." if "ce_bg" in text else "."
    return [Sign("bnrl", (f"paired_{metric}", f"main_{metric}"), text)]


def bnrl_effects_below_ce(effects: pd.DataFrame) -> list[Sign]:
    """The same for the effects over base models, splits and CLIPs (the data of ``claims_effects``)."""
    found = [
        f"{row['effect']} {interval_text(row['mean'], row['half_width'], sign=True)} ({_cell(row, ['arm', 'shots'])})"
        for row in effects.to_dict("records")
        if str(row["effect"]).startswith("bnrl - ce") and lies_below(row["mean"], row["half_width"])
    ]
    if not found:
        return []
    text = (
        f"BNRL is below cross-entropy over base models and draws (interval wholly below 0): {named(found)}."
    )
    return [Sign("bnrl", ("claims_effects",), text)]


def edges_of_c(data: pd.DataFrame, table: str) -> list[Sign]:
    """Curves over c whose largest mean is the first or the last of three values or more.

    Args:
        data: The data of a table ``sensitivity_c_*``: keys, c, mean.
        table: Its name.
    """
    axes = [name for name in PAPER_RESCORING if name in data]
    keys = [name for name in ("split", "arm", "loss", "label_space", *axes, "shots") if name in data]
    ends: dict[str, list[str]] = {}
    curves = 0
    for key, own in _groups(data, keys):
        if own["c"].nunique() < 3:
            continue
        curves += 1
        best = own.loc[own["mean"].idxmax(), "c"]
        if best in (own["c"].min(), own["c"].max()):
            meaning = {0.0: "CLIP alone", 1.0: "no re-scoring"}.get(
                float(best), "a better one may lie beyond"
            )
            ends.setdefault(f"c={best:g} ({meaning})", []).append(_cell(key, keys))
    if not ends:
        return []
    parts = [f"{end} in {len(cells)} of {curves} curves: {named(cells)}" for end, cells in ends.items()]
    return [Sign("edge", (table,), f"the best c is the first or last one tried: {' — '.join(parts)}.")]


def edges_of_temperature(data: pd.DataFrame, table: str) -> list[Sign]:
    """Curves over the temperature of CM-CLIP's softmax whose largest mean over all c is at an end."""
    if "temperature" not in data or data["temperature"].nunique() < 3:
        return []
    keys = [name for name in ("split", "arm", "loss", "label_space", "fusion", "shots") if name in data]
    found = []
    for key, own in _groups(data, keys):
        best = own.loc[own["mean"].idxmax(), "temperature"]
        if own["temperature"].nunique() > 2 and best in (own["temperature"].min(), own["temperature"].max()):
            found.append(f"T={best:g} ({_cell(key, keys)})")
    if not found:
        return []
    return [Sign("edge", (table,), f"the best temperature is the smallest or largest tried: {named(found)}.")]


def edges_of_map(data: pd.DataFrame, table: str) -> list[Sign]:
    """Maps of BNRL's hyper-parameters whose best cell lies at an end of an axis of three values or more.

    Args:
        data: The data of ``sensitivity_beta_omega`` or ``sensitivity_gamma_epsilon``: sweep, its axes, mean.
        table: Its name.
    """
    found, maps = [], 0
    keys = ["split", "sweep", "arm", "shots"]
    for key, own in _groups(data, keys):
        maps += 1
        best = own.loc[own["mean"].idxmax()]
        ends = []
        for name, symbol in EDGE_AXES[table]:
            values = sorted(own[name].unique())
            if len(values) > 2 and best[name] in (values[0], values[-1]):
                which = "smallest" if best[name] == values[0] else "largest"
                ends.append(f"{symbol}={best[name]:g}, the {which}")
        if ends:
            place = _cell(key | {"sweep": SWEEP_NAMES.get(key["sweep"], key["sweep"])}, keys)
            found.append(f"{' and '.join(ends)} ({place})")
    if not found:
        return []
    text = f"the optimum lies at the edge of the values tried in {len(found)} of {maps} maps: {named(found)}."
    return [Sign("edge", (table,), text)]


def edges_of_rates(data: pd.DataFrame) -> list[Sign]:
    """Learning rates that are the best of their line and the smallest or largest tried (data of ``learning_rates``)."""
    if "at_edge" not in data:
        return []
    keys = ["loss", "split", "arm", "shots"]
    rows = data[data["at_edge"].astype(bool)].to_dict("records")
    found = [f"{row['lr']:g} ({_cell(row, keys)})" for row in rows]
    if not found:
        return []
    text = f"the best learning rate is the smallest or largest tried: {named(found)}."
    return [Sign("edge", ("learning_rates",), text)]


def edges_of_selection(cells: pd.DataFrame, records: Sequence[Mapping]) -> list[Sign]:
    """What was selected on another split at an end of its grid (the data of ``label_space_selection``)."""
    found = []
    studies = [record for record in records if notebook_of(record) == LABEL_SPACE]
    own = cells[cells["what"] == "selected"] if len(cells) else cells
    for row in own.to_dict("records"):
        for record in studies:
            sources = (record["metrics"].get("vocabulary") or {}).values()
            if row["vocabulary"] == ", ".join(dict.fromkeys(one["source"] for one in sources)):
                ends = at_ends(
                    row["combination"], record["metrics"], record.get("params") or {}, row["shots"]
                )
                if ends:
                    found.append(f"{', '.join(ends)} ({_cell(row, LABEL_SPACE_KEYS)})")
    if not found:
        return []
    return [
        Sign("edge", ("label_space_selection",), f"selected at an end of the values tried: {named(found)}.")
    ]


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


def _groups(data: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict, pd.DataFrame]]:
    """The rows of each curve with a mean, and the values of its keys."""
    own = data.dropna(subset=["mean"]) if len(data) else data
    if own.empty:
        return []
    return [(dict(zip(keys, key, strict=True)), group) for key, group in own.groupby(list(keys), sort=False)]


WATCHED: dict[str, Callable[[pd.DataFrame], list[Sign]]] = {
    "paired_nAP50": lambda data: [*bnrl_below_ce(data, "nAP50"), *too_wide(data, "nAP50")],
    "paired_nAP": lambda data: bnrl_below_ce(data, "nAP"),
    "paired_nAP75": lambda data: bnrl_below_ce(data, "nAP75"),
    "claims_effects": bnrl_effects_below_ce,
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
    found += [sign.text for sign in headline_too_wide(headline(records, plan=plan))]
    return [text[0].upper() + text[1:] for text in found]
