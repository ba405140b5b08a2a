"""01_explore in JupyterLab, as a user sees it: opened in a browser, run, the slider moved with the keyboard."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser import Page, find_browser, wait_for
from tests.notebook_files import REPOSITORY

NOTEBOOK = "01_explore.ipynb"
TOKEN = "explore"
FEW = "num_images = 6"  # in place of 40: detecting takes most of the time
PANEL = ".risf-explore"
HANDLE = f"{PANEL} .noUi-handle"  # of the first slider, c
LEFT = ("ArrowLeft", 37)
WAIT = 400  # seconds; a machine with much else to do is no failure

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium or Chrome; name one in RISF_BROWSER"
)


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def clone(folder: Path) -> Path:
    """The working tree as a repository of its own, all committed."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git repository to take a copy of")
    for name in git(REPOSITORY, "ls-files", "-co", "--exclude-standard", "-z").split("\0"):
        source = REPOSITORY / name
        if name and source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    notebook = folder / "notebooks" / NOTEBOOK
    text = notebook.read_text()
    assert "num_images = 40" in text
    notebook.write_text(text.replace("num_images = 40", FEW))
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, *who, "commit", "-q", "-m", "copy")
    return folder


@contextmanager
def jupyter_lab(project: Path, own: Path) -> Iterator[str]:
    """JupyterLab as `make lab` starts it, without a browser; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    left_out = ("RISF_RUN", "RISF_LOG", "RISF_ROOT")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment |= {"JUPYTER_CONFIG_PATH": str(project / "tools" / "jupyter")}
    for kind in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        environment[f"JUPYTER_{kind}"] = str(own / kind.lower())
    words = [
        sys.executable,
        "-m",
        "jupyterlab",
        "notebooks",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
    ]
    words += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0", "--expose-app-in-browser"]
    with (own / "lab.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=project, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: _answers(address, process), what="JupyterLab", seconds=WAIT)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(address: str, process: subprocess.Popen) -> bool:
    assert process.poll() is None, "JupyterLab ended"
    try:
        with urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def saves_by_itself(address: str) -> bool:
    """Whether this JupyterLab writes an open notebook to disk unasked, outputs and all."""
    plugin = "@jupyterlab/docmanager-extension:plugin"
    with urllib.request.urlopen(f"{address}/lab/api/settings/{plugin}?token={TOKEN}", timeout=60) as answer:
        return json.load(answer)["schema"]["properties"]["autosave"]["default"]


def text(page: Page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({selector!r}).textContent")


def layers(page: Page) -> list[str]:
    """The three moving pictures: the detector's boxes, the re-scored ones, the curves."""
    found = page.evaluate(f"[...document.querySelectorAll('{PANEL} svg')].map(one => one.outerHTML)")
    assert len(found) == 3
    return found


def open_and_run(page: Page, address: str) -> None:
    """Open the notebook, run all its cells, and wait until the last one has run and the pictures are there."""
    page.open(f"{address}/lab/tree/{NOTEBOOK}?token={TOKEN}")
    shell = "window.jupyterapp.shell"
    opened = f"[...{shell}.widgets('main')].find(one => one.sessionContext)"
    ready = f"(one => one?.sessionContext.isReady && one.sessionContext.session?.kernel?.status == 'idle')({opened})"
    page.wait(f"window.jupyterapp && {ready}", seconds=WAIT)
    page.evaluate(f"{shell}.activateById({opened}.id)")
    page.wait(f"{shell}.currentWidget == {opened}")
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait(f"document.querySelectorAll('{PANEL} svg').length == 3", seconds=WAIT)
    cells = f"{opened}.content.widgets.filter(one => one.model.type == 'code')"
    page.wait(f"{cells}.length >= 8 && {cells}.every(one => one.model.executionCount)", seconds=WAIT)


def test_the_slider_redraws_and_git_stays_clean(tmp_path):
    project, own = clone(tmp_path / "clone"), tmp_path / "own"
    own.mkdir()
    with jupyter_lab(project, own) as address, Page(tmp_path / "browser") as page:
        assert not saves_by_itself(address)
        open_and_run(page, address)
        outputs = ".jp-OutputArea-output[data-mime-type*=error]"
        errors = f"[...document.querySelectorAll('{outputs}')].map(one => one.textContent)"
        assert page.evaluate(errors) == []
        still, before, curves = layers(page)
        picture, table = page.screenshot(PANEL), text(page, f"{PANEL} table")
        assert "re-scored, c = 0.70" in text(page, PANEL) and "score at c = 0.70" in table

        page.click(HANDLE)
        page.press(*LEFT, times=30)
        page.wait(f"document.querySelector('{PANEL}').textContent.includes('re-scored, c = 0.40')")
        page.wait(f"document.querySelector('{PANEL} table').textContent.includes('score at c = 0.40')")
        moved = layers(page)
        assert moved[0] == still  # the detector's own scores do not depend on c
        assert moved[1] != before and moved[2] != curves
        assert page.screenshot(PANEL) != picture and text(page, f"{PANEL} table") != table

        photo = page.evaluate(f"document.querySelector('{PANEL} img').src")
        chooser = f"document.querySelector('{PANEL} select')"
        other = f"{chooser}.selectedIndex = ({chooser}.selectedIndex + 1) % {chooser}.options.length"
        page.evaluate(f"{other}; {chooser}.dispatchEvent(new Event('change', {{bubbles: true}}))")
        page.wait(f"document.querySelector('{PANEL} img').src != {photo!r}")
        assert page.evaluate(errors) == []

        assert git(project, "status", "--porcelain") == ""
        (record,) = (project / "results" / "scratch").glob("explore-*/record.json")
        assert not (project / "results" / "mini").exists() and record.is_file()
    assert git(project, "status", "--porcelain") == ""  # nor after the server has ended
