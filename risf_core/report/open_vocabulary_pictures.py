"""A gallery of what the arms of 50_open_vocabulary find of novel classes on the same test images.

It takes images and stored detections beside records, so it belongs into a notebook. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.detections import Detections, cut
from risf_core.report.figure_style import Drawing, message, panels, styled
from risf_core.report.open_vocabulary_rows import BASE, CONTINUED, RKD, TRANSFER, arm_of
from risf_core.report.pictures import (
    Boxes,
    Picture,
    box_handles,
    box_iou,
    draw_picture,
    judged_boxes,
    read_rgb,
    spread_names,
)
from risf_core.report.table_format import number
from risf_core.studies.changed_images import ImageChange, image_margins, most_changed

GALLERY_ARMS = (CONTINUED, RKD, TRANSFER)
SCORE_THRESH = 0.05  # of the detections that count, as in the tables
SAME_PLACE = 0.5  # IoU above which a detection of any class hides a lower one in the pictures
RULE = (
    "Chosen by rule, not by hand: an image's margin is the sum of the ranks of its right detections of novel classes "
    "less that of its wrong ones (rank: share of the class's detections in all test images that score lower; right: "
    "COCO's rule at an IoU of 0.5, an object once), and the change is the margin of the last row less that of the first"
)


@dataclass(frozen=True)
class NovelGallery:
    """Detections of novel classes by several detectors on one set of test images.

    Attributes:
        data: The test images with the objects of all classes.
        novel_names: Novel classes.
        found: Arm to its detections that count; the first is the one that others are set against.
        gains: Images on which the last arm is better than the first, the largest change first.
        losses: Images on which it is worse, the largest change first.
    """

    data: DetectionData
    novel_names: tuple[str, ...]
    found: Mapping[str, Detections]
    gains: Sequence[ImageChange]
    losses: Sequence[ImageChange]


def novel_gallery(
    folder: Path,
    data: DetectionData,
    novel_names: Sequence[str],
    *,
    arms: Sequence[str] = GALLERY_ARMS,
    num_gains: int = 4,
    num_losses: int = 2,
) -> NovelGallery | None:
    """Choose the images with novel objects on which the arms differ most, from stored detections.

    Args:
        folder: Of the detections, ``<arm>.npz`` each.
        data: The test images with base and novel classes.
        novel_names: Novel classes.
        arms: Those wanted; those without a file are left out, and ``base`` takes the place of the one trained on.
        num_gains: Images with the largest gains.
        num_losses: Images with the largest losses.

    Returns:
        None if fewer than two of the arms are there.
    """
    paths = {arm: Path(folder) / f"{arm}.npz" for arm in arms}
    if CONTINUED in paths and not paths[CONTINUED].is_file():
        paths = {BASE: Path(folder) / f"{BASE}.npz"} | {arm: paths[arm] for arm in paths if arm != CONTINUED}
    paths = {arm: path for arm, path in paths.items() if path.is_file()}
    if len(paths) < 2:
        return None
    columns = [data.class_names.index(name) for name in novel_names]
    images = tuple(record.keep(np.isin(record.labels, columns)) for record in data.images)
    novel = replace(data, images=images)
    found = {
        arm: cut(Detections.load(path), None, score_thresh=SCORE_THRESH)[0] for arm, path in paths.items()
    }
    before, after = (
        image_margins(one.keep(np.isin(one.labels, columns)), novel)
        for one in (list(found.values())[0], list(found.values())[-1])
    )
    shows_novel = {record.image_id for record in images if len(record.labels)}
    changes = [ImageChange(one, 0, after[one] - before[one]) for one in before if one in shows_novel]
    gains, losses = most_changed(changes, count=max(num_gains, num_losses))
    return NovelGallery(data, tuple(novel_names), found, gains[:num_gains], losses[:num_losses])


def best_of_each_place(detections: Detections) -> Detections:
    """The detections of one image without those that overlap a better one, whatever its class."""
    kept: list[int] = []
    overlaps = box_iou(detections.boxes, detections.boxes)
    for place in range(len(detections)):  # best first
        if not (overlaps[place, kept] > SAME_PLACE).any():
            kept.append(place)
    return detections.keep(np.isin(np.arange(len(detections)), kept))


@styled
def novel_gallery_figure(
    gallery: NovelGallery | None, *, score_thresh: float = 0.3, max_per_image: int = 5
) -> Drawing:
    """One row for each arm, one column for each image: the largest gains, then the largest losses.

    Args:
        gallery: What `novel_gallery` returns; None draws a sentence.
        score_thresh: Detections at or below it are not drawn.
        max_per_image: At most so many are drawn, the best first.
    """
    if gallery is None:
        return message("Fewer than two of the arms were trained, so there is no gallery.")
    chosen = [*gallery.gains, *gallery.losses]
    if not chosen:
        return message("The arms differ on no image.")
    records = {record.image_id: record for record in gallery.data.images}
    arms = list(gallery.found)
    figure, axes = panels(len(arms), len(chosen), width=1.7, height=1.95)
    figure.set_size_inches(1.7 * len(chosen) + 0.5, 1.95 * len(arms) + 0.5)
    for row_axes, arm in zip(axes, arms, strict=True):
        for ax, one in zip(row_axes, chosen, strict=True):
            record, found = records[one.image_id], gallery.found[arm]
            own = found.keep((found.image_ids == one.image_id) & (found.scores > score_thresh))
            truth = Boxes(record.boxes[~record.is_crowd], (), "truth", linewidth=0.8)
            shown = best_of_each_place(own).top(max_per_image)
            layers = (truth, *judged_boxes(shown, record, gallery.data))
            draw_picture(ax, Picture(read_rgb(record), layers=layers))
        _name_row(row_axes[0], arm)
    for ax, one in zip(axes[0], chosen, strict=True):
        ax.set_title(_title(gallery, one), fontsize=8)
    figure.legend(handles=box_handles({"truth", "right", "wrong"}), loc="outside lower center", ncols=3)
    spread_names(figure)
    caption = (
        f"Detections by {len(arms)} detectors that name {', '.join(gallery.novel_names)} without having seen a box of "
        f"them: the {len(gallery.gains)} images with the largest gains and the {len(gallery.losses)} with the largest "
        "losses of the last row over the first, of the test images that show one of them: the extremes, not the "
        f"average. {RULE}. Drawn is the best name of each place (a detection that overlaps a better one of any class "
        f"by more than {SAME_PLACE:g} is not drawn) above a score of {score_thresh:g}, at most {max_per_image} an "
        "image; thin black: the objects. Above each column its novel classes."
    )
    return Drawing(figure, caption)


def _title(gallery: NovelGallery, one: ImageChange) -> str:
    """Image, change, and what is there."""
    record = next(record for record in gallery.data.images if record.image_id == one.image_id)
    names = dict.fromkeys(gallery.data.class_names[label] for label in record.labels[~record.is_crowd])
    names = [name for name in names if name in gallery.novel_names]
    change = number(float(one.change), decimals=2, sign=True)
    return f"image {one.image_id}: {change}\n{', '.join(names)}"


def _name_row(ax, arm: str) -> None:
    """The arm beside the first picture of its row, whose axis is hidden."""
    text = arm_of(arm).text.replace(", ", ",\n", 1)
    ax.text(-0.06, 0.5, text, transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=7.5)
