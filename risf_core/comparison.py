"""Rows of two sides, paired: which belong together, which have no partner, and what their difference is.

Two rows are a pair if they agree in all columns that name a cell (split, K, seed, arm, loss, re-scoring, base model).
A column in which each side has one value throughout, and another one, is what the sides differ in; it is named and not
matched. Split, seed and repeat always have to agree: they name the draw.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from risf_core.errors import ParamsError, RecordError
from risf_core.packs import CELL
from risf_core.report.statistics import notebook_of, sort_cells, variants
from risf_core.selectors import Side, Source, Truths, current, same

DRAW = ("split", "seed", "repeat")  # one set of K-shot images and one training
AVERAGED = ("split", "seed", "repeat", "shots", "base")  # a mean may go over these; over no other column
KEYS = (
    "split", "setting", "arm", "shots", "loss", "rescoring", "variant", "base", "part", "label_space", "clip",
    "control", "detector", "way", "sweep", "alpha", "beta", "gamma", "epsilon", "background_weight", "c",
    "temperature", "fraction", "seed", "repeat",
)  # fmt: skip
FINE_TUNING = "20_fine_tuning"
PLACES = ["a_place", "b_place"]


@dataclass(frozen=True, eq=False)
class Pairing:
    """The pairs of two sides.

    Attributes:
        sides: A and B.
        notebook: Whose rows they are.
        metric: The number that is compared.
        frames: The rows of A and of B that take part, with ``run_id`` and ``source`` (place in the side's sources).
        pairs: A row for each pair: the columns that agree, ``a``, ``b``, ``difference`` (B - A), and the places of
            both rows in `frames`.
        differing: Column to its value in A and in B.
        unpaired: ``side``, ``why``, the columns that name a cell, ``run_id``: rows without a partner or number.
        notes: What else a reader has to know.
    """

    sides: tuple[Side, Side]
    notebook: str
    metric: str
    frames: tuple[pd.DataFrame, pd.DataFrame]
    pairs: pd.DataFrame
    differing: Mapping[str, tuple[Any, Any]]
    unpaired: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def matched(self) -> list[str]:
        """Columns in which the rows of a pair agree."""
        return [name for name in self.pairs if name not in ("a", "b", "difference", *PLACES)]

    def source(self, side: int, place: int) -> Source:
        """The record of a row of `frames`."""
        return self.sides[side].sources[self.frames[side].at[place, "source"]]

    def row(self, side: int, place: int) -> dict[str, Any]:
        """A row of `frames`."""
        return self.frames[side].loc[place].to_dict()


def pair_sides(first: Side, second: Side, *, metric: str = "nAP50", by: Sequence[str] = ()) -> Pairing:
    """Pair the rows of two sides.

    Args:
        first: A.
        second: B.
        metric: A number of the rows.
        by: Columns that will group the pairs; they count among those that name a cell.

    Raises:
        ParamsError: If a column is unknown, the sides share no notebook, or name the same rows.
        RecordError: If two rows of a side are the same cell with different numbers, or nothing pairs.
    """
    sides = (first, second)
    notebook, notes = _common_notebook(sides)
    sides = tuple(current(side, notebook) for side in sides)
    frames = [_rows(side, notebook) for side in sides]
    _check_columns(frames, metric, by)
    if notebook == FINE_TUNING:
        _check_cells(sides, frames)
        _add_variants(sides, frames)
    columns = _key_columns(frames, by, notes)
    has_number = [pd.to_numeric(frame[metric], errors="coerce").notna() for frame in frames]
    lost = [_unpaired(f[~known], s, columns, f"no {metric}") for f, s, known in zip(frames, "AB", has_number)]
    frames = [
        f[known].assign(**{metric: pd.to_numeric(f.loc[known, metric])})
        for f, known in zip(frames, has_number)
    ]
    differing = _differing(frames, columns)
    if bad := [name for name in by if name in differing]:
        values = " and ".join(map(str, differing[bad[0]]))
        raise ParamsError(f"--by {bad[0]}: A and B differ in it ({values}), so it groups no pairs.")
    matched = [name for name in columns if name not in differing]
    frames = [_without_repeats(frame, side, matched, metric, notes) for frame, side in zip(frames, sides)]
    pairs, alone = _merge(frames, columns, matched, metric)
    if pairs.empty:
        raise RecordError(_nothing_pairs(frames, matched, sides))
    _refuse_the_same(sides, frames, pairs, notes)
    unpaired = pd.concat([*lost, *alone], ignore_index=True)
    return Pairing(sides, notebook, metric, tuple(frames), pairs, differing, unpaired, notes)


def _common_notebook(sides: Sequence[Side]) -> tuple[str, list[str]]:
    """The notebook whose rows are compared: the fine-tunings where there are some, else the only common one."""
    there = [
        {notebook_of(source.record) for source in side.sources if source.record.get("rows")} for side in sides
    ]
    common = there[0] & there[1]
    if FINE_TUNING in common:
        common = {FINE_TUNING}
    if len(common) != 1:
        lists = " and ".join(f"{name}: {', '.join(sorted(one)) or 'none'}" for name, one in zip("AB", there))
        what = (
            f"both have rows of {', '.join(sorted(common))}"
            if common
            else "no notebook has rows on both sides"
        )
        raise ParamsError(f"{what} ({lists}). Expected one: add the condition notebook=NAME.")
    chosen, notes = common.pop(), {}
    for name, side in zip("AB", sides):
        others = [notebook_of(one.record) for one in side.sources if notebook_of(one.record) != chosen]
        if others:
            counts = ", ".join(f"{others.count(other)} of {other}" for other in sorted(set(others)))
            notes.setdefault(counts, []).append(name)
    texts = [
        f"{' and '.join(names)}: left out are records of other notebooks ({text})."
        for text, names in notes.items()
    ]
    return chosen, texts


def _rows(side: Side, notebook: str) -> pd.DataFrame:
    rows = []
    for place, source in enumerate(side.sources):
        bases = [run_id for run_id in source.record["upstream"] if run_id.startswith("base_training")]
        base = {"base": bases[0]} if len(bases) == 1 else {}
        for row in source.record["rows"]:
            if all(any(same(row.get(name), v) for v in values) for name, values in side.wanted.items()):
                rows.append({**base, **row, "run_id": source.run_id, "source": place})
    if not rows:
        conditions = ", ".join(f"{name}={'|'.join(values)}" for name, values in side.wanted.items())
        raise ParamsError(f"{side.word}: no row fits all of {conditions or 'it'}.")
    return pd.DataFrame(rows)


def _check_columns(frames: Sequence[pd.DataFrame], metric: str, by: Sequence[str]) -> None:
    for what, names in (("--metric", [metric]), ("--by", by)):
        for name in names:
            fits = _is_metric if what == "--metric" else _is_grouping
            choices = sorted(
                column for column in frames[0] if all(column in one and fits(one[column]) for one in frames)
            )
            is_known = all(name in frame for frame in frames)
            if name not in choices and (what == "--metric" or not is_known):
                missing = f"no {'number' if what == '--metric' else 'column'} of both sides"
                near = _near(name, choices)
                raise ParamsError(
                    f"{what} {name}: {missing}{f' (nearest: {near!r})' if near else ''}. "
                    f"There are: {', '.join(choices) or 'none'}."
                )


def _is_metric(column: pd.Series) -> bool:
    """Whether a column holds numbers that can be compared, and names no cell."""
    values = [value for value in column.dropna() if not isinstance(value, bool | np.bool_)]
    numbers = all(isinstance(value, int | float | np.number) for value in values)
    return bool(values) and numbers and column.name not in (*KEYS, "source")


def _is_grouping(column: pd.Series) -> bool:
    """Whether a column names cells."""
    return column.name in KEYS or _is_text(column)


def _near(name: str, choices: Sequence[str]) -> str:
    """The choice that was probably meant, or nothing."""
    by_small = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), by_small, n=1, cutoff=0.6)
    return by_small[found[0]] if found else ""


def _check_cells(sides: Sequence[Side], frames: Sequence[pd.DataFrame]) -> None:
    """RecordError for a row of a fine-tuning that does not say which cell it is."""
    for side, frame in zip(sides, frames):
        for name in CELL:
            if name not in frame or frame[name].isna().any():
                raise RecordError(
                    f"{side.word} ({side.origin}): a row has no {name}. Expected rows of {FINE_TUNING}."
                )


def _add_variants(sides: Sequence[Side], frames: Sequence[pd.DataFrame]) -> None:
    """The column ``variant``: what sets a row's run apart from the main configuration, both sides seen together."""
    params = {}
    for number, side in enumerate(sides):
        for source in side.sources:
            own = {name: value for name, value in source.record["params"].items() if name != "base"}
            params[f"{number}{source.run_id}"] = own
    both = pd.concat(
        [frame.assign(run_id=f"{number}" + frame["run_id"]) for number, frame in enumerate(frames)],
        ignore_index=True,
    )
    names = variants(both, params)
    frames[0]["variant"], frames[1]["variant"] = names[: len(frames[0])], names[len(frames[0]) :]


def _key_columns(frames: Sequence[pd.DataFrame], by: Sequence[str], notes: list[str]) -> list[str]:
    """Columns that name a cell and that both sides have; what one side alone has is noted."""
    known = [
        [name for name in frame if name in (*KEYS, *by) or (name != "run_id" and _is_text(frame[name]))]
        for frame in frames
    ]
    for name, own, other in zip("AB", known, reversed(known)):
        if alone := [column for column in own if column not in other]:
            notes.append(f"{name} alone has the column {', '.join(alone)}, which is not matched.")
    order = [*KEYS, *by, *known[0]]
    return [name for name in dict.fromkeys(order) if name in known[0] and name in known[1]]


def _is_text(column: pd.Series) -> bool:
    values = column.dropna()
    return len(values) > 0 and all(isinstance(value, str) for value in values)


def _differing(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    result = {}
    for name in columns:
        values = [frame[name].dropna().unique() for frame in frames]
        whole = not any(frame[name].isna().any() for frame in frames)
        if (
            name not in DRAW
            and whole
            and len(values[0]) == len(values[1]) == 1
            and values[0][0] != values[1][0]
        ):
            result[name] = (plain(values[0][0]), plain(values[1][0]))
    return result


def plain(value: Any) -> Any:
    """A value of a frame as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _without_repeats(
    frame: pd.DataFrame, side: Side, matched: list[str], metric: str, notes: list[str]
) -> pd.DataFrame:
    """One of several equal rows; RecordError for rows of one cell with different numbers."""
    again = frame[frame.duplicated(matched, keep=False)]
    for _, group in again.groupby(matched, sort=False, dropna=False):
        if group[metric].nunique() > 1:
            cell = ", ".join(
                f"{name}={value}" for name, value in group.iloc[0][matched].items() if value != ""
            )
            varying = [
                name
                for name in (*KEYS, "run_id")
                if name in group and name not in matched and group[name].nunique(dropna=False) > 1
            ]
            texts = (f"{name}={'|'.join(map(str, group[name].unique()))}" for name in varying)
            raise RecordError(
                f"{side.word}: {len(group)} rows are the same cell ({cell}) with different {metric}. They differ in "
                f"{'; '.join(texts) or 'nothing that names a cell'}. Choose one by a condition, such as run_id=..."
            )
    kept = frame.drop_duplicates(matched)
    if len(kept) < len(frame):
        notes.append(f"{side.word}: {len(frame) - len(kept)} rows repeat others with the same {metric}.")
    return kept


def _merge(
    frames: Sequence[pd.DataFrame], columns: list[str], matched: list[str], metric: str
) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    sides = [
        frame[[*matched, metric]].rename(columns={metric: name}).assign(**{f"{name}_place": frame.index})
        for name, frame in zip("ab", frames)
    ]
    both = sides[0].merge(sides[1], on=matched, how="outer", indicator=True, validate="one_to_one")
    pairs = both[both["_merge"] == "both"].drop(columns="_merge")
    pairs = pairs.assign(difference=pairs["b"] - pairs["a"]).astype(dict.fromkeys(PLACES, int))
    alone = []
    for frame, name, place, merged in zip(frames, "AB", PLACES, ("left_only", "right_only")):
        rows = frame.loc[both.loc[both["_merge"] == merged, place].astype(int)]
        alone.append(_unpaired(rows, name, columns, "no partner"))
    return sort_cells(pairs[[*matched, "a", "b", "difference", *PLACES]], matched), alone


def _unpaired(rows: pd.DataFrame, side: str, columns: list[str], why: str) -> pd.DataFrame:
    return sort_cells(rows[[*columns, "run_id"]].assign(side=side, why=why), columns)


def _nothing_pairs(frames: Sequence[pd.DataFrame], matched: list[str], sides: Sequence[Side]) -> str:
    apart = []
    for name in matched:
        values = [list(dict.fromkeys(map(str, frame[name]))) for frame in frames]
        if not set(values[0]) & set(values[1]):
            apart.append(f"{name} is {', '.join(values[0][:6])} in A and {', '.join(values[1][:6])} in B")
    why = "; ".join(apart) or "no two rows agree in all of " + ", ".join(matched)
    return (
        f"no row of {sides[0].word} ({len(frames[0])} rows) pairs with one of {sides[1].word} "
        f"({len(frames[1])}): {why}. Expected rows of the same split, seed and repeat that agree in all columns but "
        "those in which each side has one value."
    )


def _refuse_the_same(
    sides: Sequence[Side], frames: Sequence[pd.DataFrame], pairs: pd.DataFrame, notes: list[str]
) -> None:
    """ParamsError if every row is compared with itself; a note if some are."""
    places = [
        [str(side.sources[place].artifacts) for place in frame.loc[pairs[name], "source"]]
        for side, frame, name in zip(sides, frames, PLACES)
    ]
    columns = [name for name in KEYS if name in frames[0] and name in frames[1] and name != "variant"]
    cells = [frame.loc[pairs[place], columns].astype(str).to_numpy() for frame, place in zip(frames, PLACES)]
    is_same = (np.array(places[0]) == np.array(places[1])) & (cells[0] == cells[1]).all(axis=1)
    if is_same.all():
        raise ParamsError(
            f"{sides[0].word} and {sides[1].word} are the same {len(pairs)} rows. Expected two sides, such as "
            "mini:loss=ce and mini:loss=bnrl."
        )
    if is_same.any():
        notes.append(
            f"{int(is_same.sum())} of {len(pairs)} pairs are a row compared with itself (difference 0)."
        )


def check_test_data(pairing: Pairing, truths: Truths) -> None:
    """Refuse pairs that were judged on different test data.

    Two records of this project with the same hash of data need no look at the files.

    Raises:
        RecordError: Naming both sides' test data.
    """
    seen = set()
    for pair in pairing.pairs.itertuples():
        sources = pairing.source(0, pair.a_place), pairing.source(1, pair.b_place)
        rows = pairing.row(0, pair.a_place), pairing.row(1, pair.b_place)
        splits = [
            row.get("split", source.record["params"].get("split")) for row, source in zip(rows, sources)
        ]
        settings = {str(row.get("setting", "fsod")) for row in rows}
        setting = "gfsod" if settings == {"gfsod"} else "fsod"
        key = (sources[0].run_id, sources[1].run_id, str(splits), setting)
        if key in seen:
            continue
        seen.add(key)
        is_own = not any(source.foreign for source in sources)
        if is_own and sources[0].record["data_hash"] == sources[1].record["data_hash"]:
            continue
        if None in splits:
            raise RecordError(
                f"{key[0]} and {key[1]} do not say on which split they were judged; they are not paired."
            )
        sides = [truths.get(source, plain(split)) for source, split in zip(sources, splits)]
        if sides[0].hash(setting) != sides[1].hash(setting):
            raise RecordError(
                f"{key[0]} ({sources[0].origin}) and {key[1]} ({sources[1].origin}) were judged on different test "
                f"data, so their difference says nothing of the methods. A: {sides[0]}. B: {sides[1]}. Expected "
                "runs on the same images and objects."
            )
