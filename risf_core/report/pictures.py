"""Pictures of images with boxes: scenes, classes, K-shot images of the arms, detections before and after re-scoring.

They take images beside records, so they belong into notebooks. The choice of images is always stated and repeatable.
Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image, ImageOps

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.detections import Detections
from risf_core.errors import DataError
from risf_core.report.figure_style import Drawing, arms_note, message, panels, styled

# Every kind of box differs in colour and in line: colour and dashes.
BOX_LOOKS = {
    "truth": {"edgecolor": "#000000", "linestyle": "-"},
    "unannotated": {"edgecolor": "#E69F00", "linestyle": (0, (2, 2))},
    "right": {"edgecolor": "#0072B2", "linestyle": "-"},
    "wrong": {"edgecolor": "#D55E00", "linestyle": (0, (5, 2))},
    "found": {"edgecolor": "#0072B2", "linestyle": "-"},
    "raised": {"edgecolor": "#007A59", "linestyle": (0, (9, 1.5))},
    "lowered": {"edgecolor": "#D55E00", "linestyle": (0, (5, 2))},
}
BOX_NAMES = {
    "truth": "annotated",
    "unannotated": "there, but not annotated",
    "right": "detection, right (class and IoU ≥ 0.5)",
    "wrong": "detection, wrong",
    "found": "detection",
    "raised": "only after re-scoring above the drawn score",
    "lowered": "only before re-scoring above the drawn score",
}


@dataclass(frozen=True)
class Boxes:
    """Boxes of one kind on a picture.

    Attributes:
        boxes: [N, 4], corners in pixels of the picture.
        names: N texts, or nothing.
        kind: A key of ``BOX_LOOKS``, which sets colour and line.
        linewidth: In points.
    """

    boxes: np.ndarray
    names: Sequence[str] = ()
    kind: str = "truth"
    linewidth: float = 1.3


@dataclass(frozen=True)
class Picture:
    """An image to show.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        title: Text above it.
        layers: Boxes on it, drawn in this order.
    """

    image: np.ndarray
    title: str = ""
    layers: tuple[Boxes, ...] = field(default=())


def read_rgb(record: ImageRecord) -> np.ndarray:
    """The pixels of an annotated image, uint8 [H, W, 3], EXIF orientation applied.

    Raises:
        DataError: If the file cannot be decoded.
    """
    try:
        with Image.open(record.path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise DataError(f"{record.path}: not a readable image ({error}).") from error


def annotated_picture(
    data: DetectionData, record: ImageRecord, *, title: str = "", with_names: bool = True
) -> Picture:
    """One image of the data with its boxes and class names."""
    names = [data.class_names[label] for label in record.labels] if with_names else ()
    return Picture(read_rgb(record), title, (Boxes(record.boxes, names),))


def scenes(data: DetectionData, *, count: int = 8, start: int = 0, with_names: bool = True) -> list[Picture]:
    """``count`` images of the data from place ``start`` on, in the order of the data, with their boxes."""
    chosen = data.images[start : start + count]
    return [
        annotated_picture(data, record, title=f"image {record.image_id}", with_names=with_names)
        for record in chosen
    ]


@styled
def image_grid(pictures: Sequence[Picture], caption: str, *, columns: int = 4, width: float = 2.0) -> Drawing:
    """Pictures in rows of ``columns``, each ``width`` inches wide, with a legend for several kinds of boxes."""
    columns = max(1, min(columns, len(pictures)))
    rows = math.ceil(len(pictures) / columns) or 1
    shape = pictures[0].image.shape if pictures else (1, 1, 3)
    has_titles = any(picture.title for picture in pictures)
    height = width * shape[0] / shape[1] + (0.3 if has_titles else 0.06)
    figure, axes = panels(rows, columns, width=width, height=height)
    kinds = {layer.kind for picture in pictures for layer in picture.layers if len(layer.boxes)}
    figure.set_size_inches(width * columns + 0.1, height * rows + (0.35 if len(kinds) > 1 else 0.05))
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture in zip(axes.flat, pictures, strict=False):
        draw_picture(ax, picture)
    if len(kinds) > 1:
        figure.legend(handles=box_handles(kinds), loc="outside lower center", ncols=2)
    spread_names(figure)
    return Drawing(figure, caption)


def draw_picture(ax: Axes, picture: Picture) -> None:
    """An image with its boxes; a name stands on its box's upper edge, from the corner that is nearer to the middle."""
    height, width = picture.image.shape[:2]
    ax.imshow(picture.image, interpolation="nearest")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.axis("off")
    if picture.title:
        ax.set_title(picture.title, fontsize=8)
    for layer in picture.layers:
        look = BOX_LOOKS[layer.kind]
        for place, (x1, y1, x2, y2) in enumerate(np.asarray(layer.boxes, dtype=float).reshape(-1, 4)):
            box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=layer.linewidth, **look)
            box.set_path_effects([withStroke(linewidth=2 * layer.linewidth, foreground="white")])
            ax.add_patch(box)
            if len(layer.names):
                patch = {"facecolor": look["edgecolor"], "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
                side, x = ("left", max(x1, 0)) if x1 + x2 < width else ("right", min(x2, width - 1))
                at = {"x": x, "y": max(y1, 0.055 * height), "ha": side, "va": "bottom"}
                ax.text(s=layer.names[place], color="white", fontsize=6, bbox=patch, clip_on=True, **at)


def spread_names(figure: Figure) -> None:
    """Move a name that would cover an earlier one of its picture to the nearest free place below or above.

    The size of a name depends on the layout, so this comes last. A name without a free place stays where it is.
    """
    figure.draw_without_rendering()
    margin = 1.2 * figure.dpi / 72  # of the coloured patch and a gap; everything here is in pixels, y upwards
    for ax in figure.axes:
        low, high, placed = ax.bbox.y0, ax.bbox.y1, []
        for text in ax.texts:
            box = text.get_window_extent().padded(margin)
            start, step = min(high - box.y1, 0.0), box.height / 4
            count = math.ceil((high - low) / step)
            places = [
                box.translated(0, start + index * step) for index in sorted(range(-count, count + 1), key=abs)
            ]
            free = (
                place
                for place in places
                if low <= place.y0 and place.y1 < high + 0.1 and not place.count_overlaps(placed)
            )
            placed.append(next(free, box))
            x, y = ax.transData.transform(text.get_position())
            text.set_y(ax.transData.inverted().transform((x, y + placed[-1].y0 - box.y0))[1])


def box_handles(kinds: set[str]) -> list[Line2D]:
    """Legend entries of the kinds of boxes, in a fixed order."""
    return [
        Line2D([], [], color=look["edgecolor"], linestyle=look["linestyle"], label=BOX_NAMES[kind])
        for kind, look in BOX_LOOKS.items()
        if kind in kinds
    ]


def class_row(
    images: Sequence[np.ndarray], names: Sequence[str], caption: str, *, columns: int = 10
) -> Drawing:
    """One image for each class with its name above, e.g. the glyphs of the pictogram world."""
    pictures = [Picture(image, name) for image, name in zip(images, names, strict=True)]
    return image_grid(pictures, caption, columns=columns, width=0.95)


@styled
def few_shot_figure(arms: Mapping[str, DetectionData], *, shots: int, seed: int, count: int = 6) -> Drawing:
    """The first K-shot images of one draw in each arm: one row for each arm.

    Where an arm shows the same image as ``full`` (or ``clean``), objects that this one annotates and the arm does not
    are drawn dashed.

    Args:
        arms: Name of the arm to its data (``Benchmark.few_shot``).
        shots: K, for the caption.
        seed: Few-shot seed, for the caption.
        count: Images in a row, the first ones by image id.
    """
    full = arms.get("full") or arms.get("clean")
    everything = {record.path: record for record in full.images} if full else {}
    figure, axes = panels(len(arms), count, width=1.9, height=1.95)
    figure.set_size_inches(1.9 * count + 0.3, 1.95 * len(arms) + 0.5)
    kinds = set()
    for row_axes, (arm, data) in zip(axes, arms.items(), strict=True):
        records = sorted(data.images, key=lambda record: record.image_id)[:count]
        for ax in row_axes:
            ax.axis("off")
        for ax, record in zip(row_axes, records, strict=False):
            picture = annotated_picture(data, record)
            hidden = _unannotated(record, everything.get(record.path))
            draw_picture(ax, replace(picture, layers=(Boxes(hidden, (), "unannotated"), *picture.layers)))
            kinds |= {"truth"} | ({"unannotated"} if len(hidden) else set())
        row_axes[0].set_title(
            f"{arm}: {len(data)} images, {sum(data.counts().values())} boxes", fontsize=9, loc="left"
        )
    figure.legend(handles=box_handles(kinds), loc="outside lower center", ncols=2)
    caption = (
        f"The first {count} K-shot images of few-shot seed {seed}, K = {shots}, in each arm, with the boxes that are "
        f"annotated.{arms_note(pd.DataFrame({'arm': list(arms)}))}"
    )
    return Drawing(figure, caption)


def _unannotated(record: ImageRecord, full: ImageRecord | None) -> np.ndarray:
    """Boxes [M, 4] that stand in ``full``, a record of the same image, and not in ``record``."""
    if full is None:
        return np.empty((0, 4), dtype=np.float32)
    known = {tuple(np.round(box, 2)) for box in record.boxes}
    return np.array([box for box in full.boxes if tuple(np.round(box, 2)) not in known]).reshape(-1, 4)


def score_changes(before: Detections, after: Detections) -> np.ndarray:
    """Change of each score of ``after`` against the same detection in ``before``, float [len(after)]; NaN without one.

    A detection is the same if image, proposal and label are.
    """
    keys = zip(before.image_ids.tolist(), before.proposals.tolist(), before.labels.tolist(), strict=True)
    old = dict(zip(keys, before.scores.tolist(), strict=True))
    keys = zip(after.image_ids.tolist(), after.proposals.tolist(), after.labels.tolist(), strict=True)
    return np.array(
        [score - old.get(key, math.nan) for key, score in zip(keys, after.scores.tolist(), strict=True)]
    )


def most_changed_images(
    before: Detections, after: Detections, *, num_up: int = 3, num_down: int = 3, score_thresh: float = 0.0
) -> list[int]:
    """Ids of the images with the largest rise of a score, then of those with the largest fall; ties by image id.

    No image comes twice. Only re-scored detections above the threshold, before or after, count: fewer may come back.
    """
    changes = score_changes(before, after)
    changes[np.maximum(after.scores, after.scores - changes) <= score_thresh] = math.nan
    chosen: list[int] = []
    for sign, count in ((1.0, num_up), (-1.0, num_down)):
        best: dict[int, float] = {}
        for image_id, change in zip(after.image_ids.tolist(), (sign * changes).tolist(), strict=True):
            if change > 0 and image_id not in chosen:
                best[image_id] = max(change, best.get(image_id, 0.0))
        chosen += sorted(best, key=lambda image_id: (-best[image_id], image_id))[:count]
    return chosen


@styled
def before_after_figure(
    before: Detections,
    after: Detections,
    data: DetectionData,
    *,
    num_up: int = 3,
    num_down: int = 3,
    score_thresh: float = 0.3,
    max_per_image: int = 5,
) -> Drawing:
    """Detections before (top) and after re-scoring (below) on the images whose scores changed most.

    Args:
        before: Detections of the detector.
        after: The same after re-scoring.
        data: Test images with ground truth; classes with the names of the detections'.
        num_up: Images with the largest rise of a score.
        num_down: Images with the largest fall.
        score_thresh: Detections below it are not drawn.
        max_per_image: At most so many are drawn, the best first.
    """
    limits = {"num_up": num_up, "num_down": num_down, "score_thresh": score_thresh}
    image_ids = most_changed_images(before, after, **limits)
    if not image_ids:
        return message(f"Re-scoring changed no detection with a score above {score_thresh:g}.")
    records = {record.image_id: record for record in data.images}
    figure, axes = panels(2, len(image_ids), width=2.1, height=2.2)
    figure.set_size_inches(max(6.0, 2.1 * len(image_ids) + 0.3), 5.0)  # the legend needs the width
    for ax in axes.flat:
        ax.axis("off")
    for place, image_id in enumerate(image_ids):
        record = records[image_id]
        for row, (detections, when) in enumerate(((before, "before"), (after, "after"))):
            shown = detections.keep((detections.image_ids == image_id) & (detections.scores > score_thresh))
            layers = (_truth(record, data), *judged_boxes(shown.top(max_per_image), record, data))
            draw_picture(axes[row, place], Picture(read_rgb(record), f"{when}, image {image_id}", layers))
    figure.legend(handles=box_handles({"truth", "right", "wrong"}), loc="outside lower center", ncols=3)
    spread_names(figure)
    caption = (
        f"Detections before (top) and after re-scoring (below), with their scores. Images: up to {num_up} with the "
        f"largest rise of a score that is drawn and up to {num_down} with the largest fall, among "
        f"{len(set(before.image_ids.tolist()))} images with detections: the extremes, not the average. Drawn are "
        f"scores above {score_thresh:g}, at most {max_per_image} an image; boxes and classes never change, only "
        "scores do."
    )
    return Drawing(figure, caption)


def judged_pictures(
    detections: Detections,
    data: DetectionData,
    *,
    count: int = 6,
    score_thresh: float = 0.3,
    max_per_image: int = 5,
) -> list[Picture]:
    """The first images that have objects, with ground truth and the best detections, told right from wrong.

    Args:
        detections: Of any detector; classes with the names of the data's.
        data: Test images with ground truth.
        count: How many images.
        score_thresh: Detections at or below it are not drawn.
        max_per_image: At most so many are drawn, the best first.
    """
    pictures = []
    for record in [record for record in data.images if not record.is_crowd.all()][:count]:
        own = detections.keep((detections.image_ids == record.image_id) & (detections.scores > score_thresh))
        layers = (_truth(record, data), *judged_boxes(own.top(max_per_image), record, data))
        pictures.append(Picture(read_rgb(record), f"image {record.image_id}", layers))
    return pictures


def _truth(record: ImageRecord, data: DetectionData) -> Boxes:
    """Ground truth without crowd regions and without names."""
    return Boxes(record.boxes[~record.is_crowd], (), "truth")


def judged_boxes(detections: Detections, record: ImageRecord, data: DetectionData) -> tuple[Boxes, Boxes]:
    """The detections of one image as wrong and right ones; right: IoU of 0.5 or more with an object of the class."""
    truth_names = np.array([data.class_names[label] for label in record.labels], dtype=object)
    names = np.array([detections.class_names[label] for label in detections.labels], dtype=object)
    overlaps = box_iou(detections.boxes, record.boxes) * (names[:, None] == truth_names[None, :])
    is_right = (overlaps >= 0.5).any(axis=1)
    texts = [f"{name} {score:.2f}" for name, score in zip(names, detections.scores, strict=True)]
    return tuple(
        Boxes(detections.boxes[mask], [text for text, kept in zip(texts, mask, strict=True) if kept], kind)
        for kind, mask in (("wrong", ~is_right), ("right", is_right))
    )


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of corner boxes: [N, 4] and [M, 4] to [N, M]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)  # [N, M]
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap, dtype=float), where=union > 0)
