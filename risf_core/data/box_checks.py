"""What must hold of the boxes of a COCO annotation file: finite, with a size, inside their image, in COCO's format.

A box may end up to `OUTSIDE_TOLERANCE` outside its image, as many of COCO's do by rounding; what is outside is cut off.

A box in another format may lie inside its image all the same. It is found where the file gives evidence: the
polygons of the annotation, whose corners the box must have, or an area that is not the box's own.
"""

from __future__ import annotations

import numpy as np

from risf_core.data.coco_checks import AnnotationColumns, ImageEntry, image_sizes
from risf_core.data.problems import Problems

OUTSIDE_TOLERANCE = 1.0  # pixels; files round boxes and image sizes differently
FORMAT_TOLERANCE = 1.0  # pixels between a box and the corners of its polygons
AREA_TOLERANCE = 0.01  # of the area; files round it
EXPECTED = "Expected [x, y, width, height] in pixels, inside the image"


@np.errstate(invalid="ignore", over="ignore")  # boxes may hold any number
def check_boxes(
    columns: AnnotationColumns, images: list[ImageEntry], problems: Problems, *, drop_invalid: bool
) -> np.ndarray:
    """Report boxes not finite, without size, outside their image or in another format; return the mask of the others.

    Args:
        columns: The well-formed annotations.
        images: Their images, by ascending id.
        problems: Where to report.
        drop_invalid: Report boxes not finite, without size or outside as dropped, not as problems.

    Returns:
        bool [A].
    """
    boxes, size = columns.boxes_xywh, image_sizes(columns, images)  # [A, 4], [A, 2] width, height
    finite = np.isfinite(boxes).all(axis=1)
    corners = boxes[:, :2] + boxes[:, 2:]  # [A, 2]
    has_size = (_sides(boxes) > 0).all(axis=1)
    inside = (boxes[:, :2] >= -OUTSIDE_TOLERANCE).all(axis=1)
    inside &= (corners <= size + OUTSIDE_TOLERANCE).all(axis=1)
    inside &= (_sides(boxes, cut_to=size) > 0).all(axis=1)
    inside |= size[:, 0] == 0  # an image whose entry is faulty is reported already
    formats = other_formats(columns, size)
    for number in np.flatnonzero(formats != ""):
        line = f"looks like {formats[number]}, by the evidence of its {_evidence(columns, number)}"
        _report(columns, number, "swapped format", line, problems)
    valid = finite & has_size & inside
    bad = np.flatnonzero(~valid & (formats == ""))
    for number in bad:
        kind, what = _why(boxes[number], size[number])
        if drop_invalid:
            problems.dropped.append(f"{_where(columns, number)} {what}")
        else:
            _report(columns, number, kind, what, problems)
    ordinary = finite & (formats == "")
    _suspect_format(
        boxes[ordinary], size[ordinary], problems, num_bad=len(bad), is_problem=drop_invalid and len(bad) > 1
    )
    return valid & (formats == "")


def _sides(boxes: np.ndarray, *, cut_to: np.ndarray | None = None) -> np.ndarray:
    """Width and height [..., 2] of boxes x, y, width, height as training has them: corners in single precision."""
    low, high = boxes[..., :2], boxes[..., :2] + boxes[..., 2:]
    if cut_to is not None:
        low, high = np.clip(low, 0, cut_to), np.clip(high, 0, cut_to)
    return high.astype(np.float32) - low.astype(np.float32)


def _where(columns: AnnotationColumns, number: int) -> str:
    box = _numbers(columns.boxes_xywh[number])
    return f"annotation {columns.ids[number]} (image {columns.image_ids[number]}): box {box}"


def _report(columns: AnnotationColumns, number: int, kind: str, what: str, problems: Problems) -> None:
    line = f"{_where(columns, number)} {what}. {EXPECTED}"
    problems.add(kind, line, ("annotations", columns.positions[number]))


def _why(box: np.ndarray, size: np.ndarray) -> tuple[str, str]:
    """Kind and words of what is wrong with one box [4] in an image of `size` (width, height)."""
    if np.isnan(box).any():
        return "NaN box", "holds a number that is not finite (NaN)"
    if np.isinf(box).any():
        return "infinite box", "holds a number that is not finite (infinity)"
    outside = size[0] > 0 and (
        (box[:2] < -OUTSIDE_TOLERANCE).any() or (box[:2] + box[2:] > size + OUTSIDE_TOLERANCE).any()
    )
    # in single precision, as training has them; far outside that would be zero for any box
    sides = dict(zip(("width", "height"), box[2:] if outside else _sides(box), strict=True))
    what = "has " + " and ".join(
        f"{'zero' if side == 0 else 'negative'} {name}" for name, side in sides.items() if side <= 0
    )
    if min(sides.values()) < 0:
        return "negative box", what
    if min(sides.values()) == 0:
        return "empty box", what
    what = f"lies outside its image of {size[0]:.0f}x{size[1]:.0f} pixels"
    if (box[2:] > box[:2]).all() and (box[:2] >= 0).all() and (box[2:] <= size).all():
        return "box outside", f"{what}; as corners [x1, y1, x2, y2] it would be inside"
    return "box outside", what


def check_duplicates(columns: AnnotationColumns, problems: Problems, *, is_problem: bool) -> None:
    """Report boxes that stand twice in an image, of one class and under two ids: each a problem, or a hint for all."""
    keys = (*columns.boxes_xywh.T, columns.is_crowd, columns.category_ids, columns.image_ids)
    order = np.lexsort(keys)
    before, after = order[:-1], order[1:]
    equal = np.all([key[before] == key[after] for key in keys], axis=0) & ~columns.is_crowd[after]
    equal &= columns.ids[before] != columns.ids[after]  # else reported already
    pairs = sorted(zip(after[equal], before[equal], strict=True))
    lines = [
        f"{_where(columns, b)} is that of annotation {columns.ids[a]}, of the same class" for b, a in pairs
    ]
    if not is_problem:
        problems.mention_duplicates(lines)
        return
    for line, (number, _) in zip(lines, pairs, strict=True):
        line += ". Expected each object once"
        problems.add("duplicate box", line, ("annotations", columns.positions[number]))


def other_formats(columns: AnnotationColumns, size: np.ndarray) -> np.ndarray:
    """The format that each box seems to be in where that is not COCO's, else ""; text [A].

    A box counts as in another format only if the evidence fits that format and does not fit COCO's.
    """
    boxes, outlines = columns.boxes_xywh, columns.outlines
    found = np.full(len(boxes), "", dtype=object)
    readings = _readings(boxes, size)
    fits = {
        name: (np.abs(corners - outlines) <= FORMAT_TOLERANCE).all(axis=1)
        for name, corners in readings.items()
    }
    far = (np.abs(readings.pop("") - outlines) > 2 * FORMAT_TOLERANCE).any(axis=1)
    for name in readings:
        found[(found == "") & far & fits[name]] = name
    found[(found == "") & _area_is_of_corners(boxes, columns.areas)] = "corners [x1, y1, x2, y2]"
    return found


def _area_is_of_corners(boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Boxes whose area is right only if they are corners; none where the file's areas are no boxes' areas; bool [A]."""
    own, as_corners = boxes[:, 2] * boxes[:, 3], (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    is_own = np.abs(areas - own) <= AREA_TOLERANCE * own
    swapped = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~is_own
    swapped &= np.abs(areas - as_corners) <= 0.1 * AREA_TOLERANCE * as_corners
    known = np.isfinite(areas).sum()  # areas of outlines fit one reading or the other by chance, now and then
    return swapped if (is_own | swapped).sum() >= 0.9 * known else np.zeros(len(boxes), dtype=bool)


def _readings(boxes: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """Corners x1, y1, x2, y2 of boxes [A, 4] read in each format, in pixels; "" is COCO's own."""
    first, second, whole = boxes[:, :2], boxes[:, 2:], np.tile(size, 2)

    def from_sides(start: np.ndarray, sides: np.ndarray) -> np.ndarray:
        return np.concatenate([start, start + sides], axis=1)

    return {
        "": from_sides(first, second),
        "corners [x1, y1, x2, y2]": boxes,
        "[y, x, height, width]": from_sides(first[:, ::-1], second[:, ::-1]),
        "corners [y1, x1, y2, x2]": boxes[:, [1, 0, 3, 2]],
        "[centre x, centre y, width, height]": from_sides(first - second / 2, second),
        "fractions of the image": from_sides(first, second) * whole,
        "fractions [centre x, centre y, width, height]": from_sides(first - second / 2, second) * whole,
    }


def _evidence(columns: AnnotationColumns, number: int) -> str:
    return "area" if np.isnan(columns.outlines[number]).any() else "outline"


def _numbers(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def _suspect_format(
    boxes: np.ndarray, size: np.ndarray, problems: Problems, *, num_bad: int, is_problem: bool
) -> None:
    """Add a problem or a hint where all boxes look like another format than x, y, width, height in pixels.

    A hint goes with the boxes that are reported; where these are dropped on request it is a problem (`is_problem`).
    """
    if not len(boxes):
        return
    as_corners = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= size + OUTSIDE_TOLERANCE).all()
    turned = (boxes[:, :2] + boxes[:, 2:] <= size[:, ::-1] + OUTSIDE_TOLERANCE).all()
    if (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all() and (boxes >= 0).all():
        line = "all boxes lie in the first pixel of their images: they look like fractions of the image size"
        problems.add("swapped format", f"{line}. Expected pixels")
    elif num_bad and as_corners:
        line = "All boxes would be right as corners [x1, y1, x2, y2]: convert them."
        if is_problem:
            problems.add("swapped format", line)
        else:
            problems.hints.append(line)
    elif num_bad and turned:
        problems.hints.append("All boxes would be inside if 'width' and 'height' of the images were swapped.")
