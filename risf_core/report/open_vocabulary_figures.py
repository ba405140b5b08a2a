"""The figures of 50_open_vocabulary: functions of records."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from risf_core.report.figure_style import (
    COLORS,
    MARKERS,
    Drawing,
    groups,
    legend_below,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.open_vocabulary_rows import (
    BASE,
    CONTINUED,
    ILS,
    NOTEBOOK,
    PLACE,
    RKD,
    TRANSFER,
    TWICE,
    arm_cells,
    arm_of,
    arm_rows,
)
from risf_core.report.open_vocabulary_texts import oracle_note

FAMILIES = {
    "base": "base",
    "RKD": "RKD",
    "ILS": "ILS",
    "both": "RKD + ILS",
    "control": "control",
    "oracle": "oracle (annotated boxes, jittered)",
}
NAMED = {
    CONTINUED: ("base, trained on", (4, -10)),
    RKD: ("RKD", (5, -9)),
    ILS: ("ILS", (5, -9)),
    TRANSFER: ("weight transfer", (5, -9)),
    "relation_only": ("relations beside classification", (5, 4)),
}  # with the offset in points
BARS = "Bars: 95 % Student-t intervals over seeds, each with its own base detector."


def _look(family: str) -> dict:
    place = list(FAMILIES).index(family)
    look = {"color": COLORS[place], "marker": MARKERS[place], "linestyle": "none"}
    return look | ({"markerfacecolor": "white"} if family == "oracle" else {})


def _title(cells: pd.DataFrame, key: tuple) -> str:
    split, variant = key
    return ", ".join(part for part in (f"split {split}", variant) if part)


def _of_most_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the parameters that most runs have; a study with a stage 0 of its own stands in the tables alone."""
    is_main = frame["variant"] == "" if len(frame) else []
    return frame[is_main] if len(frame) and is_main.any() else frame


@styled
def arms_figure(records: Sequence[Mapping]) -> Drawing:
    """nAP50 of every arm with its interval and its seeds, and the lines of the bases."""
    cells, rows = _of_most_runs(arm_cells(records)), _of_most_runs(arm_rows(records))
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, PLACE)
    arms = _in_families(cells["arm"])
    heights = _heights(arms)
    size = 0.185 * (max(heights.values()) - min(heights.values())) + 0.9
    figure, axes = panels(1, len(places), width=3.6, height=size, sharey=True)
    figure.set_figwidth(3.6 * len(places) + 3.4)
    figure.get_layout_engine().set(w_pad=0.2)  # its widths of text are for fewer dots an inch than are saved
    for ax, (key, own) in zip(axes[0], places, strict=True):
        seeds = rows[(rows["split"] == key[0]) & (rows["variant"] == key[1])]
        for family, text in FAMILIES.items():
            row = own[[arm_of(arm).family == family for arm in own["arm"]]]
            if len(row):
                y = [heights[arm] for arm in row["arm"]]
                bars = {"xerr": row["nAP50_half_width"], "capsize": 2, "elinewidth": 1.0}
                ax.errorbar(row["nAP50"], y, **bars, label=text, **_look(family))
        dots = {"marker": "|", "s": 26, "linewidths": 0.8, "color": "#777777", "zorder": 1}
        ax.scatter(seeds["nAP50"], [heights[arm] for arm in seeds["arm"]], **dots)
        for arm, style in ((CONTINUED, "--"), (TWICE, ":")):
            level = own.loc[own["arm"] == arm, "nAP50"]
            if len(level):
                ax.axvline(level.iloc[0], color="black", linestyle=style, linewidth=0.9, zorder=0)
        ax.set(title=_title(cells, key), xlabel="nAP50 (%)")
        left, right = ax.get_xlim()
        ax.set_xlim(max(min(0.0, left), -10.0), min(right, 103.0))  # bars may reach beyond what can be
    axes[0, 0].set_yticks(list(heights.values()), [arm_of(arm).text for arm in heights], fontsize=7.5)
    axes[0, 0].set_ylim(min(heights.values()) - 0.8, 0.8)
    legend_below(figure, axes[0, 0], columns=3)
    caption = (
        "AP50 of novel classes among all classes (generalised) of every arm. Dashed: the base "
        "trained for as many steps as one stage of distillation; dotted: as two stages (weight transfer and its "
        "controls). Ticks: single seeds. "
        f"{oracle_note(records)} {BARS} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _in_families(names: Sequence[str]) -> list[str]:
    """The arms in the order of the families, then in their own."""
    names, order = list(dict.fromkeys(names)), list(FAMILIES)
    return sorted(names, key=lambda name: (order.index(arm_of(name).family), names.index(name)))


def _heights(arms: Sequence[str]) -> dict[str, float]:
    """The place of each arm on the axis, downwards, with a gap between families."""
    found, y = {}, 0.0
    for place, arm in enumerate(arms):
        if place:
            y -= 1.0 if arm_of(arm).family == arm_of(arms[place - 1]).family else 1.7
        found[arm] = y
    return found


@styled
def fidelity_figure(records: Sequence[Mapping]) -> Drawing:
    """nAP50 of each arm against what its embeddings know of the teacher: zero-shot accuracy, cosine, CKA."""
    metrics = ("zero_shot_novel", "cosine_novel", "cka_novel")
    cells = _of_most_runs(arm_cells(records, metrics=(*metrics, "nAP50"), differences=()))
    cells = cells[cells["arm"] != BASE].dropna(subset=["nAP50"])
    if cells.empty or cells[list(metrics)].isna().all(axis=None):
        return nothing_yet(NOTEBOOK)
    places = groups(cells, PLACE)
    figure, axes = panels(len(places), len(metrics), width=3.2, height=3.0, sharey="row")
    labels = (
        "top-1 accuracy of u on novel objects (%)",
        "cosine of u and v, novel objects",
        "CKA of u and v, novel",
    )
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for ax, metric, text in zip(row_axes, metrics, labels, strict=True):
            _scatter(ax, own, metric)
            ax.set(xlabel=text, title=_title(cells, key) if metric == metrics[0] else "")
        row_axes[0].set_ylabel("nAP50 (%)")
    legend_below(figure, axes[0, 0], columns=6)
    caption = (
        "Each arm's AP50 of novel classes against how much its region embeddings u hold of CLIP's embeddings v of the "
        "same boxes: top-1 accuracy of u among all names, mean cosine, linear CKA (1: the same up to rotation and "
        "scale). Relation matching alone may reach a high CKA with an accuracy of chance, for it does not fix the "
        f"rotation. {BARS} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _scatter(ax: Axes, cells: pd.DataFrame, metric: str) -> None:
    for family, text in FAMILIES.items():
        row = cells[[arm_of(arm).family == family for arm in cells["arm"]]]
        bars = {"xerr": row[f"{metric}_half_width"], "yerr": row["nAP50_half_width"], "elinewidth": 0.6}
        if len(row):
            ax.errorbar(row[metric], row["nAP50"], **bars, label=text, **_look(family))
    for row in cells[cells["arm"].isin(list(NAMED))].itertuples():
        name, offset = NAMED[row.arm]
        at = {"xytext": offset, "textcoords": "offset points", "fontsize": 7}
        ax.annotate(name, (getattr(row, metric), row.nAP50), **at)
    ax.margins(x=0.12, y=0.08)
    bounds = (
        (-3.0, 103.0) if metric.startswith("zero_shot") else (-0.2, 1.03)
    )  # bars may reach beyond what can be
    for limits, setter, (low, high) in (
        (ax.get_xlim(), ax.set_xlim, bounds),
        (ax.get_ylim(), ax.set_ylim, (-3.0, 103.0)),
    ):
        setter(max(limits[0], low), min(limits[1], high))


def open_vocabulary_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """Each figure by the name of its table."""
    return {
        "open_vocabulary_main": arms_figure(records),
        "open_vocabulary_fidelity": fidelity_figure(records),
    }
