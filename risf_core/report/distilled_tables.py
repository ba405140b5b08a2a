"""The tables of distilled re-scoring: functions of records."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.distilled_rows import (
    HEAD_TEXTS,
    NOTEBOOK,
    PLACE,
    VALUE_TEXTS,
    cost_cells,
    kept_text,
    main_heads,
    params_of,
    part_rows,
    published_text,
    retention_cells,
    select_split_text,
    way_cells,
    way_text,
)
from risf_core.report.statistics import notebook_of, sort_cells
from risf_core.report.table_format import Table, difference_text, interval_text, number, readable

NOT_THE_PAPER = "EXTENSION, not part of the reproduction."
HEAD_NOTE = (
    "Distilled: a head on the detector's own feature of each detection's proposal, trained once on base images to give "
    "CLIP's embedding of the same boxes, stands in CLIP's place in the softmax and the blend."
)
AT_ITS_END = " [at its end]"  # of the values tried, as in the tables of the label space
INTERVAL_NOTE = (
    "± is the half-width of the 95 % Student-t interval over few-shot draws of one base model and one CLIP."
)
KEPT_HEADS = {
    "kept_chosen": "kept, both tuned",
    "kept_published": "kept, both as published",
    "kept_no_novel": "kept without novel, both tuned",
    "kept_as_many": "kept on as many images, both tuned",
    "kept_mixed": "tuned head against CM-CLIP as published: mostly temperature",
}
KEPT_NOTE = (
    "Kept: the ratio of two means over draws, (distilled − none) / (CM-CLIP − none), with Fieller's 95 % interval, "
    "[unbounded] where CM-CLIP's gain is not told from 0."
)
COST_TEXTS = {
    "detector": "detector alone",
    "cm_clip": "+ CM-CLIP, a crop for each box",
    "dense": "+ CM-CLIP, dense",
    "distilled": "+ distilled, proposal's feature",
    "distilled_pooled": "+ distilled, final box pooled again",
}


def choice_note(records: Sequence[Mapping]) -> str:
    """Where head, temperature and c are chosen, for a caption."""
    split = select_split_text(records)
    return (
        f"Head, temperature and c are chosen on {split}, over all K, draws and nAP50, and reported on the others; rows "
        f"of {split} show what was chosen on."
    )


def unseen_note(records: Sequence[Mapping]) -> str:
    """That the images a head is trained on show unlabelled novel objects, and how many do."""
    pairs = set()
    for record in records:  # the heads on all images, which as_many and no_novel are not
        own = [
            row
            for row in record.get("rows") or []
            if notebook_of(record) == NOTEBOOK and row["part"] == "head"
        ]
        pairs |= {max((row["images"], row["images_with_novel"]) for row in own)[::-1]} if own else set()
    many = " or ".join(f"{novel} of {images}" for novel, images in sorted(pairs)) or "Some"
    return (
        f"{many} of the base images that the heads are trained on also show novel objects, unlabelled, on whose "
        "proposals CLIP may be distilled, too."
    )


def permuted_note(records: Sequence[Mapping]) -> str:
    """Why permuted probabilities lose much; "" where the detector has half of the score or more."""
    cells = part_rows(records, "choice")
    values = sorted(set(cells.loc[cells["is_main"].astype(bool), "c"])) if len(cells) else []
    if not values or values[-1] >= 0.5:
        return ""
    text = " or ".join(f"{value:g}" for value in values)
    return (
        f" With the chosen c of {text}, the detector's share of the score, most of a permuted score is noise, so its "
        "loss is large by construction."
    )


def distilled_tables(records: Sequence[Mapping]) -> list[Table]:
    """All of them."""
    tables = [retention_table(records), ways_table(records), choices_table(records)]
    return [*tables, fidelity_table(records), costs_table(records)]


def retention_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """How much of CM-CLIP's gain the distilled head keeps at each K."""
    cells = retention_cells(records, metric=metric)
    display = cells[[*PLACE, "shots", "n"]].copy()
    if len(cells):
        heads = {
            "none": "none",
            "cm_clip_chosen": "CM-CLIP, chosen T and c",
            "distilled": "distilled, chosen T and c",
            "cm_clip": "CM-CLIP as published",
            "distilled_published": "distilled, T and c as published",
        }
        for name, head in heads.items():
            pairs = zip(cells[name], cells[f"{name}_half_width"])
            display[f"{head}, {metric} (%)"] = [interval_text(*pair) for pair in pairs]
        for name, head in KEPT_HEADS.items():
            ends = zip(cells[name], cells[f"{name}_low"], cells[f"{name}_high"])
            display[head] = [kept_text(*three) for three in ends]
    caption = (
        f"{NOT_THE_PAPER} {HEAD_NOTE} {KEPT_NOTE} Both tuned: T and c chosen for each in the same way, so that a "
        f"better temperature is not counted as distillation; both as published: {published_text(records)}. Tuned head "
        "against CM-CLIP as published compares unlike settings: what it has above the others is mostly the "
        f"temperature's. {unseen_note(records)} Kept without novel: by a head trained without "
        "these images, beside one trained on as many images at random. "
        f"{choice_note(records)} {INTERVAL_NOTE}"
    )
    return Table("distilled_retention", caption, cells, readable(display))


def ways_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """Every way of re-scoring: heads, variants and controls."""
    cells = way_cells(records, metric=metric)
    display = cells[[*PLACE, "shots"]].copy()
    if len(cells):
        display["way"] = [way_text(way) for way in cells["way"]]
        display["T, c"] = [VALUE_TEXTS.get(values, values) for values in cells["values"]]
        display["n"] = [str(n) for n in cells["n"]]
        display[f"{metric} (%)"] = [interval_text(*pair) for pair in zip(cells["mean"], cells["half_width"])]
        gains = cells[["gain", "gain_half_width", "up", "n"]].itertuples(index=False, name=None)
        display["gain over none"] = [difference_text(*gain, "complete", 0) for gain in gains]
        ends = zip(cells["kept_chosen"], cells["kept_chosen_low"], cells["kept_chosen_high"])
        display["kept of chosen"] = [kept_text(*three) for three in ends]
    caption = (
        f"{NOT_THE_PAPER} {HEAD_NOTE} {unseen_note(records)} Each way at the T and c chosen for it on "
        f"{select_split_text(records)}, unless as published ({published_text(records)}). The shuffled teacher and the "
        "permuted probabilities (each detection has another's; mean of three draws) take the main head's."
        f"{permuted_note(records)} CM-CLIP's values, own order: the head's probabilities by rank, with the values of "
        "CM-CLIP's, so that sharpness plays no part. Ways that embed boxes anew (dense, pooled again, CM-CLIP with "
        "visual targets) are of fewer draws, as n says. Gain in points, paired by draw. "
        f"{KEPT_NOTE.replace('distilled', 'way')} {INTERVAL_NOTE}"
    )
    return Table("distilled_ways", caption, cells, readable(display))


def choices_table(records: Sequence[Mapping]) -> Table:
    """What was chosen, and on what."""
    cells = part_rows(records, "choice")
    columns = ["split", "label_space", "way", "temperature", "c", "chosen_on", "mean", "cells", "is_main"]
    if cells.empty:
        return Table("distilled_choices", "", pd.DataFrame(columns=columns), pd.DataFrame(columns=columns))
    cells = cells.reindex(columns=columns)
    display = cells[["split", "label_space"]].copy()
    display["way"] = [
        f"{way_text(way)} (main)" if main else way_text(way)
        for way, main in zip(cells["way"], cells["is_main"])
    ]
    for head, name in (("T", "temperature"), ("c", "c")):
        ends = grid_ends(records, {"T": "temperatures", "c": "c"}[head])
        display[head] = [
            f"{value:g}{AT_ITS_END if value in ends and not math.isnan(on) else ''}"
            for value, on in zip(cells[name], cells["chosen_on"].astype(float))
        ]
    display["chosen on split"] = [
        "given" if math.isnan(on) else f"{on:g}" for on in cells["chosen_on"].astype(float)
    ]
    display["mean nAP50 there (%)"] = [number(float(mean)) for mean in cells["mean"].astype(float)]
    display["cells"] = [str(count) for count in cells["cells"]]
    caption = (
        f"{NOT_THE_PAPER} Temperature T and weight c of the detector for each way of re-scoring: those with the "
        "largest mean nAP50 over all cells (every K and draw) of the split that is chosen on. Given: by the "
        "parameters, or the main head's. At its end: the smallest or largest value tried, beyond which no one has "
        "looked, so that way is not at its optimum and its rank among the ways is not final. Means of ways with fewer "
        "cells are of fewer draws."
    )
    return Table("distilled_choices", caption, cells, readable(display))


def grid_ends(records: Sequence[Mapping], name: str) -> set[float]:
    """The smallest and the largest of the values tried of "temperatures" or "c"; none where one value is tried."""
    return {
        end for values in params_of(records, name) if len(values) > 1 for end in (min(values), max(values))
    }


def fidelity_table(records: Sequence[Mapping]) -> Table:
    """How near each head comes to CLIP on annotated test boxes, and the main one on detections."""
    frame, found = part_rows(records, "fidelity"), part_rows(records, "detections")
    columns = [
        "split",
        "head",
        "group",
        "boxes",
        "cosine",
        "agreement",
        "kl",
        "right",
        "right_clip",
        "spearman",
    ]
    if frame.empty:
        return Table("distilled_fidelity", "", pd.DataFrame(columns=columns), pd.DataFrame(columns=columns))
    cells = frame.reindex(columns=[*columns, "shots"])
    if len(found):
        by_cell = found.assign(group="detections").groupby(
            ["split", "head", "group", "shots"], as_index=False
        )
        means = by_cell[["boxes", "agreement", "kl", "spearman"]].mean()
        cells = pd.concat([cells, means], ignore_index=True)
    order = [*HEAD_TEXTS, *cells["head"]]
    cells = cells.assign(place=[order.index(head) for head in cells["head"]])
    cells = sort_cells(cells, ["split", "group", "place", "head", "shots"]).drop(columns="place")
    display = cells[["split"]].copy()
    display["head"] = [HEAD_TEXTS.get(head, head) for head in cells["head"]]
    display["boxes of"] = [
        f"{group} classes" if math.isnan(shots) else f"detections, K={shots:.0f}"
        for group, shots in zip(cells["group"], cells["shots"].astype(float))
    ]
    display["mean cosine"] = [number(value, decimals=2) for value in cells["cosine"].astype(float)]
    display["same best name (%)"] = [number(value) for value in cells["agreement"].astype(float)]
    display["KL (nats)"] = [number(value, decimals=2) for value in cells["kl"].astype(float)]
    display["right name (%)"] = [number(value) for value in cells["right"].astype(float)]
    display["right name, CLIP (%)"] = [number(value) for value in cells["right_clip"].astype(float)]
    display["Spearman"] = [number(value, decimals=2) for value in cells["spearman"].astype(float)]
    caption = (
        f"{NOT_THE_PAPER} How near a distilled head comes to CLIP: cosine of the two embeddings, share of boxes "
        "with the "
        "same best of all names (novel, base, background), divergence of the head's probabilities from CLIP's at "
        "CLIP's "
        "learned temperature, and share of boxes whose own class is best. Annotated test boxes, pooled where they are; "
        "of detections the proposal's feature against the crop of the final box, mean over draws, with Spearman's "
        "correlation of the two probabilities of the own label (the head's at its T, CLIP's as published)."
    )
    return Table("distilled_fidelity", caption, cells, readable(display))


def costs_table(records: Sequence[Mapping]) -> Table:
    """Milliseconds an image and memory of each way beside the detector's own."""
    cells = cost_cells(records)
    display = cells[["split", "shots"]].copy()
    if len(cells):
        display["way"] = [COST_TEXTS.get(way, way) for way in cells["way"]]
        display["boxes an image"] = [f"{row.boxes / row.num_images:.1f}" for row in cells.itertuples()]
        display["ms an image"] = [number(float(value), decimals=2) for value in cells["ms"]]
        display["of the detector's time"] = [f"{100 * value:.1f} %" for value in cells["share_of_detector"]]
        display["weights (MiB)"] = [number(float(value), decimals=2) for value in cells["weights_mib"]]
        display["peak of memory (MiB)"] = [number(float(value)) for value in cells["peak_mib"].astype(float)]
    caption = (
        f"{NOT_THE_PAPER} What re-scoring adds to the detector's own time on decoded images of this machine, one "
        "thread: "
        "medians over rounds in which all ways take turns; the share is that of the same round. Boxes are those of the "
        "cell with the largest K. Pooled again: the last stage of the detector on each final box. Peak: above what was "
        "in use, in one pass over the images; weights of the detector, of CLIP's image tower, of the head."
    )
    return Table("distilled_costs", caption, cells, readable(display))


def main_head_of(records: Sequence[Mapping]) -> str:
    """The main heads of all runs, for a caption."""
    return ", ".join(sorted({way.removeprefix("head:") for way in main_heads(records).values()}))
