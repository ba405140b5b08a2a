"""Tables and figures of the label space study and of the controls: from made-up records, by hand-worked numbers."""

import math

import pytest

from risf_core.figures import all_figures
from risf_core.report import control_tables, label_space_tables
from risf_core.report.control_figures import class_gain_figure, controls_figure, size_figure
from risf_core.report.label_space_figures import selection_figure, single_changes_figure
from risf_core.report.selection import NOTEBOOKS
from risf_core.studies.label_spaces import Combination
from risf_core.tables import all_tables
from tests.synthetic_records import all_records, record

KEY = {"split": 1, "shots": 5, "loss": "ce", "arm": "kshot", "setting": "fsod", "repeat": 0}
LEVELS = {
    "none": 50.0, "paper": 60.0, "selected": 70.0, "selected over K": 69.0, "test oracle": 71.0,
    "only label_space: novel+base+background": 66.0, "only c": 61.0, "all but c": 68.0,
}  # fmt: skip
SECOND_SEED = {"none": 2.0}  # 52 without re-scoring, the rest as in the first
STUDY = ("label_space_selection", "label_space_single_changes")
CONTROLS = ("rescoring_controls", "gain_by_object_size", "class_gain_against_accuracy", "class_rule")


def study_record(source="other concepts of the pictogram world", shift=0.0):
    rows = []
    for role, split in (("selection", 2), ("reported", 1)):
        for seed in (0, 1):
            for what, level in LEVELS.items():
                value = level + shift + seed * SECOND_SEED.get(what, 0.0)
                key = KEY | {"part": "result", "role": role, "split": split, "seed": seed, "what": what}
                values = {"combination": f"the {what}", "nAP50": value, "nAP": value / 2, "nAP75": value / 3}
                rows.append(key | values)
            rows.append(KEY | {"part": "grid", "role": role, "split": split, "seed": seed, "file": "x.npy"})
    grid = {"combinations": ["the paper", "the selected"]}
    grid |= {role: {"5": [60.0, 70.0]} for role in ("selection", "reported")}
    metrics = {"vocabulary": {"split1": {"source": source, "names": ["moon"], "removed": []}}, "grid": grid}
    metrics |= {"chosen": {"5": "the selected"}, "paper": "the paper"}
    return record("36_label_space", f"label_space-{source[:5]}", rows=rows, metrics=metrics)


def controls_record():
    rows = []
    for seed in (0, 1):
        for control, level in {"none": 50, "paper": 60, "permuted names": 40, "jitter 0.2": 57}.items():
            value = float(level + (seed if control == "paper" else 0))
            key = KEY | {"part": "control", "seed": seed, "control": control}
            rows.append(key | {"nAP50": value, "nAP": value, "nAP75": value})
        for size, (low, high) in enumerate([(0.0, 1024.0), (1024.0, None)], start=1):
            values = {
                "area_from": low,
                "area_to": high,
                "objects": 7,
                "without": 50.0,
                "with": 50.0 + 4 * size,
            }
            rows.append(KEY | {"part": "size", "seed": seed, "size": size} | values | {"gain": 4.0 * size})
        for role, split in (("selection", 2), ("fine_tuning", 1)):
            for clip, accuracy, gain in (("good", 100.0, 10.0), ("bad", 40.0, -6.0)):
                key = KEY | {"part": "class", "role": role, "split": split, "seed": seed, "clip": clip}
                values = {"without": 50.0, "with": 50.0 + gain, "accuracy": accuracy, "shot_accuracy": 60.0}
                rows.append(key | {"name": "cat"} | values)
                rows.append(key | {"name": "none of it"} | dict.fromkeys(values))
    return record("37_rescoring_controls", "controls", rows=rows)


def test_selection_table_pairs_by_seed_and_marks_the_oracle():
    table = label_space_tables.selection_table([study_record()])
    (row,) = table.display.to_dict("records")
    assert row["paper value"] == "60.0 ± 0.0" and row["selected value"] == "70.0 ± 0.0"
    assert row["TEST ORACLE (no result)"] == "71.0 ± 0.0"
    assert row["selected − paper"] == "+10.0 ± 0.0 (2/2 up)"
    assert row["selected over K − paper"] == "+9.0 ± 0.0 (2/2 up)"
    assert row["paper − none"] == "+9.0 ± 12.7 (2/2 up)"  # 10 and 8: t of one degree of freedom is 12.7
    assert row["what was selected"] == "the selected"
    for part in ("EXTENSION", "split 2 and reported on split 1", "TEST ORACLE", "unlabelled clutter"):
        assert part in table.caption


COMBINATION = "novel+background, T fitted, geometric, c=0.9, visual α=3 β=5.5"


@pytest.mark.parametrize(
    ("combination", "ends"),
    [
        (COMBINATION, ["c", "α", "β", "T"]),
        (
            COMBINATION.replace("5.5", "2"),
            ["c", "α"],
        ),  # in the middle of three; its fit ended within the bounds
        (
            COMBINATION.replace("α=3", "α=0.3").replace("c=0.9", "c=0"),
            ["β"],
        ),  # below 0.3 lies 0, without a cache
        ("novel+background, T 100, arithmetic, c=0.7, no visual", []),
    ],
)
def test_selected_at_an_end_of_its_axis_is_marked(combination, ends):
    params = {"c": [0.0, 0.7, 0.9], "visual_alphas": [0.3, 3.0], "visual_betas": [1.0, 2.0, 5.5]}
    made = study_record()
    made["params"] |= params
    fit = "novel+background, α=3, β=5.5"
    made["metrics"]["fitted_at_bound"] = {"5": [fit], "1": ["novel+background, α=3, β=2"]}
    for row in made["rows"]:
        if row.get("what") == "selected":
            row |= {"combination": combination, "temperature": 0.1}
    (line,) = label_space_tables.selection_table([made]).display.to_dict("records")
    expected = f"{combination} [at its end: {', '.join(ends)}]" if ends else combination
    assert line["what was selected"] == expected and line["its T"] == "0.1"


def test_a_real_combination_is_read():
    read = label_space_tables.COMBINATION.fullmatch(
        str(Combination("novel+background", "fitted", "geometric", 0.5, 10.0, 11.0))
    )
    assert read and (read["t"], read["c"], read["alpha"], read["beta"]) == ("fitted", "0.5", "10", "11")
    assert label_space_tables.COMBINATION.fullmatch(
        str(Combination("novel+background", "100", "arithmetic", 0.7))
    )


def test_captions_tell_the_scale_of_the_temperature_and_how_much_was_tried():
    made = study_record()
    fits = {"5": {"novel+background, α=0, β=0": 21.0, "novel+base+background, α=3, β=1": 0.1}}
    bound = {"5": ["novel+base+background, α=3, β=1"]}
    made["metrics"] |= {"learned_temperature": 16.25, "fitted_temperatures": fits, "fitted_at_bound": bound}
    table = label_space_tables.selection_table([made])
    assert "This CLIP's own T is 16.2, that of OpenAI's CLIPs 100" in table.caption
    assert "ranges from 0.1 to 21" in table.caption
    assert "1 of 2 fits ended at a bound, no minimum (T = 0.1; novel+base+background)" in table.caption
    assert table.display["combinations"].tolist() == ["2"]
    made["metrics"] |= {"learned_temperature": 100.0, "fitted_at_bound": {"5": []}}
    caption = label_space_tables.single_changes_table([made]).caption
    assert "own T is 100.0." in caption and "OpenAI" not in caption and "no minimum" not in caption


def test_vocabularies_stand_apart():
    records = [study_record(), study_record("names.txt", shift=5.0)]
    table = label_space_tables.selection_table(records)
    assert table.display["paper value"].tolist() == ["65.0 ± 0.0", "60.0 ± 0.0"]
    assert "unlabelled clutter" not in label_space_tables.selection_table(records[1:]).caption
    assert len(selection_figure(records).figure.axes) == 4


def test_single_changes_are_against_the_paper_or_the_selected():
    table = label_space_tables.single_changes_table([study_record()])
    rows = table.display.set_index("change")
    assert rows.loc["only label space +base", "K=5"] == "+6.0 ± 0.0 (2/2 up)"
    assert rows.loc["only c", "difference to"] == "paper"
    assert rows.loc["all but c", "K=5"] == "+2.0 ± 0.0 (2/2 up)"
    assert rows.loc["all but c", "difference to"] == "selected − this"


def test_controls_stand_beside_none_and_the_paper():
    rows = control_tables.controls_table([controls_record()]).display.set_index("control")
    assert rows.index.tolist() == [
        "without re-scoring",
        "CM-CLIP (paper)",
        "permuted names",
        "box jitter 0.2",
    ]
    assert rows.loc["permuted names", "gain over none"] == "−10.0 ± 0.0 (0/2 up)"
    assert rows.loc["box jitter 0.2", "difference to CM-CLIP"].startswith("−3.5 ± ")
    assert rows.loc["CM-CLIP (paper)", "difference to CM-CLIP"] == "–"


def test_sizes_are_named_by_their_side():
    table = control_tables.size_table([controls_record()])
    assert table.display["side (pixels)"].tolist() == ["below 32", "above 32"]
    assert table.display["paired gain"].tolist() == ["+4.0 ± 0.0 (2/2 up)", "+8.0 ± 0.0 (2/2 up)"]
    assert control_tables.side_text(1024.0, 9216.0) == "32 to 96"
    assert control_tables.side_text(0.0, math.nan) == "all"


def test_rule_is_chosen_on_one_split_and_tested_on_the_other():
    table = control_tables.class_rule_table([controls_record()])
    cells = table.data.set_index(["role", "policy"])
    assert set(cells["cells"]) == {4}  # the class without an object counts nowhere
    tested = cells.loc["fine_tuning"]
    assert tested.loc["always", "gain"] == pytest.approx(2.0) and tested.loc["always", "harmed"] == 50.0
    rule = tested.loc["rule by test crops"]
    assert rule["to_always"] == pytest.approx(3.0) and tested.loc["always", "to_always"] == 0.0
    display = table.display.set_index(["split", "policy"])
    assert display.loc[("1 (tested)", "rule by test crops"), "rule − always"] == "+3.0 ± 0.0 (2/2 up)"
    assert "K (5)" in table.caption and "but the same test images" in table.caption
    assert rule["threshold"] == 70.0 and rule["gain"] == pytest.approx(5.0) and rule["harmed"] == 0.0
    assert tested.loc["rule by the K shots' crops", "threshold"] == -math.inf  # it tells nothing apart
    assert (
        table.display["split"].iloc[0] == "2 (chosen on)" and table.display["split"].iloc[-1] == "1 (tested)"
    )


def test_without_records_there_are_empty_tables_and_figures_that_say_so():
    tables = {table.name: table for table in all_tables([])}
    for name in (*STUDY, *CONTROLS):
        assert tables[name].data.empty
        notebook = next(NOTEBOOKS[beginning] for beginning in NOTEBOOKS if name.startswith(beginning))
        assert notebook == ("36_label_space" if name in STUDY else "37_rescoring_controls")
    figures = all_figures([])
    for name in (*STUDY, *CONTROLS[:3]):
        assert "No record of 3" in figures[name].caption
    assert "No record of 36_label_space" in selection_figure(all_records(seeds=2)).caption


def test_figures_say_what_they_are():
    for draw, made in (
        (selection_figure, study_record()),
        (single_changes_figure, study_record()),
        (controls_figure, controls_record()),
        (size_figure, controls_record()),
        (class_gain_figure, controls_record()),
    ):
        drawing = draw([made])
        assert "not part of the reproduction" in drawing.caption and "n = 2 seeds each" in drawing.caption
    thresholds = [line for line in class_gain_figure([controls_record()]).figure.axes[0].lines]
    assert any(list(line.get_xdata()) == [70.0, 70.0] for line in thresholds)
