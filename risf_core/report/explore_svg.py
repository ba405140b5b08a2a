"""The pictures of 01_explore that move with the slider, as SVG and HTML text: a redraw takes milliseconds.

Photo and boxes are two layers, so that the photo is sent to the browser once.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from risf_core.report.figure_style import COLORS

if TYPE_CHECKING:
    from risf_core.explore import View

WIDTH = 264  # pixels of one panel; three stand side by side in a window of 1280
CURVE_HEIGHT = 264
FONT, CHAR, LINE = 11, 6.3, 14  # size of a label's text, width of a letter about, height of its patch
COLOR = {True: COLORS[0], False: COLORS[1]}  # right, wrong
DASHES = {True: "", False: ' stroke-dasharray="5 2"'}
STEPS = tuple(step / 20 for step in range(21))  # c of the curves' corners
LOSSLESS = 250_000  # pixels up to which a photo is sent as PNG, else as JPEG
MARGIN = {"left": 34, "right": 10, "top": 10, "bottom": 34}  # around the curves


def size_of(view: View) -> tuple[int, int]:
    """Width and height of the panel of an image, in pixels of the screen."""
    height = WIDTH * view.record.height / view.record.width
    return WIDTH, max(40, round(height))


def photo_html(view: View, pixels: np.ndarray) -> str:
    """The image itself, the lower layer.

    Args:
        view: Of the image.
        pixels: uint8 RGB [H, W, 3].
    """
    buffer, kind = io.BytesIO(), "png" if pixels.shape[0] * pixels.shape[1] <= LOSSLESS else "jpeg"
    Image.fromarray(pixels).save(buffer, format=kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = size_of(view)
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="test image {view.record.image_id}" '
        f'style="display:block;width:{width}px;height:{height}px;image-rendering:pixelated;max-width:none">'
    )


def boxes_svg(view: View, c: float, draw_thresh: float) -> str:
    """The boxes with a score above the threshold, and the objects in black: the upper layer."""
    width, height = size_of(view)
    scale, scores = width / view.record.width, view.scores(c)
    parts = [_rectangle(box * scale, "#000000", "") for box in view.record.boxes[~view.record.is_crowd]]
    drawn = [row for row in np.argsort(-scores, kind="stable").tolist() if scores[row] > draw_thresh]
    boxes = view.detections.boxes * scale
    parts += [_rectangle(boxes[row], *_look(view, row)) for row in drawn]
    texts = [f"{row + 1} {view.class_names[row]} {scores[row]:.2f}" for row in drawn]
    corners = [_corner(boxes[row], text, width) for row, text in zip(drawn, texts, strict=True)]
    places = spread(corners, [CHAR * len(text) + 6 for text in texts], height)
    for row, text, (x, _), y in zip(drawn, texts, corners, places, strict=True):
        parts.append(_label(x, y, text, COLOR[bool(view.is_right[row])]))
    words = (
        f"image {view.record.image_id} at c = {c:.2f}: {', '.join(texts) or 'no box above the drawn score'}"
    )
    return _svg(width, height, parts, words)


def curves_svg(view: View, c: float, draw_thresh: float) -> str:
    """The score of each box over c: from CLIP's probability (left) to the detector's score (right)."""
    width, height = WIDTH, CURVE_HEIGHT
    left, top = MARGIN["left"], MARGIN["top"]
    wide, high = width - left - MARGIN["right"], height - top - MARGIN["bottom"]
    parts = _axes(left, top, wide, high)
    y_thresh = top + high * (1 - draw_thresh)
    parts.append(
        f'<line x1="{left}" x2="{left + wide}" y1="{y_thresh:.1f}" y2="{y_thresh:.1f}" stroke="#777" '
        'stroke-dasharray="2 3"/>'
    )
    curves, scores = view.curves(STEPS), view.scores(c)  # [21, N], [N]
    x_now = left + wide * c
    for row, curve in enumerate(curves.T):
        points = " ".join(
            f"{left + wide * at:.1f},{top + high * (1 - y):.1f}" for at, y in zip(STEPS, curve.tolist())
        )
        color, dashes = _look(view, row)
        faint = "1" if scores[row] > draw_thresh else "0.35"
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5" opacity="{faint}"{dashes}/>'
        )
    parts.append(
        f'<line x1="{x_now:.1f}" x2="{x_now:.1f}" y1="{top}" y2="{top + high}" stroke="#000" stroke-width="1.2"/>'
    )
    parts += _numbers(view, scores, draw_thresh, x_now, (left, top, wide, high))
    return _svg(width, height, parts, f"scores of {len(scores)} boxes over c, with a line at c = {c:.2f}")


def table_html(view: View, c: float) -> str:
    """The table of a view (see `View.table`) as HTML; the first names' probabilities stand in the last column."""
    table = view.table(c)
    if not len(table):
        return "<p>The detector has no box above its threshold here.</p>"
    heads = (
        "box",
        "class",
        "right",
        "detector",
        "CLIP",
        f"score at c = {c:.2f}",
        "change",
        "CLIP's first names",
    )
    cell = "padding:2px 10px;text-align:{};border-bottom:1px solid #ddd;white-space:nowrap"
    sides = ("right", "left", "left", "right", "right", "right", "right", "left")
    rows = [
        (str(box), escape(name), right, f"{old:.2f}", _number(clip), f"<b>{new:.2f}</b>", f"{change:+.2f}")
        + (escape(first),)
        for box, name, right, old, clip, new, change, first in table.itertuples(index=False)
    ]  # fmt: skip
    head = "".join(
        f'<th style="{cell.format(side)}">{text}</th>' for side, text in zip(sides, heads, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{cell.format(side)}">{text}</td>' for side, text in zip(sides, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<table style="border-collapse:collapse;font-size:12px;line-height:1.5;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def spread(
    corners: Sequence[tuple[float, float]], widths: Sequence[float], height: float, *, line: float = LINE
) -> list[float]:
    """Tops of labels, each at the free place nearest to where it wants to be; one without a free place stays there.

    Args:
        corners: Left and wanted top of each label.
        widths: Of each label.
        height: The labels lie between 0 and this.
        line: Height of a label.
    """
    placed: list[tuple[float, float, float]] = []  # left, right, top
    for (x, wanted), width in zip(corners, widths, strict=True):
        start = min(max(wanted, 0.0), max(height - line, 0.0))
        steps = math.ceil(height / 2)
        tops = [start + 2 * step for step in sorted(range(-steps, steps + 1), key=abs)]
        beside = [top for left, right, top in placed if x < right and left < x + width]
        free = (
            top
            for top in tops
            if 0 <= top <= height - line and all(abs(top - other) >= line for other in beside)
        )
        placed.append((x, x + width, next(free, start)))
    return [top for _, _, top in placed]


def _look(view: View, row: int) -> tuple[str, str]:
    is_right = bool(view.is_right[row])
    return COLOR[is_right], DASHES[is_right]


def _rectangle(box: np.ndarray, color: str, dashes: str) -> str:
    x1, y1, x2, y2 = box.tolist()
    shape = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none"'
    return f'<rect {shape} stroke="#fff" stroke-width="4"/><rect {shape} stroke="{color}" stroke-width="2"{dashes}/>'


def _corner(box: np.ndarray, text: str, width: float) -> tuple[float, float]:
    """Left and top of a label that stands on the box's upper edge and inside the image."""
    wide = CHAR * len(text) + 6
    return max(0.0, min(float(box[0]), width - wide)), float(box[1]) - LINE


def _label(x: float, y: float, text: str, color: str) -> str:
    wide = CHAR * len(text) + 6
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{LINE}" fill="{color}" opacity="0.9"/>'
        f'<text x="{x + 3:.1f}" y="{y + LINE - 3.5:.1f}" fill="#fff">{escape(text)}</text>'
    )


def _axes(left: int, top: int, wide: int, high: int) -> list[str]:
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + wide * value, top + high * (1 - value)
        parts += [
            f'<line x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>',
            f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end" fill="#333">{value:g}</text>',
            f'<text x="{x:.1f}" y="{top + high + 13}" text-anchor="middle" fill="#333">{value:g}</text>',
        ]
    bottom = top + high + 28
    return [
        *parts,
        f'<text x="{left}" y="{bottom}" fill="#333">CLIP alone</text>',
        f'<text x="{left + wide / 2}" y="{bottom}" text-anchor="middle" fill="#333">c</text>',
        f'<text x="{left + wide}" y="{bottom}" text-anchor="end" fill="#333">detector alone</text>',
    ]


def _numbers(
    view: View, scores: np.ndarray, draw_thresh: float, x: float, frame: tuple[int, int, int, int]
) -> list[str]:
    """A dot on each drawn curve at the slider, and the box's number beside it."""
    left, top, wide, high = frame
    drawn = [row for row in np.argsort(-scores, kind="stable").tolist() if scores[row] > draw_thresh]
    heights = [top + high * (1 - float(scores[row])) for row in drawn]
    side = 6 if x < left + wide - 24 else -6
    places = spread([(0.0, y - FONT / 2) for y in heights], [1.0] * len(drawn), top + high, line=FONT)
    anchor = "start" if side > 0 else "end"
    parts = []
    for row, y, place in zip(drawn, heights, places, strict=True):
        color = COLOR[bool(view.is_right[row])]
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{color}" stroke="#fff"/>',
            f'<text x="{x + side:.1f}" y="{place + FONT - 1.5:.1f}" text-anchor="{anchor}" fill="{color}" '
            f'font-weight="bold" stroke="#fff" stroke-width="3" paint-order="stroke">{row + 1}</text>',
        ]
    return parts


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _svg(width: int, height: int, parts: Sequence[str], words: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(words)}" font-family="DejaVu Sans, Verdana, sans-serif" font-size="{FONT}" '
        f'style="display:block">{"".join(parts)}</svg>'
    )
