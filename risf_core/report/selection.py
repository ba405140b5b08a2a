"""Which tables and figures a profile has: those with rows, and those that its list of runs asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from risf_core.report.base_models import has_several_bases
from risf_core.report.plan import Plan
from risf_core.report.statistics import REPRODUCTION, notebook_of
from risf_core.report.table_format import MISSING, Table
from risf_core.runs.run_specs import RunSpec
from risf_core.tables import all_tables

if TYPE_CHECKING:
    from risf_core.report.figure_style import Drawing

NO_RECORD = f"{MISSING}: planned, and no record of it yet"
# By the beginning of a table's name, the notebook that alone fills it; the first that fits holds.
NOTEBOOKS = {
    "sensitivity_c_": "30_ablation_c",
    "sensitivity_": "31_ablation_bnrl",
    "backbones_": "",  # what is missing `backbones` says
    "backbones": "32_clip_backbones",
    "label_space_": "36_label_space",
    "rescoring_controls": "37_rescoring_controls",
    "gain_by_object_size": "37_rescoring_controls",
    "class_": "37_rescoring_controls",
    "other_detectors": "35_other_detectors",
    "evaluation": "21_evaluate",
    "base_training": "10_base_training",
    "tiny_clip": "12_tiny_clip",
    "latency_": "34_latency",
    "test_images": "43_test_images",
    "base_classes_": "41_base_classes",
    "novel_confusions": "41_base_classes",
    "learning_rates": "38_learning_rates",
    "regimes": "39_training_regimes",
    "missing_rate": "42_missing_rate",
    "missing_fraction": "33_missing_annotations",
    "missing_map": "33_missing_annotations",
    "missing_components": "33_missing_annotations",
    "missing_clean": "33_missing_annotations",
    "open_vocabulary_": "50_open_vocabulary",
    "distilled_": "51_distilled_rescoring",
}
WIDE_SPACE = "novel+base+background"
TABLE_ENDINGS, FIGURE_ENDINGS = ("csv", "md", "tex"), ("png", "pdf", "txt")


def _fine_tunings(runs: Sequence[RunSpec]) -> list[dict]:
    return [spec.params.model_dump(mode="json") for spec in runs if spec.params.notebook == "20_fine_tuning"]


def plan_of(runs: Sequence[RunSpec]) -> Plan | None:
    """The few-shot cells that a list of runs asks for; None if it holds no fine-tuning."""
    params = _fine_tunings(runs)
    return Plan.from_params(params) if params else None


def is_asked_for(name: str, records: Sequence[Mapping], runs: Sequence[RunSpec]) -> bool:
    """Whether a list of runs asks for the table ``name``, of which no record has a row."""
    for beginning, notebook in NOTEBOOKS.items():
        if name.startswith(beginning):
            planned = {spec.params.notebook for spec in runs}
            return notebook in planned - {notebook_of(record) for record in records}
    if has_several_bases(records):
        return False  # the crossed tables stand in the place of those below
    params = _fine_tunings(runs)
    cells = set(Plan.from_params(params).seeds)
    if name.startswith("extension_wider_labels"):
        return any(run["clip"] and WIDE_SPACE in run["cm_clip"]["label_spaces"] for run in params)
    if name == "rescored_per_image":
        return any(key[4] == "cm_clip" for key in cells)
    if name.startswith("interaction"):
        sides = [(loss, rescoring) for loss in ("ce", "bnrl") for rescoring in REPRODUCTION]
        return any(all((*key[:3], *side, key[5]) in cells for side in sides) for key in cells)
    if name.endswith("fsod"):  # gfsod, per_class_fsod, per_class_gfsod
        return any(key[1] == name.removeprefix("per_class_") for key in cells)
    return False  # what else was asked for has rows that say so


def tables_of(records: Sequence[Mapping], runs: Sequence[RunSpec] = ()) -> list[Table]:
    """The tables with rows, and those that the list of runs asks for, which then say that they are missing."""
    tables = []
    for table in all_tables(records, plan=plan_of(runs)):
        if len(table.data):
            tables.append(table)
        elif is_asked_for(table.name, records, runs):
            tables.append(replace(table, display=pd.DataFrame({table.name: [NO_RECORD]})))
    return tables


def figures_of(records: Sequence[Mapping], tables: Sequence[Table]) -> "dict[str, Drawing]":
    """The figure of each table that has one, by file name; figures show the setting fsod."""
    from risf_core.figures import all_figures  # matplotlib takes a second, which tables need not wait for

    def has_fsod(table: Table) -> bool:
        return table.data.empty or "setting" not in table.data or "fsod" in set(table.data["setting"])

    names = {table.name for table in tables if has_fsod(table)}
    return {name: drawing for name, drawing in all_figures(records).items() if name in names}


def write_all(records: Sequence[Mapping], folder: Path, *, runs: Sequence[RunSpec] = ()) -> list[Path]:
    """Write the tables to ``folder/tables`` and the figures to ``folder/figures``; older ones of other names go.

    Args:
        records: Records of one profile.
        folder: Results folder of the profile.
        runs: The profile's list of runs, so that what is missing is shown.

    Returns:
        The paths written.
    """
    folder, tables = Path(folder), tables_of(records, runs)
    figures = figures_of(records, tables)
    paths = [path for table in tables for path in table.write(folder / "tables")]
    for name, drawing in figures.items():
        paths += drawing.save(folder / "figures", name)
    for table in all_tables([]):  # a figure has the name of its table
        for kind, endings in (("tables", TABLE_ENDINGS), ("figures", FIGURE_ENDINGS)):
            for path in {folder / kind / f"{table.name}.{ending}" for ending in endings} - set(paths):
                path.unlink(missing_ok=True)
    return paths
