"""Executed notebooks as pages of HTML that load nothing: no scripts, equations as pictures with their TeX beside them.

``results/<profile>/runs/*.ipynb`` become ``results/<profile>/html/*.html``; a page newer than its notebook stays.
"""

import base64
import functools
import html
import io
import re
from pathlib import Path

from risf_core.report.html_page import escape, first_sentence, page

# An executed notebook of many cells is long on a phone; code and prints scroll by themselves.
NOTEBOOK_STYLE = """
.prompt, .anchor-link { display: none }
.cell { margin: .75rem 0; min-width: 0 }
.output_subarea { overflow-x: auto; max-width: 100% }
.output_stderr pre { background: #fff3f0 }
.input_area pre { border: 1px solid #d8dee4 }
.c1, .ch, .cm, .sd { color: #57606a } .k, .kn, .kc, .ow { color: #8a1f6a } .s1, .s2, .sa { color: #0a3069 }
"""
MATH = re.compile(r"(?<![\\$])(\$\$(?P<shown>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$)(?!\$)", re.DOTALL)
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
IMAGE = re.compile(r"<img\b[^>]*>")
NO_ALT = ("", "No description has been provided for this image", "No description has been provided")
OWN_CODE = (Path(__file__), Path(__file__).with_name("html_page.py"))


def export(notebook: Path, target: Path) -> bool:
    """Write the page of an executed notebook, unless the one there is newer than the notebook and this module.

    Returns:
        Whether it was written.
    """
    made_from = max(path.stat().st_mtime for path in (notebook, *OWN_CODE))
    if target.is_file() and target.stat().st_mtime >= made_from:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(notebook_page(notebook), encoding="utf-8", newline="\n")
    return True


def export_all(folder: Path) -> dict[str, Path]:
    """Write the pages of all executed notebooks of a results folder.

    Args:
        folder: Has ``runs/*.ipynb``; the pages come into ``html/``, and those of notebooks that are gone go.

    Returns:
        Run id to page, sorted.
    """
    notebooks = sorted((folder / "runs").glob("*.ipynb"))
    pages = {path.stem: folder / "html" / f"{path.stem}.html" for path in notebooks}
    for old in set((folder / "html").glob("*.html")) - set(pages.values()):
        old.unlink()
    for path in notebooks:
        export(path, pages[path.stem])
    return pages


def notebook_page(notebook: Path) -> str:
    """An executed notebook as one page.

    Raises:
        OSError, ValueError: If it is not readable as a notebook.
    """
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = with_drawn_math(cell.source)
    body, _ = _exporter().from_notebook_node(content)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    title = next(iter(re.findall(r"<h1[^>]*>(.*?)(?:<a\b|</h1>)", body)), notebook.stem)
    title = html.unescape(re.sub(r"<[^>]+>", "", title))
    return page(
        f"{title} ({notebook.stem})", with_alternatives(_unique_ids(body), title), style=NOTEBOOK_STYLE
    )


@functools.lru_cache(maxsize=1)
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)


def _unique_ids(body: str) -> str:
    """Ids as links name them: a heading that stands twice keeps its id the first time only."""
    seen: set[str] = set()

    def once(found: re.Match) -> str:
        is_new = found[1] not in seen
        seen.add(found[1])
        return found[0] if is_new else ""

    return re.sub(r'\sid="([^"]*)"', once, body)


def with_alternatives(body: str, title: str) -> str:
    """``body`` with an alternative text for every picture without one: its caption's first sentence, or its number."""
    pieces, count, end = [], 0, 0
    for found in IMAGE.finditer(body):
        count += 1
        alt = re.search(r'\balt="([^"]*)"', found[0])
        if alt and alt[1].strip() not in NO_ALT:
            continue
        caption = re.match(r"\s*<p[^>]*>(.*?)</p>", body[found.end() :], re.DOTALL)
        plain = re.sub(r"<[^>]+>", "", caption[1]) if caption else ""
        text = first_sentence(html.unescape(plain)) or f"Picture {count} of: {title}"
        bare = re.sub(r'\s+alt="[^"]*"', "", found[0])
        pieces += [body[end : found.start()], f'<img alt="{escape(text)}"{bare.removeprefix("<img")}']
        end = found.end()
    return "".join([*pieces, body[end:]])


def with_drawn_math(source: str) -> str:
    """Markdown with its equations as pictures, so that no script is needed; code spans stay."""
    parts = CODE.split(source)
    parts[::2] = [
        MATH.sub(lambda found: _math(found["shown"] or found["inline"]), part) for part in parts[::2]
    ]
    return "".join(parts)


@functools.lru_cache(maxsize=256)
def _math(tex: str) -> str:
    """An equation as a picture with its TeX as alternative text; its TeX as code where matplotlib cannot draw it."""
    from matplotlib.mathtext import math_to_image

    tex = " ".join(tex.split())
    buffer = io.BytesIO()
    drawable = tex.replace(r"\tfrac12", r"\frac{1}{2}").replace(r"\tfrac", r"\frac")
    drawable = re.sub(r"\\[bB]ig[lr]?(?=[()|\[\]])", "", drawable)
    try:
        math_to_image(f"${drawable}$", buffer, dpi=200, format="png")
    except ValueError:  # what mathtext does not know
        return f"<code>{escape(tex)}</code>"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = int.from_bytes(buffer.getvalue()[16:20], "big") * 110 // 200  # the PNG's own width, at 110 dpi
    return f'<img class="math" alt="{escape(tex)}" width="{width}" src="data:image/png;base64,{data}">'
