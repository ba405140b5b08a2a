"""The report in a real browser: nothing broken, nothing complains, nothing sticks out, every picture has words.

Skipped with a reason where there is no Chromium (Debian: apt-get install chromium).
"""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from risf_core.report.html_notebooks import export_all
from risf_core.report.html_report import report
from risf_core.report.html_sources import sources
from risf_core.runs.yaml_files import project_root
from tests.synthetic_records import all_records

browser = pytest.importorskip("tests.browser", reason="websocket-client is not installed")
pytestmark = pytest.mark.skipif(
    browser.find_browser() is None, reason="no Chromium here: apt-get install chromium, or set RISF_BROWSER"
)
FACTS = """(() => {
  const over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, .output_subarea'))
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.outerHTML.slice(0, 120));
  return {over, wide: wide.slice(0, 5), title: document.title,
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    bare: [...document.images].filter(i => !i.alt.trim()).map(i => i.outerHTML.slice(0, 80)),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
    images: document.images.length,
    loaded: [...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href)
      .filter(n => !n.startsWith('data:')),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id)};
})()"""
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A report of a profile with pictures and an executed notebook, written to a folder of its own."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "results" / "published" / "mini"
    (folder / "records").mkdir(parents=True)
    records = all_records(seeds=2)
    for record in records:
        (folder / "records" / f"{record['run_id']}.json").write_text(json.dumps(record))
    shutil.copytree(project_root() / "results/published/latency/figures", folder / "figures")
    cells = [
        nbformat.v4.new_markdown_cell(
            "# A run\n\nwith $\\beta_k$\n\n| " + " | ".join(["a wide head"] * 30) + " |"
        ),
        nbformat.v4.new_code_cell(
            "x = " + "1 + " * 80 + "1", outputs=[nbformat.v4.new_output("stream", text="y" * 400)]
        ),
    ]
    (folder / "runs").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "runs" / f"{records[0]['run_id']}.ipynb")
    target = root / "results" / "report.html"
    target.write_text(report(sources(root=root), {"mini": export_all(folder)}, target), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Page(tmp_path_factory.mktemp("browser")) as page:
        yield page


def look(page, path: Path, width: int) -> dict:
    """What the browser says of a page in a window of that width."""
    page.complaints.clear()
    page.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    page.open(path.as_uri())
    page.wait("document.readyState == 'complete'")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return page.evaluate(FACTS)


def problems(facts: dict, complaints: list[str]) -> list[str]:
    """Everything that is wrong with a page, in words."""
    found = [f"console: {text}" for text in complaints]
    found += [f"without words: {text}" for text in facts["bare"]] + [
        f"broken: {text}" for text in facts["broken"]
    ]
    found += [f"loaded: {name}" for name in facts["loaded"]]
    if facts["over"] > 0:
        found.append(f"{facts['over']} pixels too wide: {facts['wide']}")
    for address in facts["links"]:
        parts = urlsplit(address)
        if parts.scheme == "file" and not Path(unquote(parts.path)).exists():
            found.append(f"no such file: {address}")
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_whole(page, written, width):
    facts = look(page, written, width)
    assert problems(facts, page.complaints) == []
    assert facts["images"] > 0 and "RISF" in facts["title"] and len(facts["links"]) > 20
    own = [urlsplit(address) for address in facts["links"] if address.startswith(written.as_uri() + "#")]
    assert own and all(unquote(parts.fragment) in facts["ids"] for parts in own)
    assert len(facts["ids"]) == len(set(facts["ids"]))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_notebook_is_whole(page, written, width):
    (path,) = (written.parent / "published" / "mini" / "html").glob("*.html")
    facts = look(page, path, width)
    assert problems(facts, page.complaints) == [] and facts["images"] == 1


def test_what_is_wrong_is_seen(page, tmp_path):
    """Each fault, planted."""
    path = tmp_path / "wrong.html"
    path.write_text(
        '<img src="nowhere.png"><a href="nowhere.html">x</a><div style="width:3000px">x</div>'
        "<script>console.error('no')</script>"
    )
    found = " ".join(problems(look(page, path, 390), page.complaints))
    for fault in ("console: no", "without words", "broken", "too wide", "no such file", "loaded"):
        assert fault in found
