import matplotlib
import numpy as np
import pytest
from PIL import Image

from risf_core.figures import all_figures, interaction_figure, main_figure, paired_figure
from risf_core.report.figure_style import COLORS, save_figure
from risf_core.report.run_figures import confusion_figure, loss_curves_figure, training_figure
from risf_core.report.sweep_figures import backbones_figure, beta_omega_figure
from tests.synthetic_records import (
    ablation_bnrl_record,
    backbones_record,
    fine_tuning_record,
    fine_tuning_records,
    fine_tuning_row,
)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return fine_tuning_records(seeds=2)


def legend_labels(drawing) -> list[str]:
    return [text.get_text() for legend in drawing.figure.legends for text in legend.get_texts()]


def test_main_figure_has_a_panel_for_each_arm_and_a_line_for_each_loss(records):
    drawing = main_figure(records)
    assert [ax.get_title() for ax in drawing.figure.axes] == ["kshot", "missing"]
    assert legend_labels(drawing)[:2] == ["ce", "ce + CM-CLIP"]
    assert "focal + CM-CLIP" in legend_labels(drawing)  # the user's own
    assert "one base model" in drawing.caption


def test_main_figure_of_a_profile_without_a_clip_names_none():
    rows = [fine_tuning_row(seed=seed) for seed in range(3)]
    drawing = main_figure([fine_tuning_record(rows)])
    assert legend_labels(drawing) == ["ce"]
    assert "CLIP" not in drawing.caption and "without re-scoring" in drawing.caption


def test_points_and_bars_are_the_means_and_intervals():
    rows = [fine_tuning_row(seed=seed, nAP50=value) for seed, value in enumerate((50.0, 52, 54, 56, 58))]
    (container,) = [
        bars
        for bars in main_figure([fine_tuning_record(rows)]).figure.axes[0].containers
        if len(bars[0].get_ydata())
    ]
    assert container[0].get_ydata().tolist() == [54.0]
    low, high = container[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(3.9265, abs=1e-4)


def test_paired_figure_writes_the_seeds_that_went_up(records):
    texts = [text.get_text() for text in paired_figure(records).figure.axes[0].texts]
    assert "2/2" in texts
    assert any(text.startswith("focal − bnrl") for text in texts)


def test_interaction_figure_has_a_panel_for_each_arm_and_k(records):
    assert len(interaction_figure(records).figure.axes) == 2 * 5


def test_heat_map_frames_the_papers_cell():
    axes = beta_omega_figure([ablation_bnrl_record(seeds=2)]).figure.axes
    frames = [patch for ax in axes for patch in ax.patches if not patch.get_fill()]
    assert len(frames) == 4  # two sweeps, two arms
    (column, row), ax = (int(place) for place in frames[0].get_xy()), axes[0]
    assert ax.get_xticklabels()[column].get_text() == "0.2" and ax.get_yticklabels()[row].get_text() == "0.8"
    assert not ax.yaxis_inverted()  # beta grows upwards


def test_heat_map_writes_mean_and_interval_into_the_cell_of_its_values():
    record = ablation_bnrl_record(seeds=2)
    for row in record["rows"]:
        if row["background_weight"] == 0.05 and row["beta"] == 0.5:
            row["nAP50"] = 7.0
    ax = beta_omega_figure([record]).figure.axes[0]
    columns, rows = ([label.get_text() for label in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis))
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts[columns.index("0.05") + 0.5, rows.index("0.5") + 0.5] == "7.0\n± 0.0"


def test_without_records_every_figure_says_so(tmp_path):
    for name, drawing in all_figures([]).items():
        assert drawing.caption.startswith("No record of"), name


def test_the_users_own_settings_change_no_byte_and_stay_as_they_were(tmp_path, records):
    def draw(name: str) -> list[bytes]:
        return [path.read_bytes() for path in main_figure(records).save(tmp_path, name)]

    plain = draw("a")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 40}):
        before = dict(matplotlib.rcParams)
        assert draw("a") == plain
        assert dict(matplotlib.rcParams) == before


def test_saved_files_hold_no_date_and_no_version(tmp_path, records):
    drawing = main_figure(records)
    drawing._repr_html_()  # showing it first changes nothing
    png, pdf, caption = save_figure(drawing.figure, tmp_path, "main", drawing.caption)
    with Image.open(png) as image:
        assert set(image.info) == {"Description", "dpi"} and round(image.info["dpi"][0]) == 150
    assert b"CreationDate" not in pdf.read_bytes()
    assert caption.read_text() == drawing.caption + "\n"


def test_palette_has_no_colour_twice():
    assert len(set(COLORS)) == len(COLORS)


def test_training_curve_draws_the_sum_and_its_parts():
    curve = [
        {"iteration": 10 * step, "loss": 3.0 / step, "loss_cls": 2.0 / step, "loss_box": 1.0 / step}
        for step in range(1, 5)
    ]
    (ax,) = training_figure({"base training": curve}).figure.axes
    assert [line.get_label() for line in ax.lines] == ["sum", "loss_cls", "loss_box"]
    assert ax.lines[0].get_ydata().tolist() == [3.0, 1.5, 1.0, 0.75]


def test_a_single_part_of_a_loss_is_not_drawn_over_its_sum():
    curve = [{"iteration": step, "loss": 1.0, "loss_cls": 1.0} for step in range(1, 5)]
    (ax,) = training_figure({"pretraining": curve}).figure.axes
    assert [line.get_label() for line in ax.lines] == ["loss"] and ax.get_legend() is None


def test_captions_say_what_the_arms_are(records):
    assert "missing, others stand in them" in main_figure(records).caption
    kshot = fine_tuning_record([fine_tuning_row(seed=seed) for seed in range(2)])
    assert "Arms" not in main_figure([kshot]).caption  # of real photographs nobody knows


def test_confusion_matrix_is_percent_of_the_true_class_and_survives_an_empty_one():
    drawing = confusion_figure([[3, 1], [0, 0]], ["cat", "queen"], title="tiny")
    matrix = drawing.figure.axes[0]
    np.testing.assert_allclose(matrix.collections[0].get_array().reshape(2, 2), [[75, 25], [0, 0]])
    assert [text.get_text() for text in matrix.texts] == ["75", "25", "", ""]
    assert matrix.yaxis_inverted()  # the first class on top
    assert "75.0 % of the 4 crops" in drawing.caption


def test_loss_curves_figure_draws_lines_and_markers():
    from risf_core.loss_curves import loss_curves

    hyper = {"alpha": 0.3, "beta": None, "gamma": 2.0, "epsilon": 0.5, "background_weight": 0.1}
    drawing = loss_curves_figure(loss_curves(bnrl=hyper), bnrl=hyper)
    assert "bnrl: α 0.3, β 0.7, γ 2, ε 0.5, ω_bg 0.1." in drawing.caption
    assert len(drawing.figure.axes) == 4
    assert legend_labels(drawing) == ["ce", "focal", "bnrl"]


def test_clips_figure_leaves_out_crops_made_in_other_ways():
    own, released = backbones_record(seeds=2), backbones_record(seeds=2)
    released["run_id"] += "-released"
    released["rows"] = [row | {"preprocess": "released", "crop_accuracy": 5.0} for row in released["rows"]]
    figures = [backbones_figure(records).figure for records in ([own], [own, released])]
    limits, both = ([ax.dataLim.bounds for ax in figure.axes] for figure in figures)
    assert limits == both
