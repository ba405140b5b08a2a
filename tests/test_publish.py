import json
import math
from pathlib import Path

import pytest

from risf_core.errors import RecordError
from risf_core.params import FineTuningParams
from risf_core.report.publish import (
    headline,
    headline_text,
    load_records,
    main,
    plan_of,
    publish,
    summary,
)
from risf_core.report.readme_blocks import readme_table, update_readme
from risf_core.report.statistics import HeadlineNumber
from risf_core.runs.run_specs import RunSpec
from risf_core.runs.yaml_files import project_root
from tests.synthetic_records import all_records, backbones_record, fine_tuning_record, fine_tuning_row


@pytest.fixture
def folder(tmp_path):
    """A results folder with records of ce and bnrl."""
    rows = [
        fine_tuning_row(
            seed=seed, loss=loss, rescoring=how, nAP50=50.0 + 2 * (loss == "bnrl") + 6 * (how == "cm_clip")
        )
        for seed in (0, 1)
        for loss in ("ce", "bnrl")
        for how in ("none", "cm_clip")
    ]
    (tmp_path / "records").mkdir()
    record = fine_tuning_record(rows)
    (tmp_path / "records" / f"{record['run_id']}.json").write_text(json.dumps(record))
    return tmp_path


def test_headline_has_both_gains_with_their_records():
    table = headline(all_records(seeds=2)).set_index("quantity")
    assert table.loc["base model of split 1: bAP50 (%)", "value"] == "84.9"
    gain = table.loc["CM-CLIP's gain with ce, nAP50, K=5, kshot"]
    assert gain["n"] == 2 and gain["value"].startswith("+")
    assert len(table.loc["BNRL's gain over ce, nAP50, mean over K, kshot", "run_ids"]) == 5


def test_headline_names_what_the_released_code_does():
    """The loss that it trains, and the crops that it feeds; accuracies are of crops as CLIP wants them."""
    released = backbones_record(seeds=2)
    released["run_id"] += "-released"
    rows = [row | {"preprocess": "released", "crop_accuracy": 1.0, "gain": 0.5} for row in released["rows"]]
    released["rows"] = [row for row in rows if row["clip"] == "tiny-resnet"]
    table = headline([*all_records(seeds=2), released]).set_index("quantity")
    assert table.loc["CLIP tiny-resnet: accuracy on novel crops (%)", "value"] == "90.2"
    assert table.loc["nAP50 (%), K=5, kshot: ce_bg (as released) + CM-CLIP", "n"] == 2
    gain = table.loc["CM-CLIP's gain with ce, preprocess=released, nAP50, K=5, kshot"]
    assert gain["value"] == "+0.5 ± 0.0 (2/2 up)" and gain["run_ids"] == (released["run_id"],)


def test_headline_numbers_are_what_its_texts_say():
    """Also of the published studies: each number, rounded as its text is, begins the text."""
    folders = [project_root() / "results" / "published" / name for name in ("studies", "latency")]
    sources = [all_records(seeds=2), *(load_records(folder / "records") for folder in folders)]
    for records in sources:
        table = headline(records)
        assert {"mean", "half_width"} <= set(table) and len(table)
        for row in table.itertuples():
            text = row.value.replace("−", "-")
            decimals = len(text.split()[0].rstrip(",").split(".")[1])
            assert float(text.split()[0].rstrip(",")) == round(row.mean, decimals), row.quantity
            if row.half_width is not None:
                assert f" ± {row.half_width:.1f}" in text, row.quantity
            else:
                assert "±" not in text.split(";")[0], row.quantity


def test_headline_number_takes_a_row_without_numbers():
    assert HeadlineNumber.of(("what", "many", 3, "37_x", ())) == ("what", "many", 3, "37_x", (), None, None)
    assert HeadlineNumber.of(("what", "1", 3, "37_x", (), 1, math.nan))[-2:] == (1.0, None)


def test_summary_says_where_everything_lies(folder):
    text = summary("made_up", load_records(folder / "records"), [], folder)
    assert "+6.0 ± 0.0 (2/2 up)" in text
    for name in ("tables", "figures", "runs", "records"):
        assert str(folder / name) in text


def test_summary_and_headline_list_the_warnings(tmp_path):
    rows = [
        fine_tuning_row(seed=seed, loss=loss, nAP50=50.0 + seed - (2.0 + 0.1 * seed) * (loss == "bnrl"))
        for seed in range(3)
        for loss in ("ce", "bnrl")
    ]
    record = fine_tuning_record(rows)
    target = tmp_path / "made_up"
    (target / "records").mkdir(parents=True)
    (target / "records" / "a.json").write_text(json.dumps(record))
    warning = (
        "WARNING: BNRL is below cross-entropy on this set (nAP50, interval wholly below 0): bnrl − ce −2.1"
    )
    assert warning in summary("made_up", [record], [], tmp_path)
    assert warning in headline_text(target)
    assert "WARNING" not in summary("made_up", [fine_tuning_record(rows[::2])], [], tmp_path)  # ce alone


def test_published_records_name_no_host_and_old_files_vanish(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("risf_core.report.publish.write_all", lambda records, folder, runs: None)
    for name in ("tables", "figures"):
        (folder / name).mkdir()
        (folder / name / "new.csv").write_text("x\n")
    target = tmp_path / "published"
    (target / "tables").mkdir(parents=True)
    (target / "tables" / "old.csv").write_text("x\n")
    publish("made_up", load_records(folder / "records"), [], folder, target)
    assert sorted(path.name for path in target.rglob("*.csv")) == ["new.csv", "new.csv"]
    assert "](../records/" in (target / "tables" / "headline.md").read_text()
    (record,) = (target / "records").iterdir()
    assert "a-private-host-name" not in record.read_text()
    assert json.loads(record.read_text())["environment"]["cpu_seconds"] > 0


def test_readme_gets_the_table_between_its_markers(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Head\n<!-- results: begin (generated) -->\nold\n<!-- results: end -->\ntail\n")
    text = readme_table("made_up", load_records(folder / "records"), [])
    update_readme(readme, text)
    update_readme(readme, text)  # twice changes nothing more
    written = readme.read_text()
    assert (
        "old" not in written
        and written.count("not comparable with it in level") == 1
        and written.endswith("tail\n")
    )
    assert "| what | paper | ours | n | difference | command | record | notebook |" in written
    assert "results/published/made_up/records/" in written


def test_readme_is_short_and_the_whole_headline_is_a_file_of_its_own():
    records = all_records(seeds=2)
    text = readme_table("made_up", records, [])
    whats = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(whats) == 19 < len(headline(records))  # of them three CLIPs
    assert "BNRL's gain over ce, nAP50, K=5, kshot, gfsod" in whats  # where it may lose, too
    assert "BNRL's gain over ce, nAP50, mean over K, missing" in whats
    assert "(results/published/made_up/tables/headline.md)" in text


def test_a_profile_that_is_not_there_is_named_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        main(["--profile", "nosuch"])
    error = capsys.readouterr().err
    assert "no profile nosuch" in error and "cards" in error and error.count("\n") == 1


def test_a_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Head\n")
    with pytest.raises(RecordError, match="markers"):
        update_readme(readme, "text")


def test_command_line_shows_the_headline_and_fails_in_one_line(folder, capsys):
    main(["--results", str(folder), "--profile", "made_up", "--show"])
    assert "CM-CLIP's gain" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--results", str(folder / "nowhere"), "--profile", "made_up"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unreadable_record_is_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RecordError, match="broken.json"):
        load_records(tmp_path)


def test_the_plan_reads_the_parameters_of_fine_tuning():
    values = {
        "profile": "made_up",
        "base": "params/made_up/10_base_training.yaml",
        "shots": 2,
        "seeds": [0, 1, 2],
    }
    params = FineTuningParams(**values, losses=["ce"], arms=["kshot", "missing"])
    run = RunSpec(params=params, file=Path("x.yaml"), overrides={}, notebook=Path("x.ipynb"))
    plan = plan_of([run])
    assert plan.expected(1, "fsod", "missing", "ce", "none", 2) == 3
    assert plan.expected(1, "fsod", "missing", "ce", "cm_clip", 2) == 0  # no CLIP, nothing is re-scored
    assert plan_of([]) is None
