"""The figures of distilled re-scoring: functions of records."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from risf_core.report.distilled_rows import (
    NOTEBOOK,
    PLACE,
    SPACE_TEXTS,
    published_text,
    retention_cells,
    select_split_text,
    way_cells,
    way_text,
)
from risf_core.report.distilled_tables import (
    HEAD_NOTE,
    NOT_THE_PAPER,
    choice_note,
    costs_table,
    permuted_note,
    unseen_note,
)
from risf_core.report.figure_style import (
    COLORS,
    LINES,
    MARKERS,
    Drawing,
    groups,
    legend_below,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.statistics import ordered

BARS = "Bars: 95 % Student-t intervals over few-shot draws of one base model and one CLIP."
CURVES = {
    "none": "none",
    "cm_clip": "CM-CLIP as published",
    "cm_clip_chosen": "CM-CLIP, chosen T and c",
    "distilled": "distilled, chosen T and c",
    "distilled_published": "distilled, T and c as published",
}


def distilled_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """All of them, by the name of their table."""
    return {
        "distilled_retention": retention_figure(records),
        "distilled_ways": ways_figure(records),
        "distilled_costs": costs_figure(records),
    }


def _title(cells: pd.DataFrame, key: tuple) -> str:
    split, arm, loss, space = key
    where = f"split {split}, " if cells["split"].nunique() > 1 else ""
    kind = f", {loss}" if cells["loss"].nunique() > 1 else ""
    return f"{where}{SPACE_TEXTS.get(space, space)}{kind}" + (
        f", {arm}" if cells["arm"].nunique() > 1 else ""
    )


@styled
def retention_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """The metric over K: without re-scoring, with CM-CLIP, with the distilled head."""
    cells = retention_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, PLACE)
    columns = min(len(places), 2)
    figure, axes = panels(-(-len(places) // columns), columns, width=3.6, height=2.9, sharey=True)
    shots = ordered("shots", cells["shots"])
    for ax, (key, own) in zip(axes.flat, places):
        for number, (name, text) in enumerate(CURVES.items()):
            spots = [shots.index(value) + 0.04 * (number - (len(CURVES) - 1) / 2) for value in own["shots"]]
            look = {"color": COLORS[number], "marker": MARKERS[number], "linestyle": LINES[number]}
            bars = own[f"{name}_half_width"].fillna(0.0)
            ax.errorbar(spots, own[name], yerr=bars, label=text, capsize=2, **look)
        ax.set_xticks(range(len(shots)), [str(value) for value in shots])
        ax.set(title=_title(cells, key), xlabel="K (shots)")
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{metric} (%)")
    for ax in axes.flat[len(places) :]:
        ax.axis("off")
    legend_below(figure, axes[0, 0], columns=min(4, 2 * columns))
    caption = (
        f"{NOT_THE_PAPER} {HEAD_NOTE} {unseen_note(records)} Panels: which names compete in the softmax. As published: "
        f"{published_text(records)}; like is compared with like between both as published or both chosen. "
        f"{choice_note(records)} {BARS} {seed_counts(cells)} Points are moved sideways."
    )
    return Drawing(figure, caption)


@styled
def ways_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """The paired gain over no re-scoring of every way at its chosen temperature and c, at the smallest and "
    "largest K."""
    cells = way_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    cells = cells[(cells["values"] == "chosen") & (cells["way"] != "none")]
    every = ordered("shots", cells["shots"])
    shown = list(dict.fromkeys([every[0], every[-1]])) if every else []
    cells = cells[cells["shots"].isin(shown)]
    places, ways = groups(cells, PLACE), list(dict.fromkeys(cells["way"]))
    columns = min(len(places), 2)
    height = 0.24 * len(ways) + 0.8
    figure, axes = panels(
        -(-len(places) // columns), columns, width=3.4 + 1.2 / columns, height=height, sharey=True
    )
    for ax, (key, own) in zip(axes.flat, places):
        for number, value in enumerate(shown):
            rows = own[own["shots"] == value]
            spots = np.array([ways.index(way) for way in rows["way"]]) + 0.18 * (
                number - (len(shown) - 1) / 2
            )
            bars = rows["gain_half_width"].fillna(0.0)
            look = {"color": COLORS[number], "marker": MARKERS[number], "linestyle": "none"}
            ax.errorbar(rows["gain"], spots, xerr=bars, label=f"K = {value}", capsize=2, **look)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks(range(len(ways)), [way_text(way) for way in ways], fontsize=7)
        ax.set(title=_title(cells, key), xlabel=f"gain of {metric} over none (points)")
    axes[0, 0].invert_yaxis()
    for ax in axes.flat[len(places) :]:
        ax.axis("off")
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} {HEAD_NOTE} {unseen_note(records)} What each way of re-scoring adds to "
        f"{metric}, paired by draw, at the smallest and the largest K. Each at the T and c chosen for it on "
        f"{select_split_text(records)}; the controls (shuffled teacher, permuted probabilities) at the distilled "
        f"head's.{permuted_note(records)} {BARS} Ways that embed boxes anew are of fewer draws; the table "
        "has n."
    )
    return Drawing(figure, caption)


@styled
def costs_figure(records: Sequence[Mapping]) -> Drawing:
    """Milliseconds an image of each way, beside the detector's own."""
    table = costs_table(records)
    cells = table.data
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    runs = list(dict.fromkeys(cells["run_id"]))
    ways = list(dict.fromkeys(cells["way"]))
    names = dict(zip(cells["way"], table.display["way"]))
    figure, axes = panels(1, 1, width=5.6, height=0.32 * len(ways) + 0.9)
    ax = axes[0, 0]
    for number, run in enumerate(runs):
        rows = cells[cells["run_id"] == run]
        spots = np.array([ways.index(way) for way in rows["way"]]) + 0.15 * (number - (len(runs) - 1) / 2)
        split = rows["split"].iloc[0]
        ax.plot(
            rows["ms"],
            spots,
            color=COLORS[number],
            marker=MARKERS[number],
            linestyle="none",
            label=f"split {split}",
        )
    ax.set_xscale("log")
    ax.set_yticks(range(len(ways)), [names[way] for way in ways], fontsize=8)
    ax.set_ylim(len(ways) - 0.5, -0.5)
    ax.set(xlabel="ms an image (one thread, logarithmic)")
    if len(runs) > 1:
        legend_below(figure, ax)
    return Drawing(figure, table.caption)
