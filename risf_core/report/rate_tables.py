"""The table of 38_learning_rates: each loss at each rate, and which rate is chosen. A function of records."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import drop_repeats, rows_of, sort_cells, student_interval
from risf_core.report.table_format import Table, interval_text, spread
from risf_core.report.warned import warned

NOTEBOOK = "38_learning_rates"
KEYS = ["split", "arm", "loss", "shots", "lr"]


def rate_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Mean over seeds at each rate for each arm and K, and over all K and arms within a seed (both "all").

    Returns:
        split, arm, loss, shots, lr, mean, half_width, n, is_best (the largest mean of its split, arm, loss and K) and
        at_edge (the best one is the smallest or largest rate tried). An "all" is there only where every rate has every
        K, arm and seed.
    """
    columns = [*KEYS, "mean", "half_width", "n"]
    frame = rows_of(records, NOTEBOOK, required=[*KEYS, "seed"])
    if frame.empty:
        return pd.DataFrame(columns=[*columns, "is_best", "at_edge"])
    frame = drop_repeats(frame, [*KEYS, "seed"], [metric])
    groups = [(key, group[metric]) for key, group in frame.groupby(KEYS, sort=False)]
    for (split, loss), own in frame.groupby(["split", "loss"], sort=False):
        cells = own.pivot_table(index="seed", columns=["lr", "arm", "shots"], values=metric)
        is_whole = len(cells.columns) == own["lr"].nunique() * len(own[["arm", "shots"]].drop_duplicates())
        if is_whole and not cells.isna().any(axis=None):
            averages = cells.T.groupby(level="lr").mean().T
            groups += [((split, "all", loss, "all", rate), averages[rate]) for rate in averages]
    rows = []
    for key, values in groups:
        interval = student_interval(values)
        rows.append((*key, interval.mean, interval.half_width, interval.n))
    data = pd.DataFrame(rows, columns=columns)
    by = data.groupby(["split", "arm", "loss", "shots"], sort=False)
    best = by["mean"].transform("max")
    # the smaller of two equal ones, as the rule has it
    chosen = data["lr"].where(data["mean"] == best).groupby([data[key] for key in KEYS[:4]]).transform("min")
    data["is_best"] = data["lr"] == chosen
    edges = (data["lr"] == by["lr"].transform("min")) | (data["lr"] == by["lr"].transform("max"))
    data["at_edge"] = data["is_best"] & edges & (by["lr"].transform("nunique") > 1)
    return sort_cells(data, KEYS)


@warned
def rates_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """``metric`` of each loss at each learning rate; the best of a line is marked, at an edge with an exclamation."""
    data = rate_cells(records, metric=metric)
    texts = [
        interval_text(row.mean, row.half_width)
        + (" best" if row.is_best else "")
        + ("!" if row.at_edge else "")
        for row in data.itertuples()
    ]
    heads = {rate: f"rate {rate:g}" for rate in sorted(set(data["lr"]))}
    display = spread(data, KEYS[:4], "lr", texts, heads=heads, with_n=True)
    caption = (
        f"{metric} (%) of the test images after fine-tuning with each loss at each peak learning rate, all else equal, "
        "without re-scoring. 'all' averages over K and arms within a seed: its best rate is the one that other studies "
        "take on other splits. 'best!': the best rate is the smallest or largest tried, so that a better one may lie "
        "beyond. ± is the half-width of the 95 % Student-t interval over few-shot seeds of one base model."
    )
    return Table("learning_rates", caption, data, display)
