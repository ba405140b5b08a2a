"""The report's page: what it holds, that it needs nothing else, that it says what is missing."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from risf_core.errors import RecordError
from risf_core.report import html_report, html_sources
from risf_core.report.html_notebooks import export, notebook_page, with_drawn_math
from risf_core.report.html_page import figure, first_sentence
from risf_core.report.html_report import main, report
from risf_core.report.html_sources import sources
from risf_core.runs.yaml_files import project_root
from tests.synthetic_records import all_records


class Parsed(HTMLParser):
    """Ids, links, pictures and everything that a page would load."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.images, self.loaded, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.images += [attrs] if tag == "img" else []
        self.loaded += [attrs[name] for name in ("src", "srcset", "data") if name in attrs]
        self.loaded += [attrs["href"]] if tag == "link" else []


def project(root: Path) -> Path:
    """A project with published records of a profile and a picture that is there twice."""
    folder = root / "results" / "published" / "mini"
    (folder / "records").mkdir(parents=True)
    for record in all_records(seeds=2):
        (folder / "records" / f"{record['run_id']}.json").write_text(json.dumps(record))
    (folder / "figures").mkdir()
    picture = project_root() / "results/published/mini/figures/main_nAP.png"
    for name in ("main_nAP50", "before_after-twin", "before_after-twin2"):
        (folder / "figures" / f"{name}.png").write_bytes(
            picture.read_bytes() + (b"" if name == "main_nAP50" else b" ")
        )
        (folder / "figures" / f"{name}.txt").write_text("What <it> shows. And n = 2 seeds.\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return project(tmp_path_factory.mktemp("project"))


def made(root: Path) -> str:
    return report(sources(root=root), {}, root / "results" / "report.html")


@pytest.fixture(scope="module")
def text(root):
    """The page, made once for all tests that only read it."""
    return made(root)


def test_the_page_has_its_sections_and_loads_nothing(root, text):
    parsed = Parsed(text)
    for name in ("summary", "claims", "figures-mini", "tables-mini", "notebooks-mini", "provenance-mini"):
        assert name in parsed.ids
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(address.startswith("data:") for address in parsed.loaded) and "script" not in parsed.tags
    for target in parsed.links:
        if target.startswith("#"):
            assert target[1:] in parsed.ids
        elif not target.startswith("http"):
            assert (root / "results" / target).exists(), target


def test_pictures_have_the_captions_first_sentence_and_equal_ones_are_shown_once(text):
    assert [image["alt"] for image in Parsed(text).images] == ["What <it> shows."] * 2
    assert "And n = 2 seeds." in text


def test_same_records_same_bytes(root, text):
    assert made(root) == text


def test_numbers_and_warnings_follow_the_records(text, tmp_path):
    root = project(tmp_path)
    for path in (root / "results/published/mini/records").glob("fine_tuning*.json"):
        record = json.loads(path.read_text())
        record["environment"]["dirty"] = "10shot" in path.name
        for row in record["rows"]:
            row["nAP50"] += 10.0 * (row["rescoring"] == "cm_clip")
        path.write_text(json.dumps(record))
    changed = made(root)
    gain = r"CM-CLIP&#x27;s gain with ce, nAP50, K=5, kshot</td><td[^>]*>([^<]+)"
    old, new = (float(re.search(gain, page)[1].split(" ")[0]) for page in (text, changed))
    assert new - old == pytest.approx(10.0, abs=0.11)
    warned = [re.search(r'<ul class="warnings">.*?</ul>', page)[0] for page in (text, changed)]
    assert "made with uncommitted changes" in warned[1] and "uncommitted" not in warned[0]
    assert re.search(r"mini: \d+ of \d+ planned runs have no record", warned[0])


def test_without_claims_or_records_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(html_report, "FILE", "no_such_claims.yaml")
    claims, why = html_report._claims(())
    assert claims == [] and "There is no no_such_claims.yaml" in why
    with pytest.raises(RecordError, match="make reproduce"):
        report([], {}, tmp_path / "report.html")


def test_claims_without_a_record_are_shown_as_such(text):
    assert "no record yet" in text and 'id="claim-' in text


def test_what_was_run_here_comes_before_the_published_copy(tmp_path, monkeypatch):
    root = project(tmp_path)
    own = root / "results" / "mini" / "records"
    own.mkdir(parents=True)
    record = all_records(seeds=2)[0]
    (own / f"{record['run_id']}.json").write_text(json.dumps(record))
    monkeypatch.setattr(html_sources, "read_records", lambda profile: [record])
    (source,) = sources(root=root)
    assert not source.is_published and len(source.records) == 1
    (copied,) = sources(root=root, published_only=True)
    assert copied.is_published and len(copied.records) > 1


def test_the_command_names_what_is_wrong_in_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--profiles", "nosuch", "--to", str(tmp_path / "report.html")])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1


# ---- executed notebooks


@pytest.fixture
def notebook(tmp_path):
    """An executed notebook with an equation, a picture with a caption, a table and a print."""
    picture = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    html = f'<img src="data:image/png;base64,{picture}"><p style="x">The <b>best</b> of all. More.</p>'
    output = nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": "x"})
    plain = nbformat.v4.new_output("display_data", {"image/png": picture})
    stream = nbformat.v4.new_output("stream", text="printed\n")
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\nwith $\\beta_k$ and `$PATH` and\n\n$$\\frac{1}{2}$$"),
        nbformat.v4.new_code_cell("show()", outputs=[output, plain, stream]),
    ]
    path = tmp_path / "runs" / "run-1.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_notebook_becomes_a_page_that_loads_nothing(notebook):
    text = notebook_page(notebook)
    parsed = Parsed(text)
    assert all(address.startswith("data:") for address in parsed.loaded) and "script" not in parsed.tags
    alternatives = [image["alt"] for image in parsed.images]
    assert alternatives == ["\\beta_k", "\\frac{1}{2}", "The best of all.", "Picture 4 of: A title"]
    assert "$PATH" in text and "printed" in text


def test_a_page_newer_than_its_notebook_stays(notebook, tmp_path):
    target = tmp_path / "html" / "run-1.html"
    assert export(notebook, target) and not export(notebook, target)
    target.write_text("old")
    later = target.stat().st_mtime + 10
    os.utime(notebook, (later, later))
    assert export(notebook, target) and target.read_text() != "old"


def test_an_equation_that_cannot_be_drawn_is_shown_as_its_tex():
    assert with_drawn_math(r"$\begin{cases}x\end{cases}$") == r"<code>\begin{cases}x\end{cases}</code>"
    assert with_drawn_math("`$x$`") == "`$x$`"


def test_first_sentence_keeps_numbers_and_abbreviated_units_whole():
    assert first_sentence("nAP50 is 3.5 points higher. Bars: 95 %.") == "nAP50 is 3.5 points higher."
    assert first_sentence("No stop") == "No stop"


def test_a_figure_escapes_its_caption(tmp_path):
    (tmp_path / "x.png").write_bytes(b"png")
    text = figure(tmp_path / "x.png", 'a "quoted" <b> caption.', name="x", at="x")
    assert "<b> caption" not in text.split("figcaption>")[1].replace("<b>x.</b>", "")
    assert 'alt="a &quot;quoted&quot; &lt;b&gt; caption."' in text
