"""The figures of 33_missing_annotations: functions of records."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

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
from risf_core.report.missing_part_tables import COMPONENTS, IMAGES, component_cells, image_cells
from risf_core.report.missing_tables import (
    INTERVAL_NOTE,
    LOSSES,
    NOT_THE_PAPER,
    NOTEBOOK,
    OWN_RATES,
    PLACE,
    SHARE_NOTE,
    TREATMENTS,
    fraction_cells,
    grid_cells,
    map_cells,
)
from risf_core.report.statistics import ordered

BARS = INTERVAL_NOTE.replace("± is the half-width of the", "Bars:").replace("interval over", "intervals over")
CHOSEN, FIXED = "#D55E00", "#FFFFFF"  # frames of the two cells of a heat map
PANELS = {  # metric of the parts: label of its axis
    "nAP50": "nAP50 (%)",
    "confusion": "confused with another\nnovel class (%)",
    "background_per_object": "detections on background\nper novel object",
    "further_score": "score of unannotated\ntraining objects (%)",
}


def _title(cells: pd.DataFrame, key: tuple) -> str:
    """Split and K, where there are several."""
    return f"split {key[0]}, K={key[1]}" if len(cells[PLACE].drop_duplicates()) > 1 else ""


def _line(ax: Axes, where, rows: pd.DataFrame, label: str, look: dict, **names: str) -> None:
    mean, half_width = names.get("mean", "mean"), names.get("half_width", "half_width")
    ax.errorbar(where, rows[mean], rows[half_width], capsize=2, elinewidth=0.9, label=label, **look)


@styled
def fraction_figure(records: Sequence[Mapping]) -> Drawing:
    """nAP50 over the known share for each loss: labels constant, labels added, and the difference of the losses."""
    cells = fraction_cells(records)
    cells = cells[~cells["fraction"].astype(str).str.contains("last")]
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    cells = cells.assign(fraction=cells["fraction"].astype(float))
    places, step = groups(cells, PLACE), 0.012
    figure, axes = panels(len(places), 3, width=3.3, height=2.8)
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for ax, (treatment, name) in zip(row_axes, TREATMENTS.items()):
            of_treatment = own[own["treatment"] == treatment]
            for number, loss in enumerate(LOSSES):
                line = of_treatment[of_treatment["what"] == loss]
                where = line["fraction"] + step * (number - 1)
                _line(ax, where, line, loss, look_of("loss", loss, LOSSES))
            labels = "labels constant" if treatment == "ignored" else "more shots, too"
            ax.set(title=f"{name} ({labels})", ylabel="nAP50 (%)")
        row_axes[1].sharey(row_axes[0])
        for number, (treatment, name) in enumerate(TREATMENTS.items()):
            line = own[(own["treatment"] == treatment) & (own["what"] == "bnrl − ce")]
            look = look_of("treatment", number + 2, range(4)) | {"color": ("#000000", "#777777")[number]}
            _line(row_axes[2], line["fraction"] + step * (number - 0.5), line, name, look)
        line = own[own["what"] == OWN_RATES[2]]
        if len(line):
            look = look_of("treatment", 6, range(7)) | {"linestyle": "none", "markerfacecolor": "white"}
            _line(row_axes[2], line["fraction"] + 3 * step, line, "ignored, each at its own rate", look)
        row_axes[2].axhline(0, color="black", linewidth=0.8)
        row_axes[2].set(title="bnrl − ce, paired per seed", ylabel="difference of nAP50 (points)")
        low, high = row_axes[2].get_ylim()
        row_axes[2].set_ylim(low - 0.35 * (high - low), high)  # room for its legend
        row_axes[2].legend(fontsize=7, loc="lower left")
        for ax in row_axes:
            ax.set_xlabel("known share of the further novel objects")
            ax.set_xticks(sorted(set(own["fraction"])))
        if title := _title(cells, key):
            row_axes[0].set_ylabel(f"{title}\nnAP50 (%)")
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} nAP50 of the test images over the share of the further novel objects of the K-shot images "
        f"that is known. {SHARE_NOTE} Each loss at one learning rate, chosen on another split over images with and "
        f"without missing annotations; open: each at the rate that was best for images of that share. {BARS} "
        f"{seed_counts(cells)} Points are moved sideways."
    )
    return Drawing(figure, caption)


@styled
def map_figure(records: Sequence[Mapping]) -> Drawing:
    """Heat maps of nAP50 over beta and omega_bg for each known share, and the regret of the fixed weights."""
    grid, cells = grid_cells(records), map_cells(records)
    if grid.empty or cells.empty:
        return nothing_yet(NOTEBOOK)
    places, shares = groups(grid, PLACE), sorted(set(grid["fraction"]))
    figure, axes = panels(len(places), len(shares) + 1, width=1.95, height=2.5)
    for row_axes, (key, own) in zip(axes, places, strict=True):
        limits = own["mean"].min(), own["mean"].max()
        for ax, share in zip(row_axes, shares):
            _heat_map(ax, own[own["fraction"] == share], limits)
            ax.set(title=f"known share {share:g}", xlabel=r"$\omega_{bg}$")
        row_axes[0].set_ylabel(f"split {key[0]} (to choose on)\nβ")
        line = cells[(cells["select_split"] == key[0]) & (cells["shots"] == key[1])]
        look = look_of("regret", 0, range(1)) | {"linestyle": "none"}
        _line(row_axes[-1], line["fraction"], line, "", look, mean="regret", half_width="regret_half_width")
        row_axes[-1].axhline(0, color="black", linewidth=0.8)
        row_axes[-1].set_xticks(shares, [f"{share:g}" for share in shares], fontsize=7.5)
        split = ", ".join(str(value) for value in sorted(set(line["split"])))
        row_axes[-1].set(title=f"split {split} (reported)", xlabel="known share")
        row_axes[-1].set_ylabel("regret of the fixed (points)")
    caption = (
        f"{NOT_THE_PAPER} nAP50 (%) of BNRL over β and the weight of the background ω_bg at each known share of the "
        "further novel objects (known ones are ignored, labels are constant), on the split to choose on, mean over "
        f"{_counts(grid)}; darker is lower. Orange frame: chosen; dashed frame: the fixed weights "
        f"({', '.join(sorted(set(cells['fixed'])))}). Right: nAP50 with the chosen weights less that with the fixed "
        f"ones on the reported split, paired per seed; above 0 the fixed ones lose. {BARS} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)


def _counts(grid: pd.DataFrame) -> str:
    low, high = int(grid["n"].min()), int(grid["n"].max())
    return f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"


def _heat_map(ax: Axes, cells: pd.DataFrame, limits: tuple[float, float]) -> None:
    """One grid with its numbers, small beta below; frames on the chosen and the fixed cell."""
    betas, weights = sorted(set(cells["beta"])), sorted(set(cells["background_weight"]))
    values = cells.pivot(index="beta", columns="background_weight", values="mean")
    ax.imshow(values, vmin=limits[0], vmax=limits[1], cmap="cividis", origin="lower", aspect="auto")
    middle = (limits[0] + limits[1]) / 2
    for row in cells.itertuples():
        x, y = weights.index(row.background_weight), betas.index(row.beta)
        color = "white" if row.mean < middle else "black"
        ax.text(x, y, f"{row.mean:.1f}", ha="center", va="center", fontsize=7.5, color=color)
        for is_framed, edge, line, reach in (
            (row.is_fixed, FIXED, "--", 0.36),
            (row.is_chosen, CHOSEN, "-", 0.46),
        ):
            if is_framed:
                corner, side = (x - reach, y - reach), 2 * reach
                if edge == FIXED:  # white alone would not show on bright cells
                    ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="black", linewidth=1.8))
                style = {"fill": False, "edgecolor": edge, "linestyle": line, "linewidth": 1.8}
                ax.add_patch(Rectangle(corner, side, side, **style))
    ax.set_xticks(range(len(weights)), [f"{value:g}" for value in weights], fontsize=7.5)
    ax.set_yticks(range(len(betas)), [f"{value:g}" for value in betas], fontsize=7.5)
    ax.grid(visible=False)


@styled
def components_figure(records: Sequence[Mapping]) -> Drawing:
    """nAP50, confusions, background and the score of unannotated objects for each part of BNRL."""
    cells = component_cells(records)
    cells = cells[cells["what"].isin(COMPONENTS)]
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places, shares = groups(cells, PLACE), sorted(set(cells["fraction"]))
    names = [name for name in COMPONENTS if name in set(cells["what"])]
    figure, axes = panels(len(places), len(PANELS), width=2.7, height=3.3, sharey=True)
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for ax, (metric, label) in zip(row_axes, PANELS.items(), strict=True):
            for number, share in enumerate(shares):
                rows = own[(own["metric"] == metric) & (own["fraction"] == share)].set_index("what")
                rows = rows.reindex(names)
                size = 0.8 / len(shares)
                where = [place + size * (number - (len(shares) - 1) / 2) for place in range(len(names))]
                look = look_of("share", number, range(len(shares)))
                bars = {"xerr": rows["half_width"], "capsize": 2, "error_kw": {"elinewidth": 0.9}}
                label_ = f"known share {share:g}"
                hatch = ("", "///", "...")[number % 3]
                ax.barh(
                    where,
                    rows["mean"],
                    0.92 * size,
                    color=look["color"],
                    alpha=0.75,
                    label=label_,
                    hatch=hatch,
                    **bars,
                )
            ax.set_xlabel(label)
        row_axes[0].set_yticks(range(len(names)), [COMPONENTS[name] for name in names], fontsize=8)
        row_axes[0].set_title(_title(cells, key))
    axes[0, 0].invert_yaxis()
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} Cross-entropy, BNRL and its parts, with none of the further novel objects of the K-shot "
        "images known (0) and with all of them known and ignored in training (1). Mirror: BNRL's term of the classes "
        "other than the label's. Confused: of the detections above the threshold on a novel object (IoU ≥ 0.5). On "
        "background: IoU < 0.1 with every object. Score: mean probability of the true class. Thresholds are the same "
        f"for every loss, whose scores differ in height. {BARS} {seed_counts(cells)}"
    )
    return Drawing(figure, caption)


@styled
def images_figure(records: Sequence[Mapping]) -> Drawing:
    """nAP50 of each loss on random and on clean K-shot images, and the difference of bnrl and ce."""
    cells = image_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, PLACE)
    order = [*IMAGES.values(), *ordered("images", set(cells["images"]) - set(IMAGES.values()))]
    names = [name for name in order if name in set(cells["images"])]
    figure, axes = panels(len(places), 2, width=3.4, height=2.5, sharey=True)
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for number, loss in enumerate([loss for loss in LOSSES if loss in set(own["what"])]):
            _points(
                row_axes[0],
                own[own["what"] == loss],
                names,
                0.16 * (number - 1),
                loss,
                look_of("loss", loss, LOSSES),
            )
        difference = own[own["what"] == "bnrl − ce"]
        _points(row_axes[1], difference, names, 0.0, "bnrl − ce", look_of("what", 6, range(7)))
        row_axes[1].axvline(0, color="black", linewidth=0.8)
        row_axes[0].set(xlabel="nAP50 (%)", title=_title(cells, key))
        row_axes[1].set_xlabel("bnrl − ce, paired (points of nAP50)")
        row_axes[0].set_yticks(
            range(len(names)), [name.replace(": ", ":\n").replace(", others", ",\nothers") for name in names]
        )
    axes[0, 0].invert_yaxis()
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} nAP50 of the test images after fine-tuning on random K-shot images, in which further novel "
        "objects stand without annotation, and on cleaner ones (the table says how many labels each has). Each loss "
        f"at its own learning rate, chosen on another split. {BARS} {seed_counts(cells)} Points are moved apart."
    )
    return Drawing(figure, caption)


def _points(ax: Axes, rows: pd.DataFrame, names: Sequence[str], nudge: float, label: str, look: dict) -> None:
    where = [names.index(name) + nudge for name in rows["images"]]
    style = look | {"linestyle": "none"}
    ax.errorbar(rows["mean"], where, xerr=rows["half_width"], capsize=2, elinewidth=0.9, label=label, **style)


def missing_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """The figures of 33_missing_annotations by file name, that of their table."""
    return {
        "missing_fraction": fraction_figure(records),
        "missing_map": map_figure(records),
        "missing_components": components_figure(records),
        "missing_clean": images_figure(records),
    }
