"""Tables of several base models from made-up records with known effects."""

import math
from pathlib import Path

import numpy as np
import pytest

from risf_core.errors import RecordError
from risf_core.report.base_models import base_labels, bases_of_backbones, has_several_bases, of_one_base
from risf_core.report.crossed import crossed_interval
from risf_core.report.crossed_numbers import crossed_numbers
from risf_core.report.crossed_rows import all_effects, best_rates, crossed_rows
from risf_core.report.crossed_tables import (
    base_model_cells,
    claims_effects_table,
    claims_levels_table,
    clip_cells,
    component_cells,
    crossed_tables,
    effect_cells,
    level_cells,
)
from risf_core.report.publish import headline, load_records, planned_runs
from risf_core.report.selection import tables_of
from risf_core.report.statistics import notebook_of
from tests.crossed_records import (
    BEST_RATES,
    GAIN,
    LOSS_EFFECT,
    SECOND_MORE,
    crossed_records,
    second_clip,
    tuned,
)
from tests.synthetic_records import all_records, record


@pytest.fixture(scope="module")
def records():
    return crossed_records(seeds=4)


@pytest.fixture(scope="module")
def exact():
    """Effects without noise; levels vary with split, base model and draw."""
    return crossed_records(seeds=3, is_exact=True)


@pytest.fixture(scope="module")
def effects(records):
    return all_effects(records)


@pytest.fixture(scope="module")
def cells(records, effects):
    return effect_cells(records, effects=effects)


def one(cells, **where):
    """The one row with these values."""
    for name, value in where.items():
        cells = cells[cells[name] == value]
    (row,) = cells.to_dict("records")
    return row


def test_exact_effects_are_found_whatever_the_levels(exact):
    cells = effect_cells(exact)
    difference = LOSS_EFFECT["bnrl", False]
    wanted = {
        ("cm_clip - none", "ce"): GAIN + SECOND_MORE / 2,  # the mean over the CLIPs
        ("cm_clip - none", "ce at its best rate"): GAIN,  # the first CLIP alone
        ("bnrl - ce", ""): difference,
        ("bnrl - ce, with cm_clip", ""): difference,
        ("bnrl - ce at its best rate, with cm_clip", ""): difference - LOSS_EFFECT["ce", True],
        ("bnrl - ce, both at their best rate", ""): LOSS_EFFECT["bnrl", True] - LOSS_EFFECT["ce", True],
        ("ce at its best rate - ce", ""): LOSS_EFFECT["ce", True],
        ("interaction", ""): 0.0,
    }
    for (effect, loss), value in wanted.items():
        for shots in (1, 10, "all"):
            row = one(cells, effect=effect, loss=loss, arm="missing", shots=shots)
            assert row["mean"] == pytest.approx(value, abs=1e-9), effect
            assert row["half_width"] == pytest.approx(0, abs=1e-6)


def test_effect_is_the_crossed_interval_of_its_values(effects, cells):
    values = effects
    own = values[(values["effect"] == "bnrl - ce") & (values["arm"] == "kshot") & (values["shots"] == 10)]
    assert len(own) == 3 * 3 * 4
    wanted, row = (
        crossed_interval(own),
        one(cells, effect="bnrl - ce", loss="", arm="kshot", shots=10),
    )
    assert row["mean"] == pytest.approx(wanted.mean) and row["half_width"] == pytest.approx(wanted.half_width)
    assert (row["splits"], row["bases"], row["draws"], row["clips"], row["n"]) == (3, 3, 4, 0, 36)
    naive = 1.96 * own["value"].std() / 6  # what pooling would say
    assert row["half_width"] > 1.3 * naive


def test_effects_with_a_chosen_rate_leave_out_the_split_of_the_choice():
    cells = effect_cells(crossed_records(seeds=2, shots=(1,), clips=1, rate_splits=(1, 2, 3)))
    name = "bnrl - ce, both at their best rate"
    own = one(cells, effect=name, arm="kshot", shots=1)
    apart = one(
        cells, effect=f"{name}, on split 2, where the rates were chosen", loss="", arm="kshot", shots=1
    )
    assert own["splits"] == 2 and apart["splits"] == 1
    assert own["in_family"] and not apart["in_family"] and math.isnan(apart["p_holm"])


def test_family_is_of_single_k_and_holm_is_over_it(cells):
    family = cells[cells["in_family"]]
    assert set(family["shots"]) == {1, 10} and len(family) == 7 * 2 * 2
    smallest = family["p"].min()
    assert family["p_holm"].min() == pytest.approx(min(1.0, len(family) * smallest))
    assert (family["p_holm"] >= family["p"]).all()
    assert cells.loc[~cells["in_family"], "p_holm"].isna().all()
    rejected = int((family["p_holm"] <= 0.05).sum())
    null = family[family["p_holm"] > 0.05].iloc[0]
    assert null["level"] == pytest.approx(0.05 / (len(family) - rejected))
    assert null["mde"] > null["half_width"]  # at 80 % power, and at Holm's level


def test_wide_intervals_are_called_underpowered(records, effects, cells):
    assert (cells["is_underpowered"] == (cells["half_width"] > 1.0)).all()
    assert cells["is_underpowered"].any() and not cells["is_underpowered"].all()
    table = claims_effects_table(records, effects=effects)
    marked = table.display["mean"].str.contains("UNDERPOWERED")
    assert (marked.to_numpy() == cells["is_underpowered"].to_numpy()).all()
    assert "half-width exceeds 1.0 points" in table.caption


def test_strongest_simple_control_stands_among_the_levels(exact):
    cells = level_cells(exact)
    levels = {
        name: one(cells, over="1, 3", arm="kshot", shots=10, cell=name)["mean"]
        for name in ("ce", "ce at its best rate", "ce at its best rate + CM-CLIP", "bnrl + CM-CLIP")
    }
    assert levels["ce at its best rate"] - levels["ce"] == pytest.approx(LOSS_EFFECT["ce", True])
    assert levels["bnrl + CM-CLIP"] - levels["ce"] == pytest.approx(
        1.0 + GAIN
    )  # the first CLIP: both lines have it
    two = one(cells, over="2", arm="kshot", shots=10, cell="bnrl + CM-CLIP")
    without = one(cells, over="2", arm="kshot", shots=10, cell="bnrl")
    assert two["mean"] - without["mean"] == pytest.approx(GAIN + SECOND_MORE / 2) and two["clips"] == 2
    table = claims_levels_table(exact)
    assert "strongest simple control" in table.caption and "ce 0.05" in table.caption
    controls = [number for number in crossed_numbers(exact) if ": ce at its best rate" in number.quantity]
    assert len(controls) == 4  # with and without CM-CLIP, in both arms
    assert {"1", "2", "3", "1, 3"} == set(table.display["splits"])


def test_levels_that_are_compared_are_of_the_same_draws():
    """The control has one draw less: the others leave that one out, too, but not on a split alone."""
    records = crossed_records(seeds=2, shots=(10,), rates={"ce": 0.05}, clips=1, is_exact=True)
    for own in records:
        if own["params"].get("solver", {}).get("lr") == 0.05:
            own["rows"] = [row for row in own["rows"] if row["seed"] == 0]
    cells = level_cells(records)
    both = [one(cells, over="1, 3", arm="kshot", cell=name) for name in ("ce", "ce at its best rate")]
    assert [row["draws"] for row in both] == [1, 1]
    assert both[1]["mean"] - both[0]["mean"] == pytest.approx(LOSS_EFFECT["ce", True])
    assert one(cells, over="1", arm="kshot", cell="ce")["draws"] == 2


def test_per_base_models_average_to_the_effect(records, effects, cells):
    found = base_model_cells(records, effects=effects)
    own = found[(found["effect"] == "interaction") & (found["arm"] == "missing") & (found["shots"] == 1)]
    assert len(own) == 9 and set(own["base"]) == {"base 0", "base 1", "base 2"}
    row = one(cells, effect="interaction", arm="missing", shots=1)
    assert own["mean"].mean() == pytest.approx(row["mean"])


def test_components_show_which_repeats_matter():
    """Base models that differ much, against ones that do not."""
    options = {"seeds": 8, "rates": {}, "clips": 1, "shots": (10,)}
    where = {"effect": "bnrl - ce", "arm": "kshot", "shots": 10}
    wild = one(component_cells(crossed_records(base_spread=4.0, **options)), **where)
    calm = one(component_cells(crossed_records(base_spread=0.0, **options)), **where)
    assert wild["base_share"] > 90 and wild["base"] > 2
    assert calm["base_share"] < 40 and calm["base"] < 0.5
    assert calm["draw"] > 0.4 and math.isnan(calm["clip"])


def test_clips_are_shown_apart_with_their_difference(exact):
    row = one(clip_cells(exact), effect="cm_clip - none", loss="ce", arm="kshot", shots=1)
    assert row["first_mean"] == pytest.approx(GAIN)
    assert row["second_mean"] == pytest.approx(GAIN + SECOND_MORE)
    assert row["difference_mean"] == pytest.approx(SECOND_MORE) and row["p"] < 1e-6
    # half the squared difference of two, known without error
    part = one(component_cells(exact), effect="cm_clip - none", loss="ce", arm="kshot", shots=1)
    assert part["clip"] == pytest.approx(SECOND_MORE / math.sqrt(2))


def test_second_clip_with_missing_cells_is_left_out_of_the_mean():
    """Else the mean over CLIPs would be over one for some base models and over two for others."""
    records = crossed_records(seeds=2, shots=(1,), rates={}, is_exact=True)
    last = [r for r in records if notebook_of(r) == "32_clip_backbones"][-1]
    cells = effect_cells([r for r in records if r is not last])
    row = one(cells, effect="cm_clip - none", loss="ce", arm="kshot", shots=1)
    assert row["clips"] == 1 and row["mean"] == pytest.approx(GAIN)


def test_base_models_are_told_by_run_reference_and_record(records):
    labels = base_labels(records)
    split1 = sorted(
        {labels[r["run_id"]] for r in records if r["params"].get("split") == 1 and r["run_id"] in labels}
    )
    assert split1 == ["base 0", "base 1", "base 2"]
    assert has_several_bases(records) and not has_several_bases(all_records(seeds=2))
    assert set(bases_of_backbones(records).values()) == {"base 0", "base 1", "base 2"}
    twin = tuned(1, 0, 1, seeds=2)
    twin["upstream"] = {"base_training-another": "0"}
    found = base_labels([*records, twin | {"run_id": "twin"}])
    assert len({found["twin"], *split1}) == 4 and found["twin"].startswith("base 0")


def test_single_base_model_tables_do_not_see_what_is_crossed(records):
    kept = {notebook_of(r) for r in of_one_base(records)}
    assert kept == {"10_base_training", "12_tiny_clip"}
    single = all_records(seeds=2)
    assert of_one_base(single) == single


def test_a_profile_of_one_base_model_has_no_crossed_table():
    assert all(table.data.empty for table in crossed_tables(all_records(seeds=2)))
    assert all(table.data.empty for table in crossed_tables([]))


def test_rates_are_read_from_the_parameters(records):
    assert best_rates(records) == {loss: f"{rate:g}" for loss, rate in BEST_RATES.items()}
    again = crossed_records(seeds=2, splits=(1,), shots=(1,), rates={"ce": 0.01})  # smaller than the main one
    assert best_rates(again) == {"ce": "0.01"}
    cells = effect_cells(again)
    both = one(cells, effect="bnrl - ce, both at their best rate", arm="kshot", shots=1)
    control = one(cells, effect="bnrl - ce at its best rate", arm="kshot", shots=1)
    assert both["mean"] == control["mean"]  # bnrl's best is the main one
    with pytest.raises(RecordError, match="Expected one rate beside the main one"):
        crossed_rows([*again, tuned(1, 0, 1, seeds=2, losses=("ce",), lr=0.3)])


def test_bootstrap_over_test_images_stands_beside_its_effect(records, effects):
    row = {"effect": "bnrl - ce", "loss": "", "arm": "kshot", "shots": 10}
    extra = record("43_test_images", "test_images", rows=[row | {"low": -0.25, "high": 1.5, "cells": 45}])
    table = claims_effects_table([*records, extra], effects=effects)
    found = one(table.data, **row)
    assert (found["bootstrap_low"], found["bootstrap_high"], found["bootstrap_cells"]) == (-0.25, 1.5, 45)
    assert table.data["bootstrap_low"].notna().sum() == 1
    assert "−0.2 to +1.5" in table.display["test images alone"].tolist()
    assert "test images alone" not in claims_effects_table(records, effects=effects).display


def test_backbones_run_of_two_base_models_is_refused(records):
    mixed = second_clip([tuned(1, 0, 1, seeds=2), tuned(1, 1, 1, seeds=2)], 0)
    with pytest.raises(RecordError, match="Expected one run of 32_clip_backbones for each base model"):
        bases_of_backbones([*records, mixed])


def test_headline_calls_wide_intervals_underpowered(records):
    table = headline(records)
    effects = table[table["quantity"].str.contains(" − ")]
    interaction = table[table["quantity"].str.startswith("interaction")]
    assert len(effects) == 24 and len(interaction) == 4 and table["quantity"].is_unique
    for row in effects.itertuples():
        assert ("underpowered" in row.value) == (row.half_width > 1.0)
        assert row.n == int(
            np.prod([int(part.split()[0]) for part in row.quantity.split("over ")[1].split(" × ")])
        )
    assert not table["quantity"].str.startswith("CM-CLIP's gain").any()  # what one base model would say


def test_planned_tables_of_one_base_model_do_not_say_that_runs_are_missing(records):
    names = [table.name for table in tables_of(records, planned_runs("mini"))]
    assert "claims_effects" in names and "cost" in names
    assert not any(
        name.startswith(("main_", "paired_", "interaction", "per_class", "rescored")) for name in names
    )


def test_trainings_with_other_seeds_are_named_by_them(records):
    (table,) = [table for table in tables_of(records) if table.name == "base_training"]
    assert "base_training-split1-seed2 (seed 2)" in table.display


def test_tables_are_written_in_their_three_forms(records, tmp_path):
    tables = crossed_tables(records)
    assert [table.name for table in tables] == [
        "claims_effects", "claims_levels", "per_base_model", "variance_components", "clip_difference",
    ]  # fmt: skip
    for table in tables:
        assert len(table.data) and len(table.display)
        assert len(table.write(tmp_path)) == 3
        assert not np.any([text == "nan" for text in table.display.astype(str).to_numpy().ravel()])


def test_the_control_stands_in_the_published_headline_of_both_arms():
    """K = 1 has three splits and no control, K = 10 a control on two of them."""
    made = load_records(Path(__file__).parents[1] / "results" / "published" / "mini-full" / "records")
    levels = [number.quantity for number in crossed_numbers(made) if number.quantity.startswith("nAP50 (%)")]
    for arm in ("kshot", "missing"):
        for cell in ("ce", "ce at its best rate", "bnrl"):
            assert any(f"K=10, {arm}: {cell}, over splits 1, 3 " in quantity for quantity in levels), (
                arm,
                cell,
            )
