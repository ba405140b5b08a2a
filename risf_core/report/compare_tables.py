"""Tables of a comparison: pairs, kinds of error, images that changed most, rows without a partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from risf_core.compared_cells import CellResults, changed_groups, extremes
from risf_core.comparison import AVERAGED, DRAW, Pairing
from risf_core.paired_means import group_columns
from risf_core.report.statistics import ordered
from risf_core.report.table_format import Table, interval_text, number, readable

SHOWN = 12  # images and lines of unpaired rows that the terminal shows; the CSV has all
NAMES = {"shots": "K", "rescoring": "re-scoring", "base": "base model", "label_space": "label space"}


def heads(pairing: Pairing) -> tuple[str, str]:
    """Headings of the two sides: a side that is not of this project says so."""
    return tuple(
        name if side.origin == "own" else f"{name} ({side.origin})" for name, side in zip("AB", pairing.sides)
    )


def legend(pairing: Pairing) -> tuple[str, str]:
    """The two headings with what each side has and the other has not, for a figure."""
    values = [[_value(pair[place]) for pair in pairing.differing.values()] for place in (0, 1)]
    return tuple(": ".join(filter(None, (head, ", ".join(own)))) for head, own in zip(heads(pairing), values))


def describe_sides(pairing: Pairing) -> str:
    """Two sentences: what A and B are, and in what they differ."""
    texts = []
    for place, (name, side) in enumerate(zip("AB", pairing.sides)):
        frame = pairing.frames[place]
        origin = "own" if side.origin == "own" else f"{side.origin}, not of this project"
        runs = frame["run_id"].nunique()
        texts.append(f"{name}: {side.word} ({origin}; {_count(len(frame), 'row')} of {_count(runs, 'run')}).")
    if pairing.differing:
        parts = (f"{NAMES.get(k, k)} ({_value(a)} | {_value(b)})" for k, (a, b) in pairing.differing.items())
        texts.append(f"They differ in {', '.join(parts)}.")
    return " ".join(texts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _value(value: Any) -> str:
    return "main" if value == "" else str(value)


def named_values(values: Mapping[str, Any]) -> str:
    """Columns with their values, as a title says them: ``K 1, arm missing``."""
    return ", ".join(f"{NAMES.get(name, name)} {_value(value)}" for name, value in values.items())


def shared(pairing: Pairing, by: Sequence[str]) -> tuple[list[str], str]:
    """Columns that a table shows, and a sentence on those in which all pairs agree."""
    columns = group_columns(pairing, by)
    shown = [name for name in columns if name in by or pairing.pairs[name].nunique(dropna=False) > 1]
    alike = [
        f"{NAMES.get(name, name)} {_value(pairing.pairs[name].iloc[0])}"
        for name in pairing.matched
        if name not in shown
        and pairing.pairs[name].nunique(dropna=False) == 1
        and pairing.pairs[name].notna().all()
    ]
    return shown, f"In all pairs: {', '.join(alike)}." if alike else ""


def units_note(pairing: Pairing, by: Sequence[str]) -> str:
    """What the intervals are over."""
    units = [name for name in DRAW if name in pairing.pairs and name not in by]
    inside = [
        NAMES.get(name, name)
        for name in AVERAGED
        if name in pairing.pairs and name not in (*by, *units) and pairing.pairs[name].nunique() > 1
    ]
    units = [name for name in units if name == "seed" or pairing.pairs[name].nunique() > 1]
    what = " and ".join(units) or "pairs"
    text = f"Intervals: 95 % Student-t over n ({what}), paired."
    return text + (f" Values of {' and '.join(inside)} are averaged within each first." if inside else "")


def paired_table(pairing: Pairing, summary: pd.DataFrame, results: CellResults, by: Sequence[str]) -> Table:
    """The paired table: A, B and B - A of each group."""
    shown, alike = shared(pairing, by)
    data = summary.assign(a_origin=pairing.sides[0].origin, b_origin=pairing.sides[1].origin)
    limits = [results.bootstrap.get(place, (float("nan"),) * 2) for place in range(len(data))]
    data["images_low"], data["images_high"] = [low for low, _ in limits], [high for _, high in limits]
    display = data[shown].copy()
    for head, name in zip((*heads(pairing), "B − A"), ("a", "b", "difference"), strict=True):
        values = zip(data[name], data[f"{name}_half_width"])
        display[head] = [interval_text(*value, sign=name == "difference") for value in values]
    if results.bootstrap:
        display["over images"] = [_range(low, high) for low, high in limits]
    display["up"] = [f"{row.up}/{row.n}" for row in data.itertuples()]
    display["n"], display["pairs"] = data["n"], data["pairs"]
    if (data["left_out"] != "").any():
        display["not in the mean"] = data["left_out"]
    caption = f"{pairing.metric} in percent, difference in points. {describe_sides(pairing)} {alike}".strip()
    caption += f" {units_note(pairing, by)} up: how many of n rose."
    if results.bootstrap:
        caption += " over images: 95 % interval of B − A over resampled test images (1,000 draws), for a single pair."
    if (data["left_out"] != "").any():
        caption += " not in the mean: seeds that lack some of the group's pairs."
    return Table("paired", caption, data, _readable(display))


def _range(low: float, high: float) -> str:
    return "–" if low != low else f"{number(float(low), sign=True)} to {number(float(high), sign=True)}"


def kinds_table(pairing: Pairing, summary: pd.DataFrame, results: CellResults, by: Sequence[str]) -> Table:
    """What each kind of error costs on either side, and how that changes."""
    shown, alike = shared(pairing, by)
    display = summary[[*shown, "kind"]].rename(columns={"kind": "kind of error"})
    for head, name in zip((*heads(pairing), "B − A"), ("a", "b", "difference"), strict=True):
        values = zip(summary[name], summary[f"{name}_half_width"])
        display[head] = [interval_text(*value, sign=name == "difference") for value in values]
    for head, name in zip(heads(pairing), "ab", strict=True):
        display[f"{head}: an image"] = [
            "" if value != value or value is None else f"{value:.2f}"
            for value in summary[f"{name}_errors_per_image"]
        ]
    display["n"] = summary["n"]
    caption = (
        "What each kind of error costs: points of novel AP50 that fixing it alone would give (TIDE, Bolya et al. "
        "2020; IoU 0.5 and 0.1), so below zero under B − A is better; first AP50 itself, and last how many there are "
        f"of it an image. {len(results.kinds)} of {len(pairing.pairs)} pairs have stored detections. "
        f"{describe_sides(pairing)} {alike} {units_note(pairing, by)}"
    )
    if any((frame["setting"] == "fsod").any() for frame in pairing.frames):
        caption += " In fsod the objects of base classes are background."
    data = summary.assign(a_origin=pairing.sides[0].origin, b_origin=pairing.sides[1].origin)
    return Table("error_kinds", " ".join(caption.split()), data, _readable(display))


def image_groups(pairing: Pairing, by: Sequence[str]) -> list[str]:
    """Columns that tell the groups of images apart: those of the paired table, and the split if there are several."""
    shown, _ = shared(pairing, by)
    has_splits = "split" not in shown and pairing.pairs["split"].nunique() > 1
    return ["split", *shown] if has_splits else shown


def images_table(
    pairing: Pairing, changes: pd.DataFrame, by: Sequence[str], *, most: int = SHOWN // 2
) -> Table:
    """The images with the largest gains and losses of each group; the CSV has all.

    Args:
        pairing: Pairs of rows.
        changes: As `image_changes` gives it.
        by: Columns that group the pairs.
        most: Gains of one group at most, and losses; fewer where there are several groups.
    """
    shown, found = image_groups(pairing, by), changed_groups(pairing, changes, by)
    count = max(1, most // len(found))
    rows = pd.concat([extremes(own, sign, count) for _, own in found for sign in (1, -1)])
    display = rows[shown].assign(image=rows["image_id"])
    for head, name in zip(heads(pairing), "ab", strict=True):
        display[head] = [f"{value:.3f}".replace("-", "−") for value in rows[name]]
    display["B − A"] = [f"{value:+.3f}".replace("-", "−") for value in rows["change"]]
    for name in ("up", "down"):
        display[name] = [f"{value}/{pairs}" for value, pairs in zip(rows[name], rows["pairs"], strict=True)]
    num_gains, num_losses = int((rows["change"] > 0).sum()), int((rows["change"] < 0).sum())
    which = f"The {num_gains} images that gain most and the {num_losses} that lose most of {len(changes)}"
    if len(found) > 1:
        which = f"Of each of {len(found)} groups at most {count} that gain most and {count} that lose most"
    caption = (
        f"{which}: points that "
        "an image adds to novel AP50 (not interpolated): its share for each object found, less what its wrong "
        "detections cost the objects ranked below them; means over the group's pairs with stored detections, and in "
        f"how many of them the image rose or fell. {describe_sides(pairing)} {shared(pairing, by)[1]}"
    )
    data = changes.assign(a_origin=pairing.sides[0].origin, b_origin=pairing.sides[1].origin)
    return Table("images", caption.strip(), data, _readable(display))


def unpaired_table(pairing: Pairing, by: Sequence[str]) -> Table:
    """Rows without a partner, those that differ in seed and repeat alone in one line; the CSV has each."""
    data = pairing.unpaired
    keys = [name for name in data if name not in ("seed", "repeat")]
    varying = [
        name for name in keys if name in ("side", "why", "run_id") or data[name].nunique(dropna=False) > 1
    ]
    lines = []
    for key, own in data.groupby(keys, sort=False, dropna=False):
        line = {name: value for name, value in zip(keys, key, strict=True) if name in varying}
        seeds = ", ".join(map(str, ordered("seed", own["seed"]))) if "seed" in own else ""
        lines.append({"rows": len(own), **line} | ({"seeds": seeds} if seeds else {}))
    display = pd.DataFrame(lines, columns=None if lines else ["rows", *keys])
    counts = data["side"].value_counts()
    caption = (
        f"Rows without a partner: {counts.get('A', 0)} of A and {counts.get('B', 0)} of B, beside {len(pairing.pairs)} "
        f"pairs. They are in no number. {describe_sides(pairing)}"
    )
    order = ["side", "rows", *(name for name in display if name not in ("side", "rows"))]
    return Table("unpaired", caption, data, _readable(display[order]))


def pairs_table(pairing: Pairing) -> Table:
    """Every pair with its runs."""
    columns = [*pairing.matched, "a", "b", "difference"]
    runs = {
        f"{name}_run": [pairing.source(side, place).run_id for place in pairing.pairs[f"{name}_place"]]
        for side, name in enumerate("ab")
    }
    origins = {"a_origin": pairing.sides[0].origin, "b_origin": pairing.sides[1].origin}
    data = pairing.pairs[columns].assign(**runs, **origins)
    caption = f"Every pair: {pairing.metric} in percent, difference in points. {describe_sides(pairing)}"
    display = data.assign(**{name: [number(float(one)) for one in data[name]] for name in ("a", "b")})
    display["difference"] = [number(float(one), sign=True) for one in data["difference"]]
    return Table("pairs", caption, data, _readable(display))


def _readable(display: pd.DataFrame) -> pd.DataFrame:
    display = display.reset_index(drop=True)
    if "variant" in display:
        display["variant"] = display["variant"].replace("", "main")
        display = display.rename(columns={"variant": "settings"})
    return readable(display).rename(columns=NAMES).rename(columns={"settings": "variant"})
