"""The crossed statistics: hand-worked numbers, and simulations with known components."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from risf_core.errors import RecordError
from risf_core.report.crossed import (
    complete_grids,
    crossed_interval,
    holm,
    holm_levels,
    interval_of_grids,
    is_underpowered,
    minimum_detectable_effect,
    per_base_model,
    variance_components,
)
from risf_core.report.statistics import student_interval


def frame(grids: dict) -> pd.DataFrame:
    """Tidy rows of {split: array [B, D]}."""
    rows = [
        (split, f"base {b}", d, value)
        for split, grid in grids.items()
        for b, own in enumerate(np.asarray(grid, dtype=float))
        for d, value in enumerate(own)
    ]
    return pd.DataFrame(rows, columns=["split", "base", "seed", "value"])


def simulated(generator, *, splits=3, bases=3, draws=10, base=1.0, draw=1.0, residual=1.0) -> dict:
    """Grids of values around 0 with known components, as standard deviations."""
    return {
        split: base * generator.normal(size=(bases, 1))
        + draw * generator.normal(size=(1, draws))
        + residual * generator.normal(size=(bases, draws))
        for split in range(1, splits + 1)
    }


def test_hand_worked_example():
    """Two base models and three draws: means of rows 3 and 6, of columns 3, 4.5 and 6."""
    found = crossed_interval(frame({1: [[1, 3, 5], [5, 6, 7]]}))
    # MS_base = 3 (1.5^2 + 1.5^2) / 1 = 13.5; MS_draw = 2 (1.5^2 + 0 + 1.5^2) / 2 = 4.5
    # residuals: 1 - 3 - 3 + 4.5 = -0.5, 0, 0.5 and 0.5, 0, -0.5: MS_residual = 1 / 2
    assert found.mean == 4.5 and found.n == 6 and found.method == "crossed"
    assert found.standard_error == pytest.approx(math.sqrt((13.5 + 4.5 - 0.5) / 6))
    assert found.df == pytest.approx(17.5**2 / (13.5**2 / 1 + 4.5**2 / 2 + 0.5**2 / 2))
    assert found.half_width == pytest.approx(stdtrit(found.df, 0.975) * found.standard_error)
    parts = variance_components(frame({1: [[1, 3, 5], [5, 6, 7]]}))
    assert parts.base == pytest.approx(math.sqrt((13.5 - 0.5) / 3))
    assert parts.draw == pytest.approx(math.sqrt((4.5 - 0.5) / 2))
    assert parts.residual == pytest.approx(math.sqrt(0.5))
    assert parts.base_share + parts.draw_share + parts.residual_share == pytest.approx(100.0)
    assert parts.base_share == pytest.approx(100 * (13 / 3 / 2) / (17.5 / 6))


def test_splits_count_the_same_whatever_their_size():
    found = crossed_interval(frame({1: np.zeros((2, 2)), 2: np.full((3, 9), 6.0)}))
    assert found.mean == 3.0 and found.splits == 2 and found.bases == 2 and found.draws == 2


def test_variance_over_splits_is_the_sum_over_their_number_squared():
    one = np.array([[1.0, 3, 5], [5, 6, 7]])
    single, triple = crossed_interval(frame({1: one})), crossed_interval(frame({1: one, 2: one, 3: one + 4}))
    assert triple.standard_error == pytest.approx(single.standard_error / math.sqrt(3))
    assert triple.df == pytest.approx(3 * single.df)
    assert triple.mean == pytest.approx(single.mean + 4 / 3)


def test_components_below_zero_count_as_zero():
    """Values that vary in neither margin: the residual alone gives the variance."""
    found = crossed_interval(frame({1: [[1, -1], [-1, 1]]}))
    assert found.mean == 0 and found.standard_error == pytest.approx(math.sqrt(4 / 4)) and found.df == 1
    parts = variance_components(frame({1: [[1, -1], [-1, 1]]}))
    assert parts.base == parts.draw == 0 and parts.residual == 2 and parts.residual_share == 100


@pytest.mark.parametrize(
    ("base", "draw", "residual", "low", "high"),
    [
        (1.0, 1.0, 1.0, 0.93, 0.985),
        (2.0, 1.0, 1.0, 0.93, 0.985),
        (0.3, 1.0, 1.0, 0.93, 0.985),
        (0.0, 1.0, 1.0, 0.93, 0.99),
        (1.0, 0.0, 1.0, 0.93, 0.985),
        (0.0, 0.0, 1.0, 0.95, 1.0),  # conservative where nothing but the residual varies
    ],
)
def test_coverage_is_near_95_percent_and_pooling_covers_less(base, draw, residual, low, high):
    """1,000 worlds; the standard error of a coverage of 0.95 is 0.007."""
    generator = np.random.default_rng(0)
    crossed, pooled, worlds = 0, 0, 1000
    for _ in range(worlds):
        grids = simulated(generator, base=base, draw=draw, residual=residual)
        own = interval_of_grids(grids)
        crossed += abs(own.mean) <= own.half_width
        naive = student_interval(np.concatenate(list(grids.values()), axis=None))
        pooled += abs(naive.mean) <= naive.half_width
    assert low <= crossed / worlds <= high
    if base or draw:
        assert pooled / worlds < min(0.88, crossed / worlds - 0.05)


def test_p_values_are_uniform_enough_under_the_null():
    generator = np.random.default_rng(1)
    p = np.array([interval_of_grids(simulated(generator)).p for _ in range(1000)])
    assert 0.02 <= (p < 0.05).mean() <= 0.07
    assert 0.4 <= (p < 0.5).mean() <= 0.6


def test_p_agrees_with_the_interval():
    values = frame(simulated(np.random.default_rng(2)))
    own = crossed_interval(values)
    moved = crossed_interval(values.assign(value=values["value"] - own.mean + own.half_width))
    assert moved.p == pytest.approx(0.05) and moved.half_width == pytest.approx(own.half_width)


def test_estimated_components_are_near_the_true_ones():
    """Mean of the squares over 200 worlds: standard deviations 2, 1 and 0.5."""
    generator = np.random.default_rng(3)
    found = [
        variance_components(frame(simulated(generator, base=2.0, draw=1.0, residual=0.5))) for _ in range(200)
    ]
    for name, true in (("base", 2.0), ("draw", 1.0), ("residual", 0.5)):
        mean = np.mean([getattr(own, name) ** 2 for own in found])
        assert math.sqrt(mean) == pytest.approx(true, rel=0.1)


def test_one_base_model_gives_an_interval_over_draws_that_says_so():
    values = frame({1: [[1, 2, 4]]})
    found, plain = crossed_interval(values), student_interval([1, 2, 4])
    assert found.method == "draws alone"
    assert found.half_width == pytest.approx(plain.half_width) and found.df == pytest.approx(2)
    assert math.isnan(variance_components(values).base)
    alone = crossed_interval(frame({1: [[1], [3]]}))
    assert alone.method == "base models alone" and alone.df == pytest.approx(1)
    mixed = crossed_interval(frame({1: [[1, 2, 4], [2, 3, 3]], 2: [[1, 2, 4]]}))
    assert mixed.method == "crossed; split 2: draws alone" and mixed.bases == 1


def test_a_single_value_has_no_interval():
    found = crossed_interval(frame({1: [[7]]}))
    assert found.mean == 7 and found.method == "no interval"
    assert math.isnan(found.half_width) and math.isnan(found.p) and is_underpowered(found.half_width)


def test_values_without_variation_are_certain():
    found = crossed_interval(frame({1: np.full((3, 4), 2.0)}))
    assert found.half_width == 0 and found.p == 0 and not is_underpowered(found.half_width)
    assert crossed_interval(frame({1: np.zeros((3, 4))})).p == 1


def test_draws_that_a_base_model_lacks_are_left_out_and_counted():
    values = frame({1: [[1, 3, 5, 90], [5, 6, 7, 80]]})
    values.loc[3, "value"] = math.nan
    found = crossed_interval(values)
    assert found.mean == 4.5 and found.left_out == 2 and found.n == 6
    assert per_base_model(values)["mean"].tolist() == [3.0, 6.0]


def test_wrong_values_are_one_clear_error():
    values = frame({1: [[1, 2], [3, 4]]})
    with pytest.raises(RecordError, match="base base 0, seed 0 is there twice"):
        crossed_interval(pd.concat([values, values.iloc[:1]]))
    with pytest.raises(RecordError, match="lack base"):
        crossed_interval(values.drop(columns="base"))
    with pytest.raises(RecordError, match="no draw is there for each of base 0, base 1"):
        crossed_interval(values.iloc[[0, 3]])
    with pytest.raises(RecordError, match="there is none"):
        complete_grids(values.iloc[:0])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[:1] == [1.0] and math.isnan(holm([0.5, math.nan])[1])
    assert holm([]) == []
    # 0.005 and 0.01 are rejected: each is tested with one other rejected, the rest with two
    levels = holm_levels([0.01, 0.04, 0.03, 0.005])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 3])


def test_holm_holds_the_family_to_its_level():
    generator = np.random.default_rng(4)
    wrong = [min(holm(generator.uniform(size=8))) <= 0.05 for _ in range(4000)]
    assert 0.035 <= np.mean(wrong) <= 0.06


@pytest.mark.parametrize(("df", "alpha"), [(4.0, 0.05), (18.0, 0.05), (9.0, 0.005)])
def test_minimum_detectable_effect_is_found_in_80_percent_of_worlds(df, alpha):
    effect = minimum_detectable_effect(0.5, df, alpha=alpha)
    generator = np.random.default_rng(5)
    means = effect + 0.5 * generator.normal(size=20_000)
    errors = 0.5 * np.sqrt(generator.chisquare(df, size=20_000) / df)
    found = np.abs(means / errors) > stdtrit(df, 1 - alpha / 2)
    assert found.mean() == pytest.approx(0.8, abs=0.012)  # four standard errors


def test_power_of_the_crossed_interval_itself():
    """The effect that the true standard error calls detectable is found in about 80 % of simulated grids."""
    generator = np.random.default_rng(6)
    error = math.sqrt((1 / 3 + 1 / 10 + 1 / 30) / 3)
    df = 3 * 13 / 2  # near what Satterthwaite gives here; the power depends little on it
    effect = minimum_detectable_effect(error, df)
    worlds = [simulated(generator) for _ in range(600)]
    p = [interval_of_grids({split: grid + effect for split, grid in grids.items()}).p for grids in worlds]
    assert 0.68 <= np.mean(np.array(p) < 0.05) <= 0.88


def test_unknown_errors_have_no_detectable_effect():
    assert math.isnan(minimum_detectable_effect(math.nan, 3.0))
    assert is_underpowered(1.01) and not is_underpowered(1.0)


def test_a_k_of_fewer_base_models_takes_no_cell_out_of_the_mean_over_k():
    from risf_core.report.crossed_rows import with_mean_over_shots

    rows = [
        {
            "split": 1,
            "base": base,
            "seed": 0,
            "arm": "kshot",
            "shots": shots,
            "clip": "",
            "value": float(shots),
        }
        for shots, bases in ((1, "ab"), (10, "ab"), (5, "a"))
        for base in bases
    ]
    values = pd.DataFrame(rows).assign(run_ids=[frozenset({str(n)}) for n in range(len(rows))])
    found = with_mean_over_shots(values)
    means = found[found["shots"] == "all"]
    assert list(means["base"]) == ["a", "b"] and list(means["value"]) == [5.5, 5.5]
    assert set(found.loc[found["shots"] != "all", "shots"]) == {1, 5, 10}  # the rows of each K stay
