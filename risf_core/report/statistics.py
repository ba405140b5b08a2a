"""From records to numbers with intervals: rows of all runs in one frame, Student-t intervals, paired differences.

Everything here is a pure function of the records. A *cell* is one number to report: a mean over few-shot seeds for
fixed split, setting, arm, loss, re-scoring and number of shots. Imports no torch.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import (
    stdtrit,
)  # quantile of Student's t; equals scipy.stats.t.ppf and imports in a tenth of the time

from risf_core.custom_loss import loss_name
from risf_core.errors import RecordError
from risf_core.params import FineTuningParams

CONFIDENCE = 0.95
SETTINGS = ("fsod", "gfsod")
ARMS = ("kshot", "missing", "full", "clean")
LOSSES = ("ce", "ce_bg", "bnrl")  # a user's own losses follow by name
RESCORINGS = ("none", "cm_clip", "cm_clip_wide")
REPRODUCTION = (
    "none",
    "cm_clip",
)  # the wider label space is an extension and never shares a table with these
METRICS = ("nAP50", "nAP", "nAP75")
SWEEPS = ("beta_tied", "beta_fixed_alpha", "gamma_epsilon")
LABEL_SPACES = ("novel+background", "novel+base+background")  # the paper's first
KNOWN_ORDERS = {
    "setting": SETTINGS, "arm": ARMS, "loss": LOSSES, "rescoring": RESCORINGS, "metric": METRICS, "sweep": SWEEPS,
    "label_space": LABEL_SPACES,
}  # fmt: skip
CELL_KEYS = ("split", "setting", "arm", "loss", "variant", "rescoring")

# Parameters that span a run's own grid or cannot change a number: a difference in them is no other variant of the
# method.
REPEAT_STRIDE = 10_000  # more than there are draws
GRID_PARAMETERS = frozenset(
    "split splits shots seeds num_seeds few_shot_seeds few_shot_splits loss losses arm arms setting settings "
    "rescoring "
    "rescorings profile device num_threads root keep_weights".split()
)


@dataclass(frozen=True)
class Interval:
    """Mean and half-width of its Student-t interval; the half-width is NaN for fewer than two values.

    Attributes:
        mean: In the unit of the values; NaN without values.
        half_width: Half the width of the 95 % interval, same unit.
        n: Number of values.
    """

    mean: float
    half_width: float
    n: int


class HeadlineNumber(NamedTuple):
    """One number to look at first.

    Attributes:
        quantity: What it is, with metric, K and arm.
        value: As a reader sees it, with its interval.
        n: How many values stand behind it.
        notebook: Whose records it comes from.
        run_ids: Those records.
        mean: The number itself, in the unit of the quantity; None where the value is a text.
        half_width: Half the width of its 95 % interval; None where it has none.
    """

    quantity: str
    value: str
    n: int
    notebook: str
    run_ids: tuple[str, ...]
    mean: float | None = None
    half_width: float | None = None

    @classmethod
    def of(cls, row: Iterable) -> "HeadlineNumber":
        """A row of five (a text alone), six or seven fields, NaN as None."""
        values = tuple(row)
        return cls(*values[:5], *(_known(value) for value in values[5:]))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def student_interval(values: Iterable[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Mean and t interval ``t_{n-1} * s / sqrt(n)`` with the sample standard deviation s (divisor n - 1).

    Args:
        values: Numbers; None and NaN are left out and do not count in n.
        confidence: Coverage in (0, 1).
    """
    kept = np.array([value for value in values if value is not None and not math.isnan(value)], dtype=float)
    if len(kept) == 0:
        return Interval(math.nan, math.nan, 0)
    if len(kept) == 1:
        return Interval(float(kept[0]), math.nan, 1)
    quantile = stdtrit(len(kept) - 1, 0.5 + confidence / 2)
    return Interval(float(kept.mean()), float(quantile * kept.std(ddof=1) / math.sqrt(len(kept))), len(kept))


def notebook_of(record: Mapping) -> str:
    """Name of a record's notebook without folder and ending, e.g. ``20_fine_tuning``."""
    return str(record["notebook"]).rsplit("/", 1)[-1].removesuffix(".ipynb")


def rows_of(records: Sequence[Mapping], notebook: str, *, required: Sequence[str] = ()) -> pd.DataFrame:
    """All rows of one notebook's records in one frame, with the columns ``run_id`` and, if they name a loss, ``loss``.

    A repeat of a draw's training counts as a seed of its own (``REPEAT_STRIDE`` above the draw's).

    Raises:
        RecordError: If a row lacks one of the ``required`` fields.
    """
    rows = []
    for record in sorted(records, key=lambda record: record["run_id"]):
        if notebook_of(record) != notebook:
            continue
        for row in record.get("rows") or []:
            lacking = [name for name in required if name not in row]
            if lacking:
                raise RecordError(
                    f"record {record['run_id']}: a row has no field {', '.join(lacking)}. "
                    f"Expected {', '.join(required)}. Repeat the run with --force."
                )
            seed = row.get("seed", 0) + REPEAT_STRIDE * row.get("repeat", 0)
            rows.append({**row, **({"seed": seed} if "seed" in row else {}), "run_id": record["run_id"]})
    frame = pd.DataFrame(rows)
    if "loss" in frame:
        names = short_loss_names(frame["loss"].unique())
        frame["loss"] = frame["loss"].map(names)
    return frame


def repeats_note(records: Sequence[Mapping]) -> str:
    """What a caption must say where a draw was trained several times; nothing otherwise."""
    repeated = any(row.get("repeat") for record in records for row in record.get("rows") or [])
    return " Repeated trainings of one draw count as seeds (`repeats`)." if repeated else ""


def short_loss_names(specs: Iterable[str]) -> dict[str, str]:
    """Label of each loss; a user's own is named by its function, or in full where two would share a label."""
    specs = sorted(set(specs))
    counts = Counter(loss_name(spec) for spec in specs)
    return {spec: loss_name(spec) if counts[loss_name(spec)] == 1 else spec for spec in specs}


def fine_tuning_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """One row for each (split, setting, arm, loss, variant, rescoring, shots, seed) of the fine-tuning records.

    Returns:
        The rows in a fixed order, or an empty frame with the key columns. ``variant`` is "" for the main
        configuration and names the parameters that differ otherwise, see :func:`variants`.

    Raises:
        RecordError: If two records give different values for the same row.
    """
    keys = [*CELL_KEYS, "shots", "seed"]
    frame = rows_of(records, "20_fine_tuning", required=[key for key in keys if key != "variant"])
    if frame.empty:
        return pd.DataFrame(columns=[*keys, *METRICS, "per_class", "run_id"])
    if "variant" not in frame:
        frame["variant"] = variants(
            frame, {record["run_id"]: record.get("params") or {} for record in records}
        )
    for metric in METRICS:
        frame[metric] = pd.to_numeric(frame[metric]) if metric in frame else math.nan
    return sort_cells(drop_repeats(frame, keys, METRICS), keys)


def drop_repeats(frame: pd.DataFrame, keys: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Keep one of several equal rows.

    Raises:
        RecordError: If rows agree in all keys and differ in a metric.
    """
    keys = list(keys)
    for key, group in frame[frame.duplicated(keys, keep=False)].groupby(keys, sort=True):
        for metric in metrics:
            values = group[metric].dropna().unique()
            if len(values) > 1:
                runs = ", ".join(sorted(group["run_id"].unique()))
                what = ", ".join(
                    f"{name}={value}" for name, value in zip(keys, key, strict=True) if value != ""
                )
                raise RecordError(
                    f"records {runs} give {metric} {values[0]:.2f} and {values[1]:.2f} for the same row ({what}). "
                    "Expected one value. Remove the record that is not wanted, or repeat both runs with --force."
                )
    return frame.drop_duplicates(keys)


def variants(frame: pd.DataFrame, params: Mapping[str, Mapping], *, factors: Sequence[str] = ()) -> list[str]:
    """Name what sets a row's run apart from the main configuration of its loss, so that no mean mixes the two.

    A parameter counts only where it takes two values among runs of the same (split, setting, shots). Its main value
    is the one most rows of the same (split, setting, loss) have; in a tie the notebook's default, or the smaller one.
    Grid parameters never count.

    Args:
        frame: Rows with split, setting, shots, loss and run_id.
        params: Resolved parameters of each run id.
        factors: Parameters that do not count either, with all below them, such as "base".

    Returns:
        One text for each row: "" or ``solver.lr=0.05``, several joined by ", ".
    """
    flat = {run_id: _flatten(params.get(run_id) or {}) for run_id in frame["run_id"].unique()}
    names = sorted({name for values in flat.values() for name in values if name.split(".")[0] not in factors})
    defaults = default_parameters()
    labels: list[list[str]] = [[] for _ in range(len(frame))]
    for name in names:
        value = frame["run_id"].map(
            {run_id: values.get(name, "not given") for run_id, values in flat.items()}
        )
        by_group = value.groupby([frame["split"], frame["setting"], frame["shots"]])
        if by_group.nunique().max() < 2:
            continue
        main = value.groupby([frame["split"], frame["setting"], frame["loss"]]).transform(
            _most_frequent, default=defaults.get(name)
        )
        for position, differs in enumerate(value != main):
            if differs:
                labels[position].append(f"{name}={value.iloc[position]}")
    return [", ".join(label) for label in labels]


def _most_frequent(values: pd.Series, *, default: str | None) -> str:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value != default, value))


def default_parameters() -> dict[str, str]:
    """What 20_fine_tuning takes where a params file says nothing, as ``{"solver.lr": "0.02"}``."""
    fields = FineTuningParams.model_fields.items()
    known = {
        name: field.get_default(call_default_factory=True)
        for name, field in fields
        if not field.is_required()
    }
    return _flatten(FineTuningParams.model_construct(**known).model_dump(mode="json", include=set(known)))


def _flatten(params: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested parameters as ``{"solver.lr": "0.02"}``, grid parameters left out."""
    flat = {}
    for name, value in params.items():
        if name in GRID_PARAMETERS:
            continue
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return flat


def sort_cells(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Sort by the keys in the project's own order (kshot before missing, ce before bnrl) and renumber the rows."""
    frame = frame.reset_index(drop=True)
    columns = [(key, frame[key].tolist()) for key in keys if key in frame]
    order = sorted(
        range(len(frame)), key=lambda row: tuple(sort_key(name, values[row]) for name, values in columns)
    )
    return frame.iloc[order].reset_index(drop=True)


def sort_key(name: str, value: object) -> tuple:
    """Key that sorts known names first in their own order, numbers by size, the rest by text."""
    known = KNOWN_ORDERS.get(name, ())
    if value in known:
        return (0, known.index(value), "")
    if isinstance(value, (int, float, np.integer, np.floating)):
        return (1, float(value), "")
    return (2, 0, str(value))


def ordered(name: str, values: Iterable) -> list:
    """The distinct values in the project's own order."""
    return sorted(set(values), key=lambda value: sort_key(name, value))


def summarize_cells(frame: pd.DataFrame, keys: Sequence[str], metric: str) -> pd.DataFrame:
    """Mean, half-width and n of ``metric`` for each distinct value of the keys, sorted.

    Returns:
        The keys and the columns ``mean``, ``half_width``, ``n``.
    """
    rows = []
    for key, group in frame.groupby(list(keys), sort=False, dropna=False):
        interval = student_interval(group[metric])
        rows.append((*key, interval.mean, interval.half_width, interval.n))
    return sort_cells(pd.DataFrame(rows, columns=[*keys, "mean", "half_width", "n"]), keys)


def pair(
    frame: pd.DataFrame, by: str, first: str, second: str, metric: str, *, keys: Sequence[str]
) -> pd.DataFrame:
    """Differences ``second - first`` of the rows that agree in all ``keys``; rows without a partner are left out.

    Args:
        frame: Rows with the columns ``by``, ``metric`` and ``keys``.
        by: Column in which the partners differ, e.g. "loss".
        first: Value of the subtracted partner, e.g. "ce".
        second: Value of the other, e.g. "bnrl".
        metric: Column to subtract.
        keys: Columns that identify a pair; must include the seed.

    Returns:
        The keys and a column ``difference``, in points of the metric.
    """
    sides = [
        frame.loc[frame[by] == side, [*keys, metric]].dropna(subset=[metric]) for side in (first, second)
    ]
    pairs = sides[0].merge(sides[1], on=list(keys), suffixes=("_first", "_second"), validate="one_to_one")
    pairs["difference"] = pairs[f"{metric}_second"] - pairs[f"{metric}_first"]
    return sort_cells(pairs[[*keys, "difference"]], keys)


def mean_over_shots(pairs: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Average over K within each seed, over the seeds that have every K: several K of one seed are not independent.

    Args:
        pairs: Rows with ``keys`` (without shots), shots, seed and ``value``.
        keys: Columns that separate the averages; neither shots nor seed.
        value: Column to average.
    """
    rows = []
    for key, group in pairs.groupby(list(keys), sort=False, dropna=False):
        all_shots = group["shots"].nunique()
        for seed, own in group.groupby("seed"):
            if len(own) == all_shots:
                rows.append((*key, seed, own[value].mean()))
    return pd.DataFrame(rows, columns=[*keys, "seed", value])


def interactions(frame: pd.DataFrame, metric: str, *, keys: Sequence[str]) -> pd.DataFrame:
    """The 2 x 2 of {ce, bnrl} x {none, cm_clip} for each pair of seeds that has all four, and its interaction.

    Returns:
        The keys, the four values (``ce_none``, ``ce_cm_clip``, ``bnrl_none``, ``bnrl_cm_clip``) and ``interaction`` =
        (bnrl_cm_clip - bnrl_none) - (ce_cm_clip - ce_none), in points: what CM-CLIP adds to BNRL beyond what it adds
        to CE.
    """
    table = None
    for loss in ("ce", "bnrl"):
        for rescoring in REPRODUCTION:
            is_cell = (frame["loss"] == loss) & (frame["rescoring"] == rescoring)
            cell = (
                frame.loc[is_cell, [*keys, metric]]
                .dropna(subset=[metric])
                .rename(columns={metric: f"{loss}_{rescoring}"})
            )
            table = cell if table is None else table.merge(cell, on=list(keys), validate="one_to_one")
    gain_bnrl = table["bnrl_cm_clip"] - table["bnrl_none"]
    gain_ce = table["ce_cm_clip"] - table["ce_none"]
    return sort_cells(table.assign(interaction=gain_bnrl - gain_ce), keys)
