"""The figure of 35_other_detectors: gain by detector, and the curve over c that the chosen one lies on."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from risf_core.report.figure_style import (
    SEEDS_NOTE,
    Drawing,
    legend_below,
    look_of,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.other_detectors_tables import (
    NOTEBOOK,
    choices,
    gains,
    name_of,
    rescored_cells,
)
from risf_core.report.statistics import notebook_of, summarize_cells
from risf_core.report.sweep_tables import PAPER_C

SHOWN = {"paper": f"paper, c = {PAPER_C}", "selected": "c chosen", "geometric": "geometric mean, c chosen"}


@styled
def other_detectors_figure(records: Sequence[Mapping]) -> Drawing:
    """Left: the gain of each way by detector and K; right: gain over c on the reported split, one panel a detector."""
    own = [record for record in records if notebook_of(record) == NOTEBOOK][
        -1:
    ]  # runs by hand are no second result
    cells = gains(own)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    select = own[0]["params"]["select_split"]
    curves = rescored_cells(own)
    curves = curves[(curves["split"] != select) & (curves["fusion"] == "arithmetic")]
    detectors = list(dict.fromkeys(cells["detector"]))
    figure, axes = panels(1, 1 + len(detectors), width=2.7, height=2.9)
    _gains(axes[0, 0], cells[cells["shots"] != "all"], detectors)
    for ax, detector in zip(axes[0, 1:], detectors, strict=True):
        chosen = choices(own[0]).set_index(["detector", "way"])["c"].get((detector, "selected"))
        _curve(ax, curves[curves["detector"] == detector], chosen)
        ax.set_title(name_of(detector))
    axes[0, 1].set_ylabel("gain of nAP50 (points)")
    low = min(ax.get_ylim()[0] for ax in axes[0, 1:])
    high = max(ax.get_ylim()[1] for ax in axes[0, 1:])
    for ax in axes[0, 1:]:
        ax.set_ylim(low, high)
    legend_below(figure, axes[0, 1], columns=4)
    caption = (
        "EXTENSION. Left: what CM-CLIP adds to nAP50, paired by seed, for each detector and K. Right: the same over c, "
        "arithmetic blend; a curve on the reported split is SENSITIVITY. Dotted: the paper's c. Star: the c chosen on "
        f"split {select} (other novel classes and base model, the same test images), by the mean nAP50 over K and "
        f"seeds. Geometric mean: s^c p^(1-c), an extension. {SEEDS_NOTE} "
        f"{seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _gains(ax: Axes, cells: pd.DataFrame, detectors: Sequence[str]) -> None:
    """Gain of each way, groups by detector and K."""
    pairs = list(dict.fromkeys(cells[["detector", "shots"]].itertuples(index=False, name=None)))
    for number, (way, label) in enumerate(SHOWN.items()):
        own = cells[cells["way"] == way].set_index(["detector", "shots"])
        where = [place + 0.2 * (number - 1) for place, pair in enumerate(pairs) if pair in own.index]
        own = own.reindex([pair for pair in pairs if pair in own.index])
        look = look_of("way", number + 3, range(6)) | {"linestyle": "none"}  # the first three are those of K
        ax.errorbar(
            where, own["gain"], own["gain_half_width"], capsize=2, elinewidth=0.9, label=label, **look
        )
    ax.set_xticks(
        range(len(pairs)), [f"{name_of(name).split(' (')[0]}\nK={shots}" for name, shots in pairs], fontsize=7
    )
    ax.tick_params(axis="x", rotation=60)
    ax.set_xlim(-0.5, len(pairs) - 0.5)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(ylabel="gain of nAP50 (points)", title="gain by detector")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    ax.legend(loc="upper right", fontsize=6.5)


def _curve(ax: Axes, cells: pd.DataFrame, chosen: float | None) -> None:
    means = summarize_cells(cells, ["shots", "c"], "gain")
    all_shots = sorted(set(means["shots"]))
    for place, shots in enumerate(all_shots):
        line = means[means["shots"] == shots]
        look = look_of("shots", place, range(len(all_shots)))
        moved = line["c"] + 0.012 * (place - (len(all_shots) - 1) / 2)
        bars = {"capsize": 1.5, "elinewidth": 0.7}
        ax.errorbar(moved, line["mean"], line["half_width"], label=f"K={shots}", **bars, **look)
        at = line[line["c"] == chosen]
        ax.plot(
            at["c"], at["mean"], marker="*", markersize=12, color=look["color"], linestyle="none", zorder=5
        )
    ax.axvline(PAPER_C, color="black", linestyle=":", linewidth=1.0)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlabel("c, weight of the detector's score")
