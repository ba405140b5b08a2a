"""The figure of 38_learning_rates: AP over the learning rate. A function of records."""

from collections.abc import Mapping, Sequence

from risf_core.report.figure_style import (
    Drawing,
    arms_note,
    groups,
    legend_below,
    look_of,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.rate_tables import NOTEBOOK, rate_cells
from risf_core.report.statistics import ordered


@styled
def rates_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """``metric`` over the learning rate, a line for each loss, a panel for each arm and K; the best rate is ringed."""
    cells = rate_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, ["split", "arm", "shots"])
    losses, rates = ordered("loss", cells["loss"]), sorted(set(cells["lr"]))
    rows = -(-len(places) // 4)
    columns = -(-len(places) // rows)
    figure, axes = panels(rows, columns, width=2.5, height=2.3, sharey=True, sharex=True)
    for ax, ((split, arm, shots), own) in zip(axes.flat, places, strict=False):
        for loss in losses:
            line = own[own["loss"] == loss].sort_values("lr")
            look = look_of("loss", loss, losses)
            ax.errorbar(
                line["lr"], line["mean"], line["half_width"], capsize=2, elinewidth=0.9, label=loss, **look
            )
            best = line[line["is_best"]]
            ax.plot(best["lr"], best["mean"], "o", markersize=11, fillstyle="none", color=look["color"])
        name = "mean over K and arms" if arm == "all" else f"{arm}, K={shots}"
        ax.set(xscale="log", title=f"split {split}, {name}")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=60, fontsize=7)
        ax.minorticks_off()
    for place, ax in enumerate(axes.flat):
        ax.set_visible(place < len(places))
        if place + columns >= len(places):  # nothing stands below it
            ax.set_xlabel("peak learning rate")
            ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{metric} (%)")
    legend_below(figure, axes[0, 0], columns=len(losses))
    caption = (
        f"{metric} over the peak learning rate (logarithmic) for each loss, all else equal, without re-scoring. A ring "
        "marks the best rate. Bars: 95 % Student-t intervals over few-shot seeds of one base model. "
        f"{seed_counts(cells)}{arms_note(cells)}"
    )
    return Drawing(figure, caption)
