"""Pictures of a comparison: what each kind of error costs, and the images that changed most. Imports no torch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.error_kinds import KINDS, RIGHT, Judged
from risf_core.report.figure_style import COLORS, Drawing, panels, styled
from risf_core.report.pictures import Boxes, Picture, box_handles, draw_picture, read_rgb, spread_names

MOST_PANELS = 12
NO_PIXELS = 235  # grey of an image that is not on this machine


@dataclass(frozen=True, eq=False)
class ChangedImage:
    """An image of one pair of cells, to be drawn.

    Attributes:
        record: The image; its objects are those of `data`.
        data: The test data that the detections were judged on.
        sides: Detections of A and of B.
        judged: The same, told right from wrong.
        title: Above the picture of A: which image and pair.
        changes: What the image adds in A and in B, in points of AP50.
        has_pixels: Whether the image is on this machine.
    """

    record: ImageRecord
    data: DetectionData
    sides: tuple[Detections, Detections]
    judged: tuple[Judged, Judged]
    title: str
    changes: tuple[float, float]
    has_pixels: bool = True


@styled
def kinds_figure(summary: pd.DataFrame, groups: Sequence[str], heads: Sequence[str], caption: str) -> Drawing:
    """Points of AP50 that fixing each kind of error alone would give, A beside B; a panel for each group.

    Args:
        summary: As `kinds_summary` gives it.
        groups: A title for each group, in the order of the rows.
        heads: Names of the two sides.
        caption: Says what the sides are.
    """
    rows = summary[summary["kind"] != "AP50"].reset_index(drop=True)
    num_groups = min(len(rows) // len(KINDS), MOST_PANELS)
    columns = min(num_groups, 3)
    figure, axes = panels(
        math.ceil(num_groups / columns), columns, width=3.1, height=2.3, sharex=True, sharey=True
    )
    places = np.arange(len(KINDS))
    for ax in axes.flat[num_groups:]:
        ax.axis("off")
    for number, ax in enumerate(axes.flat[:num_groups]):
        own = rows.iloc[number * len(KINDS) : (number + 1) * len(KINDS)]
        for side, (name, hatch) in enumerate((("a", ""), ("b", "///"))):
            width = np.nan_to_num(own[f"{name}_half_width"].to_numpy(dtype=float))
            ax.barh(
                places + 0.4 * side - 0.2, own[name], 0.38, xerr=width if width.any() else None, color=COLORS[side],
                hatch=hatch, edgecolor="white", linewidth=0.4, label=heads[side],
                error_kw={"elinewidth": 0.9, "ecolor": "#222222", "capsize": 1.5},
            )  # fmt: skip
        ax.set_yticks(places, KINDS)
        ax.set_title("\n".join(textwrap.wrap(groups[number], 44)), fontsize=8.5)
        ax.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(left=0)
    for ax in axes[-1]:
        ax.set_xlabel("points of AP50 if this alone were fixed")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    left_out = len(rows) // len(KINDS) - num_groups
    note = f" {left_out} further groups stand in the table alone." if left_out else ""
    bars = " Bars: 95 % Student-t." if rows["n"].max() > 1 else ""
    return Drawing(figure, f"{caption}{bars}{note}")


@styled
def images_figure(
    gains: Sequence[ChangedImage],
    losses: Sequence[ChangedImage],
    heads: Sequence[str],
    caption: str,
    *,
    score_thresh: float = 0.1,
    max_per_image: int = 6,
) -> Drawing:
    """The largest gains, then the largest losses: A on top, B below; what is found is told right from wrong.

    Args:
        gains: Images that gain.
        losses: Images that lose.
        heads: Names of the two sides.
        caption: Says what the sides are and how the images were chosen.
        score_thresh: Detections at or below it are not drawn.
        max_per_image: At most so many are drawn, the best first.
    """
    chosen = [*gains, *losses]
    figure, axes = panels(2, len(chosen), width=2.1, height=2.3)
    figure.set_size_inches(max(6.0, 2.1 * len(chosen) + 0.3), 5.3)
    for column, image in enumerate(chosen):
        pixels = _pixels(image)
        for side in (0, 1):
            layers = _layers(image, side, score_thresh, max_per_image)
            word = "gain" if column < len(gains) else "loss"
            first = f"{word}: {image.title}\n" if side == 0 else ""
            value = f"{image.changes[side]:+.2f}".replace("-", "−")
            draw_picture(axes[side, column], Picture(pixels, f"{first}{heads[side]}, {value} points", layers))
    figure.legend(handles=box_handles({"truth", "right", "wrong"}), loc="outside lower center", ncols=3)
    spread_names(figure)
    text = f"{caption} Drawn are scores above {score_thresh:g}, at most {max_per_image} an image; a second detection "
    text += "of an object counts as wrong."
    if not all(image.has_pixels for image in chosen):
        text += " Grey: the image is not on this machine."
    return Drawing(figure, text)


def _pixels(image: ChangedImage) -> np.ndarray:
    if image.has_pixels:
        return read_rgb(image.record)
    return np.full((image.record.height, image.record.width, 3), NO_PIXELS, dtype=np.uint8)


def _layers(image: ChangedImage, side: int, score_thresh: float, most: int) -> tuple[Boxes, ...]:
    """Objects, then wrong and right detections of one side."""
    judged, detections = image.judged[side], image.sides[side]
    rows = np.flatnonzero((judged.image_ids == image.record.image_id) & (judged.scores > score_thresh))[:most]
    truth = image.record.keep(~(image.record.is_crowd | image.record.is_difficult))
    layers = [Boxes(truth.boxes, (), "truth")]
    for kind, is_kind in (("wrong", judged.kinds[rows] != RIGHT), ("right", judged.kinds[rows] == RIGHT)):
        own = rows[is_kind]
        names = [
            f"{judged.class_names[label]} {score:.2f}"
            for label, score in zip(judged.labels[own], judged.scores[own], strict=True)
        ]
        layers.append(Boxes(detections.boxes[judged.rows[own]], names, kind))
    return tuple(layers)
