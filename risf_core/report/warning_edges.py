"""An optimum at the edge of what was tried: of c, the temperature, a map, the learning rates, a selection. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from risf_core.report.label_space_tables import KEYS as LABEL_SPACE_KEYS
from risf_core.report.label_space_tables import NOTEBOOK as LABEL_SPACE
from risf_core.report.label_space_tables import at_ends
from risf_core.report.statistics import notebook_of
from risf_core.report.sweep_tables import PAPER_RESCORING, SWEEP_NAMES

MOST_NAMED = 4  # cells in one sentence
EDGE_AXES = {  # table of a sweep: its axes and the columns that separate its curves
    "sensitivity_beta_omega": (("beta", "β"), ("background_weight", "ω_bg")),
    "sensitivity_gamma_epsilon": (("gamma", "γ"), ("epsilon", "ε")),
}


@dataclass(frozen=True)
class Sign:
    """One sign of failure.

    Attributes:
        kind: base classes, bnrl, edge, clip, power or processors.
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


def cell_text(row: Mapping, names: Sequence[str]) -> str:
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
        elif isinstance(value, str) and value and ":g" in texts.get(name, ""):
            found.append(f"{name} {value}")  # such as a learned temperature
        elif value != "":
            found.append(texts.get(name, "{}").format(value))
    return ", ".join(found)


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
    for key, own in _curves(data, keys):
        if own["c"].nunique() < 3:
            continue
        curves += 1
        best = own.loc[own["mean"].idxmax(), "c"]
        if best in (own["c"].min(), own["c"].max()):
            meaning = {0.0: "CLIP alone", 1.0: "no re-scoring"}.get(
                float(best), "a better one may lie beyond"
            )
            ends.setdefault(f"c={best:g} ({meaning})", []).append(cell_text(key, keys))
    if not ends:
        return []
    parts = [f"{end} in {len(cells)} of {curves} curves: {named(cells)}" for end, cells in ends.items()]
    return [Sign("edge", (table,), f"the best c is the first or last one tried: {' — '.join(parts)}.")]


def edges_of_temperature(data: pd.DataFrame, table: str) -> list[Sign]:
    """Curves over the temperature of CM-CLIP's softmax whose largest mean over all c is at an end."""
    if "temperature" not in data:
        return []
    numbers = pd.to_numeric(data["temperature"], errors="coerce")  # a learned one has no place in the order
    data = data.assign(temperature=numbers).dropna(subset=["temperature"])
    if data["temperature"].nunique() < 3:
        return []
    keys = [name for name in ("split", "arm", "loss", "label_space", "fusion", "shots") if name in data]
    found = []
    for key, own in _curves(data, keys):
        best = own.loc[own["mean"].idxmax(), "temperature"]
        if own["temperature"].nunique() > 2 and best in (own["temperature"].min(), own["temperature"].max()):
            found.append(f"T={best:g} ({cell_text(key, keys)})")
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
    for key, own in _curves(data, keys):
        maps += 1
        best = own.loc[own["mean"].idxmax()]
        ends = []
        for name, symbol in EDGE_AXES[table]:
            values = sorted(own[name].unique())
            if len(values) > 2 and best[name] in (values[0], values[-1]):
                which = "smallest" if best[name] == values[0] else "largest"
                ends.append(f"{symbol}={best[name]:g}, the {which}")
        if ends:
            place = cell_text(key | {"sweep": SWEEP_NAMES.get(key["sweep"], key["sweep"])}, keys)
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
    rows.sort(key=lambda row: row["arm"] != "all")  # the rates that other studies take come first
    found = [f"{row['lr']:g} ({cell_text(row, keys)})" for row in rows]
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
                    found.append(f"{', '.join(ends)} ({cell_text(row, LABEL_SPACE_KEYS)})")
    if not found:
        return []
    return [
        Sign("edge", ("label_space_selection",), f"selected at an end of the values tried: {named(found)}.")
    ]


def _curves(data: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict, pd.DataFrame]]:
    """The rows of each curve with a mean, and the values of its keys."""
    own = data.dropna(subset=["mean"]) if len(data) else data
    if own.empty:
        return []
    return [(dict(zip(keys, key, strict=True)), group) for key, group in own.groupby(list(keys), sort=False)]
