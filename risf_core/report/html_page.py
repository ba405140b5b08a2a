"""A page of HTML that needs nothing but itself: style, tables, figures, links. Texts are escaped here. No torch."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

WIDE = (
    1000  # pixels from which on a picture is scrolled on a phone rather than shrunk until nobody can read it
)
SHORT = 24  # characters of a cell that stay on one line
STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 0 1rem 4rem; max-width: 66rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 1.5rem 0 .5rem }
h2 { font-size: 1.4rem; margin: 2.5rem 0 .75rem; padding-top: .5rem; border-top: 2px solid #d0d7de }
h3 { font-size: 1.1rem; margin: 1.75rem 0 .5rem }
a { color: #0550ae }
code, pre { font: .88em/1.45 "DejaVu Sans Mono", Consolas, monospace }
code { background: #f3f4f6; padding: .05em .25em; border-radius: 3px }
pre { overflow-x: auto; background: #f6f8fa; padding: .6rem .75rem; border-radius: 4px }
pre code { background: none; padding: 0 }
nav ol { margin: 0; padding-left: 1.4rem; columns: 16rem }
figure { margin: 1.25rem 0 2rem }
figcaption, .note { color: #444; font-size: .9rem; max-width: 50rem }
img { max-width: 100%; height: auto; display: block }
img.wide { min-width: 38rem }
img.math { display: inline; vertical-align: middle; max-width: 100% }
.scroll { overflow-x: auto; max-width: 100%; margin: .5rem 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #d8dee4;
  overflow-wrap: normal }
td { min-width: 8rem; max-width: 26rem }
td.short { white-space: nowrap; min-width: 0 }
thead th { border-bottom: 2px solid #8c959f; white-space: nowrap }
details { margin: .75rem 0 }
summary { cursor: pointer; font-weight: 600 }
ul.warnings { background: #fff8e6; border-left: 4px solid #bf8700; padding: .6rem .75rem .6rem 2rem }
.verdict { display: inline-block; padding: 0 .5rem; border-radius: 3px; border: 1px solid #57606a; font-weight: 600 }
.good { background: #dafbe1; border-color: #1a7f37 }
.some { background: #fff3d1; border-color: #9a6700 }
.bad { background: #ffe3e0; border-color: #b32318 }
.none { background: #f0f2f5 }
"""


def page(title: str, body: str, *, style: str = "") -> str:
    """A whole document; nothing in it is loaded from elsewhere.

    Args:
        title: Title of the window, plain text.
        body: HTML.
        style: Rules of CSS after the common ones.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """``text`` for HTML, quotes too."""
    return html.escape(str(text), quote=True)


def anchor(*words: str) -> str:
    """An id for HTML of these words: letters, digits, ``.``, ``_`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words)).strip("-")


def link(text: object, target: str) -> str:
    """A link; ``text`` is escaped."""
    return f'<a href="{escape(target)}">{escape(text)}</a>'


def paragraph(text: object, *, kind: str = "") -> str:
    """A paragraph of plain text, ``kind`` being its class."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is wide.

    Args:
        heads: Plain texts.
        rows: Cells as HTML, already escaped.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: str) -> str:
    is_short = len(re.sub(r"<[^>]+>", "", cell)) <= SHORT
    return f'<td class="short">{cell}</td>' if is_short else f"<td>{cell}</td>"


def table_of(display: pd.DataFrame) -> str:
    """The display of a `Table`, which holds texts, as HTML."""
    cells = [[escape(value) for value in row] for row in display.itertuples(index=False)]
    return table([str(name) for name in display], cells)


def first_sentence(text: str) -> str:
    """The beginning of a caption up to the first full stop that ends a sentence."""
    text = " ".join(str(text).split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z(])", text, maxsplit=1)[0]


def figure(png: Path, caption: str, *, name: str, at: str) -> str:
    """A picture inside the page, its caption below it.

    Args:
        png: Its file.
        caption: Stands alone; its first sentence is the alternative text.
        name: Of the figure.
        at: Id for links to it.
    """
    content = Path(png).read_bytes()
    data = base64.b64encode(content).decode("ascii")
    is_wide = int.from_bytes(content[16:20], "big") > WIDE
    shape = ' class="wide"' if is_wide else ""
    return (
        f'<figure id="{escape(at)}">\n<div class="scroll" tabindex="0">'
        f'<img{shape} src="data:image/png;base64,{data}" alt="{escape(first_sentence(caption))}"></div>\n'
        f"<figcaption><b>{escape(name)}.</b> {escape(caption)}</figcaption>\n</figure>"
    )


def contents(entries: Mapping[str, str]) -> str:
    """A table of contents from ids to texts."""
    items = "\n".join(f"<li>{link(text, f'#{at}')}</li>" for at, text in entries.items())
    return f'<nav aria-label="contents">\n<ol>\n{items}\n</ol>\n</nav>'
