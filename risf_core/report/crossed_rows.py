"""From records to crossed values: which split, base model, draw, CLIP and learning rate each row has, and the effects.

The factors come from the records' parameters and upstream runs alone. Imports no torch.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from risf_core.effects import EFFECTS, ON_SELECT_SPLIT, SELECT_SPLIT, Cell, Effect
from risf_core.errors import RecordError
from risf_core.report.base_models import BACKBONES, FINE_TUNING, base_labels, bases_of_backbones, clip_runs
from risf_core.report.statistics import notebook_of, ordered, rows_of, variants
from risf_core.report.sweep_tables import MAIN_CROPS

RATE = "solver.lr="
FIRST, SECOND = (
    "first",
    "second",
)  # CLIPs: the one that notebook 20 re-scores with, and the one of notebook 32
FACTORS = ["split", "base", "seed", "arm", "shots"]


def crossed_rows(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """One row for each (split, base, seed, arm, shots, loss, is_best, clip) of the fine-tunings in setting fsod.

    Returns:
        These columns, ``value`` and ``run_id``; ``clip`` is "" without re-scoring, "first" or "second"; ``is_best``
        is of the runs whose learning rate alone differs from that of the others. Runs that differ in something else are
        left out, as are CLIPs beyond the second and crops made in another way.

    Raises:
        RecordError: If a loss has several other learning rates in one arm, a row of the second CLIP belongs to no
            single base model, or a cell is there twice with different values.
    """
    keys = [*FACTORS, "loss", "is_best", "clip"]
    frame = rows_of(records, FINE_TUNING, required=[*FACTORS[:1], *FACTORS[2:], "loss", "rescoring", metric])
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "value", "run_id"])
    frame = frame[(frame["setting"] == "fsod") & frame["rescoring"].isin(("none", "cm_clip"))]
    params = {record["run_id"]: record.get("params") or {} for record in records}
    frame = frame.assign(
        variant=variants(frame, params, factors=("base", "clip")),
        base=frame["run_id"].map(base_labels(records)),
        clip=frame["rescoring"].map({"none": "", "cm_clip": FIRST}),
        value=pd.to_numeric(frame[metric]),
    )
    is_rate = frame["variant"].str.fullmatch(rf"{RATE}[^,]*")
    _check_one_rate(frame[is_rate])
    frame = frame[is_rate | (frame["variant"] == "")].assign(is_best=is_rate)
    parts = [frame[[*keys, "value", "run_id"]], _second_clip(records, metric, keys)]
    rows = pd.concat([part for part in parts if len(part)], ignore_index=True).drop_duplicates(
        [*keys, "value"]
    )
    if twice := rows[rows.duplicated(keys)].to_dict("records"):
        cell = ", ".join(f"{key} {twice[0][key]}" for key in keys)
        raise RecordError(
            f"{twice[0]['run_id']}: another record has another {metric} of {cell}. Remove one of them."
        )
    return rows


def _check_one_rate(frame: pd.DataFrame) -> None:
    for (loss, arm), own in frame.groupby(["loss", "arm"]):
        if own["variant"].nunique() > 1:
            found = ", ".join(sorted(set(own["variant"])))
            raise RecordError(
                f"fine-tunings with {loss} in the arm {arm} have {found}. Expected one rate beside the main one."
            )


def best_rates(records: Sequence[Mapping]) -> dict[str, str]:
    """The learning rate of each loss that has runs at another than the main one; the others' best is the main one.

    As text; where the arms have rates of their own, each with its arm: "0.2 (kshot), 0.05 (missing)".
    """
    frame = rows_of(records, FINE_TUNING)
    if frame.empty:
        return {}
    params = {record["run_id"]: record.get("params") or {} for record in records}
    names = variants(frame, params, factors=("base", "clip"))
    found: dict[str, dict[str, str]] = {}
    for loss, arm, name in sorted(set(zip(frame["loss"], frame["arm"], names, strict=True))):
        if name.startswith(RATE) and "," not in name:
            found.setdefault(loss, {})[arm] = name.removeprefix(RATE)
    return {
        loss: rates.popitem()[1]
        if len(set(rates.values())) == 1
        else ", ".join(f"{rate} ({arm})" for arm, rate in rates.items())
        for loss, rates in found.items()
    }


def _second_clip(records: Sequence[Mapping], metric: str, keys: Sequence[str]) -> pd.DataFrame:
    """Rows of notebook 32 with one CLIP that notebook 20 did not take, each with the base model of its run."""
    firsts = {name for record in records if notebook_of(record) == FINE_TUNING for name in clip_runs(record)}
    others = {r["run_id"]: clip_runs(r) for r in records if notebook_of(r) == BACKBONES}
    others = {
        run_id: clips[0] for run_id, clips in others.items() if len(clips) == 1 and clips[0] not in firsts
    }
    rows = rows_of([record for record in records if record["run_id"] in others], BACKBONES)
    if rows.empty:
        return pd.DataFrame(columns=[*keys, "value", "run_id"])
    for name, value in MAIN_CROPS.items():  # a row of an older record does not say
        rows = rows[rows[name].fillna(value) == value] if name in rows else rows
    second = min(others.values())  # a third is no repeat of two
    bases = bases_of_backbones(records)
    where = rows[["run_id", "split", "shots"]].itertuples(index=False, name=None)
    rows = rows.assign(
        base=[bases.get(key) for key in where],
        clip=SECOND,
        is_best=False,
        value=pd.to_numeric(rows[metric]),
    )
    rows = rows[rows["run_id"].map(others) == second].dropna(subset=["base"])
    return rows[[*keys, "value", "run_id"]]


def effect_values(rows: pd.DataFrame, effect: Effect, rates: Iterable[str]) -> pd.DataFrame:
    """The contrast of an effect for each (split, base, seed, arm, shots, clip) that has all its cells.

    Args:
        rows: What `crossed_rows` returns.
        effect: One of `EFFECTS`.
        rates: Losses with runs at a best rate of their own, see `best_rates`. Another loss's best rate is the main one;
            without any the effects that take a best rate have no value.

    Returns:
        split, base, seed, arm, shots, clip ("" where no CLIP takes part), value and run_ids (a frozenset). CLIPs that
        not every cell of the first one has are left out, so that all means are over the same cells.
    """
    rates, columns = set(rates), [*FACTORS, "clip", "value", "run_ids"]
    if effect.takes_best and not rates & {cell.loss for _, cell in effect.terms if cell.is_best}:
        return pd.DataFrame(columns=columns)
    table = None
    for number, (sign, cell) in enumerate(effect.terms):
        own = cell_values(rows, cell, rates).rename(columns={"value": f"v{number}", "run_id": f"r{number}"})
        own[f"v{number}"] *= sign
        if not cell.is_rescored:
            own = own.drop(columns="clip")
        if table is None:
            table = own
        else:
            table = table.merge(own, on=[*FACTORS, *(["clip"] if "clip" in table and "clip" in own else [])])
    numbers = range(len(effect.terms))
    runs = table[[f"r{number}" for number in numbers]].itertuples(index=False, name=None)
    table = table.assign(
        value=table[[f"v{number}" for number in numbers]].sum(axis=1, skipna=False),
        run_ids=[frozenset(own) for own in runs],
    )
    if "clip" not in table:
        table["clip"] = ""
    return _equal_clips(table[columns].dropna(subset=["value"]))


def cell_values(rows: pd.DataFrame, cell: Cell, rates: Iterable[str]) -> pd.DataFrame:
    """The rows of one cell: split, base, seed, arm, shots, clip, value, run_id; ``rates`` as in `effect_values`."""
    is_best = cell.is_best and cell.loss in set(rates)
    is_own = (rows["loss"] == cell.loss) & (rows["is_best"] == is_best)
    is_own &= (rows["clip"] != "") == cell.is_rescored
    return rows.loc[is_own, [*FACTORS, "clip", "value", "run_id"]].reset_index(drop=True)


def _equal_clips(values: pd.DataFrame) -> pd.DataFrame:
    """Of each (arm, K) the CLIPs that have every (split, base, seed) that the first one has."""
    parts = []
    for _, own in values.groupby(["arm", "shots"], sort=False):
        cells = {clip: set(zip(one["split"], one["base"], one["seed"])) for clip, one in own.groupby("clip")}
        largest = max(cells.values(), key=len)
        parts.append(own[own["clip"].isin([clip for clip, found in cells.items() if found == largest])])
    return pd.concat(parts, ignore_index=True) if parts else values


def with_mean_over_shots(values: pd.DataFrame) -> pd.DataFrame:
    """The values and, as ``shots`` "all", their mean over K in each cell that has every K of its arm.

    The K of an arm are those with the most base models: what other studies made at further K of one base model of a
    split takes no others out of the mean.
    """
    keys = [name for name in (*FACTORS, "clip") if name != "shots"]
    parts = [values.astype({"shots": object})]
    for _, own in values.groupby("arm", sort=False):
        models = own.drop_duplicates(["shots", "split", "base"])["shots"].value_counts()
        own = own[own["shots"].isin(models.index[models == models.max()])]
        if own["shots"].nunique() > 1:
            by_cell = own.groupby(keys, sort=False)
            whole = (
                by_cell["value"].mean()[by_cell["shots"].nunique() == own["shots"].nunique()].reset_index()
            )
            runs = by_cell["run_ids"].agg(lambda found: frozenset().union(*found)).rename("run_ids")
            parts.append(whole.merge(runs.reset_index(), on=keys).assign(shots="all"))
    return pd.concat(parts, ignore_index=True)[list(values)]


def split_sets(effect: Effect, values: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """An effect with its values, apart for the split where the rates were chosen: (name, values)."""
    if not effect.takes_best:
        return [(effect.name, values)] if len(values) else []
    is_chosen = values["split"] == SELECT_SPLIT
    sets = [(effect.name, values[~is_chosen]), (f"{effect.name}{ON_SELECT_SPLIT}", values[is_chosen])]
    return [(name, own) for name, own in sets if len(own)]


def all_effects(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """The values of every effect that the records give.

    Returns:
        effect, loss, split, base, seed, arm, shots (K or "all"), clip, value, run_ids; in the order of `EFFECTS`, arms
        and K. Effects with a rate that was chosen on split 2 have a name of their own there.
    """
    rows, rates = crossed_rows(records, metric=metric), best_rates(records)
    columns = ["effect", "loss", *FACTORS, "clip", "value", "run_ids"]
    parts = []
    for effect in EFFECTS:
        found = effect_values(rows, effect, rates)
        for name, own in split_sets(effect, found) if len(found) else ():
            own = with_mean_over_shots(own)
            for arm, shots in itertools.product(ordered("arm", own["arm"]), ordered("shots", own["shots"])):
                one = own[(own["arm"] == arm) & (own["shots"] == shots)]
                parts.append(one.assign(effect=name, loss=effect.loss))
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def mean_over_clips(values: pd.DataFrame) -> pd.DataFrame:
    """One value for each (split, base, seed): the mean over the CLIPs."""
    return values.groupby(["split", "base", "seed"], as_index=False, sort=True)["value"].mean()


def clip_differences(values: pd.DataFrame) -> pd.DataFrame:
    """Second less first CLIP for each (split, base, seed); empty unless there are both."""
    wide = values.pivot(index=["split", "base", "seed"], columns="clip", values="value")
    if not {FIRST, SECOND} <= set(wide):
        return pd.DataFrame(columns=["split", "base", "seed", "value"])
    return (wide[SECOND] - wide[FIRST]).rename("value").reset_index()
