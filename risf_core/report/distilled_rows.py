"""From records of 51_distilled_rescoring to the cells of its tables and figures. Imports no torch."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.distilled_rescoring.retention import retention
from risf_core.report.statistics import drop_repeats, notebook_of, rows_of, sort_cells, student_interval

NOTEBOOK = "51_distilled_rescoring"
METRICS = ("nAP50", "nAP", "nAP75")
PLACE = ["split", "arm", "loss", "label_space"]
CELL_KEYS = [*PLACE, "shots", "seed", "way", "values"]
MAIN = "distilled"  # the main head's way, whatever its name
HEAD_TEXTS = {
    "ridge": "linear head, ridge regression",
    "linear": "linear head, cosine loss",
    "mlp": "MLP head, cosine loss",
    "mlp_l1": "MLP head, L1 loss",
    "mlp_relation": "MLP head, cosine + relations",
    "mlp_kl_strict": "MLP head, cosine + KL, base names",
    "mlp_kl_generic": "MLP head, cosine + KL, generic names",
    "mlp_kl_all": "MLP head, cosine + KL, all names",
    "no_novel": "images without novel objects alone",
    "as_many": "as many images, at random",
    "shuffled": "shuffled teacher (control)",
}
WAY_TEXTS = {
    "none": "none",
    "cm_clip": "CM-CLIP",
    "dense": "CM-CLIP, dense",
    "targets_clip": "CM-CLIP, few-shot visual targets",
    MAIN: "distilled",
    "pooled": "distilled, final box pooled again",
    "continued": "distilled, continued on K-shot images",
    "targets": "distilled, few-shot visual targets",
}
MEANS = (
    ("distilled_published", MAIN, "published"),
    ("cm_clip", "cm_clip", "published"),
    ("cm_clip_chosen", "cm_clip", "chosen"),
)
KEPT = {  # name of a share: the way, its values of T and c, and those of the CM-CLIP whose gain is the whole
    "kept_chosen": (MAIN, "chosen", "chosen"),
    "kept_published": (MAIN, "published", "published"),
    "kept_no_novel": ("head:no_novel", "chosen", "chosen"),
    "kept_as_many": ("head:as_many", "chosen", "chosen"),
    "kept_mixed": (MAIN, "chosen", "published"),
}
LAST_WAYS = ("head:shuffled", "permuted")  # controls
SPACE_TEXTS = {"novel+background": "novel names", "novel+base+background": "novel and base names"}
VALUE_TEXTS = {
    "published": "as published",
    "chosen": "chosen",
    "matched": "CM-CLIP's values as published, own order",
    "matched_chosen": "CM-CLIP's chosen values, own order",
}


def main_heads(records: Sequence[Mapping]) -> dict[str, str]:
    """The way of each run's main head, by run id."""
    return {
        record["run_id"]: row["way"]
        for record in records
        if notebook_of(record) == NOTEBOOK
        for row in record.get("rows") or []
        if row["part"] == "choice" and row["is_main"]
    }


def part_rows(records: Sequence[Mapping], part: str) -> pd.DataFrame:
    """Rows of one part, each with the split of its run; an empty frame without any."""
    own = [
        {**record, "rows": [row for row in record.get("rows") or [] if row["part"] == part]}
        for record in records
        if notebook_of(record) == NOTEBOOK
    ]
    frame = rows_of(own, NOTEBOOK)
    if frame.empty:
        return frame
    splits = {
        record["run_id"]: row["split"]
        for record in records
        if notebook_of(record) == NOTEBOOK
        for row in record["rows"]
        if row["part"] == "cell"
    }
    return frame.assign(split=[splits.get(run) for run in frame["run_id"]])


def cell_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of part "cell" in a fixed order; the main head's way is `MAIN`, its row under its own name stays too."""
    frame = part_rows(records, "cell")
    if frame.empty:
        return pd.DataFrame(columns=[*CELL_KEYS, *METRICS])
    main = main_heads(records)
    own = frame[[way == main.get(run) for way, run in zip(frame["way"], frame["run_id"])]]
    frame = pd.concat([frame, own.assign(way=MAIN)], ignore_index=True)
    return sort_cells(drop_repeats(frame, [*CELL_KEYS, "run_id"], METRICS), CELL_KEYS)


def values_by_seed(frame: pd.DataFrame, way: str, values: str, metric: str) -> pd.Series:
    """The metric of one way, by draw and base model (run), sorted."""
    own = frame[(frame["way"] == way) & (frame["values"] == values)]
    return own.set_index(["run_id", "seed"])[metric].sort_index()


def retention_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Each (split, arm, loss, label space, K): the five means, and the share of CM-CLIP's gain that is kept.

    ``kept_chosen``: head and CM-CLIP with the temperature and c chosen for each in the same way; ``kept_published``:
    both with CM-CLIP's as published; ``kept_mixed``: the chosen head against CM-CLIP as published, which is mostly
    the temperature's doing. ``kept_no_novel`` and ``kept_as_many`` are ``kept_chosen`` of the heads trained without
    images that show a novel object, and on as many at random. Each with the ends of Fieller's interval.
    """
    frame, rows = cell_rows(records), []
    for key, group in frame.groupby([*PLACE, "shots"], sort=False):
        none = values_by_seed(group, "none", "published", metric)
        distilled = values_by_seed(group, MAIN, "chosen", metric)
        if distilled.empty:
            continue
        row = dict(zip([*PLACE, "shots"], key, strict=True))
        row |= _mean("none", none) | _mean("distilled", distilled) | {"n": len(distilled)}
        for name, way, values in MEANS:
            row |= _mean(name, values_by_seed(group, way, values, metric))
        for name, (way, values, theirs) in KEPT.items():
            gain = values_by_seed(group, way, values, metric) - none
            whole = values_by_seed(group, "cm_clip", theirs, metric) - none
            both = pd.concat([gain, whole], axis=1, join="inner").dropna()
            found = retention(both.iloc[:, 0], both.iloc[:, 1])
            row |= {name: found.ratio, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    columns = [*PLACE, "shots", "n", *KEPT]
    return sort_cells(pd.DataFrame(rows), [*PLACE, "shots"]) if rows else pd.DataFrame(columns=columns)


def _mean(name: str, values: pd.Series) -> dict:
    interval = student_interval(values)
    return {name: interval.mean, f"{name}_half_width": interval.half_width}


def way_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Each (split, arm, loss, label space, K, way, values) with its mean and its paired gain over none.

    ``kept_chosen`` is the share of the gain of CM-CLIP with its chosen temperature and c, on the same draws.
    """
    frame, rows = cell_rows(records), []
    for key, group in frame.groupby([*PLACE, "shots"], sort=False):
        none = values_by_seed(group, "none", "published", metric)
        best = values_by_seed(group, "cm_clip", "chosen", metric) - none
        for (way, values), own in group.groupby(["way", "values"], sort=False):
            mine = values_by_seed(own, way, values, metric)
            gains = (mine - none).dropna()
            interval, mean = student_interval(gains), student_interval(mine)
            both = pd.concat([gains, best], axis=1, join="inner").dropna()
            kept = retention(both.iloc[:, 0], both.iloc[:, 1])
            rows.append(
                dict(zip([*PLACE, "shots"], key, strict=True))
                | {
                    "way": way,
                    "values": values,
                    "n": mean.n,
                    "mean": mean.mean,
                    "half_width": mean.half_width,
                }
                | {
                    "gain": interval.mean,
                    "gain_half_width": interval.half_width,
                    "up": int((gains > 0).sum()),
                }
                | {"kept_chosen": kept.ratio, "kept_chosen_low": kept.low, "kept_chosen_high": kept.high}
            )
    columns = [*PLACE, "shots", "way", "values", "n"]
    if not rows:
        return pd.DataFrame(columns=columns)
    cells = pd.DataFrame(rows)
    cells = cells.assign(place=[_place(way) for way in cells["way"]])
    return sort_cells(cells, [*PLACE, "shots", "place", "way", "values"]).drop(columns="place")


def _place(way: str) -> int:
    """Where a way stands: CM-CLIP, the distilled head and its variants, the other heads, the controls."""
    order = [*WAY_TEXTS, *(f"head:{head}" for head in HEAD_TEXTS)]
    kind = way if way in order else way.partition(":")[0]
    if way in LAST_WAYS:
        return len(order) + 1 + LAST_WAYS.index(way)
    return order.index(kind) if kind in order else len(order)


def way_text(way: str) -> str:
    """A way as a reader finds it in a table."""
    kind, _, value = way.partition(":")
    if kind == "head":
        return HEAD_TEXTS.get(value, value)
    if kind in ("targets", "targets_clip"):
        return f"{WAY_TEXTS[kind]} (text {float(value):.0%})"
    return "permuted probabilities (control)" if way == "permuted" else WAY_TEXTS.get(way, way)


def params_of(records: Sequence[Mapping], *path: str) -> list:
    """The values that a parameter takes in the runs of this notebook, sorted; those without it do not count."""
    found = []
    for record in records:
        value = (record.get("params") or {}) if notebook_of(record) == NOTEBOOK else None
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None and value not in found:
            found.append(value)
    return sorted(found)


def published_text(records: Sequence[Mapping]) -> str:
    """``T = 100, c = 0.7``: CM-CLIP's own, from the parameters of the runs; without any, in words."""
    texts = []
    for name, what in (("temperature", "T"), ("c", "c")):
        values = params_of(records, "cm_clip", name)
        if not values:
            return "T and c as published"
        texts.append(f"{what} = {' or '.join(f'{value:g}' for value in values)}")
    return ", ".join(texts)


def select_split_text(records: Sequence[Mapping]) -> str:
    """``split 2``: where head, temperature and c are chosen; without any parameters, in words."""
    values = params_of(records, "select_split")
    return f"split {' or '.join(str(value) for value in values)}" if values else "one split"


def kept_text(ratio: float, low: float, high: float) -> str:
    """``0.82 [0.61, 1.10]``; an interval without ends says so."""
    if math.isnan(ratio):
        return "n/a"
    text = f"{ratio:.2f}".replace("-", "−")
    if math.isnan(low):
        return f"{text}, no interval"
    if math.isinf(low):
        return f"{text} [unbounded]"
    return f"{text} [{low:.2f}, {high:.2f}]".replace("-", "−")


def cost_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (run, way): milliseconds an image, share of the detector's own, memory; from the records' environment."""
    rows = []
    for record in sorted(records, key=lambda record: record["run_id"]):
        if notebook_of(record) != NOTEBOOK:
            continue
        costs = {row["way"]: row for row in (record.get("environment") or {}).get("costs") or []}
        for row in record.get("rows") or []:
            if row["part"] == "cost" and row["way"] in costs:
                cost = costs[row["way"]]
                names = ("split", "shots", "way", "num_images", "boxes", "weights_mib")
                own = {name: row[name] for name in names}
                own |= {name: cost[name] for name in ("ms", "share_of_detector", "peak_mib")}
                rows.append(own | {"run_id": record["run_id"]})
    columns = [
        "split",
        "shots",
        "way",
        "num_images",
        "boxes",
        "weights_mib",
        "ms",
        "share_of_detector",
        "peak_mib",
    ]
    return pd.DataFrame(rows, columns=[*columns, "run_id"])
