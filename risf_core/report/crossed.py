"""Intervals where draws and base models are crossed: mean, hierarchical interval, variance components, Holm, power.

The model of a value of split s, base model b and draw d of the K-shot images::

    y_sbd = m_s + base_sb + draw_sd + residual_sbd

Splits are fixed: there are the published ones and no others, and each counts the same. Base models and draws are random
and crossed within a split: every base model of a split is fine-tuned on the same draws. With the mean squares of the
two-way layout without repeats, for B base models and D draws,

    MS_base = D sum_b (y_b. - y_..)^2 / (B - 1)          expected  residual^2 + D base^2
    MS_draw = B sum_d (y_.d - y_..)^2 / (D - 1)          expected  residual^2 + B draw^2
    MS_residual = sum_bd (y_bd - y_b. - y_.d + y_..)^2 / ((B - 1)(D - 1))

the variance of a split's mean, base^2 / B + draw^2 / D + residual^2 / (B D), is estimated without bias by
(MS_base + MS_draw - MS_residual) / (B D), and that of the mean over S splits by their sum over S^2. A component whose
estimate, summed over the splits, is below 0 is set to 0, so that the variance is never below the largest of the three
parts. Satterthwaite's degrees of freedom are V^2 / sum_i (c_i MS_i)^2 / df_i over the mean squares of every split: this
does not take the splits to vary alike. A test holds the coverage to 95 % by simulation. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import nctdtr, nctdtrinc, stdtr, stdtrit

from risf_core.errors import RecordError
from risf_core.report.statistics import CONFIDENCE

POWER = 0.8
WIDE = 1.0  # points of nAP50: an interval with a larger half-width is called underpowered
CROSSED, DRAWS_ALONE, BASES_ALONE, NO_INTERVAL = "crossed", "draws alone", "base models alone", "no interval"


@dataclass(frozen=True)
class CrossedInterval:
    """A mean over splits with its hierarchical interval.

    Attributes:
        mean: Mean over splits of the mean over base models and draws, in the unit of the values.
        half_width: Half the width of the 95 % interval; NaN where nothing was repeated.
        standard_error: Of the mean, same unit.
        df: Satterthwaite's degrees of freedom.
        p: Two-sided p value of mean 0 from the same t statistic.
        splits, bases, draws: How many there are; of base models and draws the smallest number in a split.
        n: How many values went in.
        left_out: Values of draws that not every base model of their split has, or that are NaN.
        method: "crossed", or what alone varies: "draws alone" of one base model, "base models alone" with one draw, "no
            interval". Where the splits differ, each with its own, as "crossed; split 2: draws alone".
    """

    mean: float
    half_width: float
    standard_error: float
    df: float
    p: float
    splits: int
    bases: int
    draws: int
    n: int
    left_out: int
    method: str


@dataclass(frozen=True)
class Components:
    """Standard deviations of the three sources in the unit of the values, pooled over the splits; NaN if unknown.

    Attributes:
        base: Between base models.
        draw: Between draws of the K-shot images.
        residual: What neither explains: the training, and how draws and base models go together.
        base_share, draw_share, residual_share: Their shares of the variance of the mean, in percent.
    """

    base: float
    draw: float
    residual: float
    base_share: float
    draw_share: float
    residual_share: float


class _Split(NamedTuple):
    """One split's grid: mean squares with their degrees of freedom (0: none), by source, and the number of values."""

    mean: float
    squares: dict[str, float]
    df: dict[str, int]
    bases: int
    draws: int


def complete_grids(values: pd.DataFrame) -> tuple[dict[int, pd.DataFrame], int]:
    """Each split's values with base models as rows and draws as columns, of the draws that every base model has.

    Args:
        values: Columns split, base, seed, value; NaN counts as missing.

    Returns:
        The grids by split, and how many values were left out.

    Raises:
        RecordError: If a column is missing, a cell is there twice, there is no value, or no draw of a split is there
            for each of its base models.
    """
    lacking = [name for name in ("split", "base", "seed", "value") if name not in values]
    if lacking:
        raise RecordError(f"crossed values lack {', '.join(lacking)}. Expected split, base, seed and value.")
    if twice := values[values.duplicated(["split", "base", "seed"])].to_dict("records"):
        cell = ", ".join(f"{name} {twice[0][name]}" for name in ("split", "base", "seed"))
        raise RecordError(f"crossed values: {cell} is there twice. Expected one value for each.")
    known = values.dropna(subset=["value"])
    if known.empty:
        raise RecordError("crossed values: there is none. Expected at least one; finish the runs first.")
    grids = {}
    for split, own in known.groupby("split", sort=True):
        grid = own.pivot(index="base", columns="seed", values="value")
        grids[split] = grid.dropna(axis="columns")
        if grids[split].empty:
            raise RecordError(
                f"crossed values of split {split}: no draw is there for each of {', '.join(map(str, grid.index))}. "
                "Expected the same draws for the base models of a split; finish the runs that are missing."
            )
    return grids, len(values) - sum(grid.size for grid in grids.values())


def _split(grid: pd.DataFrame | np.ndarray) -> _Split:
    values = np.asarray(grid, dtype=float)
    bases, draws = values.shape
    mean, rows, columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    df = {"base": bases - 1, "draw": draws - 1, "residual": (bases - 1) * (draws - 1)}
    sums = {
        "base": draws * ((rows - mean) ** 2).sum(),
        "draw": bases * ((columns - mean) ** 2).sum(),
        "residual": ((values - rows[:, None] - columns + mean) ** 2).sum(),
    }
    squares = {name: float(sums[name] / df[name]) if df[name] else 0.0 for name in df}
    return _Split(float(mean), squares, df, bases, draws)


def _method(split: _Split) -> str:
    if split.bases > 1:
        return CROSSED if split.draws > 1 else BASES_ALONE
    return DRAWS_ALONE if split.draws > 1 else NO_INTERVAL


def _methods(splits: Mapping[int, _Split]) -> str:
    methods = {number: _method(split) for number, split in splits.items()}
    first = next(iter(methods.values()))
    others = [f"split {number}: {method}" for number, method in methods.items() if method != first]
    return "; ".join([first, *others])


def crossed_interval(values: pd.DataFrame, *, confidence: float = CONFIDENCE) -> CrossedInterval:
    """Mean over splits, and its interval with base models and draws as crossed random factors, see the module.

    With one base model in a split its part is the variance between draws alone (and the other way round), which
    ``method`` says: such an interval holds no variation between base models. If nothing at all was repeated in a split,
    there is no interval.

    Args:
        values: Columns split, base, seed, value, one row for each.
        confidence: Coverage in (0, 1).

    Raises:
        RecordError: See `complete_grids`.
    """
    grids, left_out = complete_grids(values)
    return interval_of_grids(grids, confidence=confidence, left_out=left_out)


def interval_of_grids(
    grids: Mapping[int, pd.DataFrame | np.ndarray], *, confidence: float = CONFIDENCE, left_out: int = 0
) -> CrossedInterval:
    """`crossed_interval` of complete grids by split, each [B base models, D draws]."""
    splits = {number: _split(grid) for number, grid in grids.items()}
    mean = float(np.mean([split.mean for split in splits.values()]))
    variance, df = _variance_of_mean(list(splits.values()))
    error = math.sqrt(variance) if not math.isnan(variance) else math.nan
    return CrossedInterval(
        mean=mean,
        half_width=float(stdtrit(df, 0.5 + confidence / 2) * error) if error > 0 else error,
        standard_error=error,
        df=df,
        p=_two_sided_p(mean, error, df),
        splits=len(splits),
        bases=min(split.bases for split in splits.values()),
        draws=min(split.draws for split in splits.values()),
        n=sum(split.bases * split.draws for split in splits.values()),
        left_out=left_out,
        method=_methods(splits),
    )


def _variance_of_mean(splits: Sequence[_Split]) -> tuple[float, float]:
    """Variance of the mean over splits and its degrees of freedom; NaN if nothing was repeated in a split."""
    if any(_method(split) == NO_INTERVAL for split in splits):
        return math.nan, math.nan
    # each mean square as a part of the variance of the mean over splits, and its square over its degrees of freedom
    weights = [1.0 / (len(splits) ** 2 * split.bases * split.draws) for split in splits]
    parts, squares = {}, {}
    for name in ("base", "draw", "residual"):
        own = [(weight * split.squares[name], split.df[name]) for weight, split in zip(weights, splits)]
        parts[name] = sum(part for part, _ in own)
        squares[name] = sum(part**2 / df for part, df in own if df)
    kept = [name for name in ("base", "draw") if parts[name] > parts["residual"]]
    if len(kept) == 2:
        variance = parts["base"] + parts["draw"] - parts["residual"]
        spread = sum(squares.values())
    else:  # a component that is estimated below 0 counts as 0
        source = kept[0] if kept else "residual"
        variance, spread = parts[source], squares[source]
    return variance, variance**2 / spread if spread > 0 else math.inf


def _two_sided_p(mean: float, error: float, df: float) -> float:
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(df, -abs(mean) / error))


def variance_components(values: pd.DataFrame) -> Components:
    """How far base models, draws and the rest make the values vary within a split; means over the splits.

    An estimate below 0 is 0. Without two base models and two draws in every split all is unknown: NaN.

    Args:
        values: As for `crossed_interval`.
    """
    grids, _ = complete_grids(values)
    splits = [_split(grid) for grid in grids.values()]
    if any(_method(split) != CROSSED for split in splits):
        return Components(*[math.nan] * 6)
    residual = float(np.mean([split.squares["residual"] for split in splits]))
    base, draw = (
        max(0.0, float(np.mean([(s.squares[name] - s.squares["residual"]) / repeats(s) for s in splits])))
        for name, repeats in (("base", lambda s: s.draws), ("draw", lambda s: s.bases))
    )
    counts = {
        "base": np.mean([1 / split.bases for split in splits]),
        "draw": np.mean([1 / split.draws for split in splits]),
        "residual": np.mean([1 / (split.bases * split.draws) for split in splits]),
    }
    parts = [base * counts["base"], draw * counts["draw"], residual * counts["residual"]]
    total = sum(parts)
    shares = [100.0 * float(part) / total if total > 0 else math.nan for part in parts]
    return Components(math.sqrt(base), math.sqrt(draw), math.sqrt(residual), *shares)


def per_base_model(values: pd.DataFrame) -> pd.DataFrame:
    """Mean over the draws for each base model, of the draws that every base model of its split has.

    Returns:
        split, base, mean, n (draws), in the order of splits and base models.
    """
    grids, _ = complete_grids(values)
    rows = [
        (split, base, float(own.mean()), len(own))
        for split, grid in grids.items()
        for base, own in grid.iterrows()
    ]
    return pd.DataFrame(rows, columns=["split", "base", "mean", "n"])


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number, so that all are tested at one level together (Holm 1979).

    The i-th smallest of m, from 0, is multiplied by m - i; none is below a smaller one's, and none above 1.

    Args:
        p_values: In [0, 1]; NaN is no test, counts for nothing and stays NaN.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    corrected = np.maximum.accumulate(values[order] * (len(order) - np.arange(len(order))))
    result = np.full(len(values), np.nan)
    result[order] = np.minimum(corrected, 1.0)
    return result.tolist()


def holm_levels(p_values: Sequence[float], *, alpha: float = 1 - CONFIDENCE) -> list[float]:
    """The level at which Holm tests each of several p values: alpha / (m - number of others that are rejected).

    Args:
        p_values: As for `holm`; NaN has no level.
        alpha: Of the whole family.
    """
    corrected = np.array(holm(p_values))
    count, rejected = int((~np.isnan(corrected)).sum()), corrected <= alpha
    others = rejected.sum() - rejected
    return np.where(np.isnan(corrected), np.nan, alpha / np.maximum(count - others, 1)).tolist()


def minimum_detectable_effect(
    standard_error: float, df: float, *, alpha: float = 1 - CONFIDENCE, power: float = POWER
) -> float:
    """The smallest true mean that a two-sided t test with this standard error would find with that power.

    With t_crit the quantile of t at 1 - alpha / 2, it is the mean d for which a noncentral t of noncentrality
    d / standard_error lies above t_crit with probability ``power``. The other tail, far below alpha / 2, is left out.

    Args:
        standard_error: Of the mean.
        df: Degrees of freedom.
        alpha: Level of the test, such as one of `holm_levels`.
        power: In (0, 1).

    Returns:
        In the unit of the standard error; NaN where there is none.
    """
    if any(math.isnan(value) for value in (standard_error, df, alpha)):
        return math.nan
    df = min(df, 1e6)
    critical = float(stdtrit(df, 1 - alpha / 2))
    noncentrality = float(nctdtrinc(df, 1 - power, critical))
    if not math.isclose(float(nctdtr(df, noncentrality, critical)), 1 - power, abs_tol=1e-4):
        raise RecordError(
            f"no noncentrality gives power {power:g} at df {df:g} and alpha {alpha:g}; expected one to exist."
        )
    return noncentrality * standard_error


def is_underpowered(half_width: float) -> bool:
    """Whether an interval is too wide to tell differences of `WIDE` points; one that is unknown is, too."""
    return not half_width <= WIDE
