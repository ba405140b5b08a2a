"""The figures of the fine-tuning runs: functions of records, each with a caption that stands alone.

Style and saving: `risf_core.report.figure_style`. Scenes and detections: `risf_core.report.pictures`. No torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes

from risf_core.report.backbone_figures import backbones_at_accuracy_figure
from risf_core.report.base_class_figures import base_class_figures
from risf_core.report.base_models import of_one_base
from risf_core.report.control_figures import class_gain_figure, controls_figure, size_figure
from risf_core.report.crossed_figures import crossed_figures
from risf_core.report.distilled_figures import distilled_figures
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
    seeds_note,
    styled,
)
from risf_core.report.label_space_figures import selection_figure, single_changes_figure
from risf_core.report.latency_figures import latency_figures
from risf_core.report.missing_figures import missing_figures
from risf_core.report.missing_rate_figures import missing_rate_figure
from risf_core.report.open_vocabulary_figures import open_vocabulary_figures
from risf_core.report.other_detectors_figures import other_detectors_figure
from risf_core.report.plan import Plan, all_cells
from risf_core.report.published_values import PublishedLine, lines_note, published_lines
from risf_core.report.rate_figures import rates_figure
from risf_core.report.regime_figures import regimes_figure
from risf_core.report.statistics import REPRODUCTION, fine_tuning_rows, ordered, repeats_note
from risf_core.report.sweep_figures import (
    backbones_figure,
    beta_omega_figure,
    gamma_epsilon_figure,
    sensitivity_c_figure,
)
from risf_core.report.table_format import interval_text
from risf_core.tables import CM_CLIP_GAIN, interaction_cells, paired_cells

RESCORED = {"none": "without re-scoring", "cm_clip": "with CM-CLIP"}


@styled
def main_figure(records: Sequence[Mapping], *, metric: str = "nAP50", setting: str = "fsod") -> Drawing:
    """``metric`` over K for each loss with and without CM-CLIP, one panel for each arm (and split)."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == setting) & (frame["variant"] == "")]
    cells = all_cells(frame, metric, Plan.from_rows(frame))
    cells = cells[cells["n"] > 0]
    if cells.empty:
        return nothing_yet(f"20_fine_tuning in setting {setting}")
    places = groups(cells, ["split", "arm"])
    all_shots, losses = ordered("shots", cells["shots"]), ordered("loss", cells["loss"])
    figure, axes = panels(1, len(places), width=3.6, height=3.1, sharey=True)
    has_clip = "cm_clip" in set(cells["rescoring"])
    lines = [(loss, rescoring) for loss in losses for rescoring in REPRODUCTION[: 1 + has_clip]]
    shown: list[PublishedLine] = []
    for ax, ((split, arm), own) in zip(axes[0], places, strict=True):
        for number, (loss, rescoring) in enumerate(lines):
            line = own[(own["loss"] == loss) & (own["rescoring"] == rescoring)]
            look = look_of("loss", loss, losses) | {"linestyle": "-" if rescoring == "cm_clip" else ":"}
            look["markerfacecolor"] = look["color"] if rescoring == "cm_clip" else "white"
            label = f"{loss}{' + CM-CLIP' if rescoring == 'cm_clip' else ''}"
            # bars beside each other, not on each other
            nudge = 0.24 * (number / max(1, len(lines) - 1) - 0.5)
            where = [all_shots.index(shots) + nudge for shots in line["shots"]]
            ax.errorbar(
                where, line["mean"], line["half_width"], capsize=2, elinewidth=0.9, label=label, **look
            )
        reference = published_lines(records, metric=metric, setting=setting, split=split, arm=arm)
        shown += _draw_published(ax, reference, all_shots)
        ax.set(title=panel_title(cells, split, arm), xlabel="K, boxes of each novel class")
        ax.set_xticks(range(len(all_shots)), all_shots)
        ax.set_xlim(-0.4, len(all_shots) - 0.6)
    axes[0, 0].set_ylabel(f"{metric} (%)")
    legend_below(figure, axes[0, 0], columns=4 if len(losses) <= 2 else len(losses))
    rescored = "without (dotted, open) and with CM-CLIP (solid, filled; c = 0.7, novel + background)"
    caption = (
        f"{metric} over the number of shots K, setting {setting}, for each loss "
        f"{rescored if has_clip else 'without re-scoring'}.{arms_note(cells)} {seeds_note(cells)} {seed_counts(cells)} "
        f"Points are moved sideways.{lines_note(shown)}"
    )
    return Drawing(figure, caption)


def _draw_published(
    ax: Axes, lines: Sequence[PublishedLine], all_shots: Sequence[int]
) -> list[PublishedLine]:
    """Published values at the K of the axis, black, each system with a marker of its own; returns what was drawn."""
    drawn = []
    for line, marker, style in zip(lines, ("*", "x"), ("-.", "--")):
        where = [place for place, shots in enumerate(all_shots) if shots in line.values]
        if where:
            values = [line.values[all_shots[place]] for place in where]
            look = {"color": "black", "marker": marker, "linestyle": style, "linewidth": 0.9, "markersize": 6}
            ax.plot(where, values, label=f"{line.system} (published)", **look)
            drawn.append(line)
    return drawn


@styled
def paired_figure(records: Sequence[Mapping], *, metric: str = "nAP50", setting: str = "fsod") -> Drawing:
    """Paired differences with their intervals as a forest plot, one panel for each arm (and split)."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == setting) & (frame["variant"] == "")]
    cells = paired_cells(frame, metric, Plan.from_rows(frame))
    cells = cells[cells["n"] > 0]
    if cells.empty:
        return nothing_yet(f"pairs of 20_fine_tuning in setting {setting}")
    places = groups(cells, ["split", "arm"])
    lines = list(dict.fromkeys(cells[["comparison", "given", "shots"]].itertuples(index=False, name=None)))
    names = list(dict.fromkeys(line[:2] for line in lines))
    heights = {line: -(number + 0.8 * names.index(line[:2])) for number, line in enumerate(lines)}
    losses = ordered("loss", frame["loss"])
    size = 0.19 * (len(lines) + 0.8 * len(names)) + 0.6
    figure, axes = panels(1, len(places), width=3.1, height=size, sharey=True, sharex=True)
    figure.set_figwidth(3.1 * len(places) + 2.2)
    for ax, ((split, arm), own) in zip(axes[0], places, strict=True):
        ax.axvline(0, color="black", linewidth=0.8)
        for row in own.itertuples(index=False):
            y = heights[row.comparison, row.given, row.shots]
            loss, is_filled = _side(row.comparison, row.given)
            look = look_of("loss", loss, losses) | {
                "linestyle": "none",
                "markersize": 7 if row.shots == "all" else 4.5,
            }
            look["markerfacecolor"] = look["color"] if is_filled else "white"
            ax.errorbar(row.mean, y, xerr=row.half_width, capsize=2, elinewidth=1.0, **look)
            ax.annotate(
                f"{row.up}/{row.n}", (1.0, y), xycoords=ax.get_yaxis_transform(), fontsize=7, va="center"
            )
        ax.set(title=f"{panel_title(cells, split, arm)}\n", xlabel=f"difference of {metric} (points)")
        ax.annotate("up/n", (1.0, 1.0), xycoords="axes fraction", fontsize=7, va="bottom", ha="left")
    _label_forest(axes[0, 0], heights, names)
    caption = (
        f"Paired differences of {metric} in points, setting {setting}, both sides sharing K, few-shot seed and arm. "
        f"{seeds_note(cells)} At the right: seeds with a difference above 0, of n. 'all K': averaged over K within a "
        "seed, over the seeds that have every K. Colour and marker name the loss; open markers: without re-scoring."
        f"{arms_note(cells)}"
    )
    return Drawing(figure, caption)


def _side(comparison: str, given: str) -> tuple[str, bool]:
    """Loss that colours a comparison, and whether its marker is filled (CM-CLIP takes part)."""
    is_gain = comparison == CM_CLIP_GAIN
    return (given, True) if is_gain else (comparison.split(" − ")[0], given == "cm_clip")


def _label_forest(ax: Axes, heights: Mapping[tuple, float], names: Sequence[tuple]) -> None:
    """K at each line, the name of the comparison above its lines."""
    for comparison, given in names:
        own = [height for line, height in heights.items() if line[:2] == (comparison, given)]
        shared = f"with {given}" if comparison == CM_CLIP_GAIN else RESCORED[given]
        text = f"{comparison}, {shared}"
        at = {"xycoords": ax.get_yaxis_transform(), "va": "center", "weight": "bold", "fontsize": 7.5}
        patch = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        ax.annotate(text, (0.01, max(own) + 0.85), bbox=patch, **at)
    labels = ["all K" if line[2] == "all" else f"K={line[2]}" for line in heights]
    ax.set_yticks(list(heights.values()), labels, fontsize=7.5)
    ax.set_ylim(min(heights.values()) - 0.8, 1.5)


@styled
def interaction_figure(
    records: Sequence[Mapping], *, metric: str = "nAP50", setting: str = "fsod"
) -> Drawing:
    """The 2 x 2 of {ce, bnrl} x {none, CM-CLIP}: one panel for each arm (row) and K (column)."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == setting) & (frame["variant"] == "")]
    cells = interaction_cells(frame, metric, Plan.from_rows(frame))
    if cells.empty:
        return nothing_yet(f"a complete 2 x 2 of 20_fine_tuning in setting {setting}")
    places, all_shots = groups(cells, ["split", "arm"]), ordered("shots", cells["shots"])
    figure, axes = panels(len(places), len(all_shots), width=1.75, height=2.3, sharey=True, sharex=True)
    for row_axes, ((split, arm), own) in zip(axes, places, strict=True):
        for ax, shots in zip(row_axes, all_shots, strict=True):
            _draw_two_by_two(ax, own[own["shots"] == shots], shots)
        row_axes[0].set_ylabel(f"{panel_title(cells, split, arm)}\n{metric} (%)")
    legend_below(figure, next(ax for ax in axes.flat if ax.get_legend_handles_labels()[0]))
    caption = (
        f"{metric} without and with CM-CLIP for ce and bnrl, setting {setting}, over the seeds that have all four. "
        "Parallel lines: the two gains add up. The number is the interaction, (bnrl with − without CM-CLIP) − (ce "
        f"with − without), paired per seed, with its interval.{arms_note(cells)} {SEEDS_NOTE} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _draw_two_by_two(ax: Axes, cell: pd.DataFrame, shots: int) -> None:
    ax.set_title(f"K={shots}", fontsize=8)
    ax.set_xlim(-0.4, 1.4)
    ax.set_xticks([0, 1], ["without", "CM-CLIP"])
    if cell.empty:
        ax.text(0.5, 0.5, "not run", ha="center", transform=ax.transAxes, color="#555555")
        return
    row = cell.iloc[0]
    for loss, nudge in (("ce", -0.05), ("bnrl", 0.05)):
        means = [row[f"{loss}_{rescoring}_mean"] for rescoring in REPRODUCTION]
        half_widths = [row[f"{loss}_{rescoring}_half_width"] for rescoring in REPRODUCTION]
        look = look_of("loss", loss, ["ce", "bnrl"])
        ax.errorbar([nudge, 1 + nudge], means, half_widths, capsize=2, elinewidth=0.9, label=loss, **look)
    text = interval_text(row["interaction_mean"], row["interaction_half_width"], sign=True)
    ax.set_title(f"K={shots}\ninteraction {text}", fontsize=8)


def all_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """Every figure that records alone can fill, by file name."""
    crossed, records = crossed_figures(records), of_one_base(records)
    figures = {
        **crossed,
        **{f"main_{metric}": main_figure(records, metric=metric) for metric in ("nAP50", "nAP")},
        **{f"paired_{metric}": paired_figure(records, metric=metric) for metric in ("nAP50", "nAP")},
        "interaction_nAP50": interaction_figure(records),
        "sensitivity_c_nAP50": sensitivity_c_figure(records),
        "sensitivity_c_nAP": sensitivity_c_figure(records, metric="nAP"),
        "sensitivity_beta_omega": beta_omega_figure(records),
        "sensitivity_gamma_epsilon": gamma_epsilon_figure(records),
        "backbones": backbones_figure(records),
        "backbones_at_accuracy": backbones_at_accuracy_figure(records),
        **latency_figures(records),
        "label_space_selection": selection_figure(records),
        "label_space_single_changes": single_changes_figure(records),
        "rescoring_controls": controls_figure(records),
        "gain_by_object_size": size_figure(records),
        "class_gain_against_accuracy": class_gain_figure(records),
        "other_detectors": other_detectors_figure(records),
        **base_class_figures(records),
        "learning_rates": rates_figure(records),
        "regimes": regimes_figure(records),
        "missing_rate": missing_rate_figure(records),
        **missing_figures(records),
        **open_vocabulary_figures(records),
        **distilled_figures(records),
    }
    note = repeats_note(records)
    return {name: replace(drawing, caption=f"{drawing.caption}{note}") for name, drawing in figures.items()}
