"""The gain of towers trained for several lengths, against the accuracy of their crops."""

from collections.abc import Mapping, Sequence

from risf_core.report.backbone_tables import NOTEBOOK, accuracy_curves, common_accuracies, towers_of
from risf_core.report.figure_style import (
    SEEDS_NOTE,
    Drawing,
    arms_note,
    groups,
    legend_below,
    look_of,
    nothing_yet,
    panel_title,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.statistics import summarize_cells


@styled
def backbones_at_accuracy_figure(records: Sequence[Mapping]) -> Drawing:
    """CM-CLIP's paired gain against crop accuracy, a line for each tower, a panel for each arm."""
    frame = accuracy_curves(records)
    if frame.empty:
        return nothing_yet(f"towers of {NOTEBOOK} at several training lengths")
    keys = ["split", "arm", "loss", "shots"]
    cells = summarize_cells(frame, [*keys, "tower", "iterations", "crop_accuracy"], "gain")
    places, towers = groups(cells, keys), towers_of(frame)
    figure, axes = panels(1, len(places), width=3.9, height=3.1, sharey=True)
    for ax, ((split, arm, loss, shots), own) in zip(axes[0], places, strict=True):
        for tower in towers:
            line = own[own["tower"] == tower].sort_values("crop_accuracy")
            look = look_of("tower", tower, towers)
            name = tower.removeprefix("risf-tiny-")
            ax.errorbar(
                line["crop_accuracy"],
                line["mean"],
                line["half_width"],
                capsize=2,
                elinewidth=0.8,
                label=name,
                **look,
            )
            for row in line.itertuples():
                where = {
                    "xytext": (4, -9),
                    "textcoords": "offset points",
                    "fontsize": 6.5,
                    "color": look["color"],
                }
                ax.annotate(f"{row.iterations:.0f}", (row.crop_accuracy, row.mean), **where)
        shared = common_accuracies(frame[(frame[keys] == [split, arm, loss, shots]).all(axis=1)])
        if shared:
            ax.axvspan(shared["lowest"], shared["highest"], color="#f0f0f0", zorder=0)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(
            title=f"{panel_title(cells, split, arm)}, {loss}, K={shots}", xlabel="accuracy on novel crops (%)"
        )
    axes[0, 0].set_ylabel("gain of nAP50 (points)")
    legend_below(figure, axes[0, 0])
    caption = (
        "What CM-CLIP (paper setting) adds to nAP50 on the same stored detections, against its CLIP's top-1 "
        "accuracy on ground-truth crops of the novel classes, as each tower is trained longer (steps beside the "
        "points; each length a training of its own, made once). Towers at the same accuracy stand above each "
        f"other; grey: accuracies that all pass through.{arms_note(cells)} "
        f"{SEEDS_NOTE.replace(' and one CLIP', '')} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)
