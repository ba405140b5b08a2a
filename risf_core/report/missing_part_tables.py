"""The tables of 33_missing_annotations on BNRL's parts and on kinds of K-shot images: functions of records."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.missing_tables import (
    COMPARISONS,
    INTERVAL_NOTE,
    LOSSES,
    NONE,
    NOT_THE_PAPER,
    PLACE,
    is_difference,
    missing_rows,
    rates_text,
    reported_rows,
    row_text,
    summarized,
    with_comparisons,
)
from risf_core.report.statistics import pair, sort_cells
from risf_core.report.table_format import Table, number, spread
from risf_core.studies.share_choices import at_edge

COMPONENTS = {  # the losses with the letters that make them, in the order in which BNRL is put together
    "ce": "ce",
    "ce_bg": "ce + ω_bg",
    "focal": "focal term alone (β 0, ω_bg 1)",
    "focal_mirror": "focal + mirror (ω_bg 1)",
    "focal_omega": "focal + ω_bg (β 0)",
    "bnrl": "bnrl: focal + mirror + ω_bg",
}
CHANGES = (  # (other side, subtracted side, name of the difference)
    ("ce_bg", "ce", "+ ω_bg to ce"),
    ("focal", "ce", "focal term − ce"),
    ("focal_mirror", "focal", "+ mirror to focal"),
    ("focal_omega", "focal", "+ ω_bg to focal"),
    ("bnrl", "focal_omega", "+ mirror to focal + ω_bg"),
    ("bnrl", "focal_mirror", "+ ω_bg to focal + mirror"),
    ("bnrl", "ce", "bnrl − ce"),
)
PART_METRICS = {  # column: heading
    "nAP50": "nAP50 (%)",
    "confusion": "confused (%)",
    "background": "on background an image",
    "background_per_object": "the same per object",
    "confusion_top": "confused, best N (%)",
    "background_top": "on background, best N (%)",
    "further_score": "score of unannotated objects (%)",
}
IMAGES = {  # kinds of K-shot images: (treatment, fraction)
    ("ignored", 0.0): "random: others stand there, unannotated",
    ("ignored", 1.0): "random, others ignored in training",
    ("labelled", 1.0): "clean: the same images, all annotated",
    ("kshot", NONE): "no others drawn in",
}


def component_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (split, shots, fraction, what, metric): the losses and parts of BNRL, and what each part changes.

    Returns:
        The keys, mean, half_width, n, up (values above 0) and lr (NaN for differences); only of the known shares at
        which parts were trained.
    """
    keys = [*PLACE, "fraction", "what", "metric"]
    frame = reported_rows(records)
    frame = frame[(frame["treatment"] == "ignored") & frame["loss"].isin(COMPONENTS)]
    has_parts = frame.loc[frame["loss"].str.startswith("focal"), "fraction"].unique()
    frame = frame[frame["fraction"].isin(has_parts)]
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "mean", "half_width", "n", "up", "lr"])
    parts = [
        with_comparisons(frame, [*PLACE, "fraction"], CHANGES, metric).assign(metric=metric)
        for metric in PART_METRICS
    ]
    cells = summarized(pd.concat(parts, ignore_index=True), keys)
    order = [*COMPONENTS, *(name for *_, name in CHANGES)]
    cells["place"] = [order.index(what) for what in cells["what"]]
    rates = frame.drop_duplicates([*PLACE, "loss"]).rename(columns={"loss": "what"})[[*PLACE, "what", "lr"]]
    cells = cells.merge(rates, on=[*PLACE, "what"], how="left", validate="many_to_one")
    return sort_cells(cells, [*PLACE, "fraction", "place"]).drop(columns="place")


def parts_at_edge(records: Sequence[Mapping]) -> list[str]:
    """The parts whose learning rate is the smallest or largest of those that were tried for them."""
    frame = missing_rows(records)
    tried = frame[(frame["role"] == "selection") & frame["loss"].str.startswith("focal")]
    chosen = frame[(frame["role"] == "reported") & frame["loss"].str.startswith("focal")]
    found = []
    for loss, own in chosen.groupby("loss", sort=True):
        rates = tried.loc[tried["loss"] == loss, "lr"]
        if any(at_edge(rate, rates) for rate in own["lr"].unique()):
            found.append(loss)
    return found


def components_table(records: Sequence[Mapping]) -> Table:
    """What BNRL's terms do to nAP50, confusions, background, and the score of unannotated objects."""
    cells, edges = component_cells(records), parts_at_edge(records)
    texts = [row_text(row, as_difference=is_difference(row.what)) for row in cells.itertuples()]
    shown = cells.rename(columns={"fraction": "known share"})
    shown["known share"] = [f"{share:g}" for share in cells["fraction"]]
    rates = [
        "–" if is_difference(what) else f"{lr:g}{'!' if what in edges else ''}"
        for what, lr in zip(cells["what"], cells["lr"])
    ]
    shown["rate"] = rates
    shown["what"] = [COMPONENTS.get(what, what) for what in cells["what"]]
    keys = [*PLACE, "known share", "what", "rate"]
    display = spread(shown, keys, "metric", texts, heads=PART_METRICS, with_n=True)
    caption = (
        f"{NOT_THE_PAPER} BNRL put together from its parts, with none of the further objects known (0) and with all "
        "of them known and ignored in training (1); labels are constant. Focal term: α (1 − p_y)^γ (−log p_y); "
        "mirror: its twin for the other classes, weight β; ω_bg: weight of the background. Confused: of the "
        "detections above the threshold with IoU ≥ 0.5 with a novel object the percent that name another novel "
        "class. On background: detections above the threshold with IoU < 0.1 with every object, base ones included; "
        "an image, and per novel object. Best N: the same among the N best-scored detections of all test images, N "
        "the number of novel objects, which does not depend on how high a loss's scores are. Score of unannotated "
        "objects: mean probability of the true class on the further objects of the training images, in percent. Rows "
        "with − or +: differences in points, paired per seed; 4/5 up: above 0 in 4 of 5 seeds. Rate: the learning "
        f"rate, chosen on another split; '!': the smallest or largest of those tried for this part. {INTERVAL_NOTE}"
    )
    return Table("missing_components", caption, cells, display)


def image_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Each (split, shots, images, what) with ``metric``: losses, their differences, and differences to random images.

    Returns:
        The keys, mean, half_width, n, up and labels (annotated objects, mean over seeds). ``what`` is a loss,
        "bnrl − ce", or such a name with ": less random", the difference to the random images paired per seed.
    """
    keys = [*PLACE, "images", "what"]
    frame = reported_rows(records)
    kinds = list(zip(frame["treatment"], frame["fraction"]))
    arms = [kind for kind in dict.fromkeys(kinds) if kind[1] == NONE and kind not in IMAGES]
    names = IMAGES | {arm: arm[0] for arm in arms}
    frame = frame.assign(images=[names.get(kind) for kind in kinds])
    frame = frame[frame["loss"].isin(LOSSES)].dropna(subset=["images"])
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "mean", "half_width", "n", "up", "labels"])
    rows = with_comparisons(frame, [*PLACE, "images"], COMPARISONS, metric)
    random = IMAGES["ignored", 0.0]
    own, parts = [*PLACE, "seed", "what"], [rows]
    for images in names.values():
        if images != random:
            pairs = pair(rows, "images", random, images, "value", keys=own)
            pairs = pairs.rename(columns={"difference": "value"})
            parts.append(pairs.assign(images=images, what=pairs["what"] + ": less random"))
    cells = summarized(pd.concat(parts, ignore_index=True), keys)
    labels = frame.groupby([*PLACE, "images"], as_index=False)["labels"].mean()
    cells = cells.merge(labels, on=[*PLACE, "images"], validate="many_to_one")
    cells["place"] = [list(names.values()).index(images) for images in cells["images"]]
    return sort_cells(cells, [*PLACE, "place"]).drop(columns="place")


def images_table(records: Sequence[Mapping]) -> Table:
    """Each loss on random and on clean K-shot images."""
    cells = image_cells(records)
    losses = [loss for loss in LOSSES if loss in set(cells["what"])]
    heads = {loss: f"{loss}, nAP50 (%)" for loss in losses}
    heads |= {
        f"{second} − {first}": f"{second} − {first}" for second, first in COMPARISONS if second in losses
    }
    heads |= {f"{loss}: less random": f"{loss}: less random" for loss in ("ce", "bnrl") if loss in losses}
    own = cells[cells["what"].isin(heads)]
    texts = [
        row_text(row, as_difference=is_difference(row.what) or "less" in row.what) for row in own.itertuples()
    ]
    shown = own.assign(labels=[number(float(value), decimals=0) for value in own["labels"]])
    display = spread(shown, [*PLACE, "images", "labels"], "what", texts, heads=heads, with_n=True)
    caption = (
        f"{NOT_THE_PAPER} nAP50 of the test images after fine-tuning on random K-shot images, in which further novel "
        "objects stand without annotation, and on cleaner ones: the same images with these objects ignored in "
        "training (as many labels), the same with all annotated (more labels, no longer K-shot), and images into "
        "which no further novel object was drawn. Labels: annotated objects in training, mean over seeds. "
        "Differences in points, paired per seed; less random: to the first line. Learning rates, chosen on another "
        f"split: {rates_text(records)}. {INTERVAL_NOTE}"
    )
    return Table("missing_clean", caption, cells, display)
