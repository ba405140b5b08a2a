"""The figures of the label space study: functions of records, each with a caption that stands alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke

from risf_core.report.figure_style import (
    Drawing,
    groups,
    legend_below,
    look_of,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.label_space_tables import (
    KEYS,
    NOT_THE_PAPER,
    NOTEBOOK,
    change_text,
    choice_note,
    selection_cells,
    single_change_cells,
    temperature_note,
    vocabulary_note,
)
from risf_core.report.statistics import notebook_of, ordered

LINES = {
    "none": "without re-scoring",
    "paper": "paper's setting",
    "selected": "selected",
    "test oracle": "test oracle (no result)",
}
BARS = "Bars: 95 % Student-t intervals over few-shot seeds of one base model per split and one CLIP."


@styled
def selection_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """``metric`` over K of what is reported (left), and every combination where is chosen and reported (right)."""
    cells = selection_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, KEYS[:3])
    figure, axes = panels(len(places), 2, width=4.2, height=3.2)
    for row_axes, (key, own) in zip(axes, places, strict=True):
        _lines(row_axes[0], own, metric)
        row_axes[0].set_title(f"{key[1]}, {key[2]}" + (f"\n{key[0]}" if len(places) > 1 else ""))
        _scatter(row_axes[1], records, key[0])
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} Left: {metric} of the same stored detections over K. {choice_note(records)} Right: every "
        "combination of the grid, nAP50 on either split, means over the seeds; "
        "crosses mark the selected combination of each K, plus signs the paper's. A cloud along its diagonal says "
        f"that the choice carries over. {vocabulary_note(records)} {BARS} {seed_counts(cells)} Points on the left are "
        "moved sideways."
    )
    return Drawing(figure, caption)


def _lines(ax, own: pd.DataFrame, metric: str) -> None:
    all_shots = ordered("shots", own["shots"])
    for number, (what, label) in enumerate(LINES.items()):
        line = own[own["what"] == what]
        where = [all_shots.index(shots) + 0.06 * (number - 1.5) for shots in line["shots"]]
        look = look_of("line", number, range(len(LINES)))
        ax.errorbar(where, line["mean"], line["half_width"], capsize=2, elinewidth=0.8, label=label, **look)
    ax.set_xticks(range(len(all_shots)), [str(shots) for shots in all_shots])
    ax.set_xlim(-0.4, len(all_shots) - 0.6)
    ax.set(xlabel="K, boxes of each novel class", ylabel=f"{metric} (%)")


def _scatter(ax, records: Sequence[Mapping], vocabulary: str) -> None:
    """The clouds of all combinations, one colour for each K."""
    grids = [
        record["metrics"]
        for record in records
        if notebook_of(record) == NOTEBOOK
        and vocabulary in {one["source"] for one in record["metrics"]["vocabulary"].values()}
    ]
    all_shots = sorted({int(shots) for metrics in grids for shots in metrics["grid"]["selection"]})
    for metrics in grids:
        grid, names = metrics["grid"], metrics["grid"]["combinations"]
        for shots in sorted(map(int, grid["selection"])):
            x, y = (np.array(grid[role][str(shots)]) for role in ("selection", "reported"))
            color = look_of("shots", all_shots.index(shots), range(len(all_shots)))["color"]
            ax.plot(x, y, ".", markersize=1.5, alpha=0.35, color=color, rasterized=True)
            for name, marker in ((metrics["chosen"][str(shots)], "x"), (metrics["paper"], "+")):
                place = names.index(name)
                at = {"marker": marker, "linestyle": "none", "zorder": 4}  # above the clouds of other K
                ax.plot(x[place], y[place], markersize=9, markeredgewidth=3.4, color="white", **at)
                ax.plot(x[place], y[place], markersize=8, markeredgewidth=1.8, color=color, **at)
            at = {"xytext": (8, -3), "textcoords": "offset points", "fontsize": 7.5, "va": "top"}
            at["path_effects"] = [withStroke(linewidth=2, foreground="white")]
            ax.annotate(f"K={shots}", (x.max(), y[np.argmax(x)]), color=color, zorder=5, **at)
    ax.margins(x=0.12)
    ax.set(xlabel="nAP50 on the split of the choice (%)", ylabel="nAP50 on the reported split (%)")


@styled
def single_changes_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """What each change alone adds to the paper's setting, at its c and with c chosen; a marker for each K."""
    cells = single_change_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, KEYS[:3])
    names = list(dict.fromkeys(cells.sort_values("place")["what"]))[::-1]
    all_shots = ordered("shots", cells["shots"])
    figure, axes = panels(1, len(places), width=6.4, height=0.23 * len(names) + 0.6, sharey=True)
    for ax, (key, own) in zip(axes[0], places, strict=True):
        for number, shots in enumerate(all_shots):
            row = own[own["shots"] == shots]
            look = look_of("shots", number, range(len(all_shots))) | {"linestyle": "none"}
            where = [names.index(what) - 0.13 * (number - (len(all_shots) - 1) / 2) for what in row["what"]]
            ax.errorbar(
                row["mean"], where, xerr=row["half_width"], elinewidth=0.7, label=f"K={shots}", markersize=3.5,
                **{name: value for name, value in look.items()},
            )  # fmt: skip
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel=f"difference of {metric} (points)")
        if len(places) > 1:
            ax.set_title(key[0])
        ax.set_yticks(range(len(names)), [change_text(name) for name in names], fontsize=7.5)
    legend_below(figure, axes[0, 0], columns=6)
    figure.get_layout_engine().set(w_pad=0.2)  # small letters are wider when saved than when laid out
    caption = (
        f"{NOT_THE_PAPER} What each thing contributes to {metric}. 'only X': the paper's setting with X alone changed, "
        "less the paper's; 'c chosen': and c as well. 'all but X': the selected setting less the best one that keeps "
        f"X as in the paper. {choice_note(records)}{temperature_note(records)} {vocabulary_note(records)} "
        f"{BARS} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)
