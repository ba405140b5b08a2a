"""The tables of 50_open_vocabulary: functions of records, shaped as the paper's ablations. Imports no torch."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.literature import published
from risf_core.report.open_vocabulary_controls import TEACHER, expectations_table
from risf_core.report.open_vocabulary_rows import (
    ARMS,
    BASE,
    CONTINUED,
    COSTS,
    FIDELITY,
    GROUP_NOTE,
    ILS,
    MAIN_METRICS,
    NAIVE,
    PLACE,
    RKD,
    SIDES,
    TRANSFER,
    TWICE,
    against_texts,
    arm_cells,
    arm_of,
    arm_rows,
    gain_texts,
    interval_note,
    level_texts,
    part_rows,
    share_text,
    spread_of,
)
from risf_core.report.statistics import sort_cells
from risf_core.report.table_format import NOT_PLANNED, Table, interval_text, number, readable

MAIN_ARMS = (BASE, CONTINUED, RKD, ILS, NAIVE, TRANSFER, TWICE)
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
PUBLISHED = {BASE: "base", RKD: "rkd", ILS: "pis", NAIVE: "naive", TRANSFER: "wt"}  # rkd-coco-<name>-<group>
GROUPS = {"novel": "nAP50", "base": "bAP50", "all": "AP50"}
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
WORLD = "A world of pictograms, RKD's losses and classifier as published."
VOCABULARIES = {"own": "own", "all": "with 50 other concepts", "permuted": "permuted"}
LEVELS = f"AP50 of the test images in percent; {GROUP_NOTE}"
PAIRED = "Differences are in points, paired per seed."
SEES = "sees novel: whether who made the regions may have seen boxes of novel classes."
ORACLE_NOTE = (
    "ORACLE boxes are the annotations themselves: a bound, no result of the method, and never its headline."
)


def _shown(cells: pd.DataFrame, *, metrics: Sequence[str] = MAIN_METRICS, name: str = "arm") -> pd.DataFrame:
    """split, variant, the arm in words, n and the levels as texts."""
    display = cells[list(PLACE)].copy()
    display[name] = [arm_of(arm).text for arm in cells["arm"]]
    display["n"] = [str(n) for n in cells["n"]]
    for metric in metrics:
        display[_head(metric)] = level_texts(cells, metric)
    return display


HEADS = {
    "zero_shot_novel": "top-1 of u, novel (%)",
    "zero_shot_own_novel": "the same among novel names (%)",
    "zero_shot_base": "top-1 of u, base (%)",
    "head_novel": "top-1 of the classifying head, novel (%)",
    "cosine_novel": "cos(u, v), novel",
    "cosine_base": "cos(u, v), base",
    "cka_novel": "CKA, novel",
    "cka_base": "CKA, base",
    "spearman_novel": "Spearman, novel",
    "gradient_cosine": "cos of gradients",
    "recall_novel_at_100": "recall@100, novel (%)",
}


def _head(metric: str) -> str:
    return HEADS.get(metric, f"{metric} (%)")


def main_arms_table(records: Sequence[Mapping]) -> Table:
    """The arms of the paper's main table, each against the base trained for as many steps, beside the paper's."""
    cells = arm_cells(records, MAIN_ARMS)
    cells = cells.assign(
        **{f"{group}_published": [_paper(arm, group) for arm in cells["arm"]] for group in GROUPS}
    )
    display = _shown(cells)
    display["nAP50 − matched base"] = gain_texts(cells)
    display["matched base"] = against_texts(cells)
    for group in GROUPS:
        display[f"paper, {group}"] = [_or_dash(value) for value in cells[f"{group}_published"]]
    caption = (
        f"{WORLD} {LEVELS} {PAIRED} The matched base has trained for as many steps in all. paper: AP50 on COCO's 48 "
        f"base and 17 novel classes as published ({published('rkd-coco-base-novel').source}), whose regions come from "
        "MViT; another world, detector and CLIP, so that only the order of the arms may be compared. The paper gives "
        f"no base of equal training. {interval_note(cells)}"
    )
    return Table("open_vocabulary_main", caption, cells, readable(display))


def _paper(arm: str, group: str) -> float | None:
    name = PUBLISHED.get(arm)
    return None if name is None else published(f"rkd-coco-{name}-{group}").value


def _or_dash(value: float | None) -> str:
    return NOT_PLANNED if value is None or pd.isna(value) else number(float(value))


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
    display = pd.concat([display, _shown(cells).drop(columns=[*PLACE, "arm"])], axis=1)
    display["nAP50 − matched base"] = gain_texts(cells)
    display["relations add"] = gain_texts(adds)
    caption = (
        f"{WORLD} RKD on the best regions of each provider, with the point-wise loss (L1) alone and with "
        f"inter-embedding relation matching. {LEVELS} {PAIRED} {SEES} {ORACLE_NOTE} {interval_note(cells)}"
    )
    return Table("open_vocabulary_rkd", caption, cells, readable(display))


def ils_table(records: Sequence[Mapping]) -> Table:
    """Image-level supervision by the choice of the pseudo box, with the recall of novel objects."""
    differences = ("nAP50", "recall_novel_at_100")
    metrics = (*MAIN_METRICS, "recall_novel_at_100")
    cells = arm_cells(records, (CONTINUED, *ILS_ARMS), metrics=metrics, differences=differences)
    display = _shown(cells, metrics=metrics)
    display.insert(3, "sees novel", cells["sees_novel"])
    display["nAP50 − matched base"] = gain_texts(cells)
    display["recall − matched base"] = gain_texts(cells, "recall_novel_at_100")
    caption = (
        f"{WORLD} Image-level supervision with one pseudo box for each label of an image, by who chooses the box. "
        f"{LEVELS} recall@100: share of the novel objects that 100 proposals cover at an IoU of 0.5; labels of images "
        "name boxes but do not teach where they are, so it must hardly change. "
        f"{PAIRED} {SEES} {ORACLE_NOTE} {interval_note(cells)}"
    )
    return Table("open_vocabulary_ils", caption, cells, readable(display))


def transfer_table(records: Sequence[Mapping]) -> Table:
    """Weight transfer against what it is made of: more weights, two heads, a frozen source."""
    against = {arm: TRANSFER for arm in TRANSFER_ARMS if arm != TRANSFER}
    metrics = (*MAIN_METRICS, "cosine_novel")
    cells = arm_cells(
        records, TRANSFER_ARMS, metrics=metrics, against=against, differences=("nAP50", "bAP50")
    )
    display = _shown(cells, metrics=metrics)
    display.insert(3, "classification head", [TRAINED[arm] for arm in cells["arm"]])
    display["nAP50 − weight transfer"] = gain_texts(cells)
    display["bAP50 − weight transfer"] = gain_texts(cells, "bAP50")
    caption = (
        f"{WORLD} RKD and ILS together, by how the two share the projection f; all start from the RKD detector, but "
        f"for the naive arm and the base. {LEVELS} {PAIRED} Below 0: weight transfer is better. It is the transfer "
        "that helps only if free weights and a random source fall behind it; else its added weights or the second "
        f"head do. {interval_note(cells)}"
    )
    return Table("open_vocabulary_weight_transfer", caption, cells, readable(display))


def teacher_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """What CLIP itself names right on annotated and jittered boxes, and the cone of its texts; means over seeds."""
    values = ["zero_shot_novel", "zero_shot_base", "jittered_novel", "jittered_base", "chance"]
    values += ["text_cosine_mean", "text_cosine_min", "text_cosine_max"]
    frame = part_rows(records, "teacher", ["split", "seed"], values)
    rows = [
        (*key, len(own), *(value for name in values for value in spread_of(own[name])[:2]))
        for key, own in frame.groupby(list(PLACE), sort=False)
    ]
    columns = [*PLACE, "n", *(f"{name}{end}" for name in values for end in ("", "_half_width"))]
    return pd.DataFrame(rows, columns=columns)


def teacher_table(records: Sequence[Mapping]) -> Table:
    """The teacher: how well CLIP names boxes, and how narrow the cone of its texts is."""
    cells = teacher_cells(records)
    display = cells[list(PLACE)].copy()
    display["n"] = [str(n) for n in cells["n"]]
    for name, text in (("zero_shot", "annotated"), ("jittered", "jittered")):
        for group in ("novel", "base"):
            display[f"{text}, {group} (%)"] = level_texts(cells, f"{name}_{group}")
    display["chance (%)"] = [_or_dash(value) for value in cells["chance"]]
    for end in ("mean", "min", "max"):
        name = f"text_cosine_{end}"
        pairs = zip(cells[name], cells[f"{name}_half_width"])
        display[f"cosine of two texts, {end}"] = [share_text(*pair) for pair in pairs]
    caption = (
        "The teacher of region distillation: top-1 accuracy of CLIP on the boxes of novel and base objects of the "
        "test images, among all names, which bounds what a student can learn; and the cosines between the texts of "
        f"different names, which say how narrow the cone is that all of them lie in. {interval_note(cells)}"
    )
    return Table("open_vocabulary_teacher", caption, cells, readable(display))


def fidelity_table(records: Sequence[Mapping]) -> Table:
    """How much of the teacher each arm's region embeddings hold, the teacher itself first."""
    cells = arm_cells(records, metrics=(*FIDELITY, "nAP50"), differences=())
    ceilings = teacher_cells(records).assign(arm=TEACHER).reindex(columns=cells.columns)
    data = pd.concat([part for part in (ceilings, cells) if len(part)] or [cells], ignore_index=True)
    data = sort_cells(data.assign(place=range(len(data))), [*PLACE, "place"]).drop(columns="place")
    data = data.astype(
        {name: float for name in data if name.removesuffix("_half_width") in (*FIDELITY, "nAP50")}
    )
    display = _shown(data, metrics=(*FIDELITY, "nAP50"))
    texts = zip(data["arm"], display["arm"])
    display["arm"] = ["CLIP itself (ceiling)" if arm == TEACHER else text for arm, text in texts]
    caption = (
        "Embeddings u of annotated boxes of test images by each arm's head, against CLIP's v of the same boxes: top-1 "
        "accuracy of u among all names (of novel objects also among the novel names, and by the head that "
        "classifies, which is another one where there are two), mean cosine of u and v, linear CKA "
        "(1: the same up to rotation and scale), rank correlation of the cosines between objects, and, while "
        "training, the mean cosine of the gradients that RKD and classification send into the projection f (below 0: "
        f"they pull against each other). –: not measured. nAP50 in percent. {interval_note(cells)}"
    )
    return Table(
        "open_vocabulary_fidelity", caption, data.drop(columns=["against", "is_matched"]), readable(display)
    )


def in_order(frame: pd.DataFrame, **known: Sequence[str]) -> pd.DataFrame:
    """Rows sorted within split and variant by columns whose known values come first, in the order given."""
    names = []
    for name, values in known.items():
        places = [values.index(value) if value in values else len(values) for value in frame[name]]
        frame = frame.assign(**{f"{name}_place": places})
        names += [f"{name}_place", name]
    frame = sort_cells(frame, [*PLACE, *names])
    return frame.drop(columns=[name for name in names if name.endswith("_place")])


def providers_table(records: Sequence[Mapping]) -> Table:
    """Whose regions cover which objects."""
    values = ["recall_novel", "recall_base", "regions"]
    frame = part_rows(records, "provider", ["split", "seed", "provider"], values)
    frame = in_order(frame, provider=[*SIDES])
    rows = []
    for key, own in frame.groupby([*PLACE, "provider"], sort=False):
        numbers = (value for name in values for value in spread_of(own[name])[:2])
        rows.append((*key, own["sees_novel"].iloc[0], len(own), *numbers))
    columns = [
        *PLACE,
        "provider",
        "sees_novel",
        "n",
        *(f"{v}{end}" for v in values for end in ("", "_half_width")),
    ]
    cells = pd.DataFrame(rows, columns=columns)
    display = cells[list(PLACE)].copy()
    display["regions of"] = [SIDES.get(name, name) for name in cells["provider"]]
    display["sees novel"] = cells["sees_novel"]
    display["n"] = [str(n) for n in cells["n"]]
    heads = ("novel objects covered (%)", "base objects covered (%)", "regions an image")
    for name, head in zip(values, heads, strict=True):
        display[head] = [interval_text(*pair) for pair in zip(cells[name], cells[f"{name}_half_width"])]
    caption = (
        "Objects of the training images that one of the provider's regions covers at an IoU of 0.5: what RKD can be "
        f"taught about novel objects lies in the regions that it is given. {SEES} {interval_note(cells)}"
    )
    return Table("open_vocabulary_providers", caption, cells, readable(display))


def swap_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (arm, renderer, vocabulary) with its AP50, and the paired difference to the arm's own world and names."""
    keys = ["arm", "renderer", "vocabulary"]
    frame = part_rows(records, "swap", ["split", "seed", *keys], MAIN_METRICS)
    own = arm_rows(records).assign(renderer="own", vocabulary="own")
    own = own[own["arm"].isin(frame["arm"])].reindex(columns=frame.columns)
    frame = pd.concat([own, frame], ignore_index=True) if len(frame) else frame
    frame = in_order(frame, arm=[*ARMS], renderer=["own"], vocabulary=["own", "all", "permuted"])
    pairing = [*PLACE, "arm", "seed"]
    frame = frame.merge(own[[*pairing, "nAP50"]], on=pairing, how="left", suffixes=("", "_own"))
    rows = []
    for key, group in frame.groupby([*PLACE, *keys], sort=False):
        numbers = (value for metric in MAIN_METRICS for value in spread_of(group[metric])[:2])
        change = spread_of(group["nAP50"] - group["nAP50_own"])
        rows.append((*key, len(group), *numbers, "" if key[-2:] == ("own", "own") else "own", *change))
    columns = [
        *PLACE,
        *keys,
        "n",
        *(f"{m}{end}" for m in MAIN_METRICS for end in ("", "_half_width")),
        "against",
    ]
    columns += [f"nAP50{end}" for end in ("_difference", "_difference_half_width", "_difference_n", "_up")]
    return pd.DataFrame(rows, columns=columns)


def swap_table(records: Sequence[Mapping]) -> Table:
    """Cross-data: the same detectors in another world and with other names."""
    cells = swap_cells(records)
    display = _shown(cells)
    display.insert(3, "renderer", cells["renderer"])
    display.insert(4, "names", [VOCABULARIES.get(name, name) for name in cells["vocabulary"]])
    display["nAP50 − own"] = gain_texts(cells)
    caption = (
        f"{WORLD} Without any training: the text matrix is swapped for one with other names beside the own, the test "
        "scenes for the same in another palette. permuted: every class is given another's name, which must leave "
        "little. "
        f"{LEVELS} {PAIRED} {interval_note(cells)}"
    )
    return Table("open_vocabulary_cross_data", caption, cells, readable(display))


def arm_cost_table(records: Sequence[Mapping]) -> Table:
    """What each arm costs: steps, images and CPU seconds."""
    cells = arm_cells(records, metrics=COSTS, differences=()).drop(columns=["against", "is_matched"])
    display = _shown(cells, metrics=())
    heads = ("steps", "steps with its starts", "images with boxes", "CPU seconds")
    for name, head in zip(COSTS, heads, strict=True):
        display[head] = [NOT_PLANNED if pd.isna(value) else f"{value:,.0f}" for value in cells[name]]
    caption = (
        "Mean over n seeds of what one arm costs on top of what it starts from: its steps (and with those of the arms "
        "that it starts from; stage 0, which all share, is left out), images with boxes in them, and CPU seconds of "
        "training and test on the machine that the record names. The first arm that needs stage 0, a provider of "
        "regions or their embeddings pays for making them."
    )
    return Table("open_vocabulary_cost", caption, cells, readable(display))


def open_vocabulary_tables(records: Sequence[Mapping]) -> list[Table]:
    """Every table of the notebook, also those without a row."""
    make = (
        main_arms_table, rkd_table, ils_table, transfer_table, expectations_table, teacher_table, fidelity_table,
        providers_table, swap_table, arm_cost_table,
    )  # fmt: skip
    return [function(records) for function in make]


def has_arms(records: Sequence[Mapping]) -> bool:
    """Whether a record holds an arm."""
    return len(arm_rows(records)) > 0
