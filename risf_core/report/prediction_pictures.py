"""One image with what a detector finds in it, before and after re-scoring. Imports no torch."""

import numpy as np
import pandas as pd

from risf_core.data.dataset import ImageRecord
from risf_core.detections import Detections
from risf_core.report.figure_style import DPI, Drawing, panels, styled
from risf_core.report.pictures import (
    Boxes,
    Picture,
    box_handles,
    draw_picture,
    score_changes,
    spread_names,
)

PANEL_INCHES = (3.4, 10.0)  # least and largest long side of an image; between them a pixel is a pixel


@styled
def prediction_figure(
    record: ImageRecord,
    pixels: np.ndarray,
    before: Detections,
    after: Detections | None = None,
    *,
    score_thresh: float = 0.3,
    note: str = "",
) -> Drawing:
    """The detections of one image with their scores; with ``after`` a second panel, where scores are new.

    Boxes and classes are the same on both sides. A box that only one side shows has crossed the threshold and is
    marked; behind a new score stands its change.

    Args:
        record: The image.
        pixels: uint8 RGB [H, W, 3], what the boxes are in.
        before: Detections with the detector's scores.
        after: The same with new scores.
        score_thresh: Scores at or below it are not drawn.
        note: Ends the second panel's title, such as the weight of the two scores.
    """
    count, (height, width) = 1 if after is None else 2, pixels.shape[:2]
    low, high = PANEL_INCHES
    scale = min(max(max(height, width) / DPI, low), high) / max(height, width)
    size = max(width * scale, 1.6), max(height * scale, 1.6)
    figure, axes = panels(1, count, width=size[0], height=size[1])
    figure.set_size_inches(max(size[0] * count + 0.2, 3.4), size[1] + 0.65)
    if after is None:
        shown = before.keep(before.scores > score_thresh)
        layers = [[Boxes(shown.boxes, _texts(shown), "found")]]
    else:
        layers = _crossing(before, after, score_thresh)
    titles = ("detector", f"after CM-CLIP{note}")
    for ax, title, boxes in zip(axes[0], titles, layers, strict=False):
        draw_picture(ax, Picture(pixels, title, tuple(boxes)))
    kinds = {layer.kind for boxes in layers for layer in boxes if len(layer.boxes)}
    if kinds:
        figure.legend(handles=box_handles(kinds), loc="outside lower center", ncols=1 if count == 1 else 3)
    spread_names(figure)
    num_shown = sum(len(layer.boxes) for layer in layers[-1])
    caption = (
        f"{record.path.name}: {num_shown} of {len(before)} detections have a score above {score_thresh:g}"
        + (" after re-scoring; boxes and classes never change, only scores do." if after is not None else ".")
    )
    return Drawing(figure, caption)


def _crossing(before: Detections, after: Detections, score_thresh: float) -> list[list[Boxes]]:
    """The layers of both panels: what both draw, and what one of them alone draws."""
    new = before.scores - score_changes(after, before)  # [D], in the order of `before`
    changes = score_changes(before, after)
    old = after.scores - changes
    return [
        _layers(before, new, np.zeros(len(before)), "lowered", score_thresh),
        _layers(after, old, changes, "raised", score_thresh),
    ]


def _layers(
    own: Detections, others: np.ndarray, changes: np.ndarray, alone: str, score_thresh: float
) -> list[Boxes]:
    """The boxes above the threshold in two kinds: with the other panel's score above it as well, and without."""
    is_drawn, is_common = own.scores > score_thresh, others > score_thresh
    return [
        Boxes(own.boxes[rows], _texts(own.keep(rows), changes[rows]), kind)
        for rows, kind in ((is_drawn & is_common, "found"), (is_drawn & ~is_common, alone))
    ]


def _texts(detections: Detections, changes: np.ndarray | None = None) -> list[str]:
    """Class, score and, where it is not nothing, the change of the score."""
    changes = np.zeros(len(detections)) if changes is None else changes
    rows = zip(detections.labels, detections.scores, changes, strict=True)
    return [
        f"{detections.class_names[label]} {score:.2f}" + (f" ({change:+.2f})" if abs(change) >= 0.005 else "")
        for label, score, change in rows
    ]


def detections_table(before: Detections, after: Detections | None = None) -> pd.DataFrame:
    """The detections of an image, the best first; with ``after`` the detector's score, the new one and the change."""
    last = before if after is None else after
    table = pd.DataFrame(last.boxes.astype(np.float64).round(1), columns=["x1", "y1", "x2", "y2"])
    table.insert(0, "class", [last.class_names[label] for label in last.labels])
    table.insert(1, "score", last.scores.round(3))
    if after is not None:
        changes = score_changes(before, after)
        table.insert(1, "detector", (after.scores - changes).round(3))
        table.insert(3, "change", changes.round(3))
    return table
