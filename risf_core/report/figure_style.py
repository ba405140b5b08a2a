"""The one style of the figures, how a figure is saved, and the small parts that several figures share.

A figure is made with matplotlib's object API and fixed settings, so that neither the user's own settings nor an
earlier figure changes a byte.
"""

import base64
import functools
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 150
# Okabe and Ito's palette for colour-blind readers, yellow left out; https://jfly.uni-koeln.de/color/
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
STYLE = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")},
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "pdf.fonttype": 42,
}  # fmt: skip
SEEDS_NOTE = "Bars: 95 % Student-t intervals over few-shot seeds of one base model and one CLIP."
ARM_NOTES = {
    "kshot": "no other novel object stands in the K-shot images",
    "missing": "others stand in them, and nobody annotated them",
    "full": "others stand in them, all annotated (a control that is not K-shot)",
}
REAL_ARM_NOTES = {  # of photographs, where nobody chose what else they show
    "kshot": "K boxes of each class, whatever else the images show is without a box",
    "clean": "the same images with every instance of these classes annotated (a control that is not K-shot)",
}


@dataclass(frozen=True)
class Drawing:
    """A figure and the caption that explains it without the text around it."""

    figure: Figure
    caption: str

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write it as PNG, PDF and caption, see :func:`save_figure`."""
        return save_figure(self.figure, folder, name, self.caption)

    def png(self) -> bytes:
        """It as a PNG file with the caption in it."""
        return _png(self.figure, self.caption)

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.png()).decode()
        return (
            f'<img src="data:image/png;base64,{image}" style="max-width:100%">'
            f"<p style='max-width:50em'>{html.escape(self.caption)}</p>"
        )


def styled(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """Run a drawing function under the project's own settings and leave the global ones as they were.

    The layout is worked out once, so that showing and saving in any order gives the same bytes.
    """

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Drawing:
        with matplotlib.rc_context(STYLE):
            drawing = draw(*args, **kwargs)
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")
            return drawing

    return wrapper


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> list[Path]:
    """Write ``name.png`` (150 dpi), ``name.pdf`` and ``name.txt`` (the caption); same figure, same bytes.

    Returns:
        The three paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "pdf", "txt")]
    paths[0].write_bytes(_png(figure, caption))
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[1], format="pdf", dpi=DPI, metadata={"CreationDate": None, "Title": name})
    paths[2].write_text(f"{caption}\n", encoding="utf-8", newline="\n")
    return paths


def _png(figure: Figure, caption: str) -> bytes:
    """PNG without the date and the version that matplotlib would add."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None, "Description": caption})
    return buffer.getvalue()


def panels(
    rows: int, columns: int, *, width: float = 3.4, height: float = 2.8, **kwargs
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes [rows, columns]; width and height of one panel in inches."""
    figure = Figure(figsize=(width * columns + 0.6, height * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def nothing_yet(what: str) -> Drawing:
    """The figure of a part that no record fills yet: it replaces an older one."""
    return message(f"No record of {what} yet.")


def message(text: str) -> Drawing:
    """A sentence in place of a figure that has nothing to show."""
    figure, axes = panels(1, 1, width=5.0, height=0.8)
    axes[0, 0].axis("off")
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center", color="#555555")
    return Drawing(figure, text)


def look_of(name: str, value: object, values: Sequence) -> dict:
    """Colour, marker and line of one of several values; ce and bnrl have their own everywhere."""
    fixed = {"ce": 0, "bnrl": 1, "ce_bg": 2, "none": 0, "cm_clip": 1}
    free = [
        index
        for index in range(len(COLORS))
        if index not in fixed.values() or name not in ("loss", "rescoring")
    ]
    others = [other for other in values if other not in fixed]
    index = fixed[value] if value in fixed else free[others.index(value) % len(free)]
    return {"color": COLORS[index], "marker": MARKERS[index], "linestyle": LINES[index]}


def legend_below(figure: Figure, axes: Axes, *, columns: int = 4, title: str | None = None) -> None:
    """One legend for all panels, under them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), title=title
        )


def groups(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups in the order of the rows."""
    return list(frame.groupby(list(keys), sort=False)) if len(frame) else []


def panel_title(cells: pd.DataFrame, split: int, arm: str) -> str:
    """Name of the arm, with the split where there are several."""
    return f"{arm}, split {split}" if cells["split"].nunique() > 1 else arm


def arms_note(cells: pd.DataFrame) -> str:
    """What the arms are, for a caption, with a space before it; nothing where kshot stands alone (as on real data)."""
    notes = REAL_ARM_NOTES if "clean" in set(cells["arm"]) else ARM_NOTES
    arms = [arm for arm in notes if arm in set(cells["arm"])]
    if arms in ([], ["kshot"]):
        return ""
    return f" Arms: {'; '.join(f'{arm}, {notes[arm]}' for arm in arms)}."


def seeds_note(cells: pd.DataFrame) -> str:
    """What the bars are, for a caption; a CLIP is named where one took part in a cell."""
    has_clip = any("cm_clip" in set(cells[name]) for name in ("rescoring", "given") if name in cells)
    has_clip |= "comparison" in cells and any("CM-CLIP" in name for name in cells["comparison"])
    return SEEDS_NOTE if has_clip else SEEDS_NOTE.replace(" and one CLIP", "")


def seed_counts(cells: pd.DataFrame) -> str:
    """How many seeds stand behind each number, for a caption."""
    low, high = cells["n"].min(), cells["n"].max()
    if low < high:
        return f"n = {low} to {high} seeds; the table has each n."
    return "n = 1 seed, which gives no interval." if high == 1 else f"n = {low} seeds each."
