"""What re-scoring costs: tables of 34_latency, whose times stand in the records' environment."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.latency_cells import (
    KEYS,
    NOTEBOOK,
    PARTS,
    WAY,
    accuracy_cells,
    boxes_cells,
    latency_rows,
    parts_cells,
    way_name,
)
from risf_core.report.statistics import notebook_of
from risf_core.report.table_format import NOT_PLANNED, Table, number

MOST_CHANGE = 0.2  # of nAP that an approximation may cost, in points
TARGETS = (2.0, 4.0)  # times faster: with every crop, with an approximation
MEASURED_NOTE = (
    "Times and memory are of the one machine that the record's environment names, one process and its threads, nothing "
    "else meant to run; they differ between repeats, all else repeats exactly."
)
PUBLISHED_NOTE = (
    "published: the released code's way, written anew: image by image, each read again, one batch in float32 in "
    "contiguous memory, CLIP fed BGR without mean and std (which is why its nAP differs)."
)


def latency_accuracy_table(records: Sequence[Mapping]) -> Table:
    """nAP and cost of each way on the same stored boxes."""
    data = accuracy_cells(records)
    display = pd.DataFrame({"CLIP": data["clip"], "way": [way_name(row) for row in data.to_dict("records")]})
    display["crops encoded (%)"] = [number(100 * value, decimals=0) for value in data["encoded"]]
    display["ms/image"] = [number(value, decimals=2) for value in data["ms"]]
    display["CPU ms/image"] = [number(value, decimals=2) for value in data["cpu_ms"]]
    display["times faster"] = [faster(row) for row in data.to_dict("records")]
    display["nAP (%)"] = [number(value, decimals=2) for value in data["nAP"]]
    changes = zip(data["change"], data["way"], strict=True)
    display["change of nAP"] = [
        NOT_PLANNED if way == "published" else number(value, decimals=2, sign=True) for value, way in changes
    ]
    display["nAP50 (%)"] = [number(value, decimals=2) for value in data["nAP50"]]
    display["peak memory (MiB)"] = [number(value, decimals=0) for value in data["peak_mib"]]
    difference = latency_rows(records, "equality")
    largest = difference["largest_difference"].max() if "largest_difference" in difference else math.nan
    same = (
        ""
        if math.isnan(largest)
        else f" Fed the same, both ways' scores differ by at most {largest:.1e} in float32."
    )
    density = (
        f"{data['boxes_per_image'].mean():.1f} boxes above the threshold an image. " if len(data) else ""
    )
    caption = (
        f"Accuracy and cost of re-scoring, detector apart, on stored boxes: {density}nAP is of all test images, times "
        f"and memory of {_timed(records)}: the ways take turns, in each round from another one on, dense ways in the "
        "first alone; medians of the rounds, means over the stored cells. times faster: than the published way with "
        "images from the same place, so files against files and memory against memory; in brackets the least and "
        "largest ratio of a round. Change of nAP: against ours in fp32 with every crop. "
        "dense: one forward pass an image and RoIAlign on its map. share: one crop for boxes of IoU > 0.9 (iou) or "
        "> 0.5 (object), or of one proposal. budget: crops an image. Images are read from their files, or they are "
        "in memory (said so), as after the detector. Peak memory is above the loaded models. "
        f"{PUBLISHED_NOTE}{same} {MEASURED_NOTE}"
    )
    return Table("latency_accuracy", caption, data, display)


def faster(row: Mapping, name: str = "times_faster") -> str:
    """A ratio, in brackets the least and largest of its rounds: ``2.41 (2.38–2.45)``."""
    text = number(row[name], decimals=2)
    if math.isnan(row["slowest"]):
        return text
    return f"{text} ({number(row['slowest'], decimals=2)}–{number(row['fastest'], decimals=2)})"


def _timed(records: Sequence[Mapping]) -> str:
    """On how many images and in how many rounds ways were timed."""
    rows = latency_rows(records, "stored")
    if "timed_images" not in rows or "ms_rounds" not in rows:
        return "the first images"
    images = ", ".join(map(str, sorted(set(rows["timed_images"]))))
    rounds = max(len(values) for values in rows["ms_rounds"] if isinstance(values, list))
    return f"the first {images} of them in {rounds} rounds"


def latency_targets_table(records: Sequence[Mapping]) -> Table:
    """How much faster than the published way: with every crop, and with the fastest approximation that keeps nAP."""
    cells, rows, lines = accuracy_cells(records), [], []
    ours = cells[(cells["way"] == "ours") & (cells["path"] == "crop")]
    keys = ["clip", "precision", "images_from"]
    for key, own in ours.groupby(keys, sort=False):
        row, kept = dict(zip(keys, key, strict=True)), own[own["approximation"] != "none"]
        kept = kept[kept["change"].abs().round(9) <= MOST_CHANGE].sort_values("times_faster", ascending=False)
        line = {"CLIP": row["clip"], "precision": row["precision"], "images from": row["images_from"]}
        sides = (("every crop", own[own["approximation"] == "none"]), ("approximation", kept))
        for (name, part), target in zip(sides, TARGETS, strict=True):
            best = part.iloc[0].to_dict() if len(part) else None
            line[f"{name}: times faster"] = faster(best) if best else NOT_PLANNED
            line[f"{target:g} or more"] = _held(best, target)
            short = name.split()[-1]
            row |= {f"{short}_times_faster": best["times_faster"] if best else math.nan}
            row |= {f"{short}_change": best["change"] if best else math.nan}
            if name == "approximation":
                row["approximation"] = best["approximation"] if best else ""
                line["which"] = row["approximation"] or NOT_PLANNED
                line["change of nAP"] = number(best["change"], decimals=2, sign=True) if best else NOT_PLANNED
        rows.append(row)
        lines.append(line)
    caption = (
        "How many times faster than the published way re-scoring is on the crop path, images from the same place: with "
        f"every crop, and with the fastest approximation whose nAP is within {MOST_CHANGE:g} points of ours in fp32 "
        f"with every crop. In brackets the least and largest ratio of a round. {MEASURED_NOTE}"
    )
    return Table("latency_targets", caption, pd.DataFrame(rows), pd.DataFrame(lines))


def _held(row: Mapping | None, target: float) -> str:
    if row is None or math.isnan(row["times_faster"]):
        return NOT_PLANNED
    return "yes" if row["times_faster"] >= target else "no"


def latency_c_table(records: Sequence[Mapping]) -> Table:
    """Seconds of new scores for many values of c."""
    data = latency_rows(records, "all_c")
    if len(data):
        published = data[data["way"] == "published"].set_index("clip").get("seconds", pd.Series(dtype=float))
        seconds = data["seconds"] if "seconds" in data else pd.Series(math.nan, index=data.index)
        data = data.assign(times_faster=data["clip"].map(published) / seconds)
    display = pd.DataFrame({"CLIP": data["clip"], "way": [way_name(row) for row in data.to_dict("records")]})
    for name, head, decimals in (("seconds", "seconds", 2), ("times_faster", "times faster", 1)):
        display[head] = [number(value, decimals=decimals) for value in data[name]] if name in data else ""
    facts = ""
    if len(data):
        first = data.iloc[0]
        facts = f"for {first['num_c']} values of c on {first['num_images']} images with {first['num_boxes']} boxes "
    caption = (
        f"New scores {facts}of one stored cell, images read from files. The published way encodes all crops anew for "
        f"each c, ours once (median of the rounds). {MEASURED_NOTE}"
    )
    return Table("latency_c", caption, data.drop(columns=["kind", "run_id"], errors="ignore"), display)


def latency_parts_table(records: Sequence[Mapping]) -> Table:
    """Milliseconds of each part of an image, median / 95th percentile."""
    data = parts_cells(records)
    lines = []
    for key, own in data.groupby(KEYS["parts"], sort=False, dropna=False) if len(data) else ():
        row = dict(zip(KEYS["parts"], key, strict=True))
        line = {"CLIP": row["clip"], "way": way_name(row)}
        cells = own.set_index("part").to_dict("index")
        for part in (*PARTS, "total"):
            head = part.replace("_", " ") + " (ms)"
            line[head] = _percentiles(cells[part]) if part in cells else NOT_PLANNED
        line["images/s"] = number(1000 / cells["total"]["mean"])
        line["peak memory (MiB)"] = number(cells["total"]["peak_mib"], decimals=0)
        lines.append(line | {"n": str(cells["total"]["n"])})
    texts = latency_rows(records, "parts")
    once = ""
    if "text_once" in texts:
        spans = texts.groupby("clip", sort=False)["text_once"].first().items()
        once = (
            " Texts are encoded once for a label space: "
            + "; ".join(f"{c} {v:.0f} ms" for c, v in spans)
            + "."
        )
    caption = (
        "Milliseconds of one image after another, from the file to the new scores: median / 95th percentile over n "
        "images ('max' in place of the percentile where n is below 20). total: end to end by a clock of its own, "
        "detector included; the boxes are the stored ones of a fine-tuned head, the detector run is the base model's. "
        "dense has no crops to make. read again: the published way reads the image a second time. Peak memory is above "
        f"the loaded models.{once} {MEASURED_NOTE}"
    )
    columns = [
        "CLIP",
        "way",
        *(part.replace("_", " ") + " (ms)" for part in (*PARTS, "total")),
        "images/s",
        "peak memory (MiB)",
        "n",
    ]
    return Table("latency_parts", caption, data, pd.DataFrame(lines, columns=columns))


def _percentiles(cell: Mapping, decimals: int = 1) -> str:
    """Median / 95th percentile, or the largest where n does not allow one."""
    is_known = cell["p95"] is not None and not math.isnan(cell["p95"])
    tail = number(float(cell["p95" if is_known else "max"]), decimals=decimals)
    return f"{number(float(cell['p50']), decimals=decimals)} / {'' if is_known else 'max '}{tail}"


def latency_boxes_table(records: Sequence[Mapping]) -> Table:
    """Milliseconds of one image with N boxes as measured, and the line through them."""
    points, lines = boxes_cells(records)
    counts = sorted(set(points["boxes"])) if len(points) else []
    most = max(
        (record["params"].get("line_to", 100) for record in records if notebook_of(record) == NOTEBOOK),
        default=100,
    )
    display = []
    for row in lines.to_dict("records"):
        own = points[(points[["clip", *WAY]] == [row[name] for name in ["clip", *WAY]]).all(axis=1)]
        own = own.set_index("boxes").to_dict("index")
        line = {"CLIP": row["clip"], "way": way_name(row)}
        for count in counts:
            line[f"{count} boxes (ms)"] = _point(own[count]) if count in own else NOT_PLANNED
        line["fitted line (ms)"] = line[f"{most} boxes, FITTED (ms)"] = NOT_PLANNED
        if not math.isnan(row["slope"]):
            line["fitted line (ms)"] = (
                f"{number(row['start'])} + {number(row['slope'])} N, within {number(row['residual'])}"
            )
            line[f"{most} boxes, FITTED (ms)"] = number(row["start"] + most * row["slope"])
        display.append(line | {"peak memory (MiB)": number(row["peak_mib"], decimals=0)})
    caption = (
        "Milliseconds of re-scoring one decoded picture of noise with N boxes, crops made and encoded: median / 95th "
        "percentile ('max' in its place where n is below 20), in brackets the repeats n. The line is fitted to the "
        "medians by least squares, 'within' is the largest distance "
        f"of a point; the column of {most} boxes is read off it, not measured. random weights: what it costs does not "
        f"depend on them. {_most(records)}{_left_out(records)}{_detectors(records)}{PUBLISHED_NOTE} {MEASURED_NOTE}"
    )
    data = points.drop(columns=["kind", "run_id"], errors="ignore")
    if len(lines) and len(data):
        data = data.merge(lines.drop(columns=["is_large", "peak_mib"]), on=["clip", *WAY], how="left")
    return Table("latency_boxes", caption, data, pd.DataFrame(display))


def _point(cell: Mapping) -> str:
    decimals = 0 if cell["p50"] >= 1000 else 1
    if cell["n"] == 1:
        return f"{number(float(cell['p50']), decimals=decimals)} (1)"
    return f"{_percentiles(cell, decimals)} ({cell['n']})"


def _most(records: Sequence[Mapping]) -> str:
    """Which numbers of boxes were left out for their time, for a caption."""
    found = {
        record["params"].get("most_tera_operations") for record in records if notebook_of(record) == NOTEBOOK
    }
    limits = sorted(limit for limit in found if limit)
    return f"–: left out, for so many crops take more than {limits[0]:g} tera operations. " if limits else ""


def _left_out(records: Sequence[Mapping]) -> str:
    """The large CLIPs whose dense path was not measured beside the slowest one that was, for a caption."""
    points, floor = latency_rows(records, "boxes"), latency_rows(records, "floor")
    large = points[points["is_large"].astype(bool)] if "p50" in points else points
    dense = large[large["path"] == "dense"]
    if dense.empty or floor.empty:
        return ""
    slowest, flops = dense.sort_values("p50").iloc[-1], floor.groupby("clip")["flops"].first()
    texts = []
    for name in dict.fromkeys(large["clip"]):
        if name not in set(dense["clip"]) and {name, slowest["clip"]} <= set(flops.index):
            ratio = number(float(flops[name] / flops[slowest["clip"]]))
            texts.append(
                f"dense of {name} was left out for its time: a crop of it has {ratio} times the operations of one of "
                f"{slowest['clip']}, whose dense pass took {number(slowest['p50'] / 1000)} s. "
            )
    return "".join(texts)


def _detectors(records: Sequence[Mapping]) -> str:
    """What the detectors alone take, for a caption."""
    frame = latency_rows(records, "detector")
    texts = [
        f"{row['detector']} at {row['image']}: {_percentiles(row, 0)} ms ({row['n']}){_peak(row)}"
        for row in frame.to_dict("records")
        if "p50" in row
    ]
    return f"The detector alone, {'; '.join(texts)}. " if texts else ""


def _peak(row: Mapping) -> str:
    peak = row.get("peak_mib")
    return "" if peak is None or math.isnan(peak) else f", peak memory {number(float(peak), decimals=0)} MiB"


def latency_floor_table(records: Sequence[Mapping]) -> Table:
    """Milliseconds of a crop beside the least its operations could take."""
    data = latency_rows(records, "floor")
    if "ms" in data:
        data = data.assign(share_of_rate=data["floor_ms"] / data["ms"])
    display = pd.DataFrame({"CLIP": data["clip"], "precision": data["precision"]})
    shown = (
        ("parameters", 1e-6, "parameters (M)", 2),
        ("flops", 1e-9, "GFLOP a crop", 2),
        ("rate", 1e-9, "matrix rate (GFLOP/s)", 0),
        ("floor_ms", 1, "floor (ms/crop)", 2),
        ("ms", 1, "measured (ms/crop)", 2),
        ("share_of_rate", 100, "of the matrix rate (%)", 0),
    )
    for name, factor, head, decimals in shown:
        if name in data:
            display[head] = [number(float(value) * factor, decimals=decimals) for value in data[name]]
    if "batch" in data:
        display["batch"] = [str(value) for value in data["batch"]]
    caption = (
        "The encoder alone against its floor: the operations of a crop's forward pass (as torch counts them, "
        "multiplications and additions apart) over the rate of a product of two large matrices in the same precision. "
        f"Measured: median of some forward passes of one batch of crops. {MEASURED_NOTE}"
    )
    return Table("latency_floor", caption, data.drop(columns=["kind", "run_id"], errors="ignore"), display)


def latency_tables(records: Sequence[Mapping]) -> list[Table]:
    """All tables of 34_latency."""
    makers = (
        latency_accuracy_table,
        latency_targets_table,
        latency_c_table,
        latency_parts_table,
        latency_boxes_table,
        latency_floor_table,
    )
    return [make(records) for make in makers]
