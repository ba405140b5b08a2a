"""The figures of gFSOD with re-scored base classes, and of what novel classes are confused with."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.patheffects import withStroke

from risf_core.report.base_class_tables import (
    BACKGROUND,
    BLEND_NOTE,
    GENERALISED,
    GROUPS,
    INTERVAL_NOTE,
    NOTEBOOK,
    class_cells,
    confusion_cells,
    paper_c,
    rescored_cells,
    shown_shots,
)
from risf_core.report.figure_style import (
    COLORS,
    MARKERS,
    Drawing,
    groups,
    legend_below,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.table_format import number

PLACE = ["split", "clip", "arm", "loss"]
BARS = INTERVAL_NOTE.replace("± is the half-width of the", "Bars:").replace("interval over", "intervals over")
GROUP_TEXTS = {"": "all classes", "b": "base classes", "n": "novel classes"}
# (re-scored, label space): name in the legend, colour and marker by number, line
WAYS = {
    ("novel", "rescored+background"): ("novel, among novel names (paper)", 0, "-"),
    ("novel", "all+background"): ("novel, among all names", 0, "--"),
    ("base", "rescored+background"): ("base, among base names", 1, "-"),
    ("base", "all+background"): ("base, among all names", 1, "--"),
    ("both", "all+background"): ("base and novel, among all names", 2, "--"),
}
CLASS_LOOKS = {
    "base": {"color": COLORS[1], "marker": MARKERS[1]},
    "novel": {"color": COLORS[0], "marker": MARKERS[0]},
}
CLASS_PANELS = {
    "accuracy": "CLIP's accuracy on true crops (%)",
    "AP50": "AP50 of the detector (%)",
    "ahead": "right names on found boxes,\nCLIP − detector (points)",
}


def _of_one_k(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["shots"] == shown_shots(cells)]


def _title(cells: pd.DataFrame, key: tuple) -> str:
    """Loss, and split, arm and CLIP where there are several."""
    more = [f"split {key[0]}"] if cells["split"].nunique() > 1 else []
    more += [key[2]] if cells["arm"].nunique() > 1 else []
    more += [key[1].replace(", ", "\n")] if cells["clip"].nunique() > 1 else []
    return ", ".join([key[3], *more])


@styled
def rescored_figure(records: Sequence[Mapping], *, metric: str = "AP") -> Drawing:
    """Paired change of all, base and novel AP (columns) over c for each choice of re-scored classes, by loss (rows)."""
    cells = rescored_cells(records, metric=metric)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    cells = _of_one_k(cells)
    cells, shots = cells[cells["rescored"] != "none"], shown_shots(cells)
    places, all_c = groups(cells, PLACE), sorted(set(cells["c"]))
    figure, axes = panels(len(places), len(GROUPS), width=2.6, height=2.3, sharey=True, sharex=True)
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for ax, prefix in zip(row_axes, GROUPS, strict=True):
            for place, (way, (label, look, line)) in enumerate(WAYS.items()):
                rows = own[(own["rescored"] == way[0]) & (own["label_space"] == way[1])]
                if rows.empty:
                    continue
                where = rows["c"] + 0.018 * (place - (len(WAYS) - 1) / 2)  # bars beside each other
                style = {"color": COLORS[look], "marker": MARKERS[look], "linestyle": line, "label": label}
                style["markerfacecolor"] = COLORS[look] if line == "-" else "white"
                bars = {"yerr": rows[f"{prefix}change_half_width"], "capsize": 1.5, "elinewidth": 0.7}
                ax.errorbar(where, rows[f"{prefix}change"], **bars, **style)
            ax.axhline(0, color="black", linewidth=0.8)
            ax.axvline(paper_c(records), color="black", linestyle=":", linewidth=1.0)
            ax.set_xticks(all_c)
        row_axes[0].set_ylabel(f"{_title(cells, key)}\nchange of {metric} (points)")
    for ax, prefix in zip(axes[0], GROUPS, strict=True):
        ax.set_title(f"{prefix}{metric}, {GROUP_TEXTS[prefix]}")
    for ax in axes[-1]:
        ax.set_xlabel("c, weight of the detector's score")
    legend_below(figure, axes[0, 0], columns=2, title="re-scored classes, and the names in CLIP's softmax")
    caption = (
        f"{GENERALISED} Change of {metric} in points against no re-scoring, paired per seed, if novel, base or all "
        f"classes are re-scored, over c; K = {shots}; dotted: the paper's c. {BLEND_NOTE} {BARS} {seed_counts(cells)} "
        "Points are moved sideways."
    )
    return Drawing(figure, caption)


@styled
def class_figure(records: Sequence[Mapping]) -> Drawing:
    """Each class's change of AP50 with all classes re-scored, against what CLIP and detector know of it."""
    cells = class_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    cells = _of_one_k(cells).dropna(subset=["all_change"])
    cells = cells.assign(ahead=cells["clip_right"] - cells["detector_right"])
    places = groups(cells, PLACE)
    figure, axes = panels(len(places), len(CLASS_PANELS), width=2.9, height=2.6, sharey="row", sharex="col")
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for ax, x in zip(row_axes, CLASS_PANELS, strict=True):
            for group, look in CLASS_LOOKS.items():
                rows = own[own["group"] == group]
                bars = {"yerr": rows["all_half_width"], "elinewidth": 0.5, "linestyle": "none"}
                ax.errorbar(rows[x], rows["all_change"], **bars, label=f"{group} class", **look)
            ax.margins(x=0.12)
            _name_extremes(ax, own, x)
            ax.axhline(0, color="black", linewidth=0.8)
            if x == "ahead":
                ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
            ax.set_title(f"{_title(cells, key)}: rank correlation {_rank_correlation(own, x)}", fontsize=8.5)
        row_axes[0].set_ylabel("change of AP50 (points)")
    for ax, text in zip(axes[-1], CLASS_PANELS.values(), strict=True):
        ax.set_xlabel(text)
    legend_below(figure, axes[0, 0])
    caption = (
        f"{GENERALISED} One point for each class: the change of its AP50, paired per seed, if all classes are "
        f"re-scored among all names and background (c = {paper_c(records):g}, K = {shown_shots(cells)}), against "
        "CLIP's top-1 accuracy among all names on its ground-truth crops, the AP50 that the detector alone "
        "has, and by how much CLIP names the boxes on found objects more often rightly than the detector. Spearman's "
        f"rank correlation over the classes. {BARS} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _name_extremes(ax: Axes, cells: pd.DataFrame, x: str) -> None:
    """Names of the two classes that change most and of the two furthest to the left."""
    cells = cells.dropna(subset=[x])
    most = cells.assign(size=cells["all_change"].abs()).sort_values(["size", "name"]).tail(2)
    left = cells.sort_values([x, "name"]).head(2)
    middle = (cells[x].min() + cells[x].max()) / 2
    for row in pd.concat([most, left]).drop_duplicates("name").to_dict("records"):
        at = {"textcoords": "offset points", "fontsize": 7, "va": "bottom"}
        at["path_effects"] = [withStroke(linewidth=2, foreground="white")]
        side = {"xytext": (4, 3), "ha": "left"} if row[x] < middle else {"xytext": (-4, 3), "ha": "right"}
        ax.annotate(row["name"], (row[x], row["all_change"]), **at, **side)


def _rank_correlation(cells: pd.DataFrame, x: str) -> str:
    """Spearman's over the classes as text; a dash where there is none."""
    pairs = cells[[x, "all_change"]].dropna()
    if len(pairs) < 3 or pairs.nunique().min() < 2:
        return "–"
    return number(float(pairs.rank().corr().iloc[0, 1]), decimals=2, sign=True)  # Pearson's of the ranks


@styled
def confusion_figure(records: Sequence[Mapping]) -> Drawing:
    """What detections of novel classes lie on: shares before, after, and their difference (columns), by loss (rows)."""
    cells = confusion_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    cells, c = _of_one_k(cells), paper_c(records)
    places = groups(cells, PLACE)
    count = cells["on"].nunique()
    figure, axes = panels(len(places), 3, width=2.5, height=0.19 * count + 0.7, sharey="row")
    norms = dict.fromkeys(("before", "after"), Normalize(0, cells[["before", "after"]].to_numpy().max()))
    limit = max(1.0, cells["change"].abs().max())
    norms["change"] = TwoSlopeNorm(0, -limit, limit)
    titles = {"before": "before", "after": f"after CM-CLIP (c = {c:g})", "change": "after − before"}
    for row_axes, (key, own) in zip(axes, places, strict=True):
        images = {
            what: _confusion_map(ax, own, what, norms[what])
            for ax, what in zip(row_axes, titles, strict=True)
        }
        for ax, title in zip(row_axes, titles.values(), strict=True):
            ax.set_title(f"{_title(cells, key)}, {title}", fontsize=8.5)
        row_axes[0].set_ylabel("lies on")
        figure.colorbar(
            images["after"], ax=list(row_axes[:2]), label="share of scores (%)", shrink=0.8, aspect=30
        )
        figure.colorbar(images["change"], ax=row_axes[2], label="change (points)", shrink=0.8, aspect=30)
    for ax in axes[-1]:
        ax.set_xlabel("detected as (novel class)")
    caption = (
        f"{GENERALISED} What the detections of each novel class lie on, weighted by their scores: the class of the "
        "object that each overlaps most (IoU ≥ 0.5; its own class first), base classes above, then novel ones, and "
        "background. Each column sums to 100 %, or in the difference to 0; framed: right. Mean over seeds, before and "
        f"after CM-CLIP as in the paper (novel classes among novel names); K = {shown_shots(cells)}; numbers of 1 and "
        f"more are written. {seed_counts(cells)} The table has intervals."
    )
    return Drawing(figure, caption)


def _confusion_map(ax: Axes, cells: pd.DataFrame, what: str, norm: Normalize):
    """One heat map with its numbers; returns the image for a colour bar."""
    columns = list(dict.fromkeys(cells["name"]))
    rows = [name for name in dict.fromkeys(cells["on"]) if name != BACKGROUND] + [BACKGROUND]
    values = cells.pivot(index="on", columns="name", values=what).loc[rows, columns].to_numpy(dtype=float)
    cmap = "PuOr_r" if what == "change" else "cividis"
    image = ax.imshow(values, norm=norm, cmap=cmap, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize=7.5)
    ax.set_yticks(range(len(rows)), rows, fontsize=7.5)
    ax.grid(False)
    for y, x in zip(*np.nonzero(np.abs(values) >= 1.0)):
        shade = image.cmap(norm(values[y, x]))
        is_dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.5
        text = f"{values[y, x]:+.0f}" if what == "change" else f"{values[y, x]:.0f}"
        ax.text(
            x,
            y,
            text.replace("-", "−"),
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if is_dark else "black",
        )
    for x, name in enumerate(columns):
        y = rows.index(name)
        frame = [
            (x - 0.5, y - 0.5),
            (x + 0.5, y - 0.5),
            (x + 0.5, y + 0.5),
            (x - 0.5, y + 0.5),
            (x - 0.5, y - 0.5),
        ]
        ax.plot(*zip(*frame), color="#D55E00", linewidth=1.4)
    ax.axhline(len(rows) - len(columns) - 1.5, color="white" if what != "change" else "black", linewidth=1.2)
    return image


def base_class_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """The figures of 41_base_classes, by the names of their tables."""
    return {
        **{f"base_classes_{metric}": rescored_figure(records, metric=metric) for metric in ("AP", "AP50")},
        "base_classes_by_class": class_figure(records),
        "novel_confusions": confusion_figure(records),
    }
