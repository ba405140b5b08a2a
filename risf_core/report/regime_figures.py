"""The figure of 39_training_regimes: BNRL and smaller steps of cross-entropy against one reference, by regime."""

from collections.abc import Mapping, Sequence

from risf_core.report.figure_style import Drawing, legend_below, look_of, nothing_yet, panels, styled
from risf_core.report.regime_tables import (
    CHOSEN,
    LOSSES,
    NOTEBOOK,
    REGIME_TEXTS,
    images_note,
    regime_cells,
    selection_note,
)
from risf_core.report.statistics import ordered

LINES = {"ce": ("step", "ce (the control: the step alone)"), "bnrl": ("bnrl_step", "bnrl")}


@styled
def regimes_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """Paired differences to cross-entropy at its largest rate, over the rate: a column a regime, a row an arm."""
    cells = regime_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = list(dict.fromkeys(cells[["split", "shots", "arm"]].itertuples(index=False, name=None)))
    regimes = [regime for regime in REGIME_TEXTS if regime in set(cells["regime"])]
    figure, axes = panels(len(places), len(regimes), width=2.7, height=2.3, sharex="col", sharey="row")
    for row_axes, (split, shots, arm) in zip(axes, places, strict=True):
        for ax, regime in zip(row_axes, regimes, strict=True):
            is_own = (cells["split"] == split) & (cells["shots"] == shots) & (cells["arm"] == arm)
            _draw(ax, cells[is_own & (cells["regime"] == regime)])
            several = f", split {split}" if cells["split"].nunique() > 1 else ""
            ax.set_title(f"{REGIME_TEXTS[regime]}\n{arm}{several}, K={shots}")
        row_axes[0].set_ylabel(f"{metric} − reference (points)")
    for ax in axes[-1]:
        ax.set_xlabel("peak learning rate")
    legend_below(figure, axes[0, 0])
    low, high = cells["ce_n"].replace(0, float("nan")).min(), cells["ce_n"].max()
    seeds = f"n = {high}" if low == high else f"n = {low:.0f} to {high}"
    caption = (
        f"What a loss and its peak learning rate (logarithmic) do to {metric} on {images_note(records)}, by what is "
        "trained. The reference, at 0, is ce at the largest rate that both losses have; differences are paired per "
        "seed. Where bnrl lies on the line of ce, it does no more than a smaller step would. Rings: rates "
        f"{selection_note(records)}. missing: further objects stand in the images and are not annotated; full: the "
        f"same images, all annotated. Bars: 95 % Student-t intervals over few-shot seeds of one base model ({seeds})."
    )
    return Drawing(figure, caption)


def _draw(ax, own) -> None:
    ax.axhline(0, color="black", linewidth=0.8)
    at_rate, chosen = own[own["rate"] != CHOSEN], own[own["rate"] == CHOSEN]
    for number, loss in enumerate(LOSSES):
        name, label = LINES[loss]
        look = look_of("loss", loss, LOSSES)
        line = at_rate[at_rate[f"{name}_n"] > 0]
        nudge = 0.97 + 0.06 * number
        bars = {"capsize": 2, "elinewidth": 0.9, "label": label}
        ax.errorbar(line[f"{loss}_lr"] * nudge, line[name], line[f"{name}_half_width"], **bars, **look)
        ring = {"markersize": 11, "fillstyle": "none", "color": look["color"], "linestyle": "none"}
        ax.plot(chosen[f"{loss}_lr"] * nudge, chosen[name], marker="o", **ring)
    rates = ordered("lr", at_rate["ce_lr"])
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()
