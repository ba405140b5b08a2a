"""The figures of the ablations and of the CLIPs: functions of records, each with a caption that stands alone."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from risf_core.report.backbone_tables import accuracy_curves
from risf_core.report.figure_style import (
    SEEDS_NOTE,
    Drawing,
    arms_note,
    groups,
    legend_below,
    look_of,
    message,
    nothing_yet,
    panel_title,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.statistics import ordered, sort_cells, summarize_cells
from risf_core.report.sweep_tables import (
    NOT_SELECTION,
    PAPER_C,
    PAPER_RESCORING,
    SENSITIVITY_NOTE,
    SWEEP_NAMES,
    axis_text,
    backbone_cells,
    paper_note,
    rescoring_axes,
    sensitivity_bnrl_cells,
    sensitivity_c_rows,
)
from risf_core.report.table_format import interval_text


@styled
def sensitivity_c_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """``metric`` over c, one line for each K, one panel for each label space (column) and arm and loss (row).

    Other temperatures, thresholds and fusions have columns of their own.
    """
    frame = sensitivity_c_rows(records)
    if frame.empty:
        return nothing_yet("30_ablation_c")
    keys, extra = ["split", "arm", "loss"], rescoring_axes(frame)
    spaces = ["label_space", *extra]
    cells = summarize_cells(frame, [*keys, *spaces, "shots", "c"], metric)
    rows = list(dict.fromkeys(cells[keys].itertuples(index=False, name=None)))
    columns = list(dict.fromkeys(sort_cells(cells, spaces)[spaces].itertuples(index=False, name=None)))
    all_shots = ordered("shots", cells["shots"])
    figure, axes = panels(len(rows), len(columns), width=3.3, height=2.3, sharex=True, sharey="row")
    for row_axes, key in zip(axes, rows, strict=True):
        for ax, column in zip(row_axes, columns, strict=True):
            own = cells[(cells[[*keys, *spaces]] == [*key, *column]).all(axis=1)]
            for shots, line in groups(own, ["shots"]):
                place = all_shots.index(shots[0])
                look = look_of("shots", place, range(len(all_shots)))
                ax.errorbar(
                    line["c"] + 0.012 * (place - (len(all_shots) - 1) / 2),  # bars beside each other
                    line["mean"],
                    line["half_width"],
                    capsize=1.5,
                    elinewidth=0.7,
                    label=f"K={shots[0]}",
                    **look,
                )
            ax.axvline(PAPER_C, color="black", linestyle=":", linewidth=1.0)
            ax.annotate(
                "paper",
                (PAPER_C, 0.02),
                xytext=(-3, 0),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                fontsize=7,
                rotation=90,
                ha="right",
            )
        row_axes[0].set_ylabel(f"{panel_title(cells, key[0], key[1])}, {key[2]}\n{metric} (%)")
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(_space_title(dict(zip(spaces, column, strict=True))))
    for ax in axes[-1]:
        ax.set_xlabel("c, weight of the detector's score")
    legend_below(figure, axes[0, 0], columns=6)
    caption = (
        f"{metric} over c for each K and label space of CM-CLIP's softmax; c = 1 is the detector alone, the dotted "
        f"line the paper's c = {PAPER_C}{paper_note(extra)}.{arms_note(cells)} {SEEDS_NOTE} {seed_counts(cells)} "
        f"Points are moved sideways. {NOT_SELECTION}"
    )
    return Drawing(figure, caption)


def _space_title(column: Mapping[str, str | float]) -> str:
    """Title of a panel of the sweep over c: the label space, then what else varies; what the paper lacks is marked."""
    paper = {"label_space": "novel+background"} | PAPER_RESCORING
    names = {"temperature": "T = ", "score_thresh": "above ", "fusion": "", "label_space": ""}
    parts = [names[name] + axis_text(value) for name, value in column.items()]
    is_paper = all(paper[name] == value for name, value in column.items())
    title = parts[0] + ("" if is_paper else " (extension)")
    return title if len(parts) == 1 else f"{title}\n{', '.join(parts[1:])}"


@styled
def beta_omega_figure(records: Sequence[Mapping]) -> Drawing:
    """Heat maps of nAP50 over beta and the background weight: beta tied or alpha fixed (columns), arms (rows)."""
    cells = sensitivity_bnrl_cells(records, ["beta_tied", "beta_fixed_alpha"])
    names = {
        "background_weight": r"$\omega_{bg}$, weight of the background",
        "beta": "β, weight of the negative term",
    }
    return _heat_maps(cells, "background_weight", "beta", names)


@styled
def gamma_epsilon_figure(records: Sequence[Mapping]) -> Drawing:
    """Heat maps of nAP50 over gamma and epsilon, one for each arm."""
    cells = sensitivity_bnrl_cells(records, ["gamma_epsilon"])
    names = {"epsilon": "ε, exponent of $p_k$", "gamma": "γ, exponent of $1 - p_y$"}
    return _heat_maps(cells, "epsilon", "gamma", names)


def _heat_maps(cells: pd.DataFrame, x: str, y: str, names: Mapping[str, str]) -> Drawing:
    if cells.empty:
        return nothing_yet("31_ablation_bnrl")
    columns = ordered("sweep", cells["sweep"])
    places = list(dict.fromkeys(cells[["split", "arm", "shots"]].itertuples(index=False, name=None)))
    if len(columns) == 1:  # arms side by side
        figure, grid = panels(1, len(places), width=3.2, height=2.6)
        axes = grid.T
    else:
        figure, axes = panels(len(places), len(columns), width=3.2, height=2.6)
    for row_axes, (split, arm, shots) in zip(axes, places, strict=True):
        own = cells[(cells["split"] == split) & (cells["arm"] == arm) & (cells["shots"] == shots)]
        for ax, sweep in zip(row_axes, columns, strict=True):
            limits = (own["mean"].min(), own["mean"].max())
            image = _heat_map(ax, own[own["sweep"] == sweep], x, y, limits)
            title = f"{panel_title(cells, split, arm)}, K={shots}" + (
                f": {SWEEP_NAMES[sweep]}" if len(columns) > 1 else ""
            )
            ax.set(title=title, xlabel=names[x], ylabel=names[y])
        figure.colorbar(image, ax=list(row_axes), label="nAP50 (%)", shrink=0.9)
    caption = (
        "nAP50 (%) of BNRL without re-scoring; the framed cell holds the paper's values (α 0.2, β 0.8, γ 4, ε 1, "
        f"ω_bg 0.2); each map changes only what its axes and its title name. Each arm has its own colour scale."
        f"{arms_note(cells)} {seed_counts(cells)} {SENSITIVITY_NOTE}"
    )
    return Drawing(figure, caption)


def _heat_map(ax: Axes, cells: pd.DataFrame, x: str, y: str, limits: tuple[float, float]):
    """One heat map with its numbers, small values of y below; returns what a colour bar needs."""
    import seaborn  # here alone: it takes a second to import, which most notebooks need not spend

    texts = [interval_text(*pair) for pair in zip(cells["mean"], cells["half_width"], strict=True)]
    cells = cells.assign(text=[text.replace(" ±", "\n±").replace(", ", "\n") for text in texts])
    values, texts = (cells.pivot(index=y, columns=x, values=name) for name in ("mean", "text"))
    seaborn.heatmap(
        values, vmin=limits[0], vmax=limits[1], cmap="cividis", annot=texts, fmt="", annot_kws={"fontsize": 7.5}, ax=ax,
        xticklabels=[f"{value:g}" for value in values.columns], yticklabels=[f"{value:g}" for value in values.index],
        linewidths=0.5, cbar=False,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(rotation=0)
    for row in cells[cells["is_paper"]].itertuples():
        corner = values.columns.get_loc(getattr(row, x)) + 0.04, values.index.get_loc(getattr(row, y)) + 0.04
        ax.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2.5))
    return ax.collections[0]


@styled
def backbones_figure(records: Sequence[Mapping]) -> Drawing:
    """CM-CLIP's paired gain against the accuracy of its CLIP on novel crops, one panel for each arm."""
    cells = backbone_cells(records)
    if cells.empty:
        return nothing_yet("32_clip_backbones")
    several = set(accuracy_curves(records)["clip"])
    cells = cells[(cells["variant"] == "") & ~cells["clip"].isin(several)]
    if cells.empty:
        return message("Towers at several training lengths stand in the figure backbones_at_accuracy.")
    places = groups(cells, ["split", "arm"])
    pairs = sort_cells(cells[["loss", "shots"]], ["loss", "shots"])
    lines = list(dict.fromkeys(pairs.itertuples(index=False, name=None)))
    figure, axes = panels(1, len(places), width=3.5, height=2.9, sharey=True)
    span = cells["crop_accuracy"].max() - cells["crop_accuracy"].min() or 10.0
    for ax, ((split, arm), cell) in zip(axes[0], places, strict=True):
        for number, (loss, shots) in enumerate(lines):
            own = cell[(cell["loss"] == loss) & (cell["shots"] == shots)]
            look = look_of("line", number, range(len(lines)))
            nudge, look["linestyle"] = 0.05 * span * (number - (len(lines) - 1) / 2), "none"
            where, label = own["crop_accuracy"] + nudge, f"{loss}, K={shots}"
            ax.errorbar(
                where, own["gain"], own["gain_half_width"], capsize=2, elinewidth=0.9, label=label, **look
            )
        for clip, accuracy in dict(zip(cell["clip"], cell["crop_accuracy"], strict=True)).items():
            ax.axvline(accuracy, color="#aaaaaa", linewidth=0.6, zorder=0.5)
            at = {
                "xycoords": ax.get_xaxis_transform(),
                "rotation": 90,
                "fontsize": 7.5,
                "ha": "right",
                "va": "bottom",
                "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            }
            ax.annotate(clip.replace(" (", "\n("), (accuracy, 0.02), **at)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.margins(x=0.16)
        ax.set(title=panel_title(cells, split, arm), xlabel="accuracy on novel crops (%)")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low - 0.6 * (high - low), high)  # room for the names
    axes[0, 0].set_ylabel("gain of nAP50 (points)")
    legend_below(figure, axes[0, 0])
    caption = (
        "What CM-CLIP (paper setting) adds to nAP50 against its CLIP's top-1 accuracy on ground-truth crops of the "
        f"novel classes; the same stored detections for every CLIP.{arms_note(cells)} "
        f"{SEEDS_NOTE.replace(' and one CLIP', '')} Each CLIP was trained once. {seed_counts(cells)} Points are moved "
        "sideways."
    )
    return Drawing(figure, caption)
