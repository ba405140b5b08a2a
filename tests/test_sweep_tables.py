import pytest

from risf_core.report.sweep_figures import sensitivity_c_figure
from risf_core.report.sweep_tables import (
    backbones_table,
    base_training_table,
    beta_omega_table,
    cost_table,
    gamma_epsilon_table,
    sensitivity_c_table,
    tiny_clip_table,
)
from tests.synthetic_records import (
    ablation_bnrl_record,
    ablation_c_record,
    all_records,
    backbones_record,
    fine_tuning_record,
    fine_tuning_row,
    record,
)


def test_sensitivity_over_c_says_that_it_is_no_selection():
    table = sensitivity_c_table([ablation_c_record(seeds=2)])
    assert "SENSITIVITY, not selection" in table.caption
    assert "c=0.7 (paper)" in table.display and "c=0" in table.display
    assert table.display["n"].unique().tolist() == ["2"]


def swept_record(points):
    """A sweep over c at these (temperature, threshold, fusion), each one point lower than the one before."""
    rows = ablation_c_record(seeds=2)["rows"]
    names = ("temperature", "score_thresh", "fusion")
    swept = [
        row | dict(zip(names, point, strict=True)) | {"nAP50": row["nAP50"] - place}
        for place, point in enumerate(points)
        for row in rows
    ]
    return record("30_ablation_c", "swept", rows=swept)


def test_other_axes_of_a_sweep_stand_apart_where_they_vary():
    points = [(100.0, 0.05, "arithmetic"), (100.0, 0.05, "geometric"), ("learned", 0.05, "arithmetic")]
    table = sensitivity_c_table([swept_record(points)])
    assert list(table.display)[3:6] == ["label space", "temperature", "fusion"]
    assert set(table.display["temperature"]) == {"100", "learned"}
    assert "with temperature 100, with fusion arithmetic" in table.caption
    own = table.data.set_index(["temperature", "fusion"])["mean"]
    for place, (temperature, _, fusion) in enumerate(points):
        shift = own.loc[[(100.0, "arithmetic")]].to_numpy() - own.loc[[(temperature, fusion)]].to_numpy()
        assert shift == pytest.approx(place)


def test_records_without_the_other_axes_have_the_papers():
    old, new = ablation_c_record(seeds=2), swept_record([(100.0, 0.05, "arithmetic")])
    assert sensitivity_c_table([new]).display.equals(sensitivity_c_table([old]).display)
    assert sensitivity_c_table([old, new]).display.equals(sensitivity_c_table([old]).display)
    other = sensitivity_c_table([swept_record([(50.0, 0.05, "arithmetic")])]).display
    assert set(other["temperature"]) == {"50"}  # said, though it does not vary


def test_panels_of_a_sweep_name_what_is_not_the_papers():
    points = [(100.0, 0.05, "arithmetic"), (100.0, 0.05, "geometric")]
    drawing = sensitivity_c_figure([swept_record(points)])
    titles = [ax.get_title() for ax in drawing.figure.axes if ax.get_title()]
    assert titles == [
        "novel+background\narithmetic",
        "novel+background (extension)\ngeometric",
        "novel+base+background (extension)\narithmetic",
        "novel+base+background (extension)\ngeometric",
    ]


def test_bnrl_sweep_marks_the_papers_cell_and_pairs_with_it():
    data = beta_omega_table([ablation_bnrl_record(seeds=2)]).data
    paper = data[data["is_paper"]]
    assert paper[["beta", "background_weight"]].drop_duplicates().values.tolist() == [[0.8, 0.2]]
    assert paper["difference"].tolist() == [0.0] * 4  # two sweeps, two arms
    other = data[(data["arm"] == "kshot") & (data["background_weight"] == 1.0)]
    assert other["difference"].tolist() == pytest.approx([-1.6] * 6)  # the formula: -2 * (1 - 0.2)


def test_tied_beta_comes_before_fixed_alpha():
    display = beta_omega_table([ablation_bnrl_record(seeds=1)]).display
    assert display["sweep"].drop_duplicates().tolist() == ["β = 1 − α", "α fixed"]


def test_gamma_and_epsilon_have_a_table_of_their_own():
    data = gamma_epsilon_table([ablation_bnrl_record(seeds=1)]).data
    assert data["sweep"].unique().tolist() == ["gamma_epsilon"]
    assert len(data) == 12  # 3 gammas x 2 epsilons x 2 arms


def test_gain_of_a_clip_is_paired_with_the_fine_tuning_rows_if_it_has_none():
    rows = [{"clip": "tiny", "crop_accuracy": 90.0, "split": 1, "arm": "kshot", "loss": "ce", "shots": 5, "seed": seed}
            for seed in (0, 1)]  # fmt: skip
    clips = record("32_clip_backbones", "clips", rows=[row | {"nAP50": 55.0 + row["seed"]} for row in rows])
    tuned = fine_tuning_record([fine_tuning_row(seed=seed, nAP50=50.0) for seed in (0, 1)])
    row = backbones_table([clips, tuned]).data.iloc[0]
    assert (row["gain"], row["mean"], row["up"]) == (5.5, 55.5, 2)


def test_clips_stand_in_the_order_of_their_accuracy():
    display = backbones_table([backbones_record(seeds=2)]).display
    assert display["clip"].drop_duplicates().tolist() == ["random", "tiny-vit", "tiny-resnet"]


def test_released_crops_stand_below_the_same_clips_own():
    own, released = backbones_record(seeds=2), backbones_record(seeds=2)
    own["rows"] = [
        row | {"preprocess": "clip", "resize": "roi_align", "crop": "squash"} for row in own["rows"]
    ]
    released["run_id"] += "-released"
    released["rows"] = [
        row
        | {
            "preprocess": "released",
            "resize": "roi_align",
            "nAP50": row["nAP50"] - 4,
            "gain": row["gain"] - 4,
        }
        for row in released["rows"]
        if row["clip"] == "tiny-resnet"
    ]
    display = backbones_table([own, released]).display[["clip", "variant"]].drop_duplicates()
    order = [
        ("random", "main"),
        ("tiny-vit", "main"),
        ("tiny-resnet", "main"),
        ("tiny-resnet", "preprocess=released"),
    ]
    assert display.values.tolist() == [list(pair) for pair in order]
    data = backbones_table([own, released]).data.set_index(["clip", "variant", "arm", "shots"])["gain"]
    for arm in ("kshot", "missing"):
        gains = data["tiny-resnet", "preprocess=released", arm, 5], data["tiny-resnet", "", arm, 5]
        assert gains[0] == pytest.approx(gains[1] - 4)
    assert "variant" not in backbones_table([own]).display


def test_a_clip_with_random_weights_is_marked():
    clips = backbones_record(seeds=1)
    clips["rows"] = [row | {"path_only": row["clip"] == "random"} for row in clips["rows"]]
    assert "random (path only)" in set(backbones_table([clips]).data["clip"])


def test_metrics_of_single_trainings_are_listed_with_their_notes():
    records = all_records(seeds=1)
    base, clips = base_training_table(records).display, tiny_clip_table(records).display
    assert base.iloc[0].tolist() == ["bAP50", "84.9"]
    assert list(base["metric"])[-1] == "per_class.sun.AP50"  # its AP75 stands in the CSV alone
    resnet, vit = list(clips)[1:]
    assert resnet.startswith("tiny_clip-resnet") and vit.startswith("tiny_clip-vit")
    accuracy = clips.set_index("metric").loc["crop_accuracy.split1.novel"]
    assert accuracy.tolist() == ["90.2", "80.1"]
    assert "2 of 20 classes share a glyph design with the test scenes" in set(clips[vit])


def test_cost_adds_cpu_seconds_and_takes_the_largest_memory():
    runs = [record("20_fine_tuning", name) for name in "ab"]
    for run, memory in zip(runs, (700.0, 900.0), strict=True):
        run["environment"] |= {"cpu_seconds": 100.0, "peak_memory_mib": memory}
    row = cost_table(runs).display.iloc[0]
    assert row.tolist() == ["20_fine_tuning", 2, "200", "24", "900"]
