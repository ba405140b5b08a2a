"""Progress: a line at the start, sparse lines between, one at the end; a bar only where someone watches."""

import logging
import re
import sys

import pytest

from risf_core.progress import in_notebook, progress, show_log


def _lines(path):
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]  # without the time of day


def test_log_has_a_first_and_a_last_line_and_the_notes(tmp_path, monkeypatch):
    monkeypatch.setenv("RISF_LOG", str(tmp_path / "log"))
    bar = progress(range(5), desc="base training")
    for item in bar:
        bar.note(loss=item / 3)
    first, last = _lines(tmp_path / "log")
    assert first == "base training: 0/5 it"
    assert last.startswith("base training: 5/5 it") and "loss 1.33" in last and "done in 0 s" in last


def test_items_pass_through_in_order_without_a_length(tmp_path, monkeypatch):
    monkeypatch.setenv("RISF_LOG", str(tmp_path / "log"))
    assert list(progress((i * i for i in range(4)), desc="squares")) == [0, 1, 4, 9]
    assert _lines(tmp_path / "log")[0] == "squares: 0 it"
    assert list(progress(iter("abc"), total=3, desc="letters")) == ["a", "b", "c"]
    assert _lines(tmp_path / "log")[2] == "letters: 0/3 it"


def test_lines_in_between_are_sparse(tmp_path, monkeypatch):
    monkeypatch.setenv("RISF_LOG", str(tmp_path / "log"))
    clock = iter(range(100))  # one second a look
    monkeypatch.setattr("risf_core.progress.time.monotonic", lambda: next(clock))
    list(progress(range(35), desc="steps", every=10.0))
    between = _lines(tmp_path / "log")[1:-1]
    assert between == [
        "steps: 10/35 it, 1 it/s, 25 s left",
        "steps: 20/35 it, 1 it/s, 15 s left",
        "steps: 30/35 it, 1 it/s, 5 s left",
    ]


def test_without_a_terminal_lines_go_to_logging(monkeypatch, caplog):
    monkeypatch.delenv("RISF_LOG", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO, logger="risf_core.progress"):
        assert list(progress([1, 2], desc="quiet", unit="image")) == [1, 2]
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "quiet: 0/2 image",
        "quiet: 2/2 image",
    ]


def test_a_bar_inside_another_goes_when_it_is_full(monkeypatch, capsys):
    monkeypatch.delenv("RISF_LOG", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for seed in progress(range(2), desc="seeds"):
        assert list(progress(range(3), desc=f"training {seed}")) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "training 1:" in shown
    # blanks over the line below, then the outer bar alone
    assert re.search(r"\n\r +\x1b\[A\rseeds: 100%", shown)


def test_a_kernel_is_a_notebook_and_its_import_is_not():
    """Other tests import ipykernel in this process; a bar for notebooks would then be written among what is printed."""
    import ipykernel  # noqa: F401
    from IPython.core.interactiveshell import InteractiveShell

    assert not in_notebook()
    shell = InteractiveShell.instance()
    try:
        assert not in_notebook()  # IPython in a terminal
        shell.kernel = object()
        assert in_notebook()
    finally:
        InteractiveShell.clear_instance()


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.delenv("RISF_LOG", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = progress(range(3), desc="watched")
    for item in bar:
        bar.note(loss=item)
    shown = capsys.readouterr().err
    assert "watched: 100%" in shown and "3/3" in shown


@pytest.fixture
def package_log(monkeypatch):
    """The package's logger as it is in a fresh notebook kernel."""
    log = logging.getLogger("risf_core")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", logging.NOTSET)
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr("risf_core.progress.in_notebook", lambda: True)
    yield log
    log.setLevel(logging.NOTSET)


def test_what_is_logged_reaches_the_log_file_and_warnings_the_notebook(
    tmp_path, monkeypatch, capsys, package_log
):
    monkeypatch.setenv("RISF_LOG", str(tmp_path / "log"))
    show_log()
    show_log()
    logging.getLogger("risf_core.data.left_out").info("3 crowd regions are no targets")
    for _ in range(2):  # the second time it is no news
        logging.getLogger("risf_core.data.few_shot").warning("fewer than K")
    assert _lines(tmp_path / "log") == ["3 crowd regions are no targets", "fewer than K"]
    assert capsys.readouterr().err == "fewer than K\n"


def test_by_hand_what_is_logged_reaches_the_notebook_once(monkeypatch, capsys, package_log):
    """Also where a library has given the root logger a handler of its own."""
    monkeypatch.delenv("RISF_LOG", raising=False)
    show_log()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
    logging.getLogger("risf_core.data.left_out").info("3 crowd regions are no targets")
    assert capsys.readouterr().err == "3 crowd regions are no targets\n"
