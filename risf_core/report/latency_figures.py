"""What re-scoring costs: figures of 34_latency."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from risf_core.report.figure_style import COLORS, Drawing, legend_below, look_of, nothing_yet, panels, styled
from risf_core.report.latency_tables import (
    MEASURED_NOTE,
    NOTEBOOK,
    PARTS,
    PUBLISHED_NOTE,
    WAY,
    accuracy_cells,
    boxes_cells,
    parts_cells,
    way_name,
)
from risf_core.report.statistics import notebook_of

NAMED_BELOW = 0.8  # of the time of every crop: approximations that save less have no name in the figure
LABELS = {"share=iou": "iou", "share=proposal": "proposal", "share=object": "object"}


@styled
def latency_pareto_figure(records: Sequence[Mapping]) -> Drawing:
    """nAP against milliseconds an image, one panel for each trained CLIP; the published way has a star."""
    cells = accuracy_cells(records)
    if cells.empty or cells["ms"].isna().all():
        return nothing_yet(NOTEBOOK)
    clips = list(dict.fromkeys(cells["clip"]))
    figure, axes = panels(1, len(clips), width=4.2, height=3.4)
    kinds = list(dict.fromkeys(map(_kind, cells.to_dict("records"))))
    for ax, clip in zip(axes[0], clips, strict=True):
        own = cells[cells["clip"] == clip]
        is_whole = (
            (own["approximation"] == "none") & (own["images_from"] == "files") & (own["path"] == "crop")
        )
        whole = own[is_whole & (own["way"] == "ours")].set_index("precision")["ms"]
        for row in own.to_dict("records"):
            look = look_of("kind", _kind(row), kinds) | {"linestyle": "none"}
            if row["way"] == "published":
                look |= {"color": "black", "marker": "*", "markersize": 10}
            if row["images_from"] == "memory":
                look["markerfacecolor"] = "white"
            ax.plot(row["ms"], row["nAP"], label=_kind(row), **look)
            name = LABELS.get(row["approximation"], row["approximation"].replace("budget=", "B"))
            saves = row["ms"] < NAMED_BELOW * whole.get(
                row["precision"], 0.0
            )  # the others would hide each other
            if name != "none" and row["images_from"] == "files" and saves:
                ax.annotate(
                    name, (row["ms"], row["nAP"]), xytext=(3, 3), textcoords="offset points", fontsize=6.5
                )
        ours = own[own["way"] == "ours"]
        best = _front(ours["ms"].to_numpy(), ours["nAP"].to_numpy())
        ax.step(*best, where="post", color="#888888", linewidth=0.9, zorder=0.5)
        ax.set(title=clip, xlabel="ms an image, detector apart", ylabel="nAP (%)", xscale="log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
    _legend_once(figure, axes[0])
    caption = (
        "Accuracy against cost of re-scoring on the same stored boxes, measured in one run. Grey: what no other way of "
        "ours beats in both. Open markers: images in memory, as the detector leaves them; filled: read from files. "
        "object: one crop serves boxes that overlap; BN: at most N crops an image; no name: every crop, or a way that "
        "saves less than a fifth of its time (see the table). "
        f"{PUBLISHED_NOTE} {MEASURED_NOTE}"
    )
    return Drawing(figure, caption)


def _kind(row: Mapping) -> str:
    """What colours a way: precision and path."""
    if row["way"] == "published":
        return "published"
    return f"{row['precision']}, {row['path']}"


def _front(ms: np.ndarray, values: np.ndarray) -> tuple[list[float], list[float]]:
    """The points that none beats in both, by rising milliseconds."""
    order, xs, ys = np.lexsort((-values, ms)), [], []
    for place in order:
        if not ys or values[place] > ys[-1]:
            xs.append(float(ms[place]))
            ys.append(float(values[place]))
    return xs, ys


def _legend_once(figure, axes: Sequence) -> None:
    """Under all panels, each label once."""
    seen = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    columns = min(3 if len(axes) == 1 else 5, len(seen))
    figure.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=columns)


@styled
def latency_parts_figure(records: Sequence[Mapping]) -> Drawing:
    """Stacked medians of the parts of an image, a bar for each way, a panel for each CLIP."""
    cells = parts_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    clips = list(dict.fromkeys(cells["clip"]))
    figure, axes = panels(1, len(clips), width=4.0, height=2.6, sharex=True)
    for ax, clip in zip(axes[0], clips, strict=True):
        own = cells[cells["clip"] == clip]
        names = [way_name(row) for row in own.drop_duplicates(WAY).to_dict("records")]
        own = own.assign(name=[way_name(row) for row in own.to_dict("records")])
        left = np.zeros(len(names))
        for part, color in zip(PARTS, COLORS, strict=False):
            values = own[own["part"] == part].set_index("name")["p50"].reindex(names).fillna(0.0).to_numpy()
            ax.barh(names, values, left=left, color=color, label=part.replace("_", " "), height=0.65)
            left = left + values
        ends = own[own["part"] == "total"].set_index("name").reindex(names)
        for place, row in enumerate(ends.itertuples()):
            ax.annotate(
                f" {row.p50:.0f} / {row.p95 if row.p95 == row.p95 else row.max:.0f}",
                (left[place], place),
                va="center",
                fontsize=7,
            )
        ax.invert_yaxis()
        ax.margins(x=0.2)
        ax.set(title=clip, xlabel="ms an image, median")
    legend_below(figure, axes[0, 0], columns=3 if len(clips) == 1 else 6)
    counts = sorted(set(cells["n"]))
    caption = (
        f"Where the time of one image goes, one after another (n = {', '.join(map(str, counts))}): medians of the "
        "parts; at the end of a bar median / 95th percentile (below 20 images the largest) of the whole, from the file "
        "to the new scores. "
        f"{PUBLISHED_NOTE} {MEASURED_NOTE}"
    )
    return Drawing(figure, caption)


@styled
def latency_boxes_figure(records: Sequence[Mapping]) -> Drawing:
    """Milliseconds over the boxes of an image: points where measured, a dashed line where fitted."""
    points, lines = boxes_cells(records)
    if lines.empty:
        return nothing_yet(NOTEBOOK)
    most = max(record["params"].get("line_to", 100) for record in records if notebook_of(record) == NOTEBOOK)
    clips = list(dict.fromkeys(points["clip"]))
    columns = min(3, len(clips))
    figure, axes = panels(-(-len(clips) // columns), columns, width=3.0, height=2.5)
    ways = list(dict.fromkeys(map(way_name, lines.to_dict("records"))))
    for ax in axes.flat[len(clips) :]:
        ax.axis("off")
    for ax, clip in zip(axes.flat, clips, strict=False):
        for row in lines[lines["clip"] == clip].to_dict("records"):
            own = points[(points[["clip", *WAY]] == [row[name] for name in ["clip", *WAY]]).all(axis=1)]
            look = look_of("way", way_name(row), ways) | {"linestyle": "none"}
            ax.plot(own["boxes"], own["p50"], label=way_name(row), markerfacecolor="none", **look)
            if row["slope"] == row["slope"]:
                xs = np.geomspace(own["boxes"].min(), most, 50)
                ys = row["start"] + row["slope"] * xs
                ax.plot(xs[ys > 0], ys[ys > 0], color=look["color"], linestyle="--", linewidth=0.9)
        ax.axvspan(points["boxes"].max(), most, color="#f0f0f0", zorder=0)
        ax.set(
            title=clip.replace(" (", "\n("),
            xscale="log",
            yscale="log",
            xlabel="boxes an image",
            ylabel="ms an image",
        )
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
    _legend_once(figure, list(axes.flat[: len(clips)]))
    caption = (
        "Milliseconds of re-scoring one decoded picture of noise: markers are measured (medians), dashed lines are "
        f"fitted to them, and in the grey part, up to {most} boxes, nothing was measured. Random weights where the "
        f"title says so: what a model costs does not depend on them. {PUBLISHED_NOTE} {MEASURED_NOTE}"
    )
    return Drawing(figure, caption)


def latency_figures(records: Sequence[Mapping]) -> dict[str, Drawing]:
    """All figures of 34_latency, each by the name of its table."""
    return {
        "latency_accuracy": latency_pareto_figure(records),
        "latency_parts": latency_parts_figure(records),
        "latency_boxes": latency_boxes_figure(records),
    }
