import pytest

from risf_core.report.selection import figures_of, tables_of, write_all
from risf_core.runs.run_specs import RunSpec, load_list
from risf_core.runs.yaml_files import project_root
from tests.synthetic_records import all_records, fine_tuning_record, fine_tuning_row, record

CLIP_TABLES = {"rescored_per_image", "interaction_nAP50", "interaction_nAP", "extension_wider_labels_nAP50"}


def without_clip() -> list[dict]:
    """ce and bnrl on five seeds, base and novel classes too; nothing is re-scored."""
    return [
        fine_tuning_record(
            [
                fine_tuning_row(seed=seed, loss=loss, setting=setting)
                for seed in range(5)
                for loss in ("ce", "bnrl")
            ],
            name=setting,
        )
        for setting in ("fsod", "gfsod")
    ]


@pytest.fixture(scope="module")
def cards() -> list[RunSpec]:
    return load_list(project_root() / "params" / "cards" / "runs.yaml")


@pytest.fixture(scope="module")
def mini() -> list[RunSpec]:
    return load_list(project_root() / "params" / "mini" / "runs.yaml")


def test_a_profile_without_a_clip_has_no_empty_table_or_figure_and_names_no_clip(cards):
    tables = tables_of(without_clip(), cards)
    names = {table.name for table in tables}
    assert not names & CLIP_TABLES
    assert {"main_nAP50", "paired_nAP50", "gfsod", "per_class_fsod", "cost"} <= names
    assert [table.name for table in tables if table.data.empty] == [
        "base_training"
    ]  # in the list, not yet run
    figures = figures_of(without_clip(), tables)
    assert set(figures) == {"main_nAP50", "main_nAP", "paired_nAP50", "paired_nAP"}
    texts = [str(table) for table in tables] + [drawing.caption for drawing in figures.values()]
    assert not [text for text in texts if "CLIP" in text or "No record" in text]


def test_what_the_list_asks_for_and_no_record_has_stays_visible(mini):
    tables = {table.name: table for table in tables_of(without_clip(), mini)}
    missing = {name for name, table in tables.items() if "planned, and no record" in str(table)}
    sweeps = {
        "sensitivity_c_nAP50",
        "sensitivity_c_nAP",
        "sensitivity_beta_omega",
        "sensitivity_gamma_epsilon",
    }
    assert missing == CLIP_TABLES - {"rescored_per_image"} | sweeps | {
        "backbones",
        "base_training",
        "tiny_clip",
    }
    assert "evaluation" not in tables
    assert "NO RUN" in str(tables["rescored_per_image"])
    assert "NO RUN" in str(tables["main_nAP50"]) and "ONE CLIP" in tables["main_nAP50"].caption
    figures = figures_of(without_clip(), list(tables.values()))
    assert figures["backbones"].caption.startswith("No record of 32_clip_backbones")


def test_a_sweep_that_a_finished_run_left_out_is_not_missing(mini):
    (whole,) = [made for made in all_records(seeds=2) if made["notebook"] == "31_ablation_bnrl"]
    rows = [row for row in whole["rows"] if row["sweep"] == "gamma_epsilon"]
    names = {table.name for table in tables_of([record("31_ablation_bnrl", "part", rows=rows)], mini)}
    assert "sensitivity_gamma_epsilon" in names and "sensitivity_beta_omega" not in names


def test_every_table_and_figure_is_there_once_it_has_rows():
    tables = tables_of(all_records(seeds=2))
    names = {table.name for table in tables}
    assert CLIP_TABLES | {"sensitivity_beta_omega", "backbones", "tiny_clip", "base_training"} <= names
    assert len(figures_of(all_records(seeds=2), tables)) == 10


def test_older_files_of_what_is_not_written_go_and_others_stay(tmp_path, cards):
    old = [tmp_path / "tables" / "backbones.csv", tmp_path / "figures" / "backbones.png"]
    kept = [tmp_path / "figures" / "before_after-mine.png", tmp_path / "tables" / "mine.csv"]
    for path in (*old, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    paths = write_all(without_clip(), tmp_path, runs=cards)
    there = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {*paths, *kept}
