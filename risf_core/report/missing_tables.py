"""The tables of 33_missing_annotations: functions of records."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import drop_repeats, pair, rows_of, sort_cells, student_interval
from risf_core.report.table_format import Table, difference_text, interval_text, number, spread
from risf_core.studies.share_choices import at_edge, choose

NOTEBOOK = "33_missing_annotations"
PLACE = ["split", "shots"]
KEYS = ["role", *PLACE, "seed", "treatment", "fraction", "loss", "beta", "background_weight", "lr"]
METRICS = ("nAP50", "nAP", "confusion", "background", "background_per_object", "confusion_top")
METRICS += ("background_top", "shot_score", "further_score", "further_background")
SAME = "0, the fixed ones are chosen"
NONE = -1.0  # fraction of rows that are of an arm, and beta of cross-entropy, which has none
LOSSES = ("ce", "ce_bg", "bnrl")
COMPARISONS = (("bnrl", "ce"), ("ce_bg", "ce"))
OWN_RATE = "{} at its own rate"  # a loss at the rate that is best for images of such a share
OWN_RATES = (*map(OWN_RATE.format, ("bnrl", "ce")), "bnrl − ce at their own rates")
TREATMENTS = {"ignored": "known objects ignored", "labelled": "known objects labelled"}
INTERVAL_NOTE = "± is the half-width of the 95 % Student-t interval over few-shot seeds of one base model."
NOT_THE_PAPER = "STUDY, not part of the reproduction; without re-scoring."
SHARE_NOTE = (
    "The K-shot images show further novel objects, of which a share is known. 'Ignored': candidate regions with IoU ≥ "
    "0.5 to a known object are left out of training; images, labels and positives stay the same, and only the false "
    "negatives differ. 'Labelled': known objects are positives, too, so that there are more shots as well."
)


def missing_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of 33_missing_annotations in a fixed order; NONE stands for no fraction and no beta."""
    frame = rows_of(records, NOTEBOOK, required=[*KEYS, "is_fixed"])
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, *METRICS, "labels", "is_fixed", "run_id"])
    frame = frame.astype({name: float for name in ("fraction", "beta", *METRICS)})
    frame = frame.fillna({"fraction": NONE, "beta": NONE})
    return sort_cells(drop_repeats(frame, KEYS, METRICS), KEYS)


def reported_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Reported rows with the fixed weights; with no object known, "labelled" has the rows of "ignored"."""
    frame = missing_rows(records)
    frame = frame[(frame["role"] == "reported") & frame["is_fixed"].astype(bool)]
    has_labels = frame.loc[frame["treatment"] == "labelled", "loss"].unique()
    shared = frame[(frame["fraction"] == 0) & frame["loss"].isin(has_labels)]
    return pd.concat([frame, shared.assign(treatment="labelled")], ignore_index=True)


def control_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of the losses at the learning rate that is best for images of such a share; ``loss`` says so."""
    frame = missing_rows(records)
    frame = frame[frame["role"] == "control"]
    return frame.assign(loss=[OWN_RATE.format(loss) for loss in frame["loss"]])


def _summary(values: pd.Series) -> tuple[float, float, int, int]:
    interval = student_interval(values)
    return interval.mean, interval.half_width, interval.n, int((values > 0).sum())


def with_comparisons(
    frame: pd.DataFrame, keys: Sequence[str], comparisons: Sequence[tuple], metric: str
) -> pd.DataFrame:
    """Rows (keys, seed, what, value): each loss, then paired differences of ``comparisons``, (loss, other[, name])."""
    keys = [*keys, "seed"]
    parts = [frame[[*keys, "loss", metric]].rename(columns={"loss": "what", metric: "value"})]
    for second, first, *name in comparisons:
        pairs = pair(frame, "loss", first, second, metric, keys=keys)
        what = name[0] if name else f"{second} − {first}"
        parts.append(pairs.rename(columns={"difference": "value"}).assign(what=what))
    return pd.concat(parts, ignore_index=True)


def summarized(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean, half_width, n and up (values above 0) of ``value`` over seeds, in the order of the rows."""
    found = [(*key, *_summary(own["value"])) for key, own in rows.groupby(list(keys), sort=False)]
    return pd.DataFrame(found, columns=[*keys, "mean", "half_width", "n", "up"])


def row_text(row, *, as_difference: bool) -> str:
    """A summarized row as a cell of a table."""
    if as_difference:
        return difference_text(row.mean, row.half_width, row.up, row.n, "complete", 0)
    return interval_text(row.mean, row.half_width)


def is_difference(what: str) -> bool:
    """Whether ``what`` names a paired difference, not a loss."""
    return " − " in what or what.startswith("+")


# --- the annotated share ----------------------------------------------------------------------------------------------


def fraction_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Each (split, shots, treatment, what, fraction): a loss, or a paired difference of two.

    Returns:
        The keys, mean, half_width, n, up; ``fraction`` is a text, and "last − first" the paired difference between the
        largest and the smallest share.
    """
    keys = [*PLACE, "treatment", "what", "fraction"]
    frame = reported_rows(records)
    frame = pd.concat(
        [frame[frame["loss"].isin(LOSSES) & (frame["fraction"] != NONE)], control_rows(records)]
    )
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "mean", "half_width", "n", "up"])
    comparisons = [*COMPARISONS, OWN_RATES]
    rows = with_comparisons(frame, [*PLACE, "treatment", "fraction"], comparisons, metric)
    low, high = rows["fraction"].min(), rows["fraction"].max()
    own = [*PLACE, "treatment", "what", "seed"]
    change = pair(rows, "fraction", low, high, "value", keys=own).rename(columns={"difference": "value"})
    rows = sort_cells(rows, ["split", "shots", "treatment", "fraction"])
    rows["fraction"] = [f"{share:g}" for share in rows["fraction"]]
    order = [*LOSSES, *(f"{second} − {first}" for second, first in COMPARISONS), *reversed(OWN_RATES[:2])]
    order.append(OWN_RATES[2])
    cells = summarized(pd.concat([rows, change.assign(fraction="last − first")]), keys)
    cells["place"] = [order.index(what) for what in cells["what"]]
    cells = cells.sort_values([*PLACE, "treatment", "place"], kind="stable")
    return cells.drop(columns="place").reset_index(drop=True)


def fraction_table(records: Sequence[Mapping]) -> Table:
    """nAP50 of each loss over the known share, with paired differences between losses and between shares."""
    cells = fraction_cells(records)
    keys = [*PLACE, "treatment", "what"]
    texts = [
        row_text(row, as_difference=is_difference(row.what) or "last" in row.fraction)
        for row in cells.itertuples()
    ]
    shares = [share for share in dict.fromkeys(cells["fraction"]) if "last" not in share]
    names = [f"{share} (random)" if share == "0" else share for share in shares]
    heads = dict(zip(shares, names)) | {"last − first": f"{shares[-1]} − {shares[0]}" if shares else ""}
    shown = cells.assign(treatment=[TREATMENTS[name] for name in cells["treatment"]])
    display = spread(shown, keys, "fraction", texts, heads=heads, with_n=True)
    caption = (
        f"{NOT_THE_PAPER} nAP50 (%) of the test images over the share of the further novel objects that is known. "
        f"{SHARE_NOTE} Differences are in points, paired per seed; 4/5 up: above 0 in 4 of 5 seeds. Learning rates, "
        "chosen on another split over images with and without missing annotations: "
        f"{rates_text(records)}.{own_note(records)} {INTERVAL_NOTE}{below_note(cells)}"
    )
    return Table("missing_fraction", caption, cells, display)


def rates_text(records: Sequence[Mapping], losses: Sequence[str] = LOSSES) -> str:
    """The learning rate of each loss of the reported rows, as ``ce 0.05, bnrl 0.1``."""
    frame = reported_rows(records)
    found = frame[frame["loss"].isin(losses)].drop_duplicates(["loss", "lr"])
    order = [(list(losses).index(loss), loss, lr) for loss, lr in zip(found["loss"], found["lr"])]
    return ", ".join(f"{loss} {lr:g}" for _, loss, lr in sorted(order))


def own_note(records: Sequence[Mapping]) -> str:
    """Which rates the control takes at each share; nothing without one."""
    frame = control_rows(records).drop_duplicates(["fraction", "loss"])
    if frame.empty:
        return ""
    frame = sort_cells(frame, ["fraction", "loss"])
    taken = "; ".join(
        f"at share {share:g} "
        + ", ".join(f"{name.split()[0]} {lr:g}" for name, lr in zip(own["loss"], own["lr"]))
        for share, own in frame.groupby("fraction", sort=True)
    )
    return (
        " At their own rates: each loss at the rate that was best on that split on images with missing annotations "
        f"(first share) and on images without (last share): {taken}."
    )


def below_note(cells: pd.DataFrame) -> str:
    """A warning where BNRL's interval against cross-entropy lies below 0; nothing elsewhere."""
    is_bnrl = cells["what"].isin(("bnrl − ce", OWN_RATES[2]))
    own = cells[is_bnrl & (cells["mean"] + cells["half_width"] < 0)]
    own = own[~own["fraction"].astype(str).str.contains("last")]
    if own.empty:
        return ""
    places = ", ".join(
        f"{row.treatment} {row.fraction}{row.what.removeprefix('bnrl − ce')}" for row in own.itertuples()
    )
    return f" WARNING: bnrl lies below ce at {places}."


# --- beta and the background weight -----------------------------------------------------------------------------------


def grid_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """nAP50 of BNRL at each (fraction, beta, background_weight) of the split to choose on.

    Returns:
        split, shots, fraction, beta, background_weight, mean, half_width, n, is_fixed, is_chosen.
    """
    keys = [*PLACE, "fraction", "beta", "background_weight"]
    frame = missing_rows(records)
    frame = frame[(frame["role"] == "selection") & (frame["loss"] == "bnrl")]
    columns = [*keys, "mean", "half_width", "n", "is_fixed", "is_chosen"]
    if frame.empty:
        return pd.DataFrame(columns=columns)
    chosen = choose(frame.to_dict("records"), by=[*PLACE, "fraction"], among=["beta", "background_weight"])
    rows = []
    for key, own in frame.groupby(keys, sort=False):
        is_fixed, is_chosen = bool(own["is_fixed"].iloc[0]), chosen[key[:3]] == key[3:]
        rows.append((*key, *_summary(own["nAP50"])[:3], is_fixed, is_chosen))
    return sort_cells(pd.DataFrame(rows, columns=columns), keys)


MAP_COLUMNS = (
    *("split", "select_split", "shots", "fraction", "beta", "background_weight", "is_fixed", "fixed"),
    *("beta_at_edge", "weight_at_edge", "select_chosen", "select_fixed", "select_n", "chosen"),
    *("chosen_half_width", "fixed_mean", "fixed_half_width", "regret", "regret_half_width", "n", "up"),
)


def map_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """The chosen weights at each known share, and what the fixed ones lose against them on the reported split.

    Returns:
        split (reported), select_split, shots, fraction, beta, background_weight, is_fixed (the fixed weights are the
        chosen ones), fixed (text), beta_at_edge, weight_at_edge; select_chosen, select_fixed, select_n: means on the
        split to choose on; chosen, fixed_mean and regret (chosen − fixed, paired per seed) each with its
        ``_half_width``; n, up.
    """
    grid, frame = grid_cells(records), missing_rows(records)
    is_own = (frame["role"] == "reported") & (frame["loss"] == "bnrl") & (frame["treatment"] == "ignored")
    rows = []
    for cell in grid[grid["is_chosen"]].to_dict("records"):
        of_share = grid[(grid["shots"] == cell["shots"]) & (grid["fraction"] == cell["fraction"])]
        own = frame[is_own & (frame["shots"] == cell["shots"]) & (frame["fraction"] == cell["fraction"])]
        at_point = own["beta"].eq(cell["beta"]) & own["background_weight"].eq(cell["background_weight"])
        fixed = of_share[of_share["is_fixed"]].iloc[0]
        facts = {
            "select_split": cell["split"],
            "fixed": f"{fixed['beta']:g}, {fixed['background_weight']:g}",
            "beta_at_edge": at_edge(cell["beta"], of_share["beta"]),
            "weight_at_edge": at_edge(cell["background_weight"], of_share["background_weight"]),
            "select_chosen": cell["mean"],
            "select_fixed": fixed["mean"],
            "select_n": cell["n"],
        }
        rows += [
            cell | facts | regret for regret in _regrets(own[at_point], own[own["is_fixed"].astype(bool)])
        ]
    return sort_cells(pd.DataFrame(rows, columns=list(MAP_COLUMNS)), [*PLACE, "fraction"])


def _regrets(chosen: pd.DataFrame, fixed: pd.DataFrame) -> list[dict]:
    """For each reported split nAP50 with chosen and with fixed weights, and their paired difference."""
    both = pd.concat([chosen.assign(which="chosen"), fixed.assign(which="fixed_mean")])
    pairs = pair(both, "which", "fixed_mean", "chosen", "nAP50", keys=["split", "seed"])
    found = []
    for split, regret in pairs.groupby("split", sort=True):
        own, values = both[both["split"] == split], {"split": split}
        for name in ("chosen", "fixed_mean"):
            mean, half_width = _summary(own.loc[own["which"] == name, "nAP50"])[:2]
            values |= {name: mean, f"{name.removesuffix('_mean')}_half_width": half_width}
        names = ("regret", "regret_half_width", "n", "up")
        found.append(values | dict(zip(names, _summary(regret["difference"]), strict=True)))
    return found


def map_table(records: Sequence[Mapping]) -> Table:
    """The chosen (beta, omega_bg) at each known share, and the regret of the fixed ones."""
    cells, grid = map_cells(records), grid_cells(records)
    display = pd.DataFrame({"split": cells["split"].astype(str), "K": cells["shots"].astype(str)})
    display["known share"] = [f"{share:g}" for share in cells["fraction"]]
    edges = zip(cells["beta_at_edge"], cells["weight_at_edge"])
    marks = [("!" if beta else "", "!" if weight else "") for beta, weight in edges]
    points = zip(cells["beta"], cells["background_weight"], marks)
    display["chosen β, ω_bg"] = [f"{beta:g}{mark[0]}, {weight:g}{mark[1]}" for beta, weight, mark in points]
    display["on split to choose on: chosen, fixed"] = [
        f"{number(one)}, {number(two)} (n = {n})"
        for one, two, n in zip(cells["select_chosen"], cells["select_fixed"], cells["select_n"])
    ]
    for name, mean in (("chosen", "chosen"), ("fixed", "fixed_mean")):
        pairs = zip(cells[mean], cells[f"{name}_half_width"])
        display[f"nAP50 {name} (%)"] = [interval_text(*values) for values in pairs]
    fields = cells[["regret", "regret_half_width", "up", "n"]].itertuples(index=False, name=None)
    display["regret of the fixed"] = [
        SAME if is_same else difference_text(*values, "complete", 0)
        for values, is_same in zip(fields, cells["is_fixed"])
    ]
    fixed = ", ".join(sorted(set(cells["fixed"])))
    tried = [
        ", ".join(f"{value:g}" for value in sorted(set(grid[name]))) for name in ("beta", "background_weight")
    ]
    caption = (
        f"{NOT_THE_PAPER} BNRL's β and ω_bg with the largest mean nAP50 at each known share, the labels held constant "
        f"(known objects are ignored), of β in {tried[0]} and ω_bg in {tried[1]}, all else fixed, the learning rate "
        f"({rates_text(records, ['bnrl'])}) too. Chosen on another split's base model, reported here. Regret: nAP50 "
        f"with the chosen weights less that with the fixed ones (β, ω_bg = {fixed}), in points, paired per seed; "
        "above 0 the fixed ones lose. '!': the smallest or largest value tried was chosen, so that a better one may "
        f"lie beyond. {INTERVAL_NOTE}{edge_note(cells)}"
    )
    return Table("missing_map", caption, cells, display)


def edge_note(cells: pd.DataFrame) -> str:
    """A warning that names the shares at which a weight at the edge of the grid was chosen; nothing without any."""
    if cells.empty:
        return ""
    own = cells[cells["beta_at_edge"].astype(bool) | cells["weight_at_edge"].astype(bool)]
    shares = ", ".join(dict.fromkeys(f"{share:g}" for share in own["fraction"]))
    return f" WARNING: the optimum lies at the edge of the grid at known share {shares}." if shares else ""
