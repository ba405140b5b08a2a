"""Which head, temperature and c: chosen on one split's rows, never on those that are reported. Imports no torch.

Rows of part "grid" hold, for one cell and way, nAP50 for each temperature and c. Ways are "cm_clip", "dense",
"head:NAME", "pooled", "continued", "targets:BETA" and "targets_clip:BETA".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from risf_core.distilled_rescoring_params import DistilledRescoringParams, Setting
from risf_core.errors import ParamsError

PUBLISHED, CHOSEN, MATCHED, MATCHED_CHOSEN = "published", "chosen", "matched", "matched_chosen"


class Chosen(NamedTuple):
    """A way's best temperature and c, and their mean nAP50 over the cells that were chosen on."""

    setting: Setting
    mean: float
    cells: int


def _grid_rows(rows: Iterable[Mapping], way: str, label_space: str) -> list[Mapping]:
    return [
        row
        for row in rows
        if row["part"] == "grid" and row["way"] == way and row["label_space"] == label_space
    ]


def choose(
    rows: Sequence[Mapping],
    way: str,
    *,
    label_space: str,
    temperatures: Sequence[float],
    weights: Sequence[float],
) -> Chosen | None:
    """The temperature and c with the largest mean; of equal ones the largest c, then the largest temperature.

    The larger c trusts the detector more, so that a tie changes the scores least.
    """
    own = _grid_rows(rows, way, label_space)
    if not own:
        return None
    means = np.mean(np.array([row["nAP50"] for row in own], dtype=float), axis=0)
    places = [(means[i, j], c, t, i) for i, t in enumerate(temperatures) for j, c in enumerate(weights)]
    mean, c, temperature, _ = max(places)
    return Chosen(Setting(temperature=temperature, c=c), float(mean), len(own))


def choose_head(rows: Sequence[Mapping], params: DistilledRescoringParams, *, label_space: str) -> str:
    """The candidate head with the largest mean at its own temperature and c; of equal ones the first."""
    grid = {"temperatures": params.temperatures, "weights": params.c}
    means = {}
    for name, spec in params.heads.items():
        found = choose(rows, f"head:{name}", label_space=label_space, **grid) if spec.is_candidate else None
        if found is not None:
            means[name] = found.mean
    if not means:
        raise ParamsError(
            f"no head was tried in the label space {label_space}; expected one of {list(params.heads)}."
        )
    return max(means, key=means.get)


def is_control(way: str, params: DistilledRescoringParams) -> bool:
    """Whether a way is judged at the main head's setting: a shuffled teacher may not choose its own."""
    name = way.removeprefix("head:")
    return way.startswith("head:") and name in params.heads and params.heads[name].teacher == "shuffled"
