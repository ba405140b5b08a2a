"""Which combinations of a grid are reported: chosen on one split's means; only the oracle looks at the other's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from risf_core.studies.label_spaces import CHANGES, Combination


def best(
    grid: Sequence[Combination], means: np.ndarray, wanted: Callable[[Combination], bool] = lambda _: True
) -> Combination:
    """The combination with the largest mean among the wanted ones; the first in the grid's order of several."""
    places = [place for place, combination in enumerate(grid) if wanted(combination)]
    return grid[places[int(np.argmax(means[places]))]]


def reported_combinations(
    grid: Sequence[Combination],
    selection: Mapping[int, np.ndarray],
    reported: Mapping[int, np.ndarray],
    paper: Combination,
) -> dict[int, dict[str, Combination]]:
    """What is reported for each K, by name.

    Args:
        grid: G combinations.
        selection: For each K the mean over seeds of each combination where is chosen, [G].
        reported: The same where is reported; it decides the oracle alone.
        paper: The paper's combination.

    Returns:
        "paper"; "selected" (for this K); "selected over K" (one for all, by the mean over K); "test oracle"; "only X"
        (the paper's with one thing changed, the best of its values), "only X, c chosen" (and c as well); and "all but
        X" (everything chosen, X as in the paper).
    """
    over_k = best(grid, np.mean(list(selection.values()), axis=0))
    found = {}
    for shots, means in selection.items():
        own = {"paper": paper, "selected": best(grid, means), "selected over K": over_k}
        own["test oracle"] = best(grid, reported[shots])
        own |= _single_changes(grid, means, paper)
        for change in CHANGES:
            if any(change in combination.changed(paper) for combination in grid):
                own[f"all but {change}"] = best(grid, means, _keeps(change, paper))
        found[shots] = own
    return found


def _keeps(change: str, paper: Combination) -> Callable[[Combination], bool]:
    return lambda combination: change not in combination.changed(paper)


def _single_changes(
    grid: Sequence[Combination], means: np.ndarray, paper: Combination
) -> dict[str, Combination]:
    """The paper's with one thing changed: each label space, temperature and fusion, the best cache, the best c."""
    found: dict[str, Combination] = {}
    for change in CHANGES:
        values = dict.fromkeys(_value(one, change) for one in grid if change in one.changed(paper))
        for value in values:
            name = f"only {change}" if value is None else f"only {change}: {value}"
            for suffix, allowed in (("", {change}), (", c chosen", {change, "c"})):
                if suffix and change == "c":
                    continue

                def wanted(one: Combination, value=value, allowed=allowed, change=change) -> bool:
                    changed = one.changed(paper)
                    return change in changed and changed <= allowed and _value(one, change) == value

                found[name + suffix] = best(grid, means, wanted)
    return found


def _value(combination: Combination, change: str) -> str | None:
    """What names a change; None where its best value is meant, as for numbers."""
    return getattr(combination, change) if change in ("label_space", "temperature", "fusion") else None
