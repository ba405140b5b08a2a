"""The table of 43_test_images: effects when the test images are drawn anew. A function of records."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import drop_repeats, rows_of, sort_cells
from risf_core.report.table_format import Table, number, readable

NOTEBOOK = "43_test_images"
KEYS = ["effect", "loss", "arm", "shots"]
NUMBERS = ["mean", "low", "high", "standard_error", "cells", "splits", "resamples"]


def image_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each effect, arm and K with its percentile interval over the test images: `KEYS` and `NUMBERS`."""
    frame = rows_of(records, NOTEBOOK, required=[*KEYS, *NUMBERS])
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, *NUMBERS])
    frame = drop_repeats(frame, KEYS, NUMBERS)
    order = {name: place for place, name in enumerate(dict.fromkeys(zip(frame["effect"], frame["loss"])))}
    frame = frame.assign(place=[order[key] for key in zip(frame["effect"], frame["loss"])])
    return sort_cells(frame, ["place", "arm", "shots"])[[*KEYS, *NUMBERS]]


def image_caption(cells: pd.DataFrame) -> str:
    """What table and figure show, of these cells."""
    counts = sorted(set(cells["cells"]))
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}" if counts else "no"
    resamples = ", ".join(str(count) for count in sorted(set(cells["resamples"])))
    return (
        f"The mean of each effect on nAP50, in points, over {several} cells (split × base model × draw, first CLIP; "
        f"splits count the same), and the 95 % percentile interval of that mean over {resamples} resamples of the test "
        "images with replacement, the same images for all cells. Nothing else varies: it is the part of the "
        "uncertainty that other test images of the same kind would bring."
    )


def image_intervals_table(records: Sequence[Mapping]) -> Table:
    """The part of the uncertainty that the test images make."""
    cells = image_cells(records)
    display = cells[KEYS].copy()
    display["effect"] = [name.replace(" - ", " − ") for name in cells["effect"]]
    display["mean"] = [number(float(value), sign=True) for value in cells["mean"]]
    display["95 % interval over test images"] = [
        f"{number(float(low), sign=True)} to {number(float(high), sign=True)}"
        for low, high in zip(cells["low"], cells["high"], strict=True)
    ]
    display["standard error"] = [number(float(value), decimals=2) for value in cells["standard_error"]]
    display["cells"] = [str(count) for count in cells["cells"]]
    return Table("test_images", image_caption(cells), cells, readable(display))
