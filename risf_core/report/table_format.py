"""A table and its three forms: CSV (the source, one number a field), Markdown and LaTeX (derived, for reading).

Same frame, same bytes: fixed number formats, line ends and order; no dates.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

MISSING = "NO RUN"  # a cell that was wanted and has no record
NOT_PLANNED = "–"  # a cell nobody asked for
ARM_NAMES = {"kshot": "kshot", "missing": "missing", "full": "full (control)", "clean": "clean seeds"}
RESCORING_NAMES = {"none": "none", "cm_clip": "CM-CLIP", "cm_clip_wide": "CM-CLIP, wider labels"}
# DejaVu and UTF-8 hold these, LaTeX's text mode does not.
LATEX_SYMBOLS = {
    "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",
    "ε": r"$\varepsilon$", "ω": r"$\omega$", "Δ": r"$\Delta$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\rightarrow$",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", **{character: "\\" + character for character in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One table of results.

    Attributes:
        name: File name without ending.
        caption: Says what the numbers are, without the text around it.
        data: One number a field, tidy; the source.
        display: The same as texts for a reader, fewer columns.
    """

    name: str
    caption: str
    data: pd.DataFrame
    display: pd.DataFrame

    def write(self, folder: Path) -> list[Path]:
        """Write the three forms, see :func:`write_table`."""
        return write_table(self.data, folder, self.name, self.caption, display=self.display)

    def _repr_html_(self) -> str:
        return f"{self.display.to_html(index=False)}<p style='max-width:50em'>{html.escape(self.caption)}</p>"

    def __str__(self) -> str:
        return f"{to_markdown(self.display)}\n{self.caption}\n"


def write_table(
    data: pd.DataFrame, folder: Path, name: str, caption: str, *, display: pd.DataFrame | None = None
) -> list[Path]:
    """Write ``name.csv`` from ``data``, and ``name.md`` and ``name.tex`` from ``display`` (default: ``data``).

    Floats have four decimals in the CSV; a missing number is an empty field.

    Returns:
        The three paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = _as_text(data) if display is None else display
    texts = {
        "csv": _without_negative_zero(data).to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        "md": f"{to_markdown(shown)}\n{caption}\n",
        "tex": to_latex(shown, caption, label=f"tab:{name}"),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(folder / f"{name}.{ending}")
        paths[-1].write_text(text, encoding="utf-8", newline="\n")
    return paths


def _without_negative_zero(data: pd.DataFrame) -> pd.DataFrame:
    """Floats rounded to the four decimals that are written, -0.0 as 0.0."""
    data = data.copy()
    for column in data.select_dtypes("float"):
        data[column] = data[column].round(4) + 0.0
    return data


def text_table(rows: Sequence[Mapping]) -> pd.DataFrame:
    """Rows as texts for a reader: floats with one decimal, n/a for None."""
    return _as_text(pd.DataFrame(rows, dtype=object))


def _as_text(data: pd.DataFrame) -> pd.DataFrame:
    columns = {str(name): [number(value) for value in data[name]] for name in data}
    return pd.DataFrame(columns)


def to_markdown(display: pd.DataFrame, *, is_padded: bool = True) -> str:
    """A Markdown table of texts; ``|`` is escaped, columns are padded so that the source reads well too."""
    rows = [
        [str(name) for name in display],
        *([str(value) for value in row] for row in display.itertuples(index=False)),
    ]
    rows = [[re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [
        max(3, *(len(row[column]) for row in rows)) if is_padded else 0 for column in range(len(rows[0]))
    ]
    rows.insert(1, ["-" * max(3, width) for width in widths])
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def to_latex(display: pd.DataFrame, caption: str, *, label: str) -> str:
    """A LaTeX table (packages booktabs and graphicx) with every special character escaped."""
    columns = [escape_latex(str(name)) for name in display]
    body = [[escape_latex(str(value)) for value in row] for row in display.itertuples(index=False)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(columns)}}}",
        r"\toprule",
        " & ".join(columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """``text`` with the characters that LaTeX would read as commands, or could not print, replaced."""
    return "".join(LATEX_SYMBOLS.get(character, character) for character in text)


def number(value: object, *, decimals: int = 1, sign: bool = False) -> str:
    """A number with a true minus sign, ``n/a`` for a missing one, integers and texts as they are."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")  # -0.0 is no loss
    return text.replace("-", "−")


def interval_text(mean: float, half_width: float, *, sign: bool = False) -> str:
    """``51.2 ± 1.3``; a single value says that it has no interval; nothing at all is ``n/a``."""
    if math.isnan(mean):
        return "n/a"
    text = number(float(mean), sign=sign)
    return f"{text}, no interval" if math.isnan(half_width) else f"{text} ± {half_width:.1f}"


def cell_text(mean: float, half_width: float, n: int, status: str, expected: int) -> str:
    """A cell of the main table: mean, half-width and n, or the marker of a missing one."""
    if n == 0:
        return NOT_PLANNED if status == "not planned" else MISSING
    count = f"{n} of {expected}!" if status == "incomplete" else f"{n}"
    return f"{interval_text(mean, half_width)} ({count})"


def difference_text(mean: float, half_width: float, up: int, n: int, status: str, expected: int) -> str:
    """A cell of a table of paired differences: mean, half-width and how many of the n seeds went up."""
    if n == 0:
        return NOT_PLANNED if status == "not planned" else MISSING
    count = f"{up}/{n} up, {n} of {expected}!" if status == "incomplete" else f"{up}/{n} up"
    return f"{interval_text(mean, half_width, sign=True)} ({count})"


def readable(display: pd.DataFrame) -> pd.DataFrame:
    """Names for reading in the key columns, and no column ``variant`` where only the main configuration was run."""
    display = display.copy()
    if "variant" in display:
        if (display["variant"] == "").all():
            display = display.drop(columns="variant")
        else:
            display["variant"] = display["variant"].replace("", "main")
    if "arm" in display:
        display["arm"] = [ARM_NAMES.get(value, value) for value in display["arm"]]
    if "rescoring" in display:
        display["rescoring"] = [RESCORING_NAMES.get(value, value) for value in display["rescoring"]]
    if "given" in display:
        display["given"] = [RESCORING_NAMES.get(value, value) for value in display["given"]]
    return display.rename(columns={"rescoring": "re-scoring", "shots": "K", "label_space": "label space"})


def spread(
    data: pd.DataFrame, keys: list[str], column: str, texts: list[str], *, heads: dict, with_n: bool = False
) -> pd.DataFrame:
    """One row for each value of the keys (in the order of ``data``), one text column for each entry of ``heads``.

    Args:
        data: Tidy rows with the keys, ``column`` and, for ``with_n``, ``n``.
        keys: Columns that stay.
        column: Column whose values become columns.
        texts: The text of each row of ``data``.
        heads: Value of ``column`` to its heading, in order; a place without a row holds the marker of a cell not
            planned.
        with_n: Add a last column with the number of seeds, ``3-5`` where it differs within a row.
    """
    rows: dict[tuple, dict] = {}
    counts: dict[tuple, list[int]] = {}
    for position, key in enumerate(data[keys].itertuples(index=False, name=None)):
        rows.setdefault(key, {})[data[column].iloc[position]] = texts[position]
        counts.setdefault(key, []).append(data["n"].iloc[position] if with_n else 0)
    lines = [[*key, *(cells.get(value, NOT_PLANNED) for value in heads)] for key, cells in rows.items()]
    display = pd.DataFrame(lines, columns=[*keys, *heads.values()], dtype=object)
    if with_n:
        ranges = [(min(values), max(values)) for values in counts.values()]
        display["n"] = [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges]
    return readable(display)
