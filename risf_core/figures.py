"""The figures of the results: each a pure function of records, in one style, with a caption that stands alone.

A figure is made with matplotlib's object API and fixed settings, so that neither the user's own settings nor an earlier
figure changes a byte. Imports no torch. Pictures of scenes and detections are in :mod:`risf_core.pictures`.
"""

import base64
import functools
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from risf_core.plan import Plan, all_cells
from risf_core.statistics import REPRODUCTION, fine_tuning_rows, ordered, sort_cells, summarize_cells
from risf_core.sweep_tables import (
    PAPER_C,
    SENSITIVITY_NOTE,
    SWEEP_NAMES,
    backbone_cells,
    sensitivity_bnrl_cells,
    sensitivity_c_rows,
)
from risf_core.table_format import interval_text
from risf_core.tables import CM_CLIP_GAIN, interaction_cells, paired_cells

DPI = 150
# Okabe and Ito's palette for colour-blind readers, yellow left out; https://jfly.uni-koeln.de/color/
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
STYLE = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")},
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "pdf.fonttype": 42,
}  # fmt: skip
RESCORED = {"none": "without re-scoring", "cm_clip": "with CM-CLIP"}
SEEDS_NOTE = "Bars: 95 % Student-t intervals over few-shot seeds of one base model and one CLIP."


@dataclass(frozen=True)
class Drawing:
    """A figure and the caption that explains it without the text around it."""

    figure: Figure
    caption: str

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write it as PNG, PDF and caption, see :func:`save_figure`."""
        return save_figure(self.figure, folder, name, self.caption)

    def _repr_html_(self) -> str:
        image = base64.b64encode(_png(self.figure, self.caption)).decode()
        return (
            f'<img src="data:image/png;base64,{image}" style="max-width:100%">'
            f"<p style='max-width:50em'>{html.escape(self.caption)}</p>"
        )


def styled(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """Run a drawing function under the project's own settings and leave the global ones as they were.

    The layout is worked out once, so that showing and saving in any order gives the same bytes.
    """

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Drawing:
        with matplotlib.rc_context(STYLE):
            drawing = draw(*args, **kwargs)
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
            return drawing

    return wrapper


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> list[Path]:
    """Write ``name.png`` (150 dpi), ``name.pdf`` and ``name.txt`` (the caption); same figure, same bytes.

    Returns:
        The three paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "pdf", "txt")]
    paths[0].write_bytes(_png(figure, caption))
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[1], format="pdf", dpi=DPI, metadata={"CreationDate": None, "Title": name})
    paths[2].write_text(f"{caption}\n", encoding="utf-8", newline="\n")
    return paths


def _png(figure: Figure, caption: str) -> bytes:
    """PNG without the date and the version that matplotlib would add."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None, "Description": caption})
    return buffer.getvalue()


def panels(
    rows: int, columns: int, *, width: float = 3.4, height: float = 2.8, **kwargs
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes [rows, columns]; width and height of one panel in inches."""
    figure = Figure(figsize=(width * columns + 0.6, height * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def nothing_yet(what: str) -> Drawing:
    """The figure of a part that no record fills yet: it replaces an older one."""
    figure, axes = panels(1, 1, width=5.0, height=0.8)
    axes[0, 0].axis("off")
    axes[0, 0].text(0.5, 0.5, f"no record of {what} yet", ha="center", va="center", color="#555555")
    return Drawing(figure, f"No record of {what} yet.")


def _look(name: str, value: object, values: Sequence) -> dict:
    """Colour, marker and line of one of several values; ce and bnrl have their own everywhere."""
    fixed = {"ce": 0, "bnrl": 1, "ce_bg": 2, "none": 0, "cm_clip": 1}
    free = [
        index
        for index in range(len(COLORS))
        if index not in fixed.values() or name not in ("loss", "rescoring")
    ]
    others = [other for other in values if other not in fixed]
    index = fixed[value] if value in fixed else free[others.index(value) % len(free)]
    return {"color": COLORS[index], "marker": MARKERS[index], "linestyle": LINES[index]}


def _legend_below(figure: Figure, axes: Axes, *, columns: int = 4, title: str | None = None) -> None:
    """One legend for all panels, under them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), title=title
        )


def _groups(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups in the order of the rows."""
    return list(frame.groupby(list(keys), sort=False)) if len(frame) else []


@styled
def main_figure(records: Sequence[Mapping], *, metric: str = "nAP50", setting: str = "fsod") -> Drawing:
    """``metric`` over K for each loss with and without CM-CLIP, one panel for each arm (and split)."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == setting) & (frame["variant"] == "")]
    cells = all_cells(frame, metric, Plan.from_rows(frame))
    cells = cells[cells["n"] > 0]
    if cells.empty:
        return nothing_yet(f"20_fine_tuning in setting {setting}")
    places = _groups(cells, ["split", "arm"])
    all_shots, losses = ordered("shots", cells["shots"]), ordered("loss", cells["loss"])
    figure, axes = panels(1, len(places), width=3.6, height=3.1, sharey=True)
    lines = [(loss, rescoring) for loss in losses for rescoring in REPRODUCTION]
    for ax, ((split, arm), own) in zip(axes[0], places, strict=True):
        for number, (loss, rescoring) in enumerate(lines):
            line = own[(own["loss"] == loss) & (own["rescoring"] == rescoring)]
            look = _look("loss", loss, losses) | {"linestyle": "-" if rescoring == "cm_clip" else ":"}
            look["markerfacecolor"] = look["color"] if rescoring == "cm_clip" else "white"
            label = f"{loss}{' + CM-CLIP' if rescoring == 'cm_clip' else ''}"
            nudge = 0.24 * (
                number / max(1, len(lines) - 1) - 0.5
            )  # bars beside each other, not on each other
            where = [all_shots.index(shots) + nudge for shots in line["shots"]]
            ax.errorbar(
                where, line["mean"], line["half_width"], capsize=2, elinewidth=0.9, label=label, **look
            )
        ax.set(title=_panel_title(cells, split, arm), xlabel="K, boxes of each novel class")
        ax.set_xticks(range(len(all_shots)), all_shots)
    axes[0, 0].set_ylabel(f"{metric} (%)")
    _legend_below(figure, axes[0, 0])
    caption = (
        f"{metric} over the number of shots K, setting {setting}, for each loss without (dotted, open) and with "
        f"CM-CLIP (solid, filled; c = 0.7, novel + background). {SEEDS_NOTE} {_seed_counts(cells)} Points are moved "
        "sideways."
    )
    return Drawing(figure, caption)


def _panel_title(cells: pd.DataFrame, split: int, arm: str) -> str:
    """Name of the arm, with the split where there are several."""
    return f"{arm}, split {split}" if cells["split"].nunique() > 1 else arm


def _seed_counts(cells: pd.DataFrame) -> str:
    low, high = cells["n"].min(), cells["n"].max()
    return f"n = {low} seeds each." if low == high else f"n = {low} to {high} seeds; the table has each n."


@styled
def paired_figure(records: Sequence[Mapping], *, metric: str = "nAP50", setting: str = "fsod") -> Drawing:
    """Paired differences with their intervals as a forest plot, one panel for each arm (and split)."""
    frame = fine_tuning_rows(records)
    frame = frame[(frame["setting"] == setting) & (frame["variant"] == "")]
    cells = paired_cells(frame, metric, Plan.from_rows(frame))
    cells = cells[cells["n"] > 0]
    if cells.empty:
        return nothing_yet(f"pairs of 20_fine_tuning in setting {setting}")
    places = _groups(cells, ["split", "arm"])
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
            look = _look("loss", loss, losses) | {
                "linestyle": "none",
                "markersize": 7 if row.shots == "all" else 4.5,
            }
            look["markerfacecolor"] = look["color"] if is_filled else "white"
            ax.errorbar(row.mean, y, xerr=row.half_width, capsize=2, elinewidth=1.0, **look)
            ax.annotate(
                f"{row.up}/{row.n}", (1.0, y), xycoords=ax.get_yaxis_transform(), fontsize=7, va="center"
            )
        ax.set(title=f"{_panel_title(cells, split, arm)}\n", xlabel=f"difference of {metric} (points)")
        ax.annotate("up/n", (1.0, 1.0), xycoords="axes fraction", fontsize=7, va="bottom", ha="left")
    _label_forest(axes[0, 0], heights, names)
    caption = (
        f"Paired differences of {metric} in points, setting {setting}, both sides sharing K, few-shot seed and arm. "
        f"{SEEDS_NOTE} At the right: seeds with a difference above 0, of n. 'all': averaged over K within a seed, "
        "over the seeds that have every K. Colour and marker name the loss; open markers: without re-scoring."
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
    places, all_shots = _groups(cells, ["split", "arm"]), ordered("shots", cells["shots"])
    figure, axes = panels(len(places), len(all_shots), width=1.75, height=2.3, sharey="row", sharex=True)
    for row_axes, ((split, arm), own) in zip(axes, places, strict=True):
        for ax, shots in zip(row_axes, all_shots, strict=True):
            _draw_two_by_two(ax, own[own["shots"] == shots], shots)
        row_axes[0].set_ylabel(f"{_panel_title(cells, split, arm)}\n{metric} (%)")
    _legend_below(figure, next(ax for ax in axes.flat if ax.get_legend_handles_labels()[0]))
    caption = (
        f"{metric} without and with CM-CLIP for ce and bnrl, setting {setting}, over the seeds that have all four. "
        "Parallel lines: the two gains add up. The number is the interaction, (bnrl with − without CM-CLIP) − (ce "
        f"with − without), paired per seed, with its interval. {SEEDS_NOTE} {_seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _draw_two_by_two(ax: Axes, cell: pd.DataFrame, shots: int) -> None:
    ax.set(title=f"K={shots}", xlim=(-0.4, 1.4))
    ax.set_xticks([0, 1], ["without", "CM-CLIP"])
    if cell.empty:
        ax.text(0.5, 0.5, "no run", ha="center", transform=ax.transAxes, color="#555555")
        return
    row = cell.iloc[0]
    for loss, nudge in (("ce", -0.05), ("bnrl", 0.05)):
        means = [row[f"{loss}_{rescoring}_mean"] for rescoring in REPRODUCTION]
        half_widths = [row[f"{loss}_{rescoring}_half_width"] for rescoring in REPRODUCTION]
        look = _look("loss", loss, ["ce", "bnrl"])
        ax.errorbar([nudge, 1 + nudge], means, half_widths, capsize=2, elinewidth=0.9, label=loss, **look)
    text = interval_text(row["interaction_mean"], row["interaction_half_width"], sign=True)
    ax.set_title(f"K={shots}\ninteraction {text}", fontsize=8)


@styled
def sensitivity_c_figure(records: Sequence[Mapping], *, metric: str = "nAP50") -> Drawing:
    """``metric`` over c, one line for each K, one panel for each label space (column) and arm and loss (row)."""
    frame = sensitivity_c_rows(records)
    if frame.empty:
        return nothing_yet("30_ablation_c")
    keys = ["split", "arm", "loss"]
    cells = summarize_cells(frame, [*keys, "label_space", "shots", "c"], metric)
    rows = list(dict.fromkeys(cells[keys].itertuples(index=False, name=None)))
    spaces, all_shots = ordered("label_space", cells["label_space"]), ordered("shots", cells["shots"])
    figure, axes = panels(len(rows), len(spaces), width=3.3, height=2.3, sharex=True, sharey="row")
    for row_axes, key in zip(axes, rows, strict=True):
        for ax, space in zip(row_axes, spaces, strict=True):
            own = cells[(cells[keys] == list(key)).all(axis=1) & (cells["label_space"] == space)]
            for shots, line in _groups(own, ["shots"]):
                look = _look("shots", all_shots.index(shots[0]), range(len(all_shots)))
                ax.errorbar(
                    line["c"],
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
                xycoords=ax.get_xaxis_transform(),
                fontsize=7,
                rotation=90,
                ha="right",
            )
        row_axes[0].set_ylabel(f"{_panel_title(cells, key[0], key[1])}, {key[2]}\n{metric} (%)")
    for ax, space in zip(axes[0], spaces, strict=True):
        ax.set_title(f"{space}{'' if space == 'novel+background' else ' (extension)'}")
    for ax in axes[-1]:
        ax.set_xlabel("c, weight of the detector's score")
    _legend_below(figure, axes[0, 0], columns=6)
    caption = (
        f"{metric} over c for each K and label space of CM-CLIP's softmax; c = 1 is the detector alone, the dotted "
        f"line the paper's c = {PAPER_C}. {_seed_counts(cells)} {SENSITIVITY_NOTE}"
    )
    return Drawing(figure, caption)


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
            title = f"{_panel_title(cells, split, arm)}, K={shots}" + (
                f": {SWEEP_NAMES[sweep]}" if len(columns) > 1 else ""
            )
            ax.set(title=title, xlabel=names[x], ylabel=names[y])
        figure.colorbar(image, ax=list(row_axes), label="nAP50 (%)", shrink=0.9)
    caption = (
        "nAP50 (%) of BNRL without re-scoring; the framed cell holds the paper's values (α 0.2, β 0.8, γ 4, ε 1, "
        f"ω_bg 0.2). Each row of panels has its own colour scale. {_seed_counts(cells)} {SENSITIVITY_NOTE}"
    )
    return Drawing(figure, caption)


def _heat_map(ax: Axes, cells: pd.DataFrame, x: str, y: str, limits: tuple[float, float]):
    """One heat map with its numbers; returns the image for a colour bar."""
    values = cells.pivot(index=y, columns=x, values="mean")
    image = ax.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=limits[0], vmax=limits[1])
    middle = sum(limits) / 2
    for row in cells.itertuples():
        column, line = values.columns.get_loc(getattr(row, x)), values.index.get_loc(getattr(row, y))
        color = "white" if row.mean <= middle else "black"
        at = {"ha": "center", "va": "center", "color": color, "fontsize": 7.5}
        ax.text(column, line, interval_text(row.mean, row.half_width).replace(" ±", "\n±"), **at)
        if row.is_paper:
            frame = {"fill": False, "edgecolor": "#D55E00", "linewidth": 2.5}
            ax.add_patch(matplotlib.patches.Rectangle((column - 0.46, line - 0.46), 0.92, 0.92, **frame))
    ax.set_xticks(range(len(values.columns)), [f"{value:g}" for value in values.columns])
    ax.set_yticks(range(len(values.index)), [f"{value:g}" for value in values.index])
    ax.grid(False)
    return image


@styled
def backbones_figure(records: Sequence[Mapping]) -> Drawing:
    """CM-CLIP's paired gain against the accuracy of its CLIP on novel crops, one panel for each arm."""
    cells = backbone_cells(records)
    if cells.empty:
        return nothing_yet("32_clip_backbones")
    places = _groups(cells, ["split", "arm"])
    pairs = sort_cells(cells[["loss", "shots"]], ["loss", "shots"])
    lines = list(dict.fromkeys(pairs.itertuples(index=False, name=None)))
    figure, axes = panels(1, len(places), width=3.5, height=2.9, sharey=True)
    for ax, ((split, arm), cell) in zip(axes[0], places, strict=True):
        for number, (loss, shots) in enumerate(lines):
            own = cell[(cell["loss"] == loss) & (cell["shots"] == shots)]
            look = _look("line", number, range(len(lines)))
            nudge, look["linestyle"] = 0.9 * (number - (len(lines) - 1) / 2), "none"
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
            }
            ax.annotate(clip, (accuracy, 0.02), **at)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.margins(x=0.16)
        ax.set(title=_panel_title(cells, split, arm), xlabel="accuracy on novel crops (%)")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low - 0.4 * (high - low), high)  # room for the names
    axes[0, 0].set_ylabel("gain of nAP50 (points)")
    _legend_below(figure, axes[0, 0])
    caption = (
        "What CM-CLIP (paper setting) adds to nAP50 against its CLIP's top-1 accuracy on ground-truth crops of the "
        f"novel classes; the same stored detections for every CLIP. {SEEDS_NOTE.replace(' and one CLIP', '')} Each "
        f"CLIP was trained once. {_seed_counts(cells)} Points are moved sideways."
    )
    return Drawing(figure, caption)


def all_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """Every figure that records alone can fill, by file name."""
    return {
        **{f"main_{metric}": main_figure(records, metric=metric) for metric in ("nAP50", "nAP")},
        **{f"paired_{metric}": paired_figure(records, metric=metric) for metric in ("nAP50", "nAP")},
        "interaction_nAP50": interaction_figure(records),
        "sensitivity_c_nAP50": sensitivity_c_figure(records),
        "sensitivity_c_nAP": sensitivity_c_figure(records, metric="nAP"),
        "sensitivity_beta_omega": beta_omega_figure(records),
        "sensitivity_gamma_epsilon": gamma_epsilon_figure(records),
        "backbones": backbones_figure(records),
    }
