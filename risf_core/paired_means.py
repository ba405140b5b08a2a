"""Means of pairs and their intervals: groups that no mean goes across, and draws, which alone are independent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from risf_core.comparison import AVERAGED, DRAW, Pairing, plain
from risf_core.report.statistics import sort_cells, student_interval


def group_columns(pairing: Pairing, by: Sequence[str]) -> list[str]:
    """Columns that separate the means: ``by``, and all that no mean may go over."""
    return [name for name in pairing.matched if name in by or name not in AVERAGED]


def groups(
    pairing: Pairing, pairs: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The groups of pairs with the values of their columns, in the project's order."""
    columns = group_columns(pairing, by)
    if not columns:
        yield {}, pairs
        return
    for key, group in sort_cells(pairs, columns).groupby(columns, sort=False, dropna=False):
        yield dict(zip(columns, key, strict=True)), group


def unit_means(
    group: pd.DataFrame, values: Sequence[str], by: Sequence[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Means within each draw (split, seed, repeat), which are independent of each other, unlike several K of a draw.

    Args:
        group: Pairs of one group.
        values: Columns to average.
        by: Columns that group.

    Returns:
        A row for each draw that has all that the group has (every K and base model of its split), and the names of
        the draws that lack some, which are in no mean.
    """
    units = [name for name in DRAW if name in group and name not in by]
    if not units:
        return group[list(values)], []
    inside = [name for name in AVERAGED if name in group and name not in (*by, *units)]
    rows, lacking = [], []
    for _, part in group.groupby("split", dropna=False) if "split" in units else [(None, group)]:
        expected = len(part.drop_duplicates(inside)) if inside else 1
        for key, own in part.groupby(units, dropna=False):
            if len(own) == expected:
                rows.append(own[list(values)].mean())
            else:
                name = " ".join(f"{unit} {plain(value)}" for unit, value in zip(units, key))
                lacking.append(f"{name} ({len(own)} of {expected})")
    return pd.DataFrame(rows, columns=list(values)), lacking


def summary(pairing: Pairing, by: Sequence[str]) -> pd.DataFrame:
    """A row for each group: number of pairs and draws, means of A, B and B - A with half-widths, draws that rose.

    Intervals are 95 % Student-t over draws. ``left_out`` names the draws that are in no mean.
    """
    rows = []
    for key, group in groups(pairing, pairing.pairs, by):
        units, lacking = unit_means(group, ["a", "b", "difference"], by)
        row = {**key, "metric": pairing.metric, "pairs": len(group), "n": len(units)}
        for name in ("a", "b", "difference"):
            interval = student_interval(units[name])
            row |= {name: interval.mean, f"{name}_half_width": interval.half_width}
        up = int((units["difference"] > 0).sum())
        rows.append(row | {"up": up, "left_out": "; ".join(lacking)})
    return pd.DataFrame(rows)
