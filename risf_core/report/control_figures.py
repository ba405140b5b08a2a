"""The figures of CM-CLIP's controls and of the rule by class: functions of records."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.control_tables import (
    CONTROL_TEXTS,
    INTERVAL_NOTE,
    NOT_THE_PAPER,
    NOTEBOOK,
    RULE_SOURCES,
    SETTING_NOTE,
    class_cells,
    class_rows,
    control_cells,
    rules,
    side_text,
    sides_note,
    size_cells,
)
from risf_core.report.figure_style import (
    Drawing,
    groups,
    legend_below,
    look_of,
    nothing_yet,
    panels,
    seed_counts,
    styled,
)
from risf_core.report.statistics import ordered

PLACE = ["split", "arm", "loss"]
BARS = INTERVAL_NOTE.replace("± is the half-width of the", "Bars:").replace("interval over", "intervals over")


def _title(cells: pd.DataFrame, key: tuple) -> str:
    return f"{key[1]}, {key[2]}" + (f", split {key[0]}" if cells["split"].nunique() > 1 else "")


@styled
def controls_figure(records: Sequence[Mapping]) -> Drawing:
    """The paired gain of each control over no re-scoring, and the gain over the jitter of the boxes."""
    cells = control_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, PLACE)
    figure, axes = panels(len(places), 2, width=4.0, height=2.9, sharey="row")
    all_shots = ordered("shots", cells["shots"])
    for row_axes, (key, own) in zip(axes, places, strict=True):
        controls = [name for name in CONTROL_TEXTS if name != "none" and name in set(own["control"])]
        for number, shots in enumerate(all_shots):
            look = look_of("shots", number, range(len(all_shots)))
            nudge = 0.08 * (number - (len(all_shots) - 1) / 2)
            rows = own[own["shots"] == shots].set_index("control")
            named = rows.loc[[name for name in controls if name in rows.index]]
            _points(row_axes[0], [controls.index(name) + nudge for name in named.index], named, shots, look)
            jitters = {0.0: "paper"} | {
                float(name.split()[1]): name for name in rows.index if name.startswith("jitter")
            }
            if len(jitters) > 1:
                line = rows.loc[[jitters[value] for value in sorted(jitters)]]
                _points(row_axes[1], sorted(jitters), line, shots, look, connected=True)
        texts = [CONTROL_TEXTS[name].replace(" ", "\n", 1) for name in controls]
        row_axes[0].set_xticks(range(len(controls)), texts, fontsize=7.5)
        row_axes[0].set(title=_title(cells, key), ylabel="gain of nAP50 over none (points)")
        row_axes[1].set(xlabel="jitter of the cropped boxes (share of the side)")
        for ax in row_axes:
            ax.axhline(0, color="black", linewidth=0.8)
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} Left: what re-scoring adds to nAP50 as published and in controls: every class "
        "given another's name (mean over all cyclic shifts); p = 1 − p(background), whatever the class; a CLIP with "
        "random weights. Right: with Gaussian noise on each edge of the boxes that are cropped; the detections keep "
        f"theirs. {BARS} {seed_counts(cells)} Points are moved sideways."
    )
    return Drawing(figure, caption)


def _points(
    ax, where: Sequence[float], rows: pd.DataFrame, shots: int, look: dict, *, connected=False
) -> None:
    style = look if connected else look | {"linestyle": "none"}
    bars = {"yerr": rows["gain_half_width"], "capsize": 2, "elinewidth": 0.8}
    ax.errorbar(where, rows["gain_mean"], **bars, label=f"K={shots}", **style)


@styled
def size_figure(records: Sequence[Mapping]) -> Drawing:
    """The paired gain within each size of objects."""
    cells = size_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places = groups(cells, PLACE)
    figure, axes = panels(1, len(places), width=4.2, height=2.7, sharey=True)
    all_shots = ordered("shots", cells["shots"])
    for ax, (key, own) in zip(axes[0], places, strict=True):
        for number, shots in enumerate(all_shots):
            row = own[own["shots"] == shots]
            where = row["size"] + 0.06 * (number - (len(all_shots) - 1) / 2)
            look = look_of("shots", number, range(len(all_shots)))
            bars = {"yerr": row["gain_half_width"], "capsize": 2, "elinewidth": 0.8}
            ax.errorbar(where, row["gain"], **bars, label=f"K={shots}", **look)
        sizes = own.drop_duplicates("size")
        texts = [side_text(*pair) for pair in zip(sizes["area_from"], sizes["area_to"])]
        ax.set_xticks(sizes["size"], texts)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=_title(cells, key), xlabel="side of the object (square root of its area, pixels)")
    axes[0, 0].set_ylabel("gain of AP50 (points)")
    legend_below(figure, axes[0, 0])
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} What re-scoring adds to the AP50 of the novel classes within area ranges that "
        "hold equally many objects of all classes (COCO's rule: other objects, and unmatched detections of another "
        f"size, count neither way). {BARS} {seed_counts(cells)} Points are moved sideways."
    )
    return Drawing(figure, caption)


@styled
def class_gain_figure(records: Sequence[Mapping]) -> Drawing:
    """Each class's gain against its CLIP's accuracy: on test crops (left), on the K shots (right), with the rule."""
    cells = class_cells(records)
    if cells.empty:
        return nothing_yet(NOTEBOOK)
    places, rule = groups(cells, ["split", "arm", "loss", "shots"]), rules(records)
    sources = ("accuracy", "shot_accuracy")
    figure, axes = panels(len(places), len(sources), width=3.9, height=2.8, sharey="row")
    clips = ordered("clip", class_rows(records)["clip"])
    for row_axes, (key, own) in zip(axes, places, strict=True):
        for ax, source in zip(row_axes, sources, strict=True):
            for number, clip in enumerate(clips):
                row = own[own["clip"] == clip]
                look = look_of("clip", number, range(len(clips))) | {"linestyle": "none"}
                look["markerfacecolor"] = look["color"] if number < 7 else "white"
                bars = {"yerr": row["gain_half_width"], "elinewidth": 0.5, "markersize": 4}
                ax.errorbar(row[source], row["gain"], **bars, label=clip, **look)
            ax.axhline(0, color="black", linewidth=0.8)
            if source in rule and math.isfinite(rule[source].threshold):
                ax.axvline(rule[source].threshold, color="#D55E00", linestyle="--", linewidth=1.2)
            ax.set(
                xlabel=f"accuracy on {RULE_SOURCES[source]} (%)",
                title=f"split {key[0]}, {key[2]}, K={key[3]}",
            )
        row_axes[0].set_ylabel("gain of AP50 (points)")
    legend_below(figure, axes[0, 0], columns=3)
    caption = (
        f"{NOT_THE_PAPER} {SETTING_NOTE} One point for each novel class and CLIP: what re-scoring adds to the class's "
        "AP50 against the CLIP's top-1 accuracy on it among the novel names, on ground-truth crops of the test images "
        "(left) and on the crops of the K shots, mean over seeds (right). Dashed: the threshold of the rule, if it "
        f"has one, chosen on one split{sides_note(records)}. {BARS} {seed_counts(cells)} Each CLIP was trained once."
    )
    return Drawing(figure, caption)
