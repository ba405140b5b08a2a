"""Records: plain JSON, atomic, resumable by row; runs made by hand count for nothing."""

import json
import logging
import random

import numpy as np
import pytest

from risf_core import records
from risf_core.errors import ParamsError, RecordError
from risf_core.params import BaseTrainingParams, CheckSetupParams, FineTuningParams, ResultsParams
from risf_core.records import Rows, plain, read_records, start_run
from risf_core.runs import state
from tests.notebook_files import write_notebook

PARAMS = CheckSetupParams(profile="smoke", seed=3)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two notebooks, no records, and no launcher."""
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    monkeypatch.delenv("RISF_RUN", raising=False)
    for name in ("00_check_setup", "10_base_training", "20_fine_tuning"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "x = 1")
    (tmp_path / "10_base_training.yaml").write_text("profile: smoke\n")
    return tmp_path


def _launched(monkeypatch, params):
    """As the launcher would start it."""
    token = {"run_id": state.run_id(params), "state_hash": state.state_hash(params), "started": 1.7e9}
    monkeypatch.setenv("RISF_RUN", json.dumps(token))


def test_rows_survive_and_are_not_made_twice(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl")
    rows.add({"seed": 0, "loss": "ce"}, {"nAP50": np.float32(0.5), "per_class": {"cat": np.nan}})
    rows.add({"seed": 1, "loss": "ce"}, {"nAP50": 2})
    again = Rows(tmp_path / "rows.jsonl")
    assert again.done(loss="ce", seed=np.int64(1)) and not again.done(seed=2, loss="ce")
    assert again.get(seed=0, loss="ce") == {"seed": 0, "loss": "ce", "nAP50": 0.5, "per_class": {"cat": None}}
    assert [row["seed"] for row in again.as_list()] == [0, 1] and len(again) == 2
    for key, values in [({"seed": 1, "loss": "ce"}, {"nAP50": 3}), ({"seed": 5}, {"seed": 6})]:
        with pytest.raises(RecordError, match="there already"):
            again.add(key, values)


def test_a_row_cut_off_by_a_kill_is_made_again(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    Rows(path).add({"seed": 0}, {"nAP50": 1})
    with path.open("a") as file:
        file.write('{"key": {"seed": 1}, "val')
    rows = Rows(path)
    assert rows.done(seed=0) and not rows.done(seed=1) and "cut off" in caplog.text
    rows.add({"seed": 1}, {"nAP50": 2})
    assert [row["nAP50"] for row in Rows(path).as_list()] == [1, 2]
    path.write_text('garbage\n{"key": {"seed": 1}, "values": {}}\n')
    with pytest.raises(RecordError, match="line 1"):
        Rows(path)


def test_plain_values_have_a_json_form(tmp_path):
    given = {
        "a": np.arange(2),
        "b": (1, None, True),
        3: tmp_path,
        "n": np.array([[np.nan]]),
        "f": np.float64(0.1),
    }
    assert plain(given) == {"a": [0, 1], "b": [1, None, True], "3": str(tmp_path), "n": [[None]], "f": 0.1}
    for wrong in (float("inf"), np.array([-np.inf]), {1, 2}, object()):
        with pytest.raises(RecordError):
            plain({"x": wrong})


def test_a_run_by_hand_goes_to_scratch_and_counts_for_nothing(project, capsys):
    first, second = start_run(PARAMS), start_run(PARAMS)
    assert first.is_scratch and first.dir != second.dir
    assert first.dir.is_dir() and first.dir.parent == project / "results" / "scratch"
    record = first.finish(metrics={"AP": 1.0})
    assert record.path == first.dir / "record.json" and json.loads(record.path.read_text())["metrics"] == {
        "AP": 1.0
    }
    assert not (project / "results" / "smoke").exists()
    assert state.finished_record(PARAMS) is None and read_records("smoke") == []
    shown = capsys.readouterr().out
    assert "seed 3, device cpu, 1 thread(s)" in shown and "by hand" in shown and "numpy" in shown


def test_a_launched_run_writes_its_record(project, monkeypatch):
    _launched(monkeypatch, PARAMS)
    run = start_run(PARAMS)
    assert run.dir == project / "results" / "smoke" / "artifacts" / state.run_id(PARAMS)
    run.rows.add({"seed": 0}, {"nAP": 1})
    run.environment["precision"] = "bf16"
    run.finish(metrics={"recall": np.float32(98.5), "none": float("nan")}, split_hash="abc")
    record = state.finished_record(PARAMS)
    assert record["metrics"] == {"recall": 98.5, "none": None} and record["rows"] == [{"seed": 0, "nAP": 1}]
    assert record["params"]["seed"] == 3 and record["schema"] == 1 and record["split_hash"] == "abc"
    environment = record["environment"]
    assert environment["precision"] == "bf16" and environment["started"] == "2023-11-14T22:13:20+00:00"
    assert environment["cpu_seconds"] > 0 and 10 < environment["peak_memory_mib"] < 4096
    text = state.record_path(PARAMS).read_text()
    assert list(json.loads(text)) == sorted(json.loads(text)) and text.endswith("}\n")
    assert not list(state.record_path(PARAMS).parent.glob(".*"))


def test_a_notebook_shows_a_records_single_metrics_and_not_its_curve(project):
    curve = [{"iteration": step, "loss": 1.0} for step in range(60)]
    record = start_run(PARAMS).finish(metrics={"bAP50": 84.0, "curve": curve, "note": "a < b"})
    assert "record.json, 0 rows" in repr(record) and '"bAP50": 84.0' in repr(record)
    assert '"curve": "60 entries, in the file"' in repr(record)
    assert "a &lt; b" in record._repr_html_()


def test_seeds_are_set(project):
    start_run(PARAMS)
    drawn = random.random(), np.random.rand()
    start_run(PARAMS)
    assert (random.random(), np.random.rand()) == drawn
    start_run(CheckSetupParams(profile="smoke", seed=4))
    assert (random.random(), np.random.rand()) != drawn


def test_a_notebook_that_changes_its_parameters_is_refused(project, monkeypatch):
    _launched(monkeypatch, PARAMS)
    with pytest.raises(RecordError, match="changed its parameters"):
        start_run(CheckSetupParams(profile="smoke", seed=4))


def test_a_gpu_that_is_not_there_is_refused(project, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParamsError, match="finds no GPU"):
        start_run(BaseTrainingParams(profile="smoke", device="cuda"))
    assert start_run(BaseTrainingParams(profile="smoke")).device == "cpu"
    drawn = torch.rand(1)
    start_run(BaseTrainingParams(profile="smoke"))
    assert torch.equal(torch.rand(1), drawn) and torch.get_num_threads() == 1


def test_upstream_runs_must_be_finished_and_current(project, monkeypatch):
    base = BaseTrainingParams(profile="smoke")
    run = start_run_of_fine_tuning()
    command = (
        "make it: python -m risf_core.run notebooks/10_base_training.ipynb --params 10_base_training.yaml"
    )
    with pytest.raises(RecordError, match=command):
        run.upstream("base")
    _launched(monkeypatch, base)
    start_run(base).finish(metrics={"bAP50": 85.0})
    found = run.upstream("base")
    assert found.record["metrics"] == {"bAP50": 85.0} and found.dir.name == state.run_id(base)
    assert run.upstreams(run.params.base) == [found] == run.upstreams([run.params.base])
    with pytest.raises(RecordError, match="expected one run, got 0"):
        run.upstream("clip")
    write_notebook(project / "notebooks" / "10_base_training.ipynb", "x = 2")
    with pytest.raises(RecordError, match="out of date"):
        run.upstream("base")


def start_run_of_fine_tuning():
    """A fine-tuning by hand that builds on the base run of the project."""
    return start_run(FineTuningParams(profile="smoke", base="10_base_training.yaml"))


def test_reading_lists_what_is_left_out(project, monkeypatch, caplog):
    for seed in (1, 2):
        params = CheckSetupParams(profile="smoke", seed=seed)
        _launched(monkeypatch, params)
        start_run(params).finish(metrics={"seed": seed})
    old = state.record_path(params)
    old.write_text(old.read_text().replace(state.state_hash(params), "0" * 64))
    old.with_name("broken.json").write_text("{")
    summary = ResultsParams(
        profile="smoke", runs="runs.yaml"
    )  # outdated by every new record, which is no news
    write_notebook(project / "notebooks" / "40_results.ipynb", "x = 1")
    values = {
        "run_id": "x",
        "notebook": "40_results",
        "params": summary.model_dump(mode="json"),
        "state_hash": "0",
    }
    state.record_path(summary).write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        assert [record["metrics"]["seed"] for record in read_records("smoke")] == [1]
        assert "40_results" in [record["notebook"] for record in read_records("smoke", all=True)]
    assert f"{old.name} is left out: made with other code" in caplog.text and "broken.json" in caplog.text
    assert "results-" not in caplog.text
    assert len(read_records("smoke", all=True)) == 3
    assert read_records("smoke", "20_fine_tuning") == []


def test_a_record_is_written_whole_or_not_at_all(project, monkeypatch):
    _launched(monkeypatch, PARAMS)
    run = start_run(PARAMS)
    path = run.finish(metrics={"x": 1}).path
    before = path.read_text()
    monkeypatch.setattr(records.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        run.finish(metrics={"x": 2})
    assert path.read_text() == before
