"""The gallery of the images that CM-CLIP changes most: detections before and after, side by side.

It takes images beside records, so it belongs into a notebook. Imports no torch.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from risf_core.data.dataset import DetectionData, ImageRecord
from risf_core.report.figure_style import Drawing, message, panels, styled
from risf_core.report.pictures import (
    Boxes,
    Picture,
    box_handles,
    draw_picture,
    judged_boxes,
    read_rgb,
    spread_names,
)
from risf_core.report.table_format import number

RULE = (
    "Chosen by rule, not by hand: an image's margin is the sum of the ranks of its right detections less that of its "
    "wrong ones (rank: share of the class's detections in all test images that score lower, which is all that average "
    "precision sees; right: COCO's rule at an IoU of 0.5, an object once), and the change is its margin after CM-CLIP "
    "less that before"
)


@styled
def gallery_figure(gallery, *, score_thresh: float = 0.1, max_per_image: int = 5) -> Drawing:
    """The largest gains (left) and the largest losses (right), each before and after re-scoring.

    Args:
        gallery: What `risf_core.studies.gallery.make_gallery` returns; None draws a sentence.
        score_thresh: Detections at or below it are not drawn.
        max_per_image: At most so many are drawn, the best first.
    """
    if gallery is None:
        return message("No run of the setting fsod was named, so there is no gallery.")
    rows = max(len(gallery.gains), len(gallery.losses))
    if not rows:
        return message("Re-scoring changed no image.")
    figure, axes = panels(rows, 4, width=1.85, height=2.05)
    figure.set_size_inches(4 * 1.85 + 0.2, rows * 2.05 + 0.8)
    for ax in axes.flat:
        ax.axis("off")
    limits = {"score_thresh": score_thresh, "max_per_image": max_per_image}
    records = {record.image_id: record for record in gallery.data.images}
    for column, images in ((0, gallery.gains), (2, gallery.losses)):
        for row_axes, one in zip(axes, images, strict=False):
            _draw_pair(row_axes[column : column + 2], one, records[one.image_id], gallery.data, **limits)
    for column, text in enumerate(("before", "after", "before", "after")):
        side = "largest gains" if column < 2 else "largest losses"
        title = axes[0, column].get_title()
        axes[0, column].set_title(f"{side}, {text}\n{title}", fontsize=8)
    figure.legend(handles=box_handles({"truth", "right", "wrong"}), loc="outside lower center", ncols=3)
    spread_names(figure)
    caption = (
        f"The images that CM-CLIP (paper's setting) changes most: the {len(gallery.gains)} largest gains (left) and "
        f"the {len(gallery.losses)} largest losses (right), each before and after, with the scores; "
        f"{gallery.setting}, fsod. {RULE}. Of "
        f"{gallery.num_images} test images with {gallery.num_cells} few-shot seed(s) each, an image at most "
        "once on a side; the titles name seed and change. These are the extremes: over all images and seeds the margin "
        f"rises for {gallery.share_up:.0f} %, falls for {gallery.share_down:.0f} %, and changes by "
        f"{number(gallery.mean_change, decimals=2, sign=True)} in the mean. Drawn are scores above {score_thresh:g}, "
        f"at most {max_per_image} an image. Thin black: objects of novel classes, named below the title; base classes "
        "are no targets here. Boxes and classes never change, only scores do."
    )
    return Drawing(figure, caption)


def _draw_pair(
    pair: Sequence[Axes],
    one,
    record: ImageRecord,
    data: DetectionData,
    *,
    score_thresh: float,
    max_per_image: int,
) -> None:
    """One image before and after, under one title over each."""
    names = [data.class_names[label] for label in record.labels[~record.is_crowd]]
    truth = Boxes(record.boxes[~record.is_crowd], (), "truth", linewidth=0.8)
    change = number(float(one.change), decimals=2, sign=True)
    titles = (f"image {one.image_id}, seed {one.seed}", f"change {change}")
    below = ", ".join(dict.fromkeys(names)) or "no novel object"
    pixels = read_rgb(record)
    for ax, found, title in zip(pair, (one.before, one.after), titles, strict=True):
        own = found.keep((found.image_ids == record.image_id) & (found.scores > score_thresh))
        layers = (truth, *judged_boxes(own.top(max_per_image), record, data))
        draw_picture(ax, Picture(pixels, f"{title}\n{below if ax is pair[0] else ' '}", layers))
