"""The still figure of 01_explore: one image at a few c, and the scores of its boxes over c."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from risf_core.report.figure_style import COLORS, Drawing, panels, styled
from risf_core.report.pictures import (
    BOX_LOOKS,
    Boxes,
    Picture,
    box_handles,
    draw_picture,
    read_rgb,
    spread_names,
)

if TYPE_CHECKING:
    from risf_core.explore import View

PANEL = 2.5  # inches


@styled
def explore_figure(view: View, title: str, *, shown_c: Sequence[float], draw_thresh: float) -> Drawing:
    """One image at each c, then the score of each of its boxes over all c.

    Args:
        view: The image and its boxes.
        title: Which detector it is, for the caption.
        shown_c: The weights of the pictures, in this order.
        draw_thresh: Scores at or below it are not drawn.
    """
    count = len(shown_c) + 1
    height = PANEL * view.record.height / view.record.width
    figure, axes = panels(1, count, width=PANEL, height=height + 0.3)
    figure.set_size_inches(PANEL * count + 0.4, max(height, 2.2) + 0.75)
    pixels = read_rgb(view.record)
    for ax, c in zip(axes[0], shown_c, strict=False):
        picture = Picture(pixels, _title(c), _layers(view, c, draw_thresh))
        draw_picture(ax, picture)
    spread_names(figure)
    _draw_curves(axes[0, -1], view, shown_c, draw_thresh)
    figure.legend(handles=box_handles({"truth", "right", "wrong"}), loc="outside lower center", ncols=3)
    caption = (
        f"Test image {view.record.image_id}; {title}. Drawn are boxes with a score above {draw_thresh:g}, with their "
        "number in the table and the score at that c; boxes and classes never change. Right: the score of each of the "
        f"{len(view.detections)} boxes (the detector's best 20 at most) over c, from CLIP's probability of the box's "
        f"class (c = 0) to the detector's score (c = 1); CLIP's names are {view.label_space}. One image shows how "
        "re-scoring works, not how much it helps."
    )
    return Drawing(figure, caption)


def _title(c: float) -> str:
    return {0.0: "c = 0: CLIP alone", 1.0: "c = 1: detector alone"}.get(c, f"c = {c:g}")


def _layers(view: View, c: float, draw_thresh: float) -> tuple[Boxes, ...]:
    """Ground truth, then wrong and right boxes above the threshold."""
    scores = view.scores(c)
    texts = [
        f"{row + 1} {name} {score:.2f}"
        for row, (name, score) in enumerate(zip(view.class_names, scores, strict=True))
    ]
    layers = [Boxes(view.record.boxes[~view.record.is_crowd], (), "truth")]
    for kind, rows in (("wrong", ~view.is_right), ("right", view.is_right)):
        drawn = np.flatnonzero(rows & (scores > draw_thresh))
        layers.append(Boxes(view.detections.boxes[drawn], [texts[row] for row in drawn], kind))
    return tuple(layers)


def _draw_curves(ax, view: View, shown_c: Sequence[float], draw_thresh: float) -> None:
    grid = np.linspace(0.0, 1.0, 21)
    for is_right, curve in zip(view.is_right, view.curves(grid.tolist()).T, strict=True):
        look = BOX_LOOKS["right" if is_right else "wrong"]
        ax.plot(grid, curve, color=look["edgecolor"], linestyle=look["linestyle"], linewidth=1.2)
    for c in shown_c:
        ax.axvline(c, color=COLORS[-1], linewidth=0.8)
    ax.axhline(draw_thresh, color="#777777", linewidth=0.8, linestyle=":")
    ax.set(
        xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="c (0: CLIP alone, 1: detector alone)", ylabel="score"
    )
    ax.set_title("every box over c", fontsize=8)
