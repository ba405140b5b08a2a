"""What each CLIP of 32_clip_backbones costs, and its gain read at equal accuracy of its crops."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from risf_core.report.statistics import notebook_of, ordered, student_interval
from risf_core.report.sweep_tables import backbone_rows
from risf_core.report.table_format import NOT_PLANNED, Table, interval_text, number, readable

NOTEBOOK = "32_clip_backbones"
REFERENCE = "risf-tiny-resnet"  # that re-scores in the mini reproduction
PLACES = {"lowest": 0.0, "middle": 0.5, "highest": 1.0}  # of the accuracies that all towers reach


def backbones_cost_table(records: Sequence[Mapping]) -> Table:
    """Parameters, accuracy, milliseconds and memory of each CLIP; the last two come from the records' environment."""
    frame, rows = backbone_rows(records), []
    notes = {
        record["run_id"]: (record.get("environment") or {}).get("clips") or {}
        for record in records
        if notebook_of(record) == NOTEBOOK
    }
    keys = ["split", "clip", "variant", "run_id"]
    for (split, clip, variant, run_id), own in frame.groupby(keys, sort=False) if len(frame) else ():
        note = notes[run_id].get(clip.removesuffix(" (path only)"), {})
        crops = note.get("crops") or math.nan
        row = {"split": split, "clip": clip, "variant": variant, "precision": note.get("precision", "")}
        row |= {"parameters": own["parameters"].iloc[0], "crop_accuracy": own["crop_accuracy"].iloc[0]}
        row["ms_per_crop"] = 1000 * note.get("seconds", math.nan) / crops
        row["peak_mib"] = math.nan if note.get("peak_mib") is None else note["peak_mib"]
        rows.append(row | {"gain": own["gain"].mean(), "rows": len(own)})
    columns = ["split", "clip", "variant", "precision", "parameters", "crop_accuracy", "gain", "rows"]
    data = pd.DataFrame(rows, columns=[*columns, "ms_per_crop", "peak_mib"])
    display = data[["split", "clip", "variant", "precision"]].copy()
    display["parameters (M)"] = [number(float(value) / 1e6, decimals=2) for value in data["parameters"]]
    display["crop accuracy, novel (%)"] = [number(float(value)) for value in data["crop_accuracy"]]
    display["mean gain (nAP50)"] = [number(float(value), sign=True) for value in data["gain"]]
    display["ms/crop"] = [number(float(value), decimals=2) for value in data["ms_per_crop"]]
    display["memory (MiB)"] = [number(float(value), decimals=0) for value in data["peak_mib"]]
    caption = (
        "Each CLIP's image tower: parameters, top-1 accuracy on ground-truth crops among the novel names, mean "
        "gain of nAP50 over the stored cells, and what re-scoring those cost on the machine of the run: "
        "milliseconds a crop, made and encoded in shared batches, and the peak of memory above the loaded CLIP (on "
        "a GPU what torch allocated). Time and memory differ between repeats."
    )
    return Table("backbones_cost", caption, data, readable(display))


def accuracy_curves(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of towers that were trained here at several lengths, each with ``iterations``."""
    frame = backbone_rows(records)
    if "iterations" not in frame:
        return frame.iloc[:0].assign(iterations=[])
    frame = frame[frame["iterations"].notna() & (frame["variant"] == "")]
    lengths = frame.groupby("tower")["iterations"].transform("nunique") if len(frame) else frame["iterations"]
    return frame[lengths > 1]


def common_accuracies(frame: pd.DataFrame) -> dict[str, float]:
    """Accuracies that lie within what was measured of every tower; none where the towers' ranges do not meet."""
    ranges = frame.groupby("tower")["crop_accuracy"].agg(["min", "max"])
    low, high = ranges["min"].max(), ranges["max"].min()
    if len(ranges) < 2 or not low <= high:
        return {}
    return {name: float(low + share * (high - low)) for name, share in PLACES.items()}


def gains_at_accuracy(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each tower's gain of nAP50 at the accuracies that all reach, interpolated linearly between its lengths per seed.

    Returns:
        split, arm, loss, shots, tower, parameters, place, accuracy, gain, half_width, n, and the same of
        ``difference`` to the ``reference`` tower, paired per seed.
    """
    frame = accuracy_curves(records)
    cells, rows = ["split", "arm", "loss", "shots"], []
    for key, own in frame.groupby(cells, sort=False) if len(frame) else ():
        towers = towers_of(own)
        for place, accuracy in common_accuracies(own).items():
            gains = {tower: _at(own[own["tower"] == tower], accuracy) for tower in towers}
            for tower in towers:
                gain = student_interval(gains[tower])
                difference = student_interval((gains[tower] - gains[towers[0]]).dropna())
                parameters = own.loc[own["tower"] == tower, "parameters"].iloc[0]
                row = (*key, tower, parameters, place, accuracy, gain.mean, gain.half_width, gain.n)
                rows.append((*row, difference.mean, difference.half_width, towers[0]))
    columns = [*cells, "tower", "parameters", "place", "accuracy", "gain", "half_width", "n"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "difference_half_width", "reference"])


def _at(rows: pd.DataFrame, accuracy: float) -> pd.Series:
    """The gain at an accuracy within the measured ones, by seed."""
    values = {}
    for seed, own in rows.groupby("seed"):
        own = own.sort_values("crop_accuracy")
        values[seed] = float(np.interp(accuracy, own["crop_accuracy"], own["gain"]))
    return pd.Series(values, dtype=float)


def backbones_at_accuracy_table(records: Sequence[Mapping]) -> Table:
    """Each tower's gain at equal accuracy of its crops, and its difference to the reference's."""
    data = gains_at_accuracy(records)
    frame, lines = accuracy_curves(records), []
    keys = ["split", "arm", "loss", "shots", "tower"]
    for key, own in data.groupby(keys, sort=False) if len(data) else ():
        line = dict(zip(keys, key, strict=True))
        measured = frame[(frame[keys] == list(key)).all(axis=1)].drop_duplicates("iterations")
        measured = measured.sort_values("iterations")
        line["parameters (M)"] = number(own["parameters"].iloc[0] / 1e6, decimals=2)
        line["measured: steps → accuracy (%)"] = ", ".join(
            f"{steps:.0f} → {accuracy:.1f}"
            for steps, accuracy in zip(measured["iterations"], measured["crop_accuracy"], strict=True)
        )
        for row in own.itertuples():
            line[f"gain at {row.accuracy:.1f} %"] = interval_text(row.gain, row.half_width, sign=True)
            is_reference = row.tower == row.reference
            text = interval_text(row.difference, row.difference_half_width, sign=True)
            line[f"at {row.accuracy:.1f} %, less {row.reference}'s"] = NOT_PLANNED if is_reference else text
        lines.append(line | {"n": str(own["n"].iloc[0])})
    caption = (
        "Does the architecture matter beyond the accuracy of its crops? Gain of nAP50 (points) by CM-CLIP in the "
        "paper's setting on the same stored detections, at three accuracies that every tower passes through as it "
        "is trained longer (each length a training of its own). INTERPOLATED linearly between a tower's measured "
        "lengths, per seed, never beyond them. ± is the half-width of the 95 % Student-t interval over few-shot "
        "seeds of one base model; each CLIP was trained once, so a difference between towers holds no variation "
        "between trainings."
    )
    return Table("backbones_at_accuracy", caption, data, readable(pd.DataFrame(lines)))


def towers_of(frame: pd.DataFrame) -> list[str]:
    """Towers by name, the reference first."""
    return sorted(ordered("tower", frame["tower"]), key=lambda tower: tower != REFERENCE)
