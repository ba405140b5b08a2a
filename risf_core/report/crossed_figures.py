"""Figures of a profile with several base models: effects, what makes them vary, the test images. From records alone."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from risf_core.report.base_models import has_several_bases
from risf_core.report.crossed import WIDE
from risf_core.report.crossed_rows import all_effects
from risf_core.report.crossed_tables import INTERVAL_NOTE, base_model_cells, component_cells, effect_cells
from risf_core.report.figure_style import (
    COLORS,
    MARKERS,
    Drawing,
    arms_note,
    legend_below,
    nothing_yet,
    panels,
    styled,
)
from risf_core.report.image_tables import image_caption, image_cells
from risf_core.report.statistics import ordered

WAITING = "several base models of a split in 20_fine_tuning"
SOURCES = {"base": "base models", "draw": "draws", "residual": "rest"}


def effect_name(effect: str, loss: str) -> str:
    """``cm_clip − none, ce``, for an axis."""
    return f"{effect.replace(' - ', ' − ')}{f', {loss}' if loss else ''}"


@styled
def effects_figure(records: Sequence[Mapping], *, effects: pd.DataFrame | None = None) -> Drawing:
    """A forest of the effects that claims rest on: hierarchical interval, and each base model's mean as a point."""
    if not has_several_bases(records):
        return nothing_yet(WAITING)
    effects = all_effects(records) if effects is None else effects
    cells = effect_cells(records, effects=effects)
    cells = cells[cells["in_family"]]
    points = base_model_cells(records, effects=effects)
    arms = ordered("arm", cells["arm"])
    names = list(dict.fromkeys(cells[["effect", "loss"]].itertuples(index=False, name=None)))
    all_shots = ordered("shots", cells["shots"])
    heights = {
        (name, shots): -(place * (len(all_shots) + 0.9) + number)
        for place, name in enumerate(names)
        for number, shots in enumerate(all_shots)
    }
    figure, axes = panels(
        1, len(arms), width=3.0, height=0.24 * len(heights) + 0.22 * len(names) + 0.9, sharey=True
    )
    figure.set_figwidth(3.0 * len(arms) + 1.0)
    for ax, arm in zip(axes[0], arms, strict=True):
        ax.axvline(0, color="black", linewidth=0.8)
        ax.axvspan(-WIDE, WIDE, color="#f0f0f0", zorder=0)
        for row in cells[cells["arm"] == arm].itertuples():
            own = points[(points["effect"] == row.effect) & (points["loss"] == row.loss)]
            own = own[(own["arm"] == arm) & (own["shots"] == row.shots)]
            _draw_effect(ax, row, own, heights[(row.effect, row.loss), row.shots])
        ax.set(title=arm, xlabel="effect on nAP50 (points)")
    _name_effects(axes[0], heights, names)
    legend_below(figure, axes[0, 0], columns=3)
    caption = (
        "Effects on nAP50 of the novel classes in points, setting fsod: the mean over splits (black), and each base "
        f"model of each split (coloured, mean over draws and CLIPs). {INTERVAL_NOTE} Open black markers: Holm's "
        f"corrected p is above 0.05. Grey: within {WIDE:.1f} point of no effect.{arms_note(cells)} n and the smallest "
        "effect visible: table claims_effects."
    )
    figure.get_layout_engine().set(w_pad=0.15)  # long names at the left
    return Drawing(figure, caption)


def _draw_effect(ax: Axes, row, points: pd.DataFrame, y: float) -> None:
    """One line of the forest; the points of a split stand on a line of their own, so that none hides another."""
    for split, own in points.groupby("split", sort=True):
        look = {
            "color": COLORS[(int(split) - 1) % len(COLORS)],
            "marker": MARKERS[(int(split) - 1) % len(MARKERS)],
        }
        where = np.full(len(own), y - 0.11 * (int(split) - 2))
        labels = ax.get_legend_handles_labels()[1]
        label = f"split {split}" if f"split {split}" not in labels else None
        ax.plot(own["mean"], where, linestyle="none", markersize=3.2, alpha=0.85, label=label, **look)
    is_seen = row.p_holm <= 0.05
    ax.errorbar(
        row.mean, y, xerr=row.half_width, color="black", marker="d", markersize=5, capsize=2.5, elinewidth=1.1,
        markerfacecolor="black" if is_seen else "white", linestyle="none", zorder=5,
    )  # fmt: skip


def _name_effects(axes: Sequence[Axes], heights: Mapping, names: Sequence[tuple[str, str]]) -> None:
    """K at each line, the name of an effect above its lines."""
    axes[0].set_yticks(list(heights.values()), [f"K={shots}" for _, shots in heights], fontsize=7.5)
    axes[0].set_ylim(min(heights.values()) - 0.7, 1.3)
    for name in names:
        top = max(height for (own, _), height in heights.items() if own == name)
        patch = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes[0].annotate(
            effect_name(*name), (0.01, top + 0.72), xycoords=axes[0].get_yaxis_transform(), va="center",
            weight="bold", fontsize=7.5, bbox=patch,
        )  # fmt: skip


def _line_names(lines: Sequence[tuple]) -> list[str]:
    """Effect, loss and K of each line, in two rows of text where it is long."""
    names = [f"{effect_name(effect, loss)}, K={shots}" for effect, loss, shots in lines]
    return ["\n".join(textwrap.wrap(name, 32)) for name in names]


@styled
def components_figure(records: Sequence[Mapping], *, effects: pd.DataFrame | None = None) -> Drawing:
    """Standard deviations by source for each effect that claims rest on, one panel for each arm."""
    if not has_several_bases(records):
        return nothing_yet(WAITING)
    effects = all_effects(records) if effects is None else effects
    cells = component_cells(records, effects=effects)
    family = effect_cells(records, effects=effects)
    keys = ["effect", "loss", "arm", "shots"]
    cells = cells.merge(family.loc[family["in_family"], keys], on=keys)
    arms = ordered("arm", cells["arm"])
    lines = list(dict.fromkeys(cells[["effect", "loss", "shots"]].itertuples(index=False, name=None)))
    figure, axes = panels(1, len(arms), width=2.8, height=0.3 * len(lines) + 0.9, sharex=True, sharey=True)
    figure.set_figwidth(2.8 * len(arms) + 3.2)
    for ax, arm in zip(axes[0], arms, strict=True):
        own = cells[cells["arm"] == arm]
        rows = [
            lines.index(key) for key in own[["effect", "loss", "shots"]].itertuples(index=False, name=None)
        ]
        for number, (source, label) in enumerate(SOURCES.items()):
            where = -np.array(rows, dtype=float) + 0.26 * (1 - number)
            hatch = ("", "////", "....")[number]
            ax.barh(
                where, own[source], height=0.24, color=COLORS[number], hatch=hatch, edgecolor="white", linewidth=0.4,
                label=label,
            )  # fmt: skip
        ax.set(title=arm, xlabel="standard deviation (points of nAP50)")
        ax.grid(visible=False, axis="y")
    axes[0, 0].set_yticks([-place for place in range(len(lines))], _line_names(lines), fontsize=7.5)
    legend_below(figure, axes[0, 0], columns=3)
    first = cells.iloc[0]
    caption = (
        "How far repeats make each effect on nAP50 vary, as standard deviations in points within a split: other base "
        "models, other draws of the K-shot images, and the rest (the training of the head, and how draws and base "
        f"models go together). From {int(first['splits'])} splits with {int(first['bases'])} base models and "
        f"{int(first['draws'])} draws each (fewer splits where a rate was chosen); an estimate below 0 is 0."
        f"{arms_note(cells)} CLIPs: table variance_components."
    )
    figure.get_layout_engine().set(w_pad=0.15)  # long names at the left
    return Drawing(figure, caption)


@styled
def image_intervals_figure(records: Sequence[Mapping]) -> Drawing:
    """A forest of the effects with their intervals over the test images, one panel for each arm."""
    cells = image_cells(records)
    if cells.empty:
        return nothing_yet("43_test_images")
    arms = ordered("arm", cells["arm"])
    lines = list(dict.fromkeys(cells[["effect", "loss", "shots"]].itertuples(index=False, name=None)))
    height = 0.24 * len(lines) + 0.9
    figure, axes = panels(1, len(arms), width=2.6, height=height, sharex=True, sharey=True)
    figure.set_figwidth(2.6 * len(arms) + 3.0)
    for ax, arm in zip(axes[0], arms, strict=True):
        ax.axvline(0, color="black", linewidth=0.8)
        for row in cells[cells["arm"] == arm].itertuples():
            y = -lines.index((row.effect, row.loss, row.shots))
            look = {"color": COLORS[0], "marker": MARKERS[0], "linestyle": "none"}
            sides = [[row.mean - row.low], [row.high - row.mean]]
            ax.errorbar(row.mean, y, xerr=sides, capsize=2, elinewidth=1.0, **look)
        ax.set(title=arm, xlabel="effect on nAP50 (points)")
    axes[0, 0].set_yticks([-place for place in range(len(lines))], _line_names(lines), fontsize=7.5)
    figure.get_layout_engine().set(w_pad=0.15)  # long names at the left
    return Drawing(figure, image_caption(cells))


def crossed_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """The figures of this module by the names of their tables."""
    effects = all_effects(records) if has_several_bases(records) else None
    return {
        "claims_effects": effects_figure(records, effects=effects),
        "variance_components": components_figure(records, effects=effects),
        "test_images": image_intervals_figure(records),
    }
