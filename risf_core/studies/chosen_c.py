"""Which weight c a detector gets: chosen on one split's rows, never on those that are reported. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


def mean_by_c(
    rows: Iterable[Mapping], *, detector: str, fusion: str, splits: Sequence[int], metric: str
) -> dict[float, float]:
    """Mean of a metric over all cells (every K and seed) of a detector on some splits: {c: percent}, c ascending."""
    values = defaultdict(list)
    for row in rows:
        is_own = row["part"] == "re-scored" and row["detector"] == detector and row["fusion"] == fusion
        if is_own and row["split"] in splits and row[metric] is not None:
            values[row["c"]].append(row[metric])
    return {c: sum(own) / len(own) for c, own in sorted(values.items())}


def choose_c(
    rows: Iterable[Mapping],
    *,
    detector: str,
    fusion: str = "arithmetic",
    select_split: int,
    metric: str = "nAP50",
) -> float | None:
    """The c with the largest mean over K and seeds on ``select_split``; of equal ones the largest; None without a row.

    The larger c trusts the detector more, so that a tie changes the scores least.
    """
    means = mean_by_c(rows, detector=detector, fusion=fusion, splits=[select_split], metric=metric)
    return max(means, key=lambda c: (means[c], c)) if means else None
