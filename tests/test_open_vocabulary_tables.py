"""The tables, figures and headline numbers of 50_open_vocabulary, from made records with hand-worked numbers."""

import json
import math
from dataclasses import replace

import pytest
from PIL import Image

from risf_core.errors import RecordError
from risf_core.report.literature import literature, published
from risf_core.report.open_vocabulary_controls import (
    EXPECTATIONS,
    HIGHER,
    LOWER,
    NO,
    NO_GAIN,
    SWAPPED,
    UNCLEAR,
    YES,
    answer_of,
    expectation_cells,
    expectations_table,
)
from risf_core.report.open_vocabulary_figures import arms_figure, open_vocabulary_figures
from risf_core.report.open_vocabulary_numbers import open_vocabulary_numbers
from risf_core.report.open_vocabulary_pictures import (
    best_of_each_place,
    novel_gallery,
    novel_gallery_figure,
)
from risf_core.report.open_vocabulary_rows import ARMS, arm_cells, arm_rows
from risf_core.report.open_vocabulary_tables import (
    fidelity_table,
    frequency_table,
    ils_table,
    main_arms_table,
    open_vocabulary_tables,
    providers_table,
    rkd_table,
    swap_table,
    teacher_table,
    transfer_table,
)
from risf_core.report.open_vocabulary_texts import share_text
from risf_core.report.publish import headline, headline_text, interval_note
from risf_core.report.readme_blocks import NOT_PUBLISHED, second_system
from risf_core.report.selection import is_asked_for, tables_of
from risf_core.report.study_numbers import study_numbers
from risf_core.tables import all_tables
from tests.open_vocabulary_records import arm_row, open_vocabulary_record, open_vocabulary_records
from tests.synthetic_records import record
from tests.test_evaluation import BOX, FAR, OTHER, data_of, detections_of, image

T95_TWO_DEGREES = 4.3027  # Student's t at 97.5 % with two degrees of freedom, so n = 3 (any table of t)


def made(*rows: dict, name: str = "open_vocabulary-made", **params) -> dict:
    """A record with these rows of arms."""
    return record("50_open_vocabulary", name, params={"split": 1} | params, rows=rows)


def of_values(values: dict[str, tuple[float, ...]], **fixed) -> list[dict]:
    """One record a seed; each arm has the nAP50 of its tuple at the seed's place."""
    seeds = range(max(map(len, values.values())))
    return [
        made(
            *(arm_row(arm, seed, nAP50=own[seed], **fixed) for arm, own in values.items()), name=f"run{seed}"
        )
        for seed in seeds
    ]


# ------------------------------------------------------------ cells


def test_a_gain_is_paired_with_the_base_trained_for_as_many_steps():
    records = of_values({"base_continued": (3.0, 5.0, 4.0), "rkd_rpn": (20.0, 24.0, 20.0)})
    cells = arm_cells(records, ("base_continued", "rkd_rpn"))
    reference, row = cells.iloc[0], cells.iloc[1]
    assert (reference["against"], row["against"], row["is_matched"]) == ("", "base_continued", True)
    assert row["nAP50_difference"] == pytest.approx((17 + 19 + 16) / 3) and row["nAP50_up"] == 3
    deviation = math.sqrt(sum((gain - 52 / 3) ** 2 for gain in (17, 19, 16)) / 2)
    half_width = T95_TWO_DEGREES * deviation / math.sqrt(3)
    assert row["nAP50_difference_half_width"] == pytest.approx(half_width, rel=1e-4)


def test_weight_transfer_is_set_against_the_base_of_two_stages():
    records = open_vocabulary_records(3)
    cells = arm_cells(records).set_index("arm")
    assert (
        cells.loc["weight_transfer", "against"] == "base_twice"
        and cells.loc["naive", "against"] == "base_continued"
    )
    assert cells.loc[
        list(cells.index.difference(["base", "base_continued", "base_twice"])), "is_matched"
    ].all()
    without = open_vocabulary_records(3, arms=("base", "base_continued", "weight_transfer"))
    assert arm_cells(without).set_index("arm").loc["weight_transfer", "against"] == ""
    assert "–" in set(main_arms_table(without).display["nAP50 − matched base"])


def test_steps_count_with_those_of_the_start_and_another_number_is_said():
    settings = {"settings": {"start": "rkd_rpn"}}
    rows = [arm_row("base"), arm_row("base_continued"), arm_row("rkd_rpn"), arm_row("naive", **settings)]
    steps = arm_rows([made(*rows)]).set_index("arm")["total_iterations"]
    assert steps.to_dict() == {"base": 0, "base_continued": 600, "rkd_rpn": 600, "naive": 1200}
    table = main_arms_table([made(*rows)]).display.set_index("arm")["matched base"]
    assert table["RKD, RPN boxes, L1 + relations"] == "base, trained on"
    assert table["RKD + ILS, one head (naive)"] == "base, trained on (other number of steps!)"
    assert arm_rows([made(arm_row("naive", **settings))])["total_iterations"].isna().all()


def test_arms_stand_in_their_own_order_and_unknown_ones_last():
    rows = [arm_row(name) for name in reversed(ARMS)]
    frame = arm_rows([made({**arm_row("cone"), "arm": "my_arm"}, *rows)])
    assert list(frame["arm"]) == [*ARMS, "my_arm"]


def test_runs_with_other_parameters_do_not_mix():
    main = open_vocabulary_records(2, arms=("base_continued", "rkd_rpn"), rkd={"relation": 15.0})
    other = made(
        arm_row("base_continued", 0),
        arm_row("rkd_rpn", 0, nAP50=50.0),
        name="z",
        seed=0,
        rkd={"relation": 1.0},
    )
    cells = arm_cells([*main, other], ("rkd_rpn",))
    assert list(cells["variant"]) == ["", "rkd.relation=1.0"] and list(cells["n"]) == [2, 1]
    assert [row for row in open_vocabulary_numbers([*main, other]) if row[2] > 2] == []


def test_controls_in_a_run_of_their_own_are_paired_with_the_base_of_the_same_seed():
    arms = ("base_continued", "rkd_rpn")
    runs = open_vocabulary_records(2, arms=arms, swapped=["rkd_rpn"], kept=["rkd_rpn"])
    control = [
        made(arm_row("rkd_shuffled", seed), name=f"c{seed}", seed=seed, swapped=[]) for seed in range(2)
    ]
    (row,) = arm_cells([*runs, *control], ("rkd_shuffled",)).to_dict("records")
    assert (row["variant"], row["against"], row["nAP50_difference_n"]) == ("", "base_continued", 2)


def test_rows_that_lack_a_key_or_contradict_each_other_are_refused():
    with pytest.raises(RecordError, match="has no field seed"):
        arm_rows([made({"part": "arm", "split": 1, "arm": "base"})])
    with pytest.raises(RecordError, match="Expected one value"):
        arm_rows([made(arm_row("base"), name="a"), made(arm_row("base", nAP50=9.0), name="b")])


def test_shares_have_two_decimals():
    assert share_text(0.456, 0.012) == "0.46 ± 0.01"
    assert share_text(-0.2, math.nan, sign=True) == "−0.20, no interval" and share_text(math.nan, 0.1) == "–"


# ------------------------------------------------------------ tables


def test_the_main_table_has_the_papers_numbers_in_columns_of_their_own():
    table = main_arms_table(open_vocabulary_records(3))
    rows = table.data.set_index("arm")
    papers = {"base": (1.7, 53.2, 39.6), "rkd_rpn": (21.2, 54.7, 45.9), "ils_max_score": (30.4, 52.6, 46.8)}
    papers |= {"naive": (31.5, 52.8, 47.2), "weight_transfer": (36.6, 54.0, 49.4)}
    assert set(rows.index[rows["novel_published"].notna()]) == papers.keys()
    for arm, values in papers.items():
        assert tuple(rows.loc[arm, [f"{group}_published" for group in ("novel", "base", "all")]]) == values
        assert (48 * values[1] + 17 * values[0]) / 65 == pytest.approx(
            values[2], abs=0.15
        )  # as AP50 of all is made
    assert rows.loc["base_twice", "novel_published"] is None or math.isnan(
        rows.loc["base_twice", "novel_published"]
    )
    assert (
        "another world" in table.caption and "https://github.com/hanoonaR/object-centric-ovd" in table.caption
    )


def test_users_files_have_their_own_world_and_lvis_no_published_number_beside_it():
    arms = ("base", "base_continued", "rkd_external", "ils_external")
    coco = main_arms_table(open_vocabulary_records(1, arms=arms, files={"kind": "coco_ovd"}))
    assert list(coco.data["arm"]) == list(arms) and "pictograms" not in coco.caption
    assert coco.data.set_index("arm").loc["rkd_external", "novel_published"] == 21.2
    rows = [
        arm_row(arm, APr=value, APc=20.0, APf=25.0)
        for arm, value in (("base_continued", 9.0), ("naive", 12.0))
    ]
    lvis = [made(*rows, files={"kind": "lvis_ovd"})]
    assert not [name for name in main_arms_table(lvis).data if "published" in name]
    assert "mask AP" in main_arms_table(lvis).caption and "paper, novel" not in main_arms_table(lvis).display
    table = frequency_table(lvis).data.set_index("arm")
    assert (
        table.loc["naive", "APr_difference"] == 3.0
        and len(frequency_table(open_vocabulary_records(1)).data) == 0
    )


def test_relation_matching_is_set_against_l1_alone_and_oracle_boxes_stand_apart():
    table = rkd_table(open_vocabulary_records(3))
    names = ["RPN", "objectness", "external without novel boxes", "external"]
    assert list(table.display["regions"]) == [*(name for name in names for _ in range(2)), "ORACLE boxes"]
    adds = table.data.set_index("arm")["relations_difference"]
    own = arm_cells(open_vocabulary_records(3), metrics=("nAP50",), differences=()).set_index("arm")["nAP50"]
    for name in [name for name in own.index if f"{name}_l1" in own.index]:
        assert adds[name] == pytest.approx(own[name] - own[f"{name}_l1"])
    assert adds.notna().sum() == 4 and math.isnan(adds["rkd_oracle"])
    assert "ORACLE boxes are annotated boxes, jittered, some left out" in table.caption


def test_oracle_boxes_are_told_with_their_noise_and_are_no_bound():
    records = open_vocabulary_records(2, jitter=0.1, miss=0.05)
    for caption in (rkd_table(records).caption, ils_table(records).caption, arms_figure(records).caption):
        assert "each corner moved by up to 10 % of the side, 5 % of them left out: no result" in caption
        assert "no bound" in caption and "a bound," not in caption


def test_what_a_provider_may_have_seen_is_shown():
    rows = [arm_row("base_continued"), arm_row("rkd_external", sees_novel="unknown", provider="external")]
    assert list(rkd_table([made(*rows)]).display["sees novel"]) == ["unknown"]
    providers = providers_table(open_vocabulary_records(2)).display
    assert list(providers["regions of"]) == ["RPN", "objectness", "external"]
    assert list(providers["sees novel"]) == ["no", "no", "yes"]


def test_image_level_supervision_shows_the_recall_of_novel_objects():
    rows = [
        arm_row("base_continued", recall_novel_at_100=80.0),
        arm_row("ils_max_size", recall_novel_at_100=83.0),
    ]
    cells = ils_table([made(*rows)]).data.set_index("arm")
    assert cells.loc["ils_max_size", "recall_novel_at_100_difference"] == 3.0
    assert (
        set(ils_table(open_vocabulary_records(2)).data["arm"]) & {"ils_permuted", "ils_base_labels"} == set()
    )


@pytest.mark.parametrize("recall, is_near", [(99.0, True), (88.0, False)])
def test_a_recall_that_can_hardly_rise_is_said(recall, is_near):
    rows = [
        arm_row("base_continued", recall_novel_at_100=100.0),
        arm_row("ils_max_size", recall_novel_at_100=recall),
    ]
    assert ("it can show harm only" in ils_table([made(*rows)]).caption) == is_near


def test_the_controls_of_weight_transfer_are_set_against_it():
    cells = transfer_table(open_vocabulary_records(3)).data.set_index("arm")
    assert cells.loc["weight_transfer", "against"] == "" and set(
        cells["against"].drop("weight_transfer")
    ) == {"weight_transfer"}
    level = cells["nAP50"]
    assert cells.loc["wt_free", "nAP50_difference"] == pytest.approx(
        level["wt_free"] - level["weight_transfer"]
    )


def test_heads_that_start_anew_are_told_from_trained_ones():
    table = transfer_table(open_vocabulary_records(2))
    starts = dict(zip(table.data["arm"], table.display["head starts"]))
    fresh = {arm for arm, start in starts.items() if start == "fresh"}
    assert fresh == {"weight_transfer", "wt_free", "wt_random_source"}
    assert {starts[arm] for arm in starts.keys() - fresh} == {"trained"} and len(starts) == 8
    assert "has 600 steps" in table.caption and "compare within these groups" in table.caption


def test_the_teacher_is_the_first_row_of_the_fidelity_of_each_split():
    records = [*open_vocabulary_records(2), open_vocabulary_record(0, split=2)]
    table = fidelity_table(records)
    assert list(table.data.groupby("split")["arm"].first()) == ["teacher", "teacher"]
    assert (
        list(table.display["arm"][:1]) == ["CLIP itself (ceiling)"] and table.data["cka_novel"].iloc[0] != 0.0
    )
    cells = table.data.set_index(["split", "arm"])
    assert cells.loc[(1, "teacher"), "zero_shot_novel"] == 97.0 and math.isnan(
        cells.loc[(1, "teacher"), "cosine_novel"]
    )
    assert teacher_table(records).data["text_cosine_mean"].tolist() == [0.31, 0.31]
    assert "annotated boxes of test images by" in table.caption
    known = fidelity_table(open_vocabulary_records(1, num_fidelity_images=70)).caption
    assert "the annotated boxes of the first 70 test images (all seeds share them)" in known


def test_swapped_worlds_and_names_are_set_against_their_own():
    cells = swap_table(open_vocabulary_records(3)).data.set_index(["renderer", "vocabulary"])
    assert list(cells.index) == [
        ("own", "own"),
        ("own", "all"),
        ("own", "permuted"),
        ("other palette", "own"),
    ]
    own = arm_cells(open_vocabulary_records(3), ("rkd_rpn",))["nAP50"].iloc[0]
    assert cells.loc[("own", "own"), "nAP50"] == own and cells.loc[("own", "own"), "against"] == ""
    assert cells.loc[("other palette", "own"), "nAP50_difference"] == pytest.approx(-3.0)
    assert cells.loc[("own", "permuted"), "nAP50"] == pytest.approx(0.4)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_seed_says_that_it_has_no_interval(seeds):
    tables = {table.name: table for table in open_vocabulary_tables(open_vocabulary_records(seeds))}
    empty = [name for name, table in tables.items() if table.data.empty]
    assert len(tables) == 11 and empty == ["open_vocabulary_lvis"]
    del tables["open_vocabulary_lvis"]
    says = {name: "n = 1 seed" in table.caption for name, table in tables.items() if "cost" not in name}
    assert set(says.values()) == {seeds == 1}
    texts = tables["open_vocabulary_main"].display.astype(str).to_numpy().ravel()
    assert any("no interval" in text for text in texts) == (seeds == 1)
    answers = set(tables["open_vocabulary_controls"].data["answer"])
    assert answers == {UNCLEAR} if seeds == 1 else YES in answers and LOWER in answers


# ------------------------------------------------------------ controls


def test_the_answer_follows_from_the_interval_alone():
    assert [answer_of(2.0, 1.0), answer_of(-2.0, 1.0), answer_of(0.5, 1.0)] == [YES, NO, UNCLEAR]
    assert answer_of(1.0, 1.0) == UNCLEAR  # 0 belongs to the interval
    assert [answer_of(2.0, 1.0, is_test=False), answer_of(-2.0, 1.0, is_test=False)] == [HIGHER, LOWER]
    assert answer_of(5.0, math.nan) == UNCLEAR


@pytest.mark.parametrize(
    "shuffled, answer",
    [((4.0, 4.1, 4.2), YES), ((12.0, 12.1, 12.2), NO), ((6.0, 12.0, 3.0), UNCLEAR)],
)
def test_a_control_gains_nothing_if_it_gains_less_than_a_quarter_of_the_real_arm(shuffled, answer):
    values = {"base_continued": (3.0, 3.1, 3.2), "rkd_rpn": (23.0, 23.1, 23.2), "rkd_shuffled": shuffled}
    (row,) = expectation_cells(of_values(values)).to_dict("records")
    assert row["control"] == "rkd_shuffled" and row["answer"] == answer
    gain = sum(shuffled) / 3 - 3.1
    assert row["margin"] == pytest.approx(NO_GAIN * 20.0 - gain) and row["compared_value"] == pytest.approx(
        8.1
    )


def test_relations_beside_classification_must_have_a_high_cka_and_no_more_accuracy_than_the_base():
    cells = expectation_cells(open_vocabulary_records(3))
    rows = cells[cells["control"] == "relation_only"].set_index("metric")
    assert list(rows["answer"]) == [YES, YES, YES] and list(rows.index) == [
        "cka_novel",
        "zero_shot_novel",
        "nAP50",
    ]
    good = [arm_row("relation_only", seed, zero_shot_novel=60.0 + seed) for seed in range(3)]
    others = [
        {**one, "rows": [row for row in one["rows"] if row.get("arm") != "relation_only"] + [good[seed]]}
        for seed, one in enumerate(open_vocabulary_records(3))
    ]
    cells = expectation_cells(others)
    assert cells.set_index(["control", "metric"]).loc[("relation_only", "zero_shot_novel"), "answer"] == NO


@pytest.mark.parametrize("accuracy, answer", [(29.0, YES), (31.0, NO)])
def test_the_level_of_relations_beside_classification_is_the_base_and_not_chance(accuracy, answer):
    """A quarter of the way from the base's 20 to RKD's 60 is 30; chance, 5, plays no part."""
    known = {"base_continued": 20.0, "rkd_rpn": 60.0, "relation_only": accuracy}
    runs = [
        made(*(arm_row(arm, seed, zero_shot_novel=value) for arm, value in known.items()), name=f"run{seed}")
        for seed in range(3)
    ]
    (row,) = [one for one in expectation_cells(runs).to_dict("records") if one["metric"] == "zero_shot_novel"]
    assert (row["control"], row["answer"], row["compared_value"]) == ("relation_only", answer, 30.0)
    assert row["margin"] == pytest.approx(30.0 - accuracy)


@pytest.mark.parametrize(
    "kept, shuffled, text",
    [
        (70.0, 4.0, "yes"),  # exactly 10 points are no collapse
        (69.9, 4.0, "yes, but base AP collapses"),
        (30.0, 12.0, "no; base AP collapses"),
    ],
)
def test_a_control_that_lost_its_base_classes_says_so_beside_its_answer(kept, shuffled, text):
    values = {"base_continued": (3.0, 80.0), "rkd_rpn": (23.0, 5.0), "rkd_shuffled": (shuffled, kept)}
    runs = [
        made(
            *(arm_row(arm, seed, nAP50=nap + seed, bAP50=bap) for arm, (nap, bap) in values.items()),
            name=f"run{seed}",
        )
        for seed in range(3)
    ]
    table = expectations_table(runs)
    assert list(table.display["does it?"]) == [text]
    assert list(table.display["bAP50 (%)"]) == [f"{kept:.1f} ± 0.0"]
    up = f"+{shuffled - 3:.1f} ± 0.0 (3/3 up)"
    assert list(table.display["nAP50 − matched base"]) == [up]
    (margin,) = [row[1] for row in open_vocabulary_numbers(runs) if "shuffled" in row[0]]
    assert margin.endswith(f"({text})")


def test_controls_without_a_base_or_a_detector_of_their_own_have_no_difference():
    records = open_vocabulary_records(3)
    table = expectations_table(records)
    swapped = table.display[table.data["control"] == SWAPPED]
    assert list(swapped["nAP50 − matched base"]) == list(swapped["bAP50 (%)"]) == ["–"]
    alone = open_vocabulary_records(3, arms=("relation_alone", "points_alone"))
    table = expectations_table(alone)
    alone = table.display[table.data["control"] == "relation_alone"]
    assert set(alone["nAP50 − matched base"]) == {"–"} and len(alone) == 3
    assert set(alone["does it?"]) == {YES} and not alone["bAP50 (%)"].str.contains("–").any()


def test_relations_alone_stand_in_the_headline_though_their_runs_have_a_stage_0_of_their_own():
    main = open_vocabulary_records(3, arms=("base_continued", "rkd_rpn"), stage0={"iterations": 300})
    alone = [
        made(
            *(arm_row(arm, seed) for arm in ("relation_alone", "points_alone")),
            *(row for row in open_vocabulary_record(seed)["rows"] if row["part"] == "teacher"),
            name=f"alone{seed}",
            seed=seed,
            stage0={"iterations": 1},
        )
        for seed in range(2)
    ]
    cells = expectation_cells([*main, *alone])
    assert set(cells.loc[cells["control"] == "relation_alone", "variant"]) == {"stage0.iterations=1"}
    names = [row[0] for row in open_vocabulary_numbers([*main, *alone])]
    assert len([name for name in names if name.startswith("relations alone, fresh f")]) == 3


def test_the_cone_is_set_against_the_base_trained_on():
    cells = expectation_cells(open_vocabulary_records(3, arms=("base_continued", "rkd_rpn", "cone")))
    rows = cells[cells["control"] == "cone"]
    assert "base, trained on" in set(rows["compared"]) and set(rows["against"]) == {"base_continued"}
    assert ARMS["cone_base"].reference == "base_continued"


def test_permuted_names_must_leave_little():
    cells = expectation_cells(open_vocabulary_records(3)).set_index("control")
    assert cells.loc[SWAPPED, "answer"] == YES and cells.loc[SWAPPED, "value"] == pytest.approx(0.5)
    own = arm_cells(open_vocabulary_records(3), ("rkd_rpn",))["AP50"].iloc[0]
    assert cells.loc[SWAPPED, "compared_value"] == pytest.approx(NO_GAIN * own)


def test_relations_alone_must_be_like_and_know_no_names():
    cells = expectation_cells(open_vocabulary_records(3))
    rows = cells[cells["control"] == "relation_alone"].set_index("metric")
    assert list(rows.index) == ["cka_novel", "zero_shot_novel", "zero_shot_base"]
    assert set(rows["answer"]) == {YES}
    aligned = [
        arm_row("relation_alone", seed, zero_shot_novel=55.0, zero_shot_base=80.0) for seed in range(3)
    ]
    others = [
        {**one, "rows": [row for row in one["rows"] if row.get("arm") != "relation_alone"] + [aligned[seed]]}
        for seed, one in enumerate(open_vocabulary_records(3))
    ]
    again = expectation_cells(others)
    rows = again[again["control"] == "relation_alone"].set_index("metric")
    assert list(rows["answer"]) == [YES, NO, NO]


def test_every_expectation_names_known_arms_and_its_own_number():
    for one in EXPECTATIONS:
        sources = {source for _, source, _ in one.terms}
        assert sources - ARMS.keys() <= {"teacher", SWAPPED, "names as they are"}
        assert (one.control, one.metric) in {(source, metric) for _, source, metric in one.terms}
    told = expectations_table(open_vocabulary_records(3)).display
    assert set(told.loc[told["must show"] == "(nothing expected)", "does it?"]) <= {HIGHER, LOWER, UNCLEAR}


# ------------------------------------------------------------ where they go


def test_tables_and_figures_are_those_of_the_profile():
    records = open_vocabulary_records(3)
    names = [table.name for table in open_vocabulary_tables([])]
    assert {table.name for table in all_tables([])} >= set(names)
    found = {table.name: table for table in tables_of(records)}
    assert {*names} - {"open_vocabulary_lvis"} <= found.keys() and len(
        found["open_vocabulary_main"].data
    ) == 7
    assert open_vocabulary_figures([]).keys() <= set(names)
    assert arms_figure(records).png() == arms_figure(list(reversed(records))).png()
    assert "No record" in open_vocabulary_figures([])["open_vocabulary_fidelity"].caption


def test_a_planned_run_without_a_record_is_shown_as_missing():
    class Spec:
        class params:
            notebook = "50_open_vocabulary"

    assert is_asked_for("open_vocabulary_main", [], [Spec])
    assert not is_asked_for("open_vocabulary_main", open_vocabulary_records(1), [Spec])


def test_the_headline_holds_the_gains_and_the_controls():
    rows = study_numbers(open_vocabulary_records(3))
    by_name = {row[0]: row for row in rows}
    gain = by_name["RKD, RPN boxes, L1 + relations: gain over base, trained on, nAP50"]
    cells = arm_cells(open_vocabulary_records(3), ("rkd_rpn",)).iloc[0]
    assert gain[5:] == (cells["nAP50_difference"], cells["nAP50_difference_half_width"]) and gain[2] == 3
    assert any("weight transfer: gain over base, trained on twice" in name for name in by_name)
    assert any("highest class score: gain over base, trained on, nAP50" in name for name in by_name)
    name = "relations without L1, beside classification, cka_novel"
    (margin,) = [row for own, row in by_name.items() if name in own]
    assert margin[1].endswith("(yes)") and margin[5] > margin[6] > 0
    assert len({row[0] for row in rows}) == len(rows) == len(headline(open_vocabulary_records(3)))
    assert study_numbers([]) == []


def test_the_headline_says_that_seeds_of_open_vocabulary_detection_are_no_few_shot_draws(tmp_path):
    assert "each have their own base detector" in interval_note(open_vocabulary_records(1))
    assert "own base detector" not in interval_note([])
    folder = tmp_path / "mini-full"
    (folder / "records").mkdir(parents=True)
    one = open_vocabulary_records(1, arms=("base_continued", "rkd_rpn"))[0]
    (folder / "records" / f"{one['run_id']}.json").write_text(json.dumps(one))
    assert "Of 50_open_vocabulary, n counts seeds that each have their own base" in headline_text(folder)


def test_the_papers_numbers_are_at_hand_in_a_project_without_their_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    literature.cache_clear()
    assert published("rkd-coco-wt-novel").value == 36.6
    literature.cache_clear()


def test_the_readme_takes_the_profile_with_most_seeds_and_the_few_telling_numbers(tmp_path):
    assert second_system(tmp_path) == NOT_PUBLISHED
    for profile, seeds in (("ovd", 1), ("mini-full", 3)):
        folder = tmp_path / "results" / "published" / profile / "records"
        folder.mkdir(parents=True)
        for one in open_vocabulary_records(seeds):
            (folder / f"{one['run_id']}.json").write_text(json.dumps(one))
        text = second_system(tmp_path)
        assert f"results/published/{profile}/" in text
        assert ("no interval" in text) == (seeds == 1)
    (line,) = [
        one
        for one in text.splitlines()
        if one.startswith("| RKD, RPN boxes, L1 + relations: gain over base,")
    ]
    gain = arm_cells(open_vocabulary_records(3), ("rkd_rpn",)).iloc[0]
    assert (
        f"+{gain['nAP50_difference']:.1f} ± {gain['nAP50_difference_half_width']:.1f} (3/3 up) | 3 |" in line
    )
    assert "shuffled" in text and "relations alone" in text and "bAP50" not in text


# ------------------------------------------------------------ gallery


def _store(folder, **found):
    for name, detections in found.items():
        detections.save(folder / f"{name}.npz")


def test_the_gallery_takes_the_images_of_novel_objects_that_change_most(tmp_path):
    data = data_of(
        image(1, [(BOX, 0), (OTHER, 1)]), image(2, [(BOX, 0)]), image(3, [(OTHER, 1)]), image(4, [(BOX, 0)])
    )
    others = [(1, OTHER, 1, 0.9), (3, OTHER, 1, 0.8)]  # of a base class: they change nothing
    wrong = detections_of((1, BOX, 0, 0.3), (2, FAR, 0, 0.8), (4, BOX, 0, 0.5), *others)
    right = detections_of((1, BOX, 0, 0.3), (2, BOX, 0, 0.8), (3, FAR, 0, 0.5), (4, FAR, 0, 0.6))
    _store(tmp_path, base_continued=wrong, weight_transfer=right)
    gallery = novel_gallery(tmp_path, data, [data.class_names[0]])
    assert list(gallery.found) == ["base_continued", "weight_transfer"]
    assert [one.image_id for one in gallery.gains] == [2] and gallery.gains[0].change == pytest.approx(2.0)
    assert [one.image_id for one in gallery.losses] == [4]  # not 3, which shows none of them


def test_the_best_name_of_each_place_is_drawn():
    near = [12, 10, 32, 30]  # IoU 0.82 with BOX
    found = detections_of((1, BOX, 0, 0.9), (1, near, 1, 0.8), (1, OTHER, 1, 0.7), (1, near, 2, 0.6))
    assert best_of_each_place(found).scores.tolist() == pytest.approx([0.9, 0.7])


def test_the_gallery_falls_back_to_the_base_and_says_if_it_has_nothing_to_show(tmp_path):
    data, found = data_of(image(1, [(BOX, 0)])), detections_of((1, BOX, 0, 0.3))
    _store(tmp_path, rkd_rpn=found)
    assert novel_gallery(tmp_path, data, [data.class_names[0]]) is None
    assert "no gallery" in novel_gallery_figure(None).caption
    _store(tmp_path, base=found)
    gallery = novel_gallery(tmp_path, data, [data.class_names[0]])
    assert list(gallery.found) == ["base", "rkd_rpn"]
    assert "differ on no image" in novel_gallery_figure(gallery).caption


def test_the_gallery_draws_every_arm_on_every_chosen_image(tmp_path):
    Image.new("RGB", (60, 60), (90, 120, 90)).save(tmp_path / "one.png")
    data = data_of(image(1, [(BOX, 0)]), image(2, [(OTHER, 0)]))
    images = tuple(replace(record, path=tmp_path / "one.png") for record in data.images)
    data = replace(data, images=images)
    _store(tmp_path, base_continued=detections_of((2, BOX, 0, 0.9)), rkd_rpn=detections_of((1, BOX, 0, 0.9)))
    drawing = novel_gallery_figure(novel_gallery(tmp_path, data, [data.class_names[0]]))
    assert len(drawing.figure.axes) == 2 * 2 and drawing.png().startswith(b"\x89PNG")
    assert drawing.figure.axes[0].get_title().startswith("image 1: +0.50")
    assert "the 2 images with the largest gains and the 0 with" in drawing.caption
    assert "above a score of 0.3" in drawing.caption


def test_figures_leave_a_study_of_another_stage_0_to_the_tables():
    from risf_core.report.open_vocabulary_figures import _of_most_runs

    records = open_vocabulary_records(2, arms=("base", "base_continued", "rkd_rpn"))
    other = [
        open_vocabulary_record(seed, arms=("relation_alone",), stage0={"iterations": 1}) for seed in range(2)
    ]
    for one in records:
        one["params"]["stage0"] = {"iterations": 300}
    for one in other:
        one["rows"] = [row for row in one["rows"] if row["part"] == "arm"]
        one["run_id"] += "-alone"
    rows = arm_rows([*records, *other])
    assert set(rows["variant"]) != {""} and "relation_alone" in set(rows["arm"])
    assert set(_of_most_runs(rows)["arm"]) == {"base", "base_continued", "rkd_rpn"}
    assert len(_of_most_runs(arm_rows(other))) == 2
