"""The tables of 35_other_detectors: what CM-CLIP gains on one-stage detectors and on results files of any other."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import mean_over_shots, notebook_of, rows_of, student_interval
from risf_core.report.sweep_tables import INTERVAL_NOTE, PAPER_C
from risf_core.report.table_format import Table, difference_text, interval_text, number
from risf_core.studies.chosen_c import choose_c, mean_by_c

NOTEBOOK = "35_other_detectors"
DETECTOR_NAMES = {"faster_rcnn": "Faster R-CNN (two-stage)", "retinanet": "RetinaNet", "fcos": "FCOS"}
ORDER = {name: place for place, name in enumerate(DETECTOR_NAMES)}
# name -> heading; the fusion and where its c comes from
WAYS = {
    "paper": ("arithmetic", f"paper, c = {PAPER_C}"),
    "selected": ("arithmetic", "c chosen"),
    "geometric": ("geometric", "geometric mean, c chosen"),
    "oracle": ("arithmetic", "TEST ORACLE"),
}
CHOICE_NOTE = (
    "c is chosen for each detector on split {select}, by the mean nAP50 over its K and seeds, and reported on split "
    "{reported}: other novel classes and another base model, but the same test images. TEST ORACLE: the best c on the "
    "reported split itself, no result. Geometric mean: s^c p^(1-c), an extension."
)
CUT_NOTE = (
    "What counts, and is re-scored, is what passes the published cut: a score above 0.05 for Faster R-CNN and "
    "RetinaNet, above 0.2 for FCOS, whose score holds the centre-ness."
)
RECIPE_NOTE = (
    "Steps and learning rates of the one-stage detectors were set by looking at seed 0 of split 1, whose test images "
    "are those reported; c was not."
)


def name_of(detector: str) -> str:
    """A detector's name for a reader; that of a results file as it is."""
    return DETECTOR_NAMES.get(detector, detector)


def rescored_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """nAP of each detector, split, K, seed, fusion and c, with ``gain``: less that of the detector alone, nAP50.

    Detectors in the order of ``DETECTOR_NAMES``. Results files, which have neither K nor seed, are left out.
    """
    columns = ["run_id", "detector", "split", "shots", "seed", "fusion", "c", "nAP50", "nAP", "gain"]
    frame = rows_of(_with_seeds(records), NOTEBOOK, required=["part", "detector", "split"])
    if frame.empty:
        return pd.DataFrame(columns=columns)
    frame = frame[frame["part"] == "re-scored"]
    keys = ["run_id", "detector", "split", "shots", "seed", "fusion"]
    alone = frame.loc[frame["c"] == 1.0, [*keys, "nAP50"]].rename(columns={"nAP50": "without"})
    frame = frame.merge(alone, on=keys, validate="many_to_one")
    frame["gain"] = frame["nAP50"] - frame["without"]
    place = frame["detector"].map(ORDER).fillna(len(ORDER))
    frame = frame.assign(place=place).sort_values(["run_id", "place", *keys[1:], "c"], kind="stable")
    return frame[columns].astype({"shots": int, "seed": int}).reset_index(drop=True)


def _with_seeds(records: Sequence[Mapping]) -> list[Mapping]:
    """The records with the rows of few-shot cells alone; others have no seed."""
    return [
        {**r, "rows": [row for row in r.get("rows") or [] if row.get("seed") is not None]} for r in records
    ]


def choices(record: Mapping) -> pd.DataFrame:
    """The c of each detector and way: detector, way, fusion, c; c is NaN without rows to choose on."""
    rows, select = record["rows"], record["params"]["select_split"]
    found = []
    rows = [row for row in rows if row["part"] == "re-scored" and row["seed"] is not None]
    for detector in dict.fromkeys(row["detector"] for row in rows):
        own = {"detector": detector, "select_split": select}
        others = sorted({row["split"] for row in rows if row["detector"] == detector} - {select})
        means = mean_by_c(rows, detector=detector, fusion="arithmetic", splits=others, metric="nAP50")
        chosen = {
            "paper": record["params"]["cm_clip"]["c"],
            "selected": choose_c(rows, **own),
            "geometric": choose_c(rows, fusion="geometric", **own),
            "oracle": max(means, key=lambda c: (means[c], c)) if means else None,
        }
        found += [(detector, way, WAYS[way][0], c) for way, c in chosen.items()]
    frame = pd.DataFrame(found, columns=["detector", "way", "fusion", "c"])
    return frame.assign(c=pd.to_numeric(frame["c"]))


def gains(records: Sequence[Mapping]) -> pd.DataFrame:
    """The paired gain of each way for each detector, reported split and K, and for the mean over K.

    Returns:
        run_id, detector, split, shots ("all": averaged over K within a seed), way, fusion, c, without,
        without_half_width, mean, half_width (of nAP50), gain, gain_half_width, up, n.
    """
    cells, parts = rescored_cells(records), []
    for record in records:
        if notebook_of(record) != NOTEBOOK or not record["rows"]:
            continue
        own = cells[
            (cells["run_id"] == record["run_id"]) & (cells["split"] != record["params"]["select_split"])
        ]
        for choice in choices(record).dropna(subset=["c"]).itertuples(index=False):
            is_way = (
                (own["detector"] == choice.detector)
                & (own["fusion"] == choice.fusion)
                & (own["c"] == choice.c)
            )
            parts.append(own[is_way].assign(way=choice.way))
    columns = ["run_id", "detector", "split", "way", "fusion", "c"]
    if not parts:
        return pd.DataFrame(columns=[*columns, "shots"])
    found = pd.concat(parts, ignore_index=True)
    found = pd.concat([found, *_over_shots(found, columns)], ignore_index=True)
    rows = []
    for key, group in found.groupby([*columns, "shots"], sort=False):
        value, gain = student_interval(group["nAP50"]), student_interval(group["gain"])
        without = student_interval(group["nAP50"] - group["gain"])
        up = int((group["gain"] > 0).sum())
        rows.append((*key, without.mean, without.half_width, value.mean, value.half_width))
        rows[-1] += (gain.mean, gain.half_width, up, gain.n)
    numbers = ["without", "without_half_width", "mean", "half_width", "gain", "gain_half_width", "up", "n"]
    frame = pd.DataFrame(rows, columns=[*columns, "shots", *numbers])
    return frame.sort_values(
        ["run_id", "detector", "split", "shots", "way"], key=_sort_keys, kind="stable"
    ).reset_index(drop=True)


def _over_shots(found: pd.DataFrame, keys: Sequence[str]) -> list[pd.DataFrame]:
    """The mean over K of each seed; nothing where there is one K."""
    several = found.groupby(list(keys))["shots"].transform("nunique") > 1
    if not several.any():
        return []
    both = [mean_over_shots(found[several], keys, value) for value in ("nAP50", "gain")]
    return [both[0].merge(both[1], on=[*keys, "seed"]).assign(shots="all")]


def _sort_keys(column: pd.Series) -> pd.Series:
    if column.name == "detector" and column.dtype != "category":
        return column.map(ORDER).fillna(len(ORDER))
    if column.name == "shots":
        return column.map(lambda value: 10_000 if value == "all" else value)
    return column.map(list(WAYS).index) if column.name == "way" else column


def other_detectors_table(records: Sequence[Mapping]) -> Table:
    """For each detector and K: nAP50 without, and the paired gain of CM-CLIP as in the paper and with c chosen."""
    data = gains(records)
    lines: dict[tuple, dict[str, str]] = {}
    for row in data.to_dict("records"):
        shots = "mean over K" if row["shots"] == "all" else row["shots"]
        line = lines.setdefault((row["run_id"], row["detector"], row["split"], shots), {})
        line["without"] = interval_text(row["without"], row["without_half_width"])
        counts = row["gain"], row["gain_half_width"], row["up"], row["n"], "complete", row["n"]
        c = "" if row["way"] == "paper" else f"c = {row['c']:g}: "
        line[WAYS[row["way"]][1]] = f"{c}{difference_text(*counts)}"
    heads = ["without", *(head for _, head in WAYS.values())]
    shown = [[*key, *(line.get(head, "n/a") for head in heads)] for key, line in lines.items()]
    display = pd.DataFrame(shown, columns=["run", "detector", "split", "K", *heads], dtype=object)
    display["detector"] = display["detector"].map(name_of)
    if display["run"].nunique() < 2:
        display = display.drop(columns="run")
    note = CHOICE_NOTE.format(**splits_of(records))
    caption = (
        "EXTENSION: nAP50 (%) of detectors after K-shot fine-tuning (fsod, arm kshot) and what CM-CLIP (label space "
        f"novel + background, temperature 100) adds, in points, paired by seed; 4/5 up: in 4 of 5 seeds. {note} "
        f"{CUT_NOTE} {RECIPE_NOTE} {INTERVAL_NOTE}"
    )
    return Table("other_detectors", caption, data, display)


def splits_of(records: Sequence[Mapping]) -> dict[str, str]:
    selects = sorted(
        {record["params"]["select_split"] for record in records if notebook_of(record) == NOTEBOOK}
    )
    rows = [row for record in records if notebook_of(record) == NOTEBOOK for row in record["rows"]]
    reported = sorted({row["split"] for row in rows} - set(selects))
    return {
        name: ", ".join(map(str, values)) for name, values in (("select", selects), ("reported", reported))
    }


def other_detectors_scores_table(records: Sequence[Mapping]) -> Table:
    """What a detector gives to CM-CLIP: AP on base classes, what the cut costs, how many boxes, how its scores lie."""
    frame = rows_of(_with_seeds(records), NOTEBOOK)
    keys = ["run_id", "detector", "split", "shots"]
    facts = ["per_image", "score_median", "score_spread", "probability_median", "probability_spread"]
    columns = [*keys, "bAP50", "score_thresh", "n", "uncut", "uncut_half_width", "cut_cost", *facts]
    if frame.empty:
        return Table("other_detectors_scores", "", pd.DataFrame(columns=columns), pd.DataFrame())
    base = {
        (record["run_id"], row["detector"], row["split"]): row["bAP50"]
        for record in records
        for row in record["rows"]
        if row.get("part") == "base"
    }
    cells = rescored_cells(records)
    alone = cells[(cells["c"] == 1.0) & (cells["fusion"] == "arithmetic")]
    scores = (
        frame[frame["part"] == "scores"].astype({"shots": int, "seed": int}).drop(columns=["nAP50", "nAP"])
    )
    scores = scores.merge(alone[[*keys, "seed", "nAP50"]], on=[*keys, "seed"], validate="one_to_one")
    scores["uncut"] = [value["nAP50"] for value in scores["uncut"]]
    rows = []
    for key, group in scores.groupby(keys, sort=False):
        uncut, cost = student_interval(group["uncut"]), (group["nAP50"] - group["uncut"]).mean()
        middles = [group[name].mean() for name in facts]
        row = (*key, base.get(key[:3]), group["score_thresh"].iloc[0], uncut.n, uncut.mean, uncut.half_width)
        rows.append((*row, cost, *middles))
    data = pd.DataFrame(rows, columns=columns).sort_values(keys, key=_sort_keys, kind="stable")
    data = data.assign(bAP50=pd.to_numeric(data["bAP50"])).reset_index(drop=True)
    caption = (
        "What a detector's scores are like (means over seeds). bAP50: AP50 on the base classes after base training. "
        "Uncut: nAP50 of all stored detections (the best 100 an image). Cost of the cut: nAP50 of what counts less "
        "that. Score and p: median and interquartile range over all boxes that count, of the detector's score and of "
        f"CLIP's probability; in a blend the wider one decides more ranks. {CUT_NOTE}"
    )
    return Table("other_detectors_scores", caption, data, _scores_display(data))


def _scores_display(data: pd.DataFrame) -> pd.DataFrame:
    display = data[["detector", "split", "shots"]].rename(columns={"shots": "K"})
    display["detector"] = display["detector"].map(name_of)
    display["bAP50"] = [number(float(value)) for value in data["bAP50"]]
    display["cut"] = [f"> {value:g}" for value in data["score_thresh"]]
    pairs = zip(data["uncut"], data["uncut_half_width"], strict=True)
    display["nAP50 uncut"] = [interval_text(*pair) for pair in pairs]
    display["cost of the cut"] = [number(value, sign=True) for value in data["cut_cost"]]
    display["boxes an image"] = [number(value) for value in data["per_image"]]
    for name, head in (("score", "score"), ("probability", "p")):
        pairs = zip(data[f"{name}_median"], data[f"{name}_spread"], strict=True)
        display[f"{head}: median, range"] = [
            f"{number(middle, decimals=2)}, {number(spread, decimals=2)}" for middle, spread in pairs
        ]
    return display


def other_detectors_files_table(records: Sequence[Mapping]) -> Table:
    """What CM-CLIP gains on results files of other detectors, which have no seeds, with an interval over images."""
    keys = ["run_id", "detector", "split", "way"]
    columns = [*keys, "fusion", "c", "num_images", "before", "after", "gain", "low", "high"]
    rows = rows_of([_files_alone(record) for record in records], NOTEBOOK)
    data = pd.DataFrame(columns=columns)
    if len(rows):
        numbers = {name: pd.to_numeric(rows[name]) for name in ("before", "after", "low", "high")}
        data = rows.assign(**numbers, gain=numbers["after"] - numbers["before"])[columns]
        data["detector"] = pd.Categorical(
            data["detector"], list(dict.fromkeys(data["detector"]))
        )  # as in params
        data = data.sort_values(keys, key=_sort_keys, kind="stable").astype({"detector": str})
        data = data.reset_index(drop=True)
    display = data[["detector", "split", "num_images"]].rename(columns={"num_images": "images"})
    display["re-scored by"] = [WAYS[way][1] for way in data["way"]]
    display["c"] = [f"{c:g}" for c in data["c"]]
    display["AP50 without"] = [number(value) for value in data["before"]]
    display["AP50 with"] = [number(value) for value in data["after"]]
    display["gain [bootstrap over images]"] = [
        f"{number(gain, sign=True)} [{number(low, sign=True)}, {number(high, sign=True)}]"
        if pd.notna(low)
        else f"{number(gain, sign=True)}, no interval"
        for gain, low, high in zip(data["gain"], data["low"], data["high"], strict=True)
    ]
    caption = (
        "EXTENSION: AP50 (%) of results files of other detectors over the classes that are re-scored, and what CM-CLIP "
        "(label space: these and background) adds. n = 1: a file has no seeds. In brackets the 95 % interval of a "
        "paired bootstrap over the images; it holds no variation between trainings of the detector. Chosen c: on the "
        "same detector's file of the split to choose on; without one there is the paper's c alone. No interval: the "
        "annotations hold crowd regions, which the bootstrap does not know."
    )
    return Table("other_detectors_files", caption, data, display)


def _files_alone(record: Mapping) -> Mapping:
    """A record with the gains of its results files as its only rows; these have neither K nor seed."""
    rows = [row for row in record.get("rows") or [] if row.get("part") == "file"]
    return {**record, "rows": [{k: v for k, v in row.items() if k not in ("shots", "seed")} for row in rows]}
