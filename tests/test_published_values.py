"""Published values: which panel shows which, and that each number is said alike wherever it stands."""

import re

import pytest

from risf_core.figures import main_figure
from risf_core.report.literature import literature
from risf_core.report.published_values import LINES, lines_note, published_lines
from tests.synthetic_records import fine_tuning_row, record


def made(profile: str, *, shots=(1, 10), split=1, arms=("kshot",), setting="fsod") -> list[dict]:
    rows = [
        fine_tuning_row(shots=k, seed=seed, rescoring=rescoring, split=split, arm=arm, setting=setting)
        for k in shots
        for seed in (0, 1)
        for rescoring in ("none", "cm_clip")
        for arm in arms
    ]
    return [record("20_fine_tuning", f"made-{split}", params={"profile": profile}, rows=rows)]


def lines_of(drawing) -> dict[str, list[float]]:
    """The published lines of the first panel: name to values."""
    found = {line.get_label(): line for line in drawing.figure.axes[0].get_lines()}
    return {
        name: line.get_ydata().tolist() for name, line in found.items() if str(name).endswith("(published)")
    }


def test_coco_shows_risf_and_defrcn_at_the_k_of_the_records():
    drawing = main_figure(made("coco"), metric="nAP")
    assert lines_of(drawing) == {"RISF (published)": [11.7, 21.9], "DeFRCN (published)": [9.3, 18.5]}
    for line in LINES[:2]:
        assert line.source in drawing.caption


def test_voc_shows_the_split_of_the_panel():
    assert lines_of(main_figure(made("voc", split=2), metric="nAP50")) == {"DeFRCN (published)": [30.1, 47.9]}


@pytest.mark.parametrize(
    "records, metric",
    [
        (made("mini"), "nAP"),
        (made("photos"), "nAP"),
        (made("coco"), "nAP50"),  # no source prints it
        (made("voc"), "nAP"),
        (made("coco", shots=(4,)), "nAP"),
    ],
)
def test_nothing_is_compared_with_another_protocol(records, metric):
    drawing = main_figure(records, metric=metric)
    assert lines_of(drawing) == {} and "published values" not in drawing.caption


def test_other_arms_and_mixed_profiles_have_no_reference():
    options = {"metric": "nAP", "setting": "fsod", "split": 1}
    assert published_lines(made("coco"), arm="clean", **options) == []
    assert published_lines([*made("coco"), *made("mini", split=3)], arm="kshot", **options) == []
    assert [line.values[30] for line in published_lines(made("coco"), arm="kshot", **options)] == [24.4, 22.6]
    gfsod = published_lines(made("coco"), arm="kshot", **{**options, "setting": "gfsod"})
    assert [line.values[10] for line in gfsod] == [16.8] and lines_note([]) == ""


def test_numbers_agree_with_those_that_texts_name():
    """results/published/literature.yaml has some of them, for the README and the claims."""
    checked = 0
    for name, entry in literature().items():
        found = re.fullmatch(r"(risf|defrcn)-coco-(\d+)shot", name)
        if found:
            (line,) = [one for one in LINES[:2] if one.system.lower() == found[1] and one.profile == "coco"]
            assert (line.values[int(found[2])], line.source) == (entry.value, entry.source)
            checked += 1
    assert checked == 6
