"""What re-scoring costs: the numbers of 34_latency's rows and of what was measured for them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from risf_core.report.statistics import notebook_of

NOTEBOOK = "34_latency"
WAY = ["way", "precision", "path", "approximation", "images_from"]
KEYS = {  # of the rows of each kind
    "stored": ["split", "shots", "seed", "clip", *WAY],
    "equality": ["split", "shots", "seed", "clip"],
    "parts": ["clip", *WAY],
    "all_c": ["clip", "num_c", *WAY],
    "floor": ["clip", "precision"],
    "boxes": ["clip", "boxes", *WAY],
    "detector": ["detector"],
}
PARTS = ("decode", "detector", "read_again", "crop", "encode", "blend")


def latency_rows(records: Sequence[Mapping], kind: str) -> pd.DataFrame:
    """Rows of one kind, each with what was measured for it (missing where a record's environment does not say)."""
    rows = []
    for record in sorted(records, key=lambda record: record["run_id"]):
        if notebook_of(record) != NOTEBOOK:
            continue
        measured = (record.get("environment") or {}).get("latency") or []
        times = {_key(row, kind): row for row in measured if row["kind"] == kind}
        for row in record.get("rows") or []:
            if row["kind"] == kind:
                rows.append(row | times.get(_key(row, kind), {}) | {"run_id": record["run_id"]})
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=KEYS[kind])


def _key(row: Mapping, kind: str) -> tuple:
    return (row["kind"], *(row.get(name) for name in KEYS[kind]))


def way_name(row: Mapping) -> str:
    """A way in a word or four: ``ours bf16, share=object``."""
    is_published = row["way"] == "published"  # always in float32
    parts = ["published" if is_published else f"{row['way']} {row['precision']}"]
    parts += [row["path"]] * (row["path"] != "crop") + [row["approximation"]] * (
        row["approximation"] != "none"
    )
    return ", ".join(parts + ["images in memory"] * (row["images_from"] == "memory"))


def accuracy_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each way of each CLIP on stored boxes: means over the stored cells.

    Returns:
        The keys, nAP, nAP50, ``change`` and ``change_nAP50`` against ours in fp32 with every crop (mean and largest
        over the cells), share of the boxes encoded, ms and CPU ms an image, peak memory, and ``times_faster`` than the
        published way with images from the same place: ratio of the means, and ``slowest`` and ``fastest`` of the ratios
        of single rounds.
    """
    frame = latency_rows(records, "stored")
    columns = [
        "clip",
        *WAY,
        "n",
        "nAP",
        "nAP50",
        "change",
        "largest_change",
        "change_nAP50",
        "encoded",
        "ms",
        "cpu_ms",
    ]
    columns += ["peak_mib", "times_faster", "slowest", "fastest", "cpu_times_faster", "boxes_per_image"]
    rows = []
    for clip, own in frame.groupby("clip", sort=False) if len(frame) else ():
        cell = ["split", "shots", "seed"]
        is_exact = (own["way"] == "ours") & (own["precision"] == "fp32") & (own["path"] == "crop")
        is_exact &= (own["approximation"] == "none") & (own["images_from"] == "files")
        exact = own[is_exact].set_index(cell)
        for key, group in own.groupby(WAY, sort=False):
            paired = group.set_index(cell)
            is_beside = (own["way"] == "published") & (own["images_from"] == key[-1])
            published = own[is_beside].set_index(cell)
            change = paired["nAP"] - exact["nAP"].reindex(paired.index)
            change_50 = paired["nAP50"] - exact["nAP50"].reindex(paired.index)
            ms, cpu = (_mean(group, name) for name in ("ms", "cpu_ms"))
            row = dict(zip(WAY, key, strict=True)) | {"clip": clip, "n": len(group)}
            row |= {"nAP": group["nAP"].mean(), "nAP50": group["nAP50"].mean(), "change": change.mean()}
            row |= {"largest_change": change.abs().max(), "change_nAP50": change_50.mean()}
            row |= {"encoded": group["encoded"].sum() / group["num_boxes"].sum(), "ms": ms, "cpu_ms": cpu}
            row |= {"peak_mib": group["peak_mib"].max() if "peak_mib" in group else math.nan}
            row |= {
                "times_faster": _same_rounds(published, paired, "ms") / ms,
                "cpu_times_faster": _same_rounds(published, paired, "cpu_ms") / cpu,
            }
            row |= dict(zip(("slowest", "fastest"), _range_of_ratios(published, paired), strict=True))
            rows.append(row | {"boxes_per_image": group["num_boxes"].sum() / group["num_images"].sum()})
    return pd.DataFrame(rows, columns=columns)


def _range_of_ratios(published: pd.DataFrame, own: pd.DataFrame) -> tuple[float, float]:
    """Least and largest of the published way's time over a way's own, both of the same cell and round."""
    ratios = [math.nan]
    if "ms_rounds" in own and "ms_rounds" in published:
        pairs = zip(published["ms_rounds"].reindex(own.index), own["ms_rounds"], strict=True)
        ratios = [a / b for theirs, ours in pairs if isinstance(theirs, list) for a, b in zip(theirs, ours)]
    return (min(ratios), max(ratios)) if ratios else (math.nan, math.nan)


def _same_rounds(published: pd.DataFrame, own: pd.DataFrame, name: str) -> float:
    """The published way's median of those rounds in which a way ran, too; mean over the cells."""
    rounds = f"{name}_rounds"
    if rounds not in own or rounds not in published:
        return _mean(published, name)
    pairs = zip(published[rounds].reindex(own.index), own[rounds], strict=True)
    values = [float(np.median(theirs[: len(ours)])) for theirs, ours in pairs if isinstance(theirs, list)]
    return float(np.mean(values)) if values else math.nan


def _mean(frame: pd.DataFrame, name: str) -> float:
    return float(frame[name].mean()) if name in frame and len(frame) else math.nan


def parts_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """One row for each CLIP, way and part: median, 95th percentile (missing where n does not allow it), largest.

    ``peak_mib`` is of all parts together, above the loaded models.
    """
    rows = []
    for row in latency_rows(records, "parts").to_dict("records"):
        key = {name: row[name] for name in KEYS["parts"]} | {"num_images": row["num_images"]}
        key["num_boxes"] = row["num_boxes"]
        for part in (*PARTS, "total"):
            if isinstance(row.get(part), Mapping):
                rows.append(key | {"part": part, **row[part], "peak_mib": row.get("peak_mib")})
    columns = [
        *KEYS["parts"],
        "num_images",
        "num_boxes",
        "part",
        "n",
        "p50",
        "p95",
        "mean",
        "max",
        "peak_mib",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = {name: pd.to_numeric(frame[name]) for name in ("p95", "peak_mib")}  # None where not known
    return frame.assign(**numbers)


def boxes_cells(records: Sequence[Mapping]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Milliseconds over boxes an image, and the line fitted to each way.

    Returns:
        Measured points (clip, way, boxes, n, p50, p95, max), and lines: ``start`` and ``slope`` in ms by least squares
        on the medians, ``residual``: the largest distance of a point from its line, ``counts`` measured, and
        ``peak_mib`` of the most boxes. A way with fewer than three counts has no line.
    """
    points = latency_rows(records, "boxes")
    columns = ["clip", *WAY, "is_large", "counts", "start", "slope", "residual", "peak_mib"]
    rows = []
    for key, own in points.groupby(["clip", *WAY], sort=False) if "p50" in points else ():
        own = own.sort_values("boxes")
        start = slope = residual = math.nan
        if len(own) >= 3:
            slope, start = np.polyfit(own["boxes"], own["p50"], 1)
            residual = float((own["p50"] - (start + slope * own["boxes"])).abs().max())
        counts = ", ".join(map(str, own["boxes"]))
        rows.append((*key, own["is_large"].iloc[0], counts, start, slope, residual, own["peak_mib"].iloc[-1]))
    return points, pd.DataFrame(rows, columns=columns)
