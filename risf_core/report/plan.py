"""Which fine-tuning cells were wanted, so that a run that is missing is seen to be missing."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from risf_core.report.statistics import (
    REPEAT_STRIDE,
    REPRODUCTION,
    short_loss_names,
    sort_cells,
    summarize_cells,
)

PLAN_KEYS = ("split", "setting", "arm", "loss", "rescoring", "shots")


@dataclass(frozen=True)
class Plan:
    """The few-shot seeds wanted for each (split, setting, arm, loss, rescoring, shots).

    Attributes:
        seeds: The seeds of each wanted cell.
        is_known: Whether the plan comes from a list of runs. If not it is guessed from the rows that exist: every
            arm, loss and K seen in a (split, setting) with every seed seen there.
    """

    seeds: Mapping[tuple, frozenset[int]] = field(default_factory=dict)
    is_known: bool = False

    @classmethod
    def from_rows(cls, frame: pd.DataFrame) -> "Plan":
        """The plan guessed from rows that exist, see ``is_known``."""
        seeds = {}
        for (split, setting), group in frame.groupby(["split", "setting"]):
            own = frozenset(int(seed) for seed in group["seed"])
            columns = [group[name].unique() for name in PLAN_KEYS[2:]]
            seeds.update({(split, setting, *key): own for key in itertools.product(*columns)})
        return cls(seeds, is_known=False)

    @classmethod
    def from_params(cls, runs: Iterable[Mapping]) -> "Plan":
        """The plan of a list of runs.

        Args:
            runs: Resolved parameters of the fine-tuning runs. Each of split, setting, arm, loss, shots and seed is one
                value or a list, under this name or its plural; ``clip`` None means that nothing is re-scored.
        """
        runs = list(runs)
        names = short_loss_names(loss for run in runs for loss in _values(run, "loss"))
        seeds: dict[tuple, dict[int, set[int]]] = {}
        for run in runs:
            values = {name: _values(run, name) for name in PLAN_KEYS if name != "rescoring"}
            values["loss"] = [names[spec] for spec in values["loss"]]
            values["rescoring"] = REPRODUCTION if run.get("clip") else ("none",)
            for key in itertools.product(*(values[name] for name in PLAN_KEYS)):
                repeats = run.get("repeats", 1)
                own = itertools.product(_values(run, "seed"), range(repeats))
                wanted = seeds.setdefault(key, {}).setdefault(repeats, set())
                wanted.update(seed + REPEAT_STRIDE * repeat for seed, repeat in own)
        # runs with more repeats than others are a variant beside the main row
        return cls({key: frozenset(own[min(own)]) for key, own in seeds.items()}, is_known=True)

    def expected(self, split, setting, arm, loss, rescoring, shots) -> int:
        """How many seeds are wanted in a cell; 0 if it is not in the plan."""
        return len(self.seeds.get((split, setting, arm, loss, rescoring, shots), ()))

    def status(self, n: int, expected: int, *, is_variant: bool = False) -> str:
        """``complete``, ``incomplete``, ``no run`` or ``not planned``."""
        if is_variant or not expected:
            return "complete" if n else "not planned"
        if n == 0:
            return "no run"
        return "complete" if n >= expected else "incomplete"


def _values(run: Mapping, name: str) -> list:
    """The value of a parameter as a list, under its name or its plural."""
    plurals = {"loss": "losses"}
    for candidate in (plurals.get(name, f"{name}s"), name):
        if candidate in run and run[candidate] is not None:
            value = run[candidate]
            return list(value) if isinstance(value, (list, tuple)) else [value]
    raise KeyError(f"fine-tuning parameters without {name}: {sorted(run)}")


def all_cells(
    frame: pd.DataFrame, metric: str, plan: Plan, *, rescorings: Sequence[str] = REPRODUCTION
) -> pd.DataFrame:
    """Every cell that exists or was wanted, with its interval and its status.

    Returns:
        Sorted rows with split, setting, arm, loss, variant, rescoring, shots, mean, half_width, n, expected, status.
    """
    row_keys = ["split", "setting", "arm", "loss", "variant", "rescoring"]
    found = summarize_cells(frame[frame["rescoring"].isin(rescorings)], [*row_keys, "shots"], metric)
    cells = {tuple(row[:7]): row[7:] for row in found.itertuples(index=False, name=None)}
    shots: dict[tuple, set[int]] = {}
    wanted = {(*key[:4], "", *key[4:]) for key in plan.seeds if key[4] in rescorings}
    for key in [*cells, *wanted]:
        shots.setdefault(key[:2], set()).add(key[6])
    rows = []
    for key in {key[:6] for key in [*cells, *wanted]}:
        for number_of_shots in shots[key[:2]]:
            mean, half_width, n = cells.get((*key, number_of_shots), (math.nan, math.nan, 0))
            expected = plan.expected(*key[:4], key[5], number_of_shots)
            status = plan.status(n, expected, is_variant=key[4] != "")
            rows.append((*key, number_of_shots, mean, half_width, n, expected, status))
    columns = [*row_keys, "shots", "mean", "half_width", "n", "expected", "status"]
    return sort_cells(pd.DataFrame(rows, columns=columns), [*row_keys, "shots"])
