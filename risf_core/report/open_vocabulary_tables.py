"""The tables of 50_open_vocabulary: functions of records, shaped as the paper's ablations. Imports no torch."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.literature import published
from risf_core.report.open_vocabulary_controls import expectations_table
from risf_core.report.open_vocabulary_fidelity import (
    arm_cost_table,
    fidelity_table,
    providers_table,
    swap_table,
    teacher_table,
)
from risf_core.report.open_vocabulary_rows import (
    ARMS,
    BASE,
    CONTINUED,
    ILS,
    MAIN_METRICS,
    NAIVE,
    PLACE,
    RKD,
    SIDES,
    TRANSFER,
    TWICE,
    arm_cells,
    arm_rows,
)
from risf_core.report.open_vocabulary_texts import (
    LEVELS,
    PAIRED,
    SEES,
    WORLDS,
    against_texts,
    gain_texts,
    interval_note,
    or_dash,
    oracle_note,
    shown,
    world_of,
    world_text,
)
from risf_core.report.table_format import Table, readable

STAND_INS = {RKD: "rkd_external", ILS: "ils_external"}
# of the main table's rows, in its order; rkd-coco-<name>-<group> in results/published/literature.yaml
PUBLISHED = ("base", "", "rkd", "pis", "naive", "wt", "")
GROUPS = ("novel", "base", "all")
OTHER_WORLD = "; another world, detector and CLIP, so that only the order of the arms may be compared"
RKD_ARMS = tuple(f"rkd_{side}{end}" for side in SIDES for end in ("_l1", "") if side != "base_boxes")
ILS_ARMS = tuple(
    name for name in ARMS if name.startswith("ils_") and name not in ("ils_permuted", "ils_base_labels")
)
TRANSFER_ARMS = (
    TRANSFER,
    "naive_from_rkd",
    "wt_free",
    "wt_two_heads",
    "wt_freeze",
    "wt_random_source",
    NAIVE,
    TWICE,
)
FRESH, WELL_TRAINED = "fresh", "trained"
HEAD_STARTS = {name: FRESH for name in (TRANSFER, "wt_free", "wt_random_source")}  # the others': a trained f
NEAR_ALL = 95.0  # %, recall of every arm from which on it can hardly rise
TRAINED = {
    TRANSFER: "W_P = A(W_D) from the frozen W_D of RKD, with a residual on the features",
    "naive_from_rkd": "one f for classification and RKD, started from RKD's",
    "wt_free": "W_P trained freely with the same residual; W_D frozen, not read",
    "wt_two_heads": "a second f for classification, which starts as RKD's",
    "wt_freeze": "RKD's f frozen, classification on it",
    "wt_random_source": "as weight transfer, from a random frozen W_D",
    NAIVE: "one f, started from the base",
    TWICE: "no RKD, no ILS",
}


def main_arms(records: Sequence[Mapping]) -> tuple[str, ...]:
    """The arms of the main table; where the regions are files alone, these stand for the RPN's."""
    there = set(arm_rows(records)["arm"])
    rkd, ils = (other if own not in there and other in there else own for own, other in STAND_INS.items())
    return (BASE, CONTINUED, rkd, ils, NAIVE, TRANSFER, TWICE)


def main_arms_table(records: Sequence[Mapping]) -> Table:
    """The arms of the paper's main table, each against the base trained for as many steps, beside the paper's."""
    arms = main_arms(records)
    cells, is_lvis = arm_cells(records, arms), world_of(records) == "lvis_ovd"
    papers = dict(zip(arms, PUBLISHED, strict=True))
    for group in () if is_lvis else GROUPS:
        names = [papers[arm] and f"rkd-coco-{papers[arm]}-{group}" for arm in cells["arm"]]
        cells[f"{group}_published"] = [published(name).value if name else None for name in names]
    display = shown(cells)
    display["nAP50 − matched base"] = gain_texts(cells)
    display["matched base"] = against_texts(cells)
    for group in () if is_lvis else GROUPS:
        display[f"paper, {group}"] = [or_dash(value) for value in cells[f"{group}_published"]]
    source = published("rkd-coco-base-novel").source
    beside = (
        "What is published is mask AP of another detector, and stands nowhere here."
        if is_lvis
        else f"paper: AP50 on COCO's 48 base and 17 novel classes as published ({source}), whose regions come from "
        f"MViT{'' if world_of(records) else OTHER_WORLD}."
    )
    caption = (
        f"{world_text(records)} {LEVELS} {PAIRED} The matched base has trained for as many steps in all. {beside} The "
        f"paper gives no base of equal training. {interval_note(cells)}"
    )
    return Table("open_vocabulary_main", caption, cells, readable(display))


def frequency_table(records: Sequence[Mapping]) -> Table:
    """Box AP of LVIS's rare, common and frequent classes; without a row on other data."""
    metrics = ("APr", "APc", "APf", "AP")
    cells = arm_cells(records, metrics=metrics, differences=("APr",))
    cells = cells[cells["APr"].notna()].reset_index(drop=True)
    display = shown(cells, metrics=metrics)
    display["APr − matched base"] = gain_texts(cells, "APr")
    display["matched base"] = against_texts(cells)
    caption = (
        f"{WORLDS['lvis_ovd']} AP of rare (novel), common, frequent and all classes in percent. {PAIRED} "
        f"{interval_note(cells)}"
    )
    return Table("open_vocabulary_lvis", caption, cells, readable(display))


def rkd_table(records: Sequence[Mapping]) -> Table:
    """RKD by who proposes the regions, with and without relation matching."""
    cells = arm_cells(records, RKD_ARMS)
    adds = arm_cells(records, RKD_ARMS, against={arm: f"{arm}_l1" for arm in RKD_ARMS})
    names = ["nAP50_difference", "nAP50_difference_half_width", "nAP50_difference_n", "nAP50_up"]
    for name in names:
        cells[name.replace("nAP50", "relations")] = adds[name]
    display = cells[list(PLACE)].copy()
    display["regions"] = [SIDES[arm.removeprefix("rkd_").removesuffix("_l1")] for arm in cells["arm"]]
    display["loss"] = ["L1" if arm.endswith("_l1") else "L1 + relations" for arm in cells["arm"]]
    display["sees novel"] = cells["sees_novel"]
    display = pd.concat([display, shown(cells).drop(columns=[*PLACE, "arm"])], axis=1)
    display["nAP50 − matched base"] = gain_texts(cells)
    display["relations add"] = gain_texts(adds)
    caption = (
        f"{world_text(records)} RKD on the best regions of each provider, with the point-wise loss (L1) alone and with "
        f"inter-embedding relation matching. {LEVELS} {PAIRED} {SEES} {oracle_note(records)} {interval_note(cells)}"
    )
    return Table("open_vocabulary_rkd", caption, cells, readable(display))


def ils_table(records: Sequence[Mapping]) -> Table:
    """Image-level supervision by the choice of the pseudo box, with the recall of novel objects."""
    differences = ("nAP50", "recall_novel_at_100")
    metrics = (*MAIN_METRICS, "recall_novel_at_100")
    cells = arm_cells(records, (CONTINUED, *ILS_ARMS), metrics=metrics, differences=differences)
    display = shown(cells, metrics=metrics)
    display.insert(3, "sees novel", cells["sees_novel"])
    display["nAP50 − matched base"] = gain_texts(cells)
    display["recall − matched base"] = gain_texts(cells, "recall_novel_at_100")
    lowest = cells["recall_novel_at_100"].min()
    limit = " It is near 100 in every arm, so that it can show harm only." if lowest >= NEAR_ALL else ""
    caption = (
        f"{world_text(records)} Image-level supervision with one pseudo box for each label of an image, by who chooses "
        f"the box. {LEVELS} recall@100: share of the novel objects that 100 proposals cover at an IoU of 0.5; "
        "labels of images name boxes but do not teach where they are, so it must hardly change."
        f"{limit} {PAIRED} {SEES} {oracle_note(records)} {interval_note(cells)}"
    )
    return Table("open_vocabulary_ils", caption, cells, readable(display))


def transfer_table(records: Sequence[Mapping]) -> Table:
    """Weight transfer against what it is made of: more weights, two heads, a frozen source."""
    against = {arm: TRANSFER for arm in TRANSFER_ARMS if arm != TRANSFER}
    metrics = (*MAIN_METRICS, "cosine_novel")
    cells = arm_cells(
        records, TRANSFER_ARMS, metrics=metrics, against=against, differences=("nAP50", "bAP50")
    )
    display = shown(cells, metrics=metrics)
    display.insert(3, "classification head", [TRAINED[arm] for arm in cells["arm"]])
    display.insert(4, "head starts", [HEAD_STARTS.get(arm, WELL_TRAINED) for arm in cells["arm"]])
    display["nAP50 − weight transfer"] = gain_texts(cells)
    display["bAP50 − weight transfer"] = gain_texts(cells, "bAP50")
    steps = arm_rows(records)
    steps = sorted(steps.loc[steps["arm"].isin(list(HEAD_STARTS)), "iterations"].dropna().unique())
    few = f"{' or '.join(f'{value:.0f}' for value in steps)} steps" if steps else "few steps"
    caption = (
        f"{world_text(records)} RKD and ILS together, by how the two share the projection f; all start from the RKD "
        f"detector, but for the naive arm and the base. {LEVELS} {PAIRED} Below 0: weight transfer is better. Head "
        f"starts: the classifying head of transfer, free weights and random source is made anew ({FRESH}) and has "
        f"{few}, that of the others starts from a trained f ({WELL_TRAINED}): compare within these groups; between "
        "them the start tells, too. It is the transfer that helps only if "
        "free weights and a random source fall behind it; else its added weights or "
        f"the second head do. {interval_note(cells)}"
    )
    return Table("open_vocabulary_weight_transfer", caption, cells, readable(display))


def open_vocabulary_tables(records: Sequence[Mapping]) -> list[Table]:
    """Every table of the notebook, also those without a row."""
    make = (
        main_arms_table, rkd_table, ils_table, transfer_table, expectations_table, teacher_table, fidelity_table,
        providers_table, swap_table, arm_cost_table, frequency_table,
    )  # fmt: skip
    return [function(records) for function in make]
