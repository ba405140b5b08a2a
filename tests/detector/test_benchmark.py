"""The tool that measures seconds and memory of the detectors."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_detector.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_detector", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("mode", "proposals"), [("detect", 100), ("train", 300)])
def test_a_row_says_what_was_measured_where(tool, mode, proposals):
    threads = torch.get_num_threads()
    row = tool.measure("mini", mode, "cpu", 1, 1)
    torch.set_num_threads(threads)
    assert (row["detector"], row["image"], row["mode"], row["threads"]) == ("mini", "160x160", mode, 1)
    assert row["proposals"] == proposals and 0 < row["seconds"] < 30 and row["peak_memory_mib"] > 50
    assert (
        row["machine"]
        and row["torch"][0].isdigit()
        and row["million_parameters"] == pytest.approx(2.1, abs=0.1)
    )


def test_rows_of_other_machines_stay(tool, tmp_path):
    table = tmp_path / "detector.csv"

    def rows(machine: str, threads: int, seconds: float) -> pd.DataFrame:
        setting = {"machine": machine, "device": "cpu", "threads": threads, "torch": "2.15.0"}
        return pd.DataFrame([{"detector": "mini", "seconds": seconds} | setting])

    tool.merge(rows("mine", 1, 1.0), table).to_csv(table, index=False)
    tool.merge(rows("yours", 1, 2.0), table).to_csv(table, index=False)
    tool.merge(rows("mine", 2, 3.0), table).to_csv(table, index=False)
    assert tool.merge(rows("mine", 1, 4.0), table)["seconds"].tolist() == [2.0, 3.0, 4.0]


def test_a_crop_of_clip_has_a_row_beside_the_detectors(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "CLIP", "risf-tiny-vit")
    threads = torch.get_num_threads()
    row = tool.measure(tool.CLIP_ROW, "encode", "cpu", 1, 1)
    torch.set_num_threads(threads)
    assert (row["image"], row["mode"], row["proposals"]) == ("64x64", "encode", None)
    assert 0 < row["cpu_seconds"] < 5 and row["million_parameters"] > 0.5
    table = tmp_path / "detector.csv"
    rows = [pd.DataFrame([row | own]) for own in ({}, {"detector": "mini", "proposals": 100})]
    for new in rows:
        tool.merge(new.astype({"proposals": "Int64"}), table).to_csv(table, index=False)
    assert pd.read_csv(table, dtype=str)["proposals"].fillna("").tolist() == ["", "100"]
