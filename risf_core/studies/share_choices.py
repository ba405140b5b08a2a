"""Which value of a grid is chosen: the best mean over the same draws for each. Imports no torch."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from risf_core.errors import RecordError


def choose(
    rows: Iterable[Mapping], *, by: Sequence[str], among: Sequence[str], metric: str = "nAP50"
) -> dict[tuple, tuple]:
    """For each value of ``by`` the value of ``among`` with the best mean of ``metric`` over seeds.

    Args:
        rows: Rows with the columns ``by``, ``among``, seed and ``metric``.
        by: Columns that are chosen for apart.
        among: Columns that are chosen.
        metric: Larger is better.

    Returns:
        ``{values of by: values of among}``; in a tie the smallest values.

    Raises:
        RecordError: If there is no row, or the values were not tried on the same seeds.
    """
    cells: dict[tuple, dict[tuple, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        place, value = (tuple(row[name] for name in names) for names in (by, among))
        cells[place][value][row["seed"]] = row[metric]
    if not cells:
        raise RecordError(f"no row to choose {', '.join(among)} from; run the grid first.")
    chosen = {}
    for place, values in cells.items():
        if len({frozenset(seeds) for seeds in values.values()}) > 1:
            raise RecordError(
                f"{', '.join(among)}: the values were not tried on the same seeds at {place}. Expected a row of each "
                "for every seed; repeat the run with --force."
            )
        means = {value: sum(own.values()) / len(own) for value, own in sorted(values.items())}
        chosen[place] = max(means, key=means.get)  # the first of equal ones
    return chosen


def at_edge(chosen: float, tried: Iterable[float]) -> bool:
    """Whether a chosen number is the smallest or the largest of those tried, so that a better one may lie beyond."""
    values = sorted(set(tried))
    return len(values) > 1 and (math.isclose(chosen, values[0]) or math.isclose(chosen, values[-1]))
