"""The figure of 42_missing_rate, estimated over planted rates, and pictures of suspected places."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from risf_core.data.dataset import DetectionData
from risf_core.errors import DataError
from risf_core.report.figure_style import Drawing, legend_below, look_of, message, nothing_yet, panels, styled
from risf_core.report.missing_rate_tables import (
    NOTEBOOK,
    SCORES,
    estimate_rows,
    image_cells,
    missing_rate_cells,
    settings_note,
)
from risf_core.report.pictures import Boxes, Picture, image_grid, read_rgb

GROUPS = {
    "full": "annotations left out at random",
    "missing": "arm missing, as drawn",
    "kshot": "arm kshot: none missing",
}


@styled
def missing_rate_figure(records: Sequence[Mapping]) -> Drawing:
    """Estimated over planted missing rate, a panel for each kind of score."""
    rows, cells = estimate_rows(records), missing_rate_cells(records)
    rows, cells = rows[rows["true_rate"].notna()], cells[cells["true_rate"].notna()]
    if rows.empty:
        return nothing_yet(f"planted truth of {NOTEBOOK}")
    kinds = [score for score in SCORES if score in set(rows["score"])]
    figure, axes = panels(1, len(kinds), width=3.2, height=3.0, sharey=True, sharex=True)
    for ax, score in zip(axes[0], kinds, strict=True):
        ax.plot([0, 100], [0, 100], color="black", linewidth=0.8, label="estimate = truth")
        for number, (arm, label) in enumerate(GROUPS.items()):
            own = rows[(rows["score"] == score) & (rows["arm"] == arm)]
            if own.empty:
                continue
            look = look_of("arm", number, range(len(GROUPS))) | {"linestyle": "none"}
            ax.plot(own["true_rate"], own["rate"], **look | {"markersize": 3.0, "alpha": 0.6})
            mean = cells[(cells["score"] == score) & (cells["arm"] == arm)]
            bars = {"yerr": mean["half_width"], "capsize": 2, "elinewidth": 1.0, "markersize": 7}
            ax.errorbar(mean["true_rate"], mean["rate"], **look | bars, label=label)
        ax.set(title=SCORES[score], xlabel="planted missing rate (%)", xlim=(-4, 100), ylim=(-4, 104))
    axes[0, 0].set_ylabel("estimated missing rate (%)")
    legend_below(figure, axes[0, 0], columns=2)
    low, high = rows.groupby(["score", "arm", "dropped"], dropna=False).size().agg(["min", "max"])
    draws = f"{low}" if low == high else f"{low} to {high}"
    caption = (
        "Estimated over planted missing rate of K-shot images: the share of novel objects that nobody annotated. Small "
        f"points: one draw each ({draws} for each set). Large points: means, with 95 % Student-t intervals over these "
        f"draws of one base model. {settings_note(records)}"
    )
    return Drawing(figure, caption)


def suspected_figure(
    records: Sequence[Mapping],
    data: DetectionData,
    *,
    hidden: Mapping[int, np.ndarray] | None = None,
    count: int = 4,
) -> Drawing:
    """The images with the most suspected places, with their annotated boxes and these places.

    Args:
        records: Of 42_missing_rate.
        data: The K-shot images of the first draw with the boxes that are annotated.
        hidden: Boxes [H, 4] that are there and not annotated, by image id, where that is known.
        count: How many images.

    Raises:
        DataError: If an image of the record is not in the data.
    """
    cells = image_cells(records).head(count)
    if cells.empty:
        return message("No image of 42_missing_rate yet.")
    by_id = {record.image_id: record for record in data.images}
    if lacking := set(cells["image_id"]) - set(by_id):
        raise DataError(
            f"{data.name}: no image {lacking.pop()}, which the record names. Give the data of its first draw."
        )
    places = {
        (row["image_id"], row["score"]): row
        for record in records
        for row in record["rows"]
        if row["part"] == "image"
    }
    pictures = []
    for cell in cells.itertuples():
        record, row = by_id[cell.image_id], places[cell.image_id, cell.score]
        texts = [f"{name} {score:.2f}" for name, score in zip(row["names"], row["scores"])]
        layers = [
            Boxes(record.boxes[~record.is_crowd]),
            Boxes(np.reshape(row["boxes"], (-1, 4)), texts, "found"),
        ]
        if hidden is not None:
            layers.insert(0, Boxes(hidden.get(cell.image_id, np.empty((0, 4))), (), "unannotated"))
        pictures.append(Picture(read_rgb(record), cell.file, tuple(layers)))
    is_known = hidden is not None and math.isfinite(cells["unannotated"].max())
    truth = " Dashed: what is there and not annotated." if is_known else ""
    caption = (
        f"The {len(cells)} images of few-shot seed {cells['seed'].iloc[0]} (K = {cells['shots'].iloc[0]}) with the "
        "most suspected places: detections, by a detector that was not trained on the image, that no annotated box "
        f"overlaps.{truth}"
    )
    return image_grid(pictures, caption, columns=min(4, count), width=2.4)
