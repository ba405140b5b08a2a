"""The tables of CM-CLIP's controls and of the rule by class: functions of records."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from risf_core.report.statistics import drop_repeats, rows_of, sort_cells, student_interval
from risf_core.report.table_format import Table, difference_text, interval_text, number, readable

NOTEBOOK = "37_rescoring_controls"
METRICS = ("nAP50", "nAP", "nAP75")
INTERVAL_NOTE = "± is the half-width of the 95 % Student-t interval over few-shot seeds of one base model."
NOT_THE_PAPER = "CONTROL, not part of the reproduction."
SETTING_NOTE = "CM-CLIP in the paper's setting, on the same stored boxes."
CONTROL_TEXTS = {
    "none": "without re-scoring",
    "paper": "CM-CLIP (paper)",
    "permuted names": "permuted names",
    "background only": "background only",
    "random-weight CLIP": "random-weight CLIP",
}
CLASS_KEYS = ["split", "arm", "loss", "shots", "clip", "name"]
RULE_SOURCES = {"shot_accuracy": "the K shots' crops", "accuracy": "test crops"}


def part_rows(
    records: Sequence[Mapping], part: str, keys: Sequence[str], values: Sequence[str]
) -> pd.DataFrame:
    """Rows of one part of 37_rescoring_controls, in a fixed order."""
    frame = rows_of(records, NOTEBOOK)
    if frame.empty or not (frame["part"] == part).any():
        return pd.DataFrame(columns=[*keys, *values])
    frame = frame[frame["part"] == part].dropna(axis=1, how="all")
    frame = frame.reindex(columns=[*frame.columns, *(name for name in values if name not in frame)])
    return sort_cells(drop_repeats(frame, keys, [name for name in values if name in frame]), keys)


def _interval(values: pd.Series) -> tuple:
    interval = student_interval(values)
    return interval.mean, interval.half_width, interval.n, int((values > 0).sum())


def control_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Each (split, arm, loss, shots, control) with its mean and its paired differences to "none" and to "paper"."""
    keys = ["split", "arm", "loss", "shots"]
    frame = part_rows(records, "control", [*keys, "control", "seed"], METRICS)
    for name in ("none", "paper"):
        base = frame.loc[frame["control"] == name, [*keys, "seed", metric]].rename(columns={metric: name})
        frame = frame.merge(base, on=[*keys, "seed"], how="left", validate="many_to_one")
    rows = []
    for key, group in frame.groupby([*keys, "control"], sort=False):
        rows.append(
            (
                *key,
                *_interval(group[metric])[:3],
                *_interval(group[metric] - group["none"]),
                *_interval(group[metric] - group["paper"]),
            )
        )
    columns = [*keys, "control", "mean", "half_width", "n"]
    columns += [
        f"{side}_{part}" for side in ("gain", "to_paper") for part in ("mean", "half_width", "n", "up")
    ]
    cells = pd.DataFrame(rows, columns=columns)
    order = list(CONTROL_TEXTS)
    place = [order.index(name) if name in order else len(order) for name in cells["control"]]
    return sort_cells(cells.assign(place=place), [*keys, "place", "control"]).drop(columns="place")


def controls_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """Each control beside CM-CLIP itself."""
    cells = control_cells(records, metric=metric)
    display = cells[["split", "arm", "loss", "shots"]].copy()
    display["control"] = [CONTROL_TEXTS.get(name, f"box {name}") for name in cells["control"]]
    display["n"] = [str(n) for n in cells["n"]]
    display[f"{metric} (%)"] = [interval_text(*pair) for pair in zip(cells["mean"], cells["half_width"])]
    for side, head, own in (
        ("gain", "gain over none", "none"),
        ("to_paper", "difference to CM-CLIP", "paper"),
    ):
        parts = cells[["control", *(f"{side}_{part}" for part in ("mean", "half_width", "up", "n"))]]
        display[head] = [
            "–" if control == own else difference_text(mean, half, int(up), int(n), "complete", 0)
            for control, mean, half, up, n in parts.itertuples(index=False, name=None)
        ]
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} Permuted names: every novel class is given another's name, mean over all "
        "cyclic shifts of the list. Background only: p = 1 − p(background), whatever the class. Random-weight CLIP: "
        "the same tower untrained, another draw for each seed. Box jitter: Gaussian noise on each edge of the box "
        "that is cropped, its standard deviation as a share of the side; the detections keep their boxes. Differences "
        f"are in points, paired per seed. {INTERVAL_NOTE}"
    )
    return Table("rescoring_controls", caption, cells, readable(display))


def size_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (split, arm, loss, shots, size): objects, AP50 without and with CM-CLIP, and the paired gain."""
    keys = ["split", "arm", "loss", "shots", "size"]
    values = ["without", "with", "gain"]
    frame = part_rows(records, "size", [*keys, "seed"], values)
    rows = []
    for key, group in frame.groupby(keys, sort=False):
        first = group.iloc[0]
        facts = (first["area_from"], first.get("area_to", math.nan), int(first["objects"]))
        numbers = [_interval(group[name])[:2] for name in values[:2]]
        rows.append((*key, *facts, *numbers[0], *numbers[1], *_interval(group["gain"])))
    columns = [*keys, "area_from", "area_to", "objects", "without", "without_half_width", "with"]
    columns += ["with_half_width", "gain", "gain_half_width", "n", "up"]
    return sort_cells(pd.DataFrame(rows, columns=columns), keys)


def side_text(area_from: float, area_to: float) -> str:
    """The square root of an area range in pixels: ``34 to 43``."""
    low, high = (math.sqrt(value) if not math.isnan(value) else math.inf for value in (area_from, area_to))
    if low == 0 and math.isinf(high):
        return "all"
    if low == 0:
        return f"below {high:.0f}"
    return f"above {low:.0f}" if math.isinf(high) else f"{low:.0f} to {high:.0f}"


def size_table(records: Sequence[Mapping]) -> Table:
    """What CM-CLIP gains on small and large objects."""
    cells = size_cells(records)
    display = cells[["split", "arm", "loss", "shots"]].copy()
    display["side (pixels)"] = [side_text(*pair) for pair in zip(cells["area_from"], cells["area_to"])]
    display["objects"] = [str(count) for count in cells["objects"]]
    display["n"] = [str(n) for n in cells["n"]]
    for name, head in (("without", "AP50 without (%)"), ("with", "AP50 with CM-CLIP (%)")):
        display[head] = [interval_text(*pair) for pair in zip(cells[name], cells[f"{name}_half_width"])]
    gains = cells[["gain", "gain_half_width", "up", "n"]].itertuples(index=False, name=None)
    display["paired gain"] = [difference_text(*gain, "complete", 0) for gain in gains]
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} AP50 of the novel classes within area ranges that hold equally many objects "
        "of all classes, named by the square root of the area; COCO's rule: objects of another size, and unmatched "
        f"detections of one, count neither way. Gain in points, paired per seed. {INTERVAL_NOTE}"
    )
    return Table("gain_by_object_size", caption, cells, readable(display))


def class_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of part "class" with ``gain``: one for each (role, split, arm, loss, shots, clip, class name, seed).

    Classes without an object in the test images are left out.
    """
    keys = ["role", "split", "arm", "loss", "shots", "clip", "name", "seed"]
    frame = part_rows(records, "class", keys, ["without", "with", "accuracy", "shot_accuracy"])
    frame = frame.assign(gain=pd.to_numeric(frame["with"]) - pd.to_numeric(frame["without"]))
    return frame.dropna(subset=["gain"]).reset_index(drop=True)


def class_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (split, arm, loss, shots, clip, class name): accuracies, AP50 without re-scoring and the paired gain."""
    frame, rows = class_rows(records), []
    for key, group in frame.groupby(CLASS_KEYS, sort=False):
        accuracy, shot = group["accuracy"].mean(), group["shot_accuracy"].mean()
        rows.append((*key, accuracy, shot, *_interval(group["without"])[:1], *_interval(group["gain"])))
    columns = [*CLASS_KEYS, "accuracy", "shot_accuracy", "without", "gain", "gain_half_width", "n", "up"]
    order = ["split", "arm", "loss", "shots", "accuracy", "clip"]
    return sort_cells(pd.DataFrame(rows, columns=columns), order)


def class_gain_table(records: Sequence[Mapping]) -> Table:
    """The gain of each class with each CLIP beside how well the CLIP knows it."""
    cells = class_cells(records)
    display = cells[CLASS_KEYS].rename(columns={"name": "class"})
    display["accuracy, test crops (%)"] = [number(float(value)) for value in cells["accuracy"]]
    display["accuracy, K shots (%)"] = [number(float(value)) for value in cells["shot_accuracy"]]
    display["AP50 without (%)"] = [number(float(value)) for value in cells["without"]]
    gains = cells[["gain", "gain_half_width", "up", "n"]].itertuples(index=False, name=None)
    display["paired gain"] = [difference_text(*gain, "complete", 0) for gain in gains]
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} For each novel class and CLIP: top-1 accuracy among the novel names, on the "
        "class's ground-truth crops of the test images and on the crops of its K shots (mean over seeds), and what "
        f"re-scoring adds to its AP50, in points, paired per seed. Sorted by accuracy. {INTERVAL_NOTE}"
    )
    return Table("class_gain_against_accuracy", caption, cells, readable(display))


class Rule(NamedTuple):
    """Use CM-CLIP for a class if its accuracy is at least ``threshold`` (percent); -inf: always, inf: never."""

    source: str
    threshold: float


def choose_rule(frame: pd.DataFrame, source: str) -> Rule:
    """The threshold with the largest mean gain on some rows; the smallest of several, so that doing nothing is last.

    Args:
        frame: Rows with ``gain`` and ``source``.
        source: Which accuracy decides: a column.
    """
    known = np.sort(frame[source].dropna().unique())
    candidates = [-math.inf, *((known[:-1] + known[1:]) / 2).tolist(), math.inf]
    values = [applied(frame, Rule(source, threshold)).mean() for threshold in candidates]
    return Rule(source, candidates[int(np.argmax(values))])


def applied(frame: pd.DataFrame, rule: Rule) -> pd.Series:
    """The gain of each row where the rule decides for CM-CLIP, and 0 elsewhere."""
    return frame["gain"].where(frame[rule.source] >= rule.threshold, 0.0)


def rules(records: Sequence[Mapping]) -> dict[str, Rule]:
    """The rule by each source of accuracy, chosen on the rows of role "selection"; none without such rows."""
    frame = class_rows(records)
    chosen_on = frame[frame["role"] == "selection"]
    return {source: choose_rule(chosen_on, source) for source in RULE_SOURCES} if len(chosen_on) else {}


def rule_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """What each policy gains where it was chosen and where it is tested: mean over CLIPs, classes and K in a seed.

    ``harmed`` is the share of (CLIP, class, K, seed) that lose more than a point, in percent; ``used`` where CM-CLIP is
    used. ``to_always`` is the difference to re-scoring every class, paired per seed.
    """
    frame, rows = class_rows(records), []
    policies = {"always": Rule("accuracy", -math.inf)}
    policies |= {f"rule by {RULE_SOURCES[source]}": rule for source, rule in rules(records).items()}
    for role, own in frame.groupby("role", sort=False):
        for name, rule in policies.items():
            gain = applied(own, rule)
            by_seed = gain.groupby(own["seed"]).mean()
            to_always = (gain - own["gain"]).groupby(own["seed"]).mean()
            used = 100.0 * (own[rule.source] >= rule.threshold).mean()
            split = ", ".join(map(str, sorted(own["split"].unique())))
            harmed = 100.0 * (gain < -1.0).mean()
            rows.append((role, split, name, rule.threshold, used, harmed, len(own)))
            rows[-1] += (*_interval(by_seed), *_interval(to_always))
    columns = ["role", "split", "policy", "threshold", "used", "harmed", "cells"]
    columns += ["gain", "half_width", "n", "up"]
    return pd.DataFrame(
        rows, columns=columns + [f"to_always{end}" for end in ("", "_half_width", "_n", "_up")]
    )


def sides_note(records: Sequence[Mapping]) -> str:
    """How the split of the choice and the tested one differ, for a caption."""
    splits = {role: set(own["split"]) for role, own in class_rows(records).groupby("role")}
    if "selection" not in splits:
        return ""
    if splits["selection"] & splits.get("fine_tuning", set()):
        return ", which is the tested one as well"
    return ": other novel classes and another base model than the tested one, but the same test images"


def class_rule_table(records: Sequence[Mapping]) -> Table:
    """The rule for when not to use CM-CLIP, where it was chosen and where it is tested."""
    cells = rule_cells(records)
    cells = sort_cells(cells.assign(place=cells["role"] == "fine_tuning"), ["place"]).drop(columns="place")
    display = pd.DataFrame(
        {
            "split": [
                f"{split} ({'tested' if role == 'fine_tuning' else 'chosen on'})"
                for split, role in zip(cells["split"], cells["role"])
            ],
            "policy": cells["policy"],
            "use CM-CLIP if accuracy is": [_threshold_text(value) for value in cells["threshold"]],
            "used (%)": [number(float(value)) for value in cells["used"]],
            "classes that lose a point (%)": [number(float(value)) for value in cells["harmed"]],
            "mean gain": [
                interval_text(*pair, sign=True) for pair in zip(cells["gain"], cells["half_width"])
            ],
            "rule − always": [
                "–" if policy == "always" else difference_text(value, half, int(up), int(n), "complete", 0)
                for policy, value, half, up, n in zip(
                    cells["policy"],
                    cells["to_always"],
                    cells["to_always_half_width"],
                    cells["to_always_up"],
                    cells["n"],
                )
            ],
            "n": [str(n) for n in cells["n"]],
            "cells": [str(count) for count in cells["cells"]],
        },
        dtype=object,
    )
    frame = class_rows(records)
    clips, shots = frame["clip"].nunique(), ", ".join(map(str, sorted(frame["shots"].unique()))) or "–"
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} When not to use CM-CLIP: a class is re-scored only if its CLIP's top-1 "
        "accuracy among the novel names reaches a threshold, which is the one with the largest mean gain on the split "
        f"it is chosen on{sides_note(records)}. A cell is one class, CLIP ({clips} of them), K ({shots}) and seed; "
        "gain: points of the class's AP50, mean over the cells of a seed; rule − always: paired per seed; n: seeds. "
        "Classes and CLIPs are the same in every seed, so that the interval does not hold their variation. Accuracy on "
        f"test crops needs labels of the test images; that on the K shots' crops does not. {INTERVAL_NOTE}"
    )
    return Table("class_rule", caption, cells, readable(display))


def _threshold_text(threshold: float) -> str:
    if math.isinf(threshold):
        return "any (always)" if threshold < 0 else "none (never)"
    return f"≥ {threshold:.1f} %"
