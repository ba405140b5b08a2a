"""The tables of gFSOD with re-scored base classes, and of what novel classes are confused with."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import drop_repeats, notebook_of, rows_of, sort_cells, student_interval
from risf_core.report.table_format import Table, difference_text, interval_text, number, readable

NOTEBOOK = "41_base_classes"
PLACE = ["split", "clip", "arm", "loss", "shots"]
WAY = ["rescored", "label_space", "c"]
GROUPS = ("", "b", "n")  # all, base, novel: prefixes of a metric
SHOWN_SHOTS = 5  # K of what is shown of one K alone; the nearest one where it was not run
BACKGROUND = "background"
NUM_PAIRS = 12
RESCORED_TEXTS = {"none": "none", "novel": "novel (paper)", "base": "base", "both": "base and novel"}
SPACE_TEXTS = {
    "": "–",
    "rescored+background": "re-scored classes + background",
    "all+background": "all classes + background",
}
GENERALISED = (
    "gfsod: one detector of base and novel classes, fine-tuned on K boxes of each; stored detections of the test "
    "images, whose crops are compared with the names anew."
)
BLEND_NOTE = (
    "A re-scored detection of class k with score s gets c s + (1 − c) p_k; p is CLIP's softmax over the names given, "
    "background among them. The paper re-scores novel classes among novel names and background."
)
INTERVAL_NOTE = (
    "± is the half-width of the 95 % Student-t interval over few-shot seeds of one base model and one CLIP."
)


def part_rows(
    records: Sequence[Mapping], part: str, keys: Sequence[str], values: Sequence[str]
) -> pd.DataFrame:
    """Rows of one part of 41_base_classes in a fixed order; an empty frame with these columns where there are none."""
    own = [record for record in records if notebook_of(record) == NOTEBOOK]
    of_part = [{**record, "rows": [row for row in record["rows"] if row["part"] == part]} for record in own]
    frame = rows_of(of_part, NOTEBOOK)
    if frame.empty:
        return pd.DataFrame(columns=[*keys, *values])
    frame = frame.reindex(columns=[*frame.columns, *(name for name in values if name not in frame)])
    numbers = [
        name for name in values if name in frame and frame[name].map(lambda v: not isinstance(v, dict)).all()
    ]
    return sort_cells(drop_repeats(frame, keys, numbers), keys)


def paper_c(records: Sequence[Mapping]) -> float:
    """The weight of the detector of which classes and confusions are told; the records' own."""
    values = [record["params"]["cm_clip"]["c"] for record in records if notebook_of(record) == NOTEBOOK]
    return values[0] if values else math.nan


def shown_shots(frame: pd.DataFrame) -> int | None:
    """K of what is shown of one K alone: 5, or the nearest; None without rows."""
    return min(set(frame["shots"]), key=lambda k: (abs(k - SHOWN_SHOTS), k)) if len(frame) else None


def _interval(values: pd.Series) -> tuple:
    interval = student_interval(values)
    return interval.mean, interval.half_width, interval.n, int((values > 0).sum())


def rescored_cells(records: Sequence[Mapping], *, metric: str = "AP") -> pd.DataFrame:
    """Each (split, arm, loss, shots, rescored, label space, c): means, and paired differences to no re-scoring.

    Returns:
        The keys, n, and for each prefix "", "b", "n": ``{prefix}mean``, ``{prefix}half_width``, ``{prefix}change``,
        ``{prefix}change_half_width``, ``{prefix}up`` (seeds with a change above 0).
    """
    names = [prefix + metric for prefix in GROUPS]
    frame = part_rows(records, "rescored", [*PLACE, *WAY, "seed"], names)
    none = frame.loc[frame["rescored"] == "none", [*PLACE, "seed", *names]]
    frame = frame.merge(none, on=[*PLACE, "seed"], how="left", suffixes=("", "_none"), validate="many_to_one")
    rows = []
    for key, group in frame.groupby([*PLACE, *WAY], sort=False):
        values = [len(group)]
        for name in names:
            of_seeds = pd.to_numeric(group[name])
            mean, half_width, *_ = _interval(of_seeds)
            change, change_half_width, _, up = _interval(of_seeds - pd.to_numeric(group[f"{name}_none"]))
            values += [mean, half_width, change, change_half_width, up]
        rows.append((*key, *values))
    parts = ("mean", "half_width", "change", "change_half_width", "up")
    columns = [*PLACE, *WAY, "n", *(prefix + part for prefix in GROUPS for part in parts)]
    cells = pd.DataFrame(rows, columns=columns)
    order, spaces = list(RESCORED_TEXTS), list(SPACE_TEXTS)
    cells["place"] = [
        order.index(rescored) * 10 + spaces.index(space)
        for rescored, space in zip(cells["rescored"], cells["label_space"])
    ]
    return sort_cells(cells, [*PLACE, "place", "c"]).drop(columns="place")


def rescored_table(records: Sequence[Mapping], *, metric: str = "AP") -> Table:
    """All, base and novel classes with nothing, novel, base or all classes re-scored."""
    cells, c = rescored_cells(records, metric=metric), paper_c(records)
    shown = cells[(cells["rescored"] == "none") | (cells["c"] == c)]
    display = shown[PLACE].copy()
    display["re-scored"] = [RESCORED_TEXTS[name] for name in shown["rescored"]]
    display["names in the softmax"] = [SPACE_TEXTS[name] for name in shown["label_space"]]
    display["n"] = [str(n) for n in shown["n"]]
    for prefix in GROUPS:
        pairs = zip(shown[f"{prefix}mean"], shown[f"{prefix}half_width"])
        display[f"{prefix}{metric} (%)"] = [interval_text(*pair) for pair in pairs]
    for prefix in GROUPS:
        columns = ["rescored", *(prefix + part for part in ("change", "change_half_width", "up")), "n"]
        display[f"change of {prefix}{metric}"] = [
            "–" if rescored == "none" else difference_text(mean, half, int(up), int(n), "complete", 0)
            for rescored, mean, half, up, n in shown[columns].itertuples(index=False, name=None)
        ]
    warning = _warning(shown, metric)
    caption = (
        f"{GENERALISED} {metric} of all, base (b) and novel (n) classes with none, novel, base or all of them "
        f"re-scored, c = {c:g}; the CSV has other c. {BLEND_NOTE} Changes are in points against no "
        f"re-scoring, paired per seed. {INTERVAL_NOTE}{warning}"
    )
    return Table(f"base_classes_{metric}", caption, cells, readable(display))


def _warning(cells: pd.DataFrame, metric: str) -> str:
    """The paper's failure case, where it shows: base AP falls if base classes are re-scored too."""
    touched = cells[cells["rescored"].isin(("base", "both"))]
    falls = touched[touched["bchange"] + touched["bchange_half_width"].fillna(0) < 0]
    if falls.empty:
        return ""
    return (
        f" WARNING: b{metric} falls if base classes are re-scored, in {len(falls)} of {len(touched)} rows with an "
        "interval that excludes 0."
    )


def class_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (split, arm, loss, shots, class): what detector and CLIP know of it, and the paired change of its AP50.

    Returns:
        The keys, ``name``, ``group``, ``objects``; ``accuracy`` and ``accuracy_in_group`` of CLIP on ground-truth crops
        among all names and those of its group (percent); ``detector_right`` and ``clip_right``, percent of the objects
        found, over all seeds; ``AP50`` without re-scoring; for each way of re-scoring that reaches the class a paired
        change with half-width: ``{way}_change``, "all" (both groups, all names) and "group" (its group, its names); n.
    """
    frame = part_rows(records, "rescored", [*PLACE, *WAY, "seed"], ["per_class"])
    classes = part_rows(
        records, "class", ["split", "clip", "name"], ["group", "objects", "accuracy", "accuracy_in_group"]
    )
    naming = part_rows(records, "naming", [*PLACE, "name", "seed"], ["found", "detector_right", "clip_right"])
    c, rows = paper_c(records), []
    for key, own in frame.groupby(PLACE, sort=False):
        none = own[own["rescored"] == "none"].set_index("seed")["per_class"]
        of_key = naming[(naming[PLACE] == list(key)).all(axis=1)]
        for one in classes[(classes[["split", "clip"]] == list(key[:2])).all(axis=1)].itertuples():
            named = of_key[of_key["name"] == one.name]
            found = named["found"].sum() or math.nan
            right = [100.0 * named[f"{who}_right"].sum() / found for who in ("detector", "clip")]
            before = pd.to_numeric(none.map(lambda values, name=one.name: values[name]))
            facts = (
                one.name,
                one.group,
                one.objects,
                one.accuracy,
                one.accuracy_in_group,
                *right,
                before.mean(),
            )
            changes = []
            for rescored, space in (("both", "all+background"), (one.group, "rescored+background")):
                is_way = (own["rescored"] == rescored) & (own["label_space"] == space) & (own["c"] == c)
                after = own[is_way].set_index("seed")["per_class"]
                values = pd.to_numeric(after.map(lambda values, name=one.name: values[name])) - before
                changes += _interval(values)[:2]
            rows.append((*key, *facts, *changes, len(before)))
    columns = [
        *PLACE,
        "name",
        "group",
        "objects",
        "accuracy",
        "accuracy_in_group",
        "detector_right",
        "clip_right",
    ]
    columns += ["AP50", "all_change", "all_half_width", "group_change", "group_half_width", "n"]
    return sort_cells(pd.DataFrame(rows, columns=columns), [*PLACE, "group", "all_change", "name"])


def class_table(records: Sequence[Mapping]) -> Table:
    """Each class's change under re-scoring beside what the detector and CLIP know of it."""
    cells = class_cells(records)
    shots = shown_shots(cells)
    shown = cells[cells["shots"] == shots] if len(cells) else cells
    display = shown[[*PLACE, "group"]].copy()
    display["class"] = shown["name"]
    heads = {
        "accuracy": "CLIP on true crops (%)",
        "clip_right": "CLIP on found boxes (%)",
        "detector_right": "detector on found boxes (%)",
        "AP50": "AP50 without (%)",
    }
    for name, head in heads.items():
        display[head] = [number(float(value)) for value in shown[name]]
    for way, head in (("all", "change, all re-scored"), ("group", "change, its group re-scored")):
        pairs = zip(shown[f"{way}_change"], shown[f"{way}_half_width"])
        display[head] = [interval_text(float(mean), float(half), sign=True) for mean, half in pairs]
    display["n"] = [str(n) for n in shown["n"]]
    caption = (
        f"{GENERALISED} What decides whether a re-scored class gains: CLIP's top-1 accuracy among all names on "
        "ground-truth crops of the test images; on the objects that a detection finds (IoU ≥ 0.5), how often CLIP's "
        "nearest name and the detector's label of the best-scoring box are right, over all seeds; the class's AP50, "
        "and its change in points if all classes are re-scored among all names, or its group among its own names; "
        f"c = {paper_c(records):g}, paired per seed. K = {shots}; the CSV has every K. {INTERVAL_NOTE}"
    )
    return Table("base_classes_by_class", caption, cells, readable(display))


def confusion_shares(records: Sequence[Mapping]) -> pd.DataFrame:
    """What the detections of each novel class lie on, as a share of the class's scores, for each seed.

    Returns:
        split, arm, loss, shots, seed, rescored ("none", "novel"), name (the class of the detections), on (the class of
        the object beneath, or background), group (of ``on``: base, novel, background, own) and share in percent.
    """
    frame = part_rows(records, "confusion", [*PLACE, "rescored", "name", "seed"], ["weights"])
    classes = part_rows(records, "class", ["split", "clip", "name"], ["group"])
    classes = sort_cells(classes, ["split", "group", "name"])  # base before novel
    classes = classes.drop_duplicates(["split", "name"])  # a group does not depend on the CLIP
    groups = {(row.split, row.name): row.group for row in classes.itertuples()}
    rows = []
    for row in frame[[*PLACE, "seed", "rescored", "name", "weights"]].to_dict("records"):
        total, key = (
            sum(row["weights"].values()),
            [row[name] for name in (*PLACE, "seed", "rescored", "name")],
        )
        for on in (*(name for split, name in groups if split == row["split"]), BACKGROUND):
            group = "own" if on == row["name"] else groups.get((row["split"], on), BACKGROUND)
            share = 100.0 * row["weights"].get(on, 0.0) / total if total else math.nan
            rows.append((*key, on, group, share))
    columns = [*PLACE, "seed", "rescored", "name", "on", "group", "share"]
    return pd.DataFrame(rows, columns=columns)


def confusion_cells(records: Sequence[Mapping]) -> pd.DataFrame:
    """Each (split, arm, loss, shots, class, on): shares before and after, mean over seeds, and the paired change."""
    shares, rows = confusion_shares(records), []
    keys = [*PLACE, "name", "on", "group"]
    wide = shares.pivot_table(
        index=[*keys, "seed"], columns="rescored", values="share", sort=False
    ).reset_index()
    for key, own in wide.groupby(keys, sort=False):
        before, after = own["none"], own["novel"]
        change, half_width, n, up = _interval(after - before)
        rows.append((*key, before.mean(), after.mean(), change, half_width, n, up))
    return pd.DataFrame(rows, columns=[*keys, "before", "after", "change", "half_width", "n", "up"])


def confusion_table(records: Sequence[Mapping]) -> Table:
    """The pairs of a novel class and what its detections lie on wrongly, the largest share first."""
    cells = confusion_cells(records)
    cells = sort_cells(cells.assign(order=-cells["before"]), [*PLACE, "order", "name", "on"]).drop(
        columns="order"
    )
    shots = shown_shots(cells)
    wrong = cells[(cells["group"] != "own") & (cells["shots"] == shots)] if len(cells) else cells
    shown = wrong.groupby(PLACE, sort=False).head(NUM_PAIRS)
    display = shown[PLACE].copy()
    display["detected as"], display["lies on"], display["group"] = shown["name"], shown["on"], shown["group"]
    display["share before (%)"] = [number(float(value)) for value in shown["before"]]
    display["share after (%)"] = [number(float(value)) for value in shown["after"]]
    pairs = zip(shown["change"], shown["half_width"])
    display["paired change"] = [interval_text(*pair, sign=True) for pair in pairs]
    display["n"] = [str(n) for n in shown["n"]]
    caption = (
        f"{GENERALISED} What the detections of a novel class wrongly lie on: the class of the object that each "
        "overlaps most (IoU ≥ 0.5; its own class first), or background. Share: of the sum of the scores of all "
        "detections of the class, right ones included, mean over seeds, before and after CM-CLIP in the paper's "
        f"setting. The {NUM_PAIRS} largest shares before; K = {shots}; the CSV has every pair and K. Change in points, "
        f"paired per seed. {INTERVAL_NOTE}"
    )
    return Table("novel_confusions", caption, cells, readable(display))


def base_class_tables(records: Sequence[Mapping]) -> list[Table]:
    """The tables of 41_base_classes."""
    rescored = [rescored_table(records, metric=metric) for metric in ("AP", "AP50")]
    return [*rescored, class_table(records), confusion_table(records)]
