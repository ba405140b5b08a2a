"""Tables of 50_open_vocabulary beside its AP: teacher, embeddings, regions, other names and worlds, costs. No torch."""

from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.open_vocabulary_controls import TEACHER
from risf_core.report.open_vocabulary_rows import (
    ARMS,
    COSTS,
    FIDELITY,
    MAIN_METRICS,
    PLACE,
    SIDES,
    arm_cells,
    arm_rows,
    part_rows,
    spread_of,
)
from risf_core.report.open_vocabulary_texts import (
    LEVELS,
    PAIRED,
    SEES,
    gain_texts,
    given,
    in_order,
    interval_note,
    level_texts,
    or_dash,
    share_text,
    shown,
    world_text,
)
from risf_core.report.statistics import sort_cells
from risf_core.report.table_format import NOT_PLANNED, Table, interval_text, readable

VOCABULARIES = {"own": "own", "all": "with 50 other concepts", "permuted": "permuted"}


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
    display["chance (%)"] = [or_dash(value) for value in cells["chance"]]
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
    display = shown(data, metrics=(*FIDELITY, "nAP50"))
    texts = zip(data["arm"], display["arm"])
    display["arm"] = ["CLIP itself (ceiling)" if arm == TEACHER else text for arm, text in texts]
    count = given(records, "num_fidelity_images")
    which = f"the first {count} test images (all seeds share them)" if count else "test images"
    caption = (
        f"Embeddings u of the annotated boxes of {which} by each arm's head, against CLIP's v of the same boxes: top-1 "
        "accuracy of u among all names (of novel objects also among the novel names, and by the head that "
        "classifies, which is another one where there are two), mean cosine of u and v, linear CKA "
        "(1: the same up to rotation and scale), rank correlation of the cosines between objects, and, while "
        "training, the mean cosine of the gradients that RKD and classification send into the projection f (below 0: "
        f"they pull against each other). –: not measured. nAP50 in percent. {interval_note(cells)}"
    )
    return Table(
        "open_vocabulary_fidelity", caption, data.drop(columns=["against", "is_matched"]), readable(display)
    )


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
    display = shown(cells)
    display.insert(3, "renderer", cells["renderer"])
    display.insert(4, "names", [VOCABULARIES.get(name, name) for name in cells["vocabulary"]])
    display["nAP50 − own"] = gain_texts(cells)
    caption = (
        f"{world_text(records)} Without any training: the text matrix is swapped for one with other names beside "
        "the own, the test scenes for the same in another palette. permuted: every class is given another's "
        "name, which must leave little. "
        f"{LEVELS} {PAIRED} {interval_note(cells)}"
    )
    return Table("open_vocabulary_cross_data", caption, cells, readable(display))


def arm_cost_table(records: Sequence[Mapping]) -> Table:
    """What each arm costs: steps, images and CPU seconds."""
    cells = arm_cells(records, metrics=COSTS, differences=()).drop(columns=["against", "is_matched"])
    display = shown(cells, metrics=())
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
