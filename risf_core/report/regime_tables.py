"""The table of 39_training_regimes: BNRL against cross-entropy by what is trained, at each rate and at chosen ones."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import Interval, drop_repeats, ordered, rows_of, sort_cells, student_interval
from risf_core.report.table_format import Table, difference_text, interval_text, readable

NOTEBOOK = "39_training_regimes"
REGIMES = ("frozen", "rpn", "res5")
REGIME_TEXTS = {"frozen": "frozen features", "rpn": "RPN trained", "res5": "RPN and res5 trained"}
LOSSES = ("ce", "bnrl")
KEYS = ["role", "split", "shots", "arm", "regime", "loss", "lr"]
PLACE = ["split", "shots", "arm", "regime"]
CHOSEN = "chosen"


def regime_rows(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """The rows of both roles, one for each key and seed, in a fixed order; empty without a record."""
    frame = rows_of(records, NOTEBOOK, required=[*KEYS, "seed", metric])
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, "seed", metric, "place"])
    frame = drop_repeats(frame, [*KEYS, "seed"], [metric])
    place = [REGIMES.index(regime) for regime in frame["regime"]]
    return sort_cells(
        frame.assign(place=place), ["role", "split", "shots", "arm", "place", "lr", "loss", "seed"]
    )


def chosen_rates(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """The rate of each (shots, arm, regime, loss) with the largest mean on the other split; the smaller in a tie.

    Returns:
        shots, arm, regime, loss, lr, at_edge (it is the smallest or largest of several tried), select_split.
    """
    frame = regime_rows(records, metric=metric)
    frame, rows = frame[frame["role"] == "selection"], []
    for key, own in frame.groupby(["shots", "arm", "regime", "loss"], sort=False):
        means = own.groupby("lr")[metric].mean()
        rate = float(means.index[means == means.max()].min())
        at_edge = len(means) > 1 and rate in (means.index.min(), means.index.max())
        rows.append((*key, rate, at_edge, int(own["split"].iloc[0])))
    columns = ["shots", "arm", "regime", "loss", "lr", "at_edge", "select_split"]
    return pd.DataFrame(rows, columns=columns)


def _values(own: pd.DataFrame, loss: str, rate: float, metric: str) -> pd.Series:
    """A cell's values by seed."""
    cell = own[(own["loss"] == loss) & (own["lr"] == rate)]
    return cell.set_index("seed")[metric]


def _difference(second: pd.Series, first: pd.Series) -> tuple[Interval, int]:
    difference = (second - first).dropna()  # by seed
    return student_interval(difference), int((difference > 0).sum())


def regime_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Both losses at each rate of a (split, shots, arm, regime), and at the rates chosen on the other split.

    Returns:
        The place, ``rate`` ("0.01", or "chosen"), ``ce_lr`` and ``bnrl_lr``, mean, half-width and n of each loss,
        ``difference``: bnrl - ce in points, paired by seed, with its ``_half_width``, ``_n`` and ``_up``; the same
        for ``step``: ce at this rate - ce at ``reference_lr``, the largest rate of both losses; and for ``bnrl_step``:
        bnrl at this rate - ce at the reference. NaN where a loss was not tried at a rate.
    """
    frame, chosen = regime_rows(records, metric=metric), chosen_rates(records, metric=metric)
    rows = []
    for key, own in frame[frame["role"] == "reported"].groupby(PLACE, sort=False):
        tried = {loss: set(own.loc[own["loss"] == loss, "lr"]) for loss in LOSSES}
        shared = tried["ce"] & tried["bnrl"]
        reference = max(shared) if shared else math.nan
        lines = [(f"{rate:g}", rate, rate, False) for rate in sorted(tried["ce"] | tried["bnrl"])]
        here = chosen[(chosen["shots"] == key[1]) & (chosen["arm"] == key[2]) & (chosen["regime"] == key[3])]
        best = here.set_index("loss")
        if set(LOSSES) <= set(best.index):
            lines.append((CHOSEN, *best["lr"].reindex(LOSSES), bool(best["at_edge"].any())))
        for name, ce_rate, bnrl_rate, at_edge in lines:
            ce, bnrl = _values(own, "ce", ce_rate, metric), _values(own, "bnrl", bnrl_rate, metric)
            at_reference = _values(own, "ce", reference, metric)
            cells = [*(student_interval(values) for values in (ce, bnrl))]
            row = [*key, name, ce_rate, bnrl_rate, at_edge, reference]
            row += [part for cell in cells for part in (cell.mean, cell.half_width, cell.n)]
            for second, first in ((bnrl, ce), (ce, at_reference), (bnrl, at_reference)):
                interval, up = _difference(second, first)
                row += [interval.mean, interval.half_width, interval.n, up]
            rows.append(row)
    columns = [*PLACE, "rate", "ce_lr", "bnrl_lr", "at_edge", "reference_lr"]
    columns += [f"{loss}_{part}" for loss in LOSSES for part in ("mean", "half_width", "n")]
    for name in ("difference", "step", "bnrl_step"):
        columns += [name, *(f"{name}_{part}" for part in ("half_width", "n", "up"))]
    return pd.DataFrame(rows, columns=columns)


def selection_note(records: Sequence[Mapping]) -> str:
    """On which split and draws the rates were chosen, for a caption."""
    frame = regime_rows(records)
    chosen_on, reported = (frame[frame["role"] == role] for role in ("selection", "reported"))
    if chosen_on.empty:
        return ""
    splits = ", ".join(map(str, ordered("split", chosen_on["split"])))
    same = " (THE REPORTED ONE)" if set(chosen_on["split"]) & set(reported["split"]) else ""
    count = chosen_on["seed"].nunique()
    return f"chosen on split {splits}{same}, {count} draw{'s' if count > 1 else ''}, for each arm, regime and loss"


def images_note(records: Sequence[Mapping]) -> str:
    """How many test images were judged, for a caption."""
    counts = {record["params"]["num_test_images"] for record in records if record["notebook"] == NOTEBOOK}
    return f"at most the first {max(counts)} test images" if counts else "the test images"


def regimes_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """``metric`` of both losses by regime, arm and rate, with the paired differences."""
    cells = regime_cells(records, metric=metric)
    display = cells[["split", "shots", "arm"]].copy()
    display["trained"] = [REGIME_TEXTS[regime] for regime in cells["regime"]]
    display["rate"] = [_rate_text(row) for row in cells.itertuples()]
    for loss in LOSSES:
        pairs = zip(cells[f"{loss}_mean"], cells[f"{loss}_half_width"])
        display[f"{loss} (%)"] = [
            "–" if math.isnan(mean) else interval_text(mean, half) for mean, half in pairs
        ]
    display["bnrl − ce"] = _differences(cells, "difference")
    display["ce − ce at the largest rate"] = [
        "–" if row.ce_lr == row.reference_lr else text
        for row, text in zip(cells.itertuples(), _differences(cells, "step"))
    ]
    display["n"] = [str(max(pair)) for pair in zip(cells["ce_n"], cells["bnrl_n"])]
    caption = (
        f"{metric} (%) on {images_note(records)} after fine-tuning with each loss at each peak learning rate, by what "
        "is trained: the box head alone on frozen features; also the RPN and the affine layers; also res5. The "
        "backbone is frozen and all else equal. bnrl − ce: points, paired per seed, at the same rate and, in the rows "
        f"'chosen', each loss at its own rate, {selection_note(records)}; '!': one of these is the smallest or largest "
        "tried. ce − ce at the largest rate (that both losses have) is the control: what a smaller step does alone. "
        "missing: further objects stand in the images and are not annotated; full: the same images, all annotated. ± "
        "is the half-width of the 95 % Student-t interval over n few-shot seeds of one base model."
    )
    return Table("regimes", caption, cells, readable(display))


def _rate_text(row) -> str:
    if row.rate != CHOSEN:
        return row.rate
    return f"{CHOSEN}{'!' if row.at_edge else ''}: ce {row.ce_lr:g}, bnrl {row.bnrl_lr:g}"


def _differences(cells: pd.DataFrame, name: str) -> list[str]:
    fields = cells[[name, *(f"{name}_{part}" for part in ("half_width", "up", "n"))]]
    return [
        "–" if n == 0 else difference_text(mean, half, int(up), int(n), "complete", 0)
        for mean, half, up, n in fields.itertuples(index=False, name=None)
    ]
