"""Each known sign of failure is said where it was planted, and not where it was not."""

import pandas as pd
import pytest

from risf_core.report.crossed import WIDE
from risf_core.report.publish import headline
from risf_core.report.sweep_tables import (
    backbones_table,
    beta_omega_table,
    gamma_epsilon_table,
    sensitivity_c_table,
)
from risf_core.report.warning_edges import (
    edges_of_c,
    edges_of_rates,
    edges_of_selection,
    edges_of_temperature,
    named,
)
from risf_core.report.warning_signs import (
    LOW_ACCURACY,
    WARNING,
    bnrl_effects_below_ce,
    caption_warnings,
    headline_too_wide,
    several_processors,
    signs_of_regimes,
    warning_sentences,
    with_warnings,
)
from risf_core.tables import all_tables, gfsod_table, main_table, paired_table
from tests.synthetic_records import all_records, fine_tuning_record, fine_tuning_row, record

SEEDS = range(4)


def two_by_two(*, bnrl=0.0, rescored=6.0, spread=0.0, **more) -> list[dict]:
    """ce and bnrl, with and without CM-CLIP; bnrl's gain varies by ``spread`` over the seeds."""
    rows = []
    for seed in SEEDS:
        for loss in ("ce", "bnrl"):
            gain = (bnrl + spread * (seed - 1.5)) * (loss == "bnrl")
            for how in ("none", "cm_clip"):
                nap50 = 50.0 + seed + gain + rescored * (how == "cm_clip")
                rows.append(fine_tuning_row(seed=seed, loss=loss, rescoring=how, nAP50=nap50, **more))
    return rows


def bnrl_captions(rows) -> list[str]:
    records = [fine_tuning_record(rows)]
    tables = {
        table.name: table for table in with_warnings([paired_table(records), main_table(records)], records)
    }
    assert "below cross-entropy" not in main_table(records).caption  # its own data does not show it
    return [tables[name].caption for name in ("paired_nAP50", "main_nAP50")]


def test_bnrl_below_cross_entropy_is_said_under_both_tables_and_not_when_the_interval_holds_0():
    for caption in bnrl_captions(two_by_two(bnrl=-3.0, spread=0.2)):
        assert f"{WARNING} BNRL is below cross-entropy" in caption
        assert "bnrl − ce −3.0 ± 0.4 (split 1, fsod, kshot, re-scoring none, K=5)" in caption
    for rows in (two_by_two(bnrl=-1.0, spread=2.0), two_by_two(bnrl=3.0, spread=0.2)):
        assert not any("below cross-entropy" in caption for caption in bnrl_captions(rows))


def test_one_seed_has_no_interval_and_is_no_sign_but_underpowered():
    rows = [row for row in two_by_two(bnrl=-3.0) if row["seed"] == 0]
    (caption, _) = bnrl_captions(rows)
    assert "below cross-entropy" not in caption and "4 of 4 differences are underpowered" in caption


def test_effects_over_base_models_below_0_are_said():
    effects = pd.DataFrame(
        [
            {"effect": "bnrl - ce", "arm": "kshot", "shots": 1, "mean": -2.0, "half_width": 0.5},
            {"effect": "bnrl - ce", "arm": "kshot", "shots": 10, "mean": -0.4, "half_width": 0.5},
            {"effect": "cm_clip - none", "arm": "kshot", "shots": 1, "mean": -2.0, "half_width": 0.5},
        ]
    )
    (sign,) = bnrl_effects_below_ce(effects)
    assert "bnrl - ce −2.0 ± 0.5 (kshot, K=1)" in sign.text and "K=10" not in sign.text
    assert not bnrl_effects_below_ce(effects[1:])


def test_a_regime_where_bnrl_loses_and_a_chosen_rate_at_an_end_are_said():
    data = pd.DataFrame(
        [
            {
                "regime": regime,
                "arm": "full",
                "shots": 5,
                "rate": rate,
                "at_edge": at_edge,
                "difference": mean,
            }
            | {"difference_half_width": 1.0}
            for regime, rate, at_edge, mean in (
                ("frozen", "0.02", False, 5.0),
                ("res5", "0.02", False, -6.6),
                ("res5", "chosen", True, -0.5),
            )
        ]
    )
    below, edge = signs_of_regimes(data)
    assert "in 1 of 3 rows: −6.6 ± 1.0 (res5, full, K=5, rate 0.02)" in below.text
    assert edge.text.endswith("tried: res5, full, K=5.") and edge.tables == below.tables == ("regimes",)
    assert not signs_of_regimes(data[:1])


def gfsod(fall: float) -> list[dict]:
    rows = [
        row | {"bAP50": 80.0 + row["seed"] - fall * (row["rescoring"] == "cm_clip"), "bAP": 50.0}
        for row in two_by_two(setting="gfsod")
    ]
    return [fine_tuning_record(rows)]


def test_base_ap_that_falls_under_rescoring_is_said():
    caption = gfsod_table(gfsod(1.5)).caption
    assert (
        f"{WARNING} base AP falls under re-scoring: bAP50 −1.5 ± 0.0 (split 1, gfsod, kshot, ce, K=5)"
        in caption
    )
    assert "bAP −" not in caption  # the other metric did not fall
    assert WARNING not in gfsod_table(gfsod(0.0)).caption and WARNING not in gfsod_table(gfsod(-1.5)).caption


def c_curve(values: dict[float, float]) -> list[dict]:
    keys = {"split": 1, "arm": "kshot", "loss": "ce", "label_space": "novel+background", "shots": 5}
    rows = [keys | {"c": c, "seed": 0, "nAP50": value, "nAP": 1.0} for c, value in values.items()]
    return [record("30_ablation_c", "ablation_c", rows=rows)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({0.0: 9.0, 0.5: 8.0, 1.0: 1.0}, "c=0 (CLIP alone) in 1 of 1 curves"),
        ({0.0: 1.0, 0.5: 8.0, 1.0: 9.0}, "c=1 (no re-scoring) in 1 of 1 curves"),
        ({0.3: 9.0, 0.5: 8.0, 0.7: 1.0}, "c=0.3 (a better one may lie beyond)"),
        ({0.0: 1.0, 0.5: 8.0, 1.0: 2.0}, None),
        ({0.0: 1.0, 1.0: 2.0}, None),  # two values are both ends
    ],
)
def test_a_best_c_at_an_end_is_said(values, said):
    caption = sensitivity_c_table(c_curve(values)).caption
    assert (said in caption) if said else (WARNING not in caption)


def test_a_best_temperature_at_an_end_is_said():
    data = pd.DataFrame(
        [
            {"split": 1, "arm": "kshot", "shots": 5, "temperature": T, "c": c, "mean": mean + c}
            for T, mean in ((10.0, 5.0), (50.0, 9.0), (100.0, 7.0))
            for c in (0.3, 0.7)
        ]
    )
    assert not edges_of_temperature(data, "t")
    (sign,) = edges_of_temperature(data.assign(mean=data["temperature"]), "t")
    assert "T=100 (split 1, kshot, K=5)" in sign.text and sign.tables == ("t",)


def bnrl_map(best: tuple[float, float]) -> list[dict]:
    rows = [
        {"split": 1, "sweep": "beta_fixed_alpha", "arm": "missing", "shots": 5, "seed": 0, "alpha": 0.2}
        | {"beta": beta, "background_weight": weight, "gamma": 4.0, "epsilon": 1.0}
        | {"nAP50": 50.0 - abs(beta - best[0]) - abs(weight - best[1])}
        for beta in (0.2, 0.5, 0.8)
        for weight in (0.05, 0.2, 1.0)
    ]
    return [record("31_ablation_bnrl", "ablation_bnrl", rows=rows)]


def test_a_best_cell_at_the_edge_of_the_map_is_said():
    caption = beta_omega_table(bnrl_map((0.8, 0.2))).caption
    assert "in 1 of 1 maps: β=0.8, the largest (split 1, α fixed, missing, K=5)" in caption
    assert "ω_bg=" not in caption.split(WARNING)[1]
    assert "β=0.2, the smallest and ω_bg=1, the largest" in beta_omega_table(bnrl_map((0.2, 1.0))).caption
    assert WARNING not in beta_omega_table(bnrl_map((0.5, 0.2))).caption


def test_a_map_of_two_values_has_no_edge():
    records = all_records(seeds=2)  # epsilon takes two values, gamma three with the best at its end
    caption = gamma_epsilon_table(records).caption
    assert "γ=4, the largest" in caption and "ε=" not in caption.split(WARNING)[1]


def test_a_best_rate_at_an_end_is_said():
    data = pd.DataFrame(
        {
            "split": 2,
            "arm": "all",
            "loss": "bnrl",
            "shots": "all",
            "lr": [0.005, 0.02],
            "at_edge": [True, False],
        }
    )
    (sign,) = edges_of_rates(data)
    assert "0.005 (bnrl, split 2, all, mean over K)" in sign.text and sign.tables == ("learning_rates",)
    assert not edges_of_rates(data.assign(at_edge=False))
    several = pd.concat([data.assign(arm="kshot", shots=5), data])  # what other studies take is named first
    assert (
        "tried: 0.005 (bnrl, split 2, all, mean over K); 0.005 (bnrl, split 2, kshot"
        in edges_of_rates(several)[0].text
    )


def test_what_was_selected_at_an_end_is_said():
    combination = "novel+background, T 100, arithmetic, c={c}, no visual"
    study = record(
        "36_label_space",
        "label_space",
        params={"c": [0.3, 0.5, 0.7]},
        metrics={"vocabulary": {"a": {"source": "names"}}},
    )
    cells = pd.DataFrame(
        [{"vocabulary": "names", "arm": "kshot", "loss": "ce", "shots": 5, "what": "selected"}]
    )
    (sign,) = edges_of_selection(cells.assign(combination=combination.format(c=0.3)), [study])
    assert "c (names, kshot, ce, K=5)" in sign.text
    assert not edges_of_selection(cells.assign(combination=combination.format(c=0.5)), [study])


def backbone(accuracy: float) -> list[dict]:
    row = {
        "split": 1,
        "clip": "tiny",
        "arm": "kshot",
        "loss": "ce",
        "shots": 5,
        "tower": "tiny",
        "parameters": 1,
    }
    rows = [row | {"seed": seed, "crop_accuracy": accuracy, "nAP50": 50.0, "gain": 1.0} for seed in SEEDS]
    return [record("32_clip_backbones", "clip_backbones", rows=rows)]


def test_a_clip_that_names_few_novel_crops_right_is_said():
    caption = backbones_table(backbone(52.5)).caption
    assert f"fewer than {LOW_ACCURACY:g} % of the novel crops right" in caption and "tiny: 52.5 %" in caption
    assert WARNING not in backbones_table(backbone(LOW_ACCURACY)).caption


def test_random_weights_are_in_the_list_of_warnings():
    with_random, without = (
        fine_tuning_record(two_by_two(), clip={"path_only": random}) for random in (True, False)
    )
    assert any("random weights (path_only) in 1 runs" in text for text in warning_sentences([with_random]))
    assert not any("random weights" in text for text in warning_sentences([without]))


def test_wide_differences_are_called_underpowered_in_table_and_headline():
    narrow, wide = ([fine_tuning_record(two_by_two(bnrl=4.0, spread=spread))] for spread in (0.2, 2.0))
    assert "underpowered" not in paired_table(narrow).caption
    assert f"half-width above {WIDE:g} nAP50" in paired_table(wide).caption
    assert not headline_too_wide(headline(narrow))
    (sign,) = headline_too_wide(headline(wide))
    assert "BNRL's gain over ce, nAP50, K=5, kshot" in sign.text
    assert "CM-CLIP's gain with ce" not in sign.text  # the same for every seed
    assert sign.text.startswith("2 of 5 differences of the headline are underpowered")


def test_no_warning_is_said_twice_and_tables_without_a_sign_stay():
    records = all_records(seeds=3)
    for table in all_tables(records):
        warnings = table.caption.split(WARNING)[1:]
        assert len(set(warnings)) == len(warnings)
    cost = next(table for table in all_tables(records) if table.name == "cost")
    assert WARNING not in cost.caption


def test_the_headline_has_the_warnings_of_captions_with_their_tables():
    caption = f"Text. {WARNING} a falls by 4.9 ± 3.7 (K=5). {WARNING} b lies at the edge."
    assert caption_warnings(caption) == ["a falls by 4.9 ± 3.7 (K=5).", "b lies at the edge."]
    texts = warning_sentences([fine_tuning_record(two_by_two(bnrl=-3.0, spread=0.2)), *backbone(52.5)])
    assert any(text.startswith("BNRL is below") and text.endswith("(table paired_nAP50).") for text in texts)
    assert any("tiny: 52.5 % (table backbones)." in text for text in texts)


def test_a_profile_without_signs_has_no_sentence():
    rows = two_by_two(bnrl=2.0)
    assert warning_sentences([fine_tuning_record(rows)]) == []


def test_long_lists_are_cut_and_counted():
    assert named("abcdef") == "a; b; c; d; and 2 more" and named("abab") == "a; b"


def test_records_of_several_kinds_of_processors_are_told(tmp_path):
    def made_on(device, name):
        return {"run_id": name, "params": {"base": "b"}, "rows": [], "environment": {"device": device}}

    one, other = made_on("EPYC", "a"), made_on("Xeon", "b")
    assert not several_processors([one, made_on("EPYC", "c")])
    (sign,) = several_processors([one, other])
    assert "1 on EPYC, 1 on Xeon" in sign.text and "another base model" in sign.text


def test_a_learned_temperature_is_named_and_has_no_place_among_numbers():
    keys = {"split": 1, "arm": "kshot", "loss": "ce", "label_space": "novel+background", "shots": 5}
    rows = [
        keys | {"temperature": temperature, "c": c, "mean": 50.0 - 10 * c + bonus}
        for temperature, bonus in (("10.0", 0), ("100.0", 1), ("1000.0", 2), ("learned", 9))
        for c in (0.0, 0.5, 1.0)
    ]
    data = pd.DataFrame(rows)
    (sign,) = edges_of_temperature(data, "t")
    assert "T=1000 (" in sign.text and "learned" not in sign.text
    (sign,) = edges_of_c(data, "t")
    assert "temperature learned" in sign.text
