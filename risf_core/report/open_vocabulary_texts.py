"""The words and texts that the tables of 50_open_vocabulary share. Imports no torch."""

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from risf_core.report.open_vocabulary_rows import MAIN_METRICS, NOTEBOOK, PLACE, SHARES, arm_of
from risf_core.report.statistics import notebook_of, sort_cells
from risf_core.report.table_format import NOT_PLANNED, difference_text, interval_text, number

INTERVAL_NOTE = (
    "± is the half-width of the 95 % Student-t interval over n seeds, each with its own base detector."
)
ONE_SEED_NOTE = " n = 1 seed, which gives no interval: run the profile mini-full for them."
GROUP_NOTE = "n: novel, b: base classes, no prefix: all, each class among all names (generalised)."
PAIRED = "Differences are in points, paired per seed."
SEES = "sees novel: whether who made the regions may have seen boxes of novel classes."
LEVELS = f"AP50 of the test images in percent; {GROUP_NOTE}"
WORLDS = {
    None: "A world of pictograms, RKD's losses and classifier as published, their weights set in trials on split 2, of "
    "which no record is kept.",
    "coco_ovd": "COCO, 48 base and 17 novel classes.",
    "lvis_ovd": "LVIS, 866 base and 337 novel (rare) classes, box AP by LVIS's rules, R50-C4.",
}
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


def head_of(metric: str) -> str:
    return HEADS.get(metric, f"{metric} (%)")


def world_of(records: Sequence[Mapping]) -> str | None:
    """The kind of the user's files, None for the pictograms; of several the first that is no pictograms."""
    runs = [record.get("params") or {} for record in records if notebook_of(record) == NOTEBOOK]
    kinds = sorted({params["files"]["kind"] for params in runs if params.get("files")})
    return kinds[0] if kinds else None


def oracle_note(records: Sequence[Mapping]) -> str:
    """What ORACLE boxes are: annotated boxes with the noise and the gaps that the runs gave them."""
    moved = given(
        records, "jitter", lambda value: f"each corner moved by up to {100 * value:g} % of the side"
    )
    missed = given(records, "miss", lambda value: f"{100 * value:g} % of them left out")
    return (
        f"ORACLE boxes are annotated boxes, {moved or 'jittered'}, {missed or 'some left out'}: no result of the "
        "method, never its headline, and no bound of what boxes can give."
    )


def given(records: Sequence[Mapping], name: str, write: Callable[[float], str] = str) -> str:
    """A parameter of the runs as a text; several values are joined, none gives ""."""
    runs = [record.get("params") or {} for record in records if notebook_of(record) == NOTEBOOK]
    values = sorted({params[name] for params in runs if params.get(name) is not None})
    return " or ".join(write(value) for value in values)


def world_text(records: Sequence[Mapping]) -> str:
    """What the numbers are measured on, for a caption."""
    return WORLDS[world_of(records)]


def shown(cells: pd.DataFrame, *, metrics: Sequence[str] = MAIN_METRICS, name: str = "arm") -> pd.DataFrame:
    """split, variant, the arm in words, n and the levels as texts."""
    display = cells[list(PLACE)].copy()
    display[name] = [arm_of(arm).text for arm in cells["arm"]]
    display["n"] = [str(n) for n in cells["n"]]
    for metric in metrics:
        display[head_of(metric)] = level_texts(cells, metric)
    return display


def level_texts(cells: pd.DataFrame, metric: str) -> list[str]:
    """``51.2 ± 1.3`` for each row: percent with one decimal, shares (cosine, CKA, ...) with two."""
    pairs = zip(cells[metric], cells[f"{metric}_half_width"], strict=True)
    texts = [share_text(*pair) if metric in SHARES else interval_text(*pair) for pair in pairs]
    return [
        NOT_PLANNED if math.isnan(mean) else text for mean, text in zip(cells[metric], texts, strict=True)
    ]


def share_text(mean: float, half_width: float, *, sign: bool = False) -> str:
    """A number of 0 to 1 (a cosine: of −1 to 1) with two decimals and its interval."""
    if math.isnan(mean):
        return NOT_PLANNED
    text = number(float(mean), decimals=2, sign=sign)
    return f"{text}, no interval" if math.isnan(half_width) else f"{text} ± {half_width:.2f}"


def gain_texts(cells: pd.DataFrame, metric: str = "nAP50") -> list[str]:
    """The paired difference of each row, or that it has none to be set against."""
    names = [
        "against",
        *(f"{metric}_{end}" for end in ("difference", "difference_half_width", "up", "difference_n")),
    ]
    return [
        difference_text(mean, half, int(up), int(n), "complete", 0) if against else NOT_PLANNED
        for against, mean, half, up, n in cells[names].itertuples(index=False, name=None)
    ]


def against_texts(cells: pd.DataFrame) -> list[str]:
    """What each row is set against; another number of steps is said."""
    pairs = zip(cells["against"], cells["is_matched"], strict=True)
    return [
        (arm_of(name).text if is_matched else f"{arm_of(name).text} (other number of steps!)")
        if name
        else NOT_PLANNED
        for name, is_matched in pairs
    ]


def interval_note(cells: pd.DataFrame) -> str:
    """What ± is, for the end of a caption; with one seed, that there is none."""
    return INTERVAL_NOTE + (ONE_SEED_NOTE if len(cells) and cells["n"].max() == 1 else "")


def or_dash(value: float | None) -> str:
    """A number, or a dash for none."""
    return NOT_PLANNED if value is None or pd.isna(value) else number(float(value))


def in_order(frame: pd.DataFrame, **known: Sequence[str]) -> pd.DataFrame:
    """Rows sorted within split and variant by columns whose known values come first, in the order given."""
    names = []
    for name, values in known.items():
        places = [values.index(value) if value in values else len(values) for value in frame[name]]
        frame = frame.assign(**{f"{name}_place": places})
        names += [f"{name}_place", name]
    frame = sort_cells(frame, [*PLACE, *names])
    return frame.drop(columns=[name for name in names if name.endswith("_place")])
