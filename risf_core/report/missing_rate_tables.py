"""The tables of 42_missing_rate: the estimated share of objects that nobody annotated, its error, and where to look."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from risf_core.report.statistics import rows_of, student_interval
from risf_core.report.table_format import Table, interval_text, number, readable

NOTEBOOK = "42_missing_rate"
SCORES = {"detector": "detector alone", "cm_clip": "detector and CLIP"}
ALL = "all"
KEYS = ["split", "shots", "arm", "dropped", "score"]
MOST_IMAGES = 12  # lines of the table of images


def _part(records: Sequence[Mapping], part: str) -> pd.DataFrame:
    """Rows of one part, whole numbers as such: rows of other parts lack some of them."""
    frame = rows_of(records, NOTEBOOK)
    if frame.empty:
        return frame
    frame = frame[frame["part"] == part].reset_index(drop=True)
    whole = ("split", "shots", "seed", "image_id", "annotated", "suspected", "images")
    kept = [name for name in whole if name in frame and frame[name].notna().all()]
    return frame.astype(dict.fromkeys(kept, int))


def estimate_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Estimates of the roles "reported" and "own", one for each draw, set of images and kind of score.

    Returns:
        The columns of the rows with rates in percent, ``true_rate`` (NaN where nobody knows it), ``per_image`` and
        ``true_per_image`` (unannotated objects), ``error`` in points, and ``is_covered``: the truth is in the interval.
    """
    frame = _part(records, "cell")
    columns = [*KEYS, "seed", "rate", "low", "high", "true_rate", "per_image", "true_per_image", "error"]
    if frame.empty or not (frame["role"] != "selection").any():
        return pd.DataFrame(columns=[*columns, "is_covered"])
    frame = frame[frame["role"] != "selection"].copy()
    for name in ("unannotated", "dropped", "rate", "low", "high", "estimated"):
        frame[name] = pd.to_numeric(frame[name])
    frame["true_rate"] = 100 * frame["unannotated"] / (frame["annotated"] + frame["unannotated"])
    for name in ("rate", "low", "high"):
        frame[name] = 100 * frame[name]
    frame["per_image"] = frame["estimated"] / frame["images"]
    frame["true_per_image"] = frame["unannotated"] / frame["images"]
    frame["error"] = frame["rate"] - frame["true_rate"]
    frame["is_covered"] = (frame["low"] <= frame["true_rate"]) & (frame["true_rate"] <= frame["high"])
    place = [list(SCORES).index(score) for score in frame["score"]]
    order = ["place", "split", "shots", "true_rate", "arm", "seed"]
    return frame.assign(place=place).sort_values(order, kind="stable").reset_index(drop=True)


def missing_rate_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each kind of score and set of images: means over draws, bias, error and coverage; and over all sets.

    Returns:
        ``KEYS`` (arm "all" over all sets; dropped NaN: as drawn), n (estimates), true_rate, rate, half_width, bias,
        bias_half_width, rmse, covered, low, high (means), true_per_image, per_image. NaN without the truth
        where it is needed. Over all sets the half-widths are those of the draws' means.
    """
    frame, rows = estimate_rows(records), []
    for (split, shots, score), of_score in frame.groupby(["split", "shots", "score"], sort=False):
        sets = list(of_score.groupby(["arm", "dropped"], sort=False, dropna=False))
        if len(sets) > 1:
            sets.append(((ALL, math.nan), of_score))
        for (arm, dropped), own in sets:
            by_draw = own.groupby("seed")[["rate", "error"]].mean()
            rate, bias = (student_interval(by_draw[name]) for name in ("rate", "error"))
            known = own["error"].dropna()
            rmse = float(np.sqrt((known**2).mean())) if len(known) else math.nan
            covered = int(own["is_covered"].sum()) if len(known) else math.nan
            means = [own[name].mean() for name in ("low", "high", "true_per_image", "per_image")]
            row = (split, shots, arm, dropped, score, len(own), own["true_rate"].mean())
            rows.append((*row, *_numbers(rate, bias), rmse, covered, *means))
    columns = [*KEYS, "n", "true_rate", "rate", "half_width", "bias", "bias_half_width", "rmse", "covered"]
    return pd.DataFrame(rows, columns=[*columns, "low", "high", "true_per_image", "per_image"])


def _numbers(*intervals) -> tuple:
    return tuple(value for interval in intervals for value in (interval.mean, interval.half_width))


def settings_note(records: Sequence[Mapping]) -> str:
    """Which settings were taken for each kind of score, and where they come from, for a caption."""
    chosen, texts = _part(records, "setting"), []
    for row in chosen.itertuples() if len(chosen) else ():
        texts.append(f"{_setting_text(row.score, vars_of(row))}, error there {row.rmse:.1f} points")
    if texts:
        frame = _part(records, "cell")
        roles = {role: set(own["split"]) for role, own in frame.groupby("role")}
        same = " (THE REPORTED ONE)" if roles["selection"] & roles.get("reported", set()) else ""
        splits = ", ".join(str(split) for split in sorted(roles["selection"]))
        return f"Settings, chosen on split {splits}{same}: {'; '.join(texts)}."
    given = {}
    for record in records:
        if record["notebook"] == NOTEBOOK:
            given |= record["params"]["settings"]
    texts = [_setting_text(score, values) for score, values in given.items()]
    return f"Settings, given: {'; '.join(texts)}." if texts else ""


def vars_of(row) -> dict:
    """The settings in a row of part "setting"."""
    return {name: getattr(row, name) for name in ("c", "recall", "false_per_image")}


def _setting_text(score: str, values: Mapping) -> str:
    weight = "" if values["c"] is None or math.isnan(values["c"]) else f", c = {values['c']:g}"
    false = f"{values['false_per_image']:.2f} false places an image"
    return f"{SCORES[score]}{weight}: recall {values['recall']:g}, {false}"


def set_name(arm: str, dropped: float) -> str:
    """A set of images in words."""
    if arm == ALL:
        return "all of these"
    return arm if math.isnan(dropped) else f"{arm}, {100 * dropped:g} % left out"


def missing_rate_table(records: Sequence[Mapping]) -> Table:
    """The estimated missing rate beside the planted one."""
    cells = missing_rate_cells(records)
    display = cells[["split", "shots"]].copy()
    display["scores of"] = [SCORES[score] for score in cells["score"]]
    display["images"] = [set_name(*pair) for pair in zip(cells["arm"], cells["dropped"])]
    display["planted (%)"] = [number(float(value)) for value in cells["true_rate"]]
    display["estimated (%)"] = [interval_text(*pair) for pair in zip(cells["rate"], cells["half_width"])]
    display["bias"] = [
        interval_text(mean, half, sign=True) for mean, half in zip(cells["bias"], cells["bias_half_width"])
    ]
    display["RMSE"] = [number(float(value)) for value in cells["rmse"]]
    display["own interval (%)"] = [
        f"{low:.0f} to {high:.0f}" for low, high in zip(cells["low"], cells["high"])
    ]
    display["holds the truth"] = [
        "n/a" if math.isnan(covered) else f"{covered:.0f}/{n}"
        for covered, n in zip(cells["covered"], cells["n"])
    ]
    display["unannotated an image"] = [
        f"{number(float(found), decimals=2)} (planted {number(float(true), decimals=2)})"
        for found, true in zip(cells["per_image"], cells["true_per_image"])
    ]
    display["n"] = [str(n) for n in cells["n"]]
    caption = (
        "An estimate of the share of novel objects in K-shot images that nobody annotated: unannotated / (annotated "
        "+ unannotated), by detectors that were fine-tuned on the other images. Planted: the arm missing as drawn; the "
        "arm kshot, in which nothing is missing; the arm full with a random share of its annotations left out. "
        f"{settings_note(records)} Bias and RMSE in points of percent; own interval: 95 % of a bootstrap over the "
        "images of one draw, mean of its ends; holds the truth: in how many of the n estimates it does. ± is the "
        "half-width of the 95 % Student-t interval over few-shot seeds of one base model; over all sets a seed's mean "
        "is one value. Where settings were chosen on planted truth, their images are of the same kind as those judged: "
        "on images of another kind the false places are not known."
    )
    return Table("missing_rate", caption, cells, readable(display))


def image_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """The ``MOST_IMAGES`` images of the first draw with the most suspected places, by the last kind of score."""
    frame = _part(records, "image")
    columns = [
        "split",
        "shots",
        "seed",
        "arm",
        "score",
        "image_id",
        "file",
        "annotated",
        "suspected",
        "unannotated",
    ]
    if frame.empty:
        return pd.DataFrame(columns=[*columns, "best_score", "names"])
    frame = frame[frame["score"] == [score for score in SCORES if score in set(frame["score"])][-1]].copy()
    frame["unannotated"] = pd.to_numeric(frame["unannotated"])
    frame["best_score"] = [max(scores, default=math.nan) for scores in frame["scores"]]
    frame["names"] = [
        ", ".join(f"{name} ({count})" if count > 1 else name for name, count in Counter(names).most_common())
        for names in frame["names"]
    ]
    order = frame.sort_values(["suspected", "best_score", "image_id"], ascending=[False, False, True])
    return order[[*columns, "best_score", "names"]].head(MOST_IMAGES).reset_index(drop=True)


def missing_rate_images_table(records: Sequence[Mapping]) -> Table:
    """Which images to look at first."""
    cells = image_cells(records)
    display = cells[["split", "arm", "file", "annotated", "suspected"]].astype(str)
    display["planted"] = [number(int(value)) if value == value else "n/a" for value in cells["unannotated"]]
    display["best score"] = [number(float(value), decimals=2) for value in cells["best_score"]]
    display["suspected classes"] = cells["names"]
    caption = (
        f"The {len(cells)} images with the most suspected places of one draw (few-shot seed "
        f"{', '.join(sorted(set(cells['seed'].astype(str)))) or '–'}, K = "
        f"{', '.join(sorted(set(cells['shots'].astype(str)))) or '–'}): places above the estimate's score that no "
        "annotated box overlaps. These are where to look first for objects that nobody annotated. Planted: how many "
        "there are. Numbers are counts of boxes in an image."
    )
    return Table("missing_rate_images", caption, cells, readable(display))
