"""The tables of the label space study, an extension that shares no table with the reproduction."""

import math
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import drop_repeats, notebook_of, rows_of, sort_cells, student_interval
from risf_core.report.table_format import Table, difference_text, interval_text, number, readable
from risf_core.report.warned import warned

NOTEBOOK = "36_label_space"
KEYS = ["vocabulary", "arm", "loss", "shots"]
METRICS = ("nAP50", "nAP", "nAP75")
NOT_THE_PAPER = "EXTENSION, not part of the reproduction."
INTERVAL_NOTE = (
    "± is the half-width of the 95 % Student-t interval over seeds of one base model per split and one CLIP."
)
GRID_NOTE = (
    "T: factor of the cosines (the paper's 100, CLIP's own learned one, or fitted by maximum likelihood where is "
    "chosen). visual: the K shots' embeddings as a cache beside the novel names, after Tip-Adapter, with weight α and "
    "sharpness β. geometric: the two scores are multiplied, with exponents c and 1 − c."
)
CHOICE_NOTE = (
    "selected: chosen by the mean nAP50 of split {chosen} and reported on split {reported}; {sides} but the same test "
    "images and CLIP. TEST ORACLE: the best where is reported, a bound and no result."
)
TWO_SPLITS = "the splits have other novel classes and base models,"
ONE_SPLIT = "so that the two sides have other few-shot seeds,"
FIT_NOTE = (
    " T fitted: on the stored boxes where is chosen, with the boxes of all classes on the test images as truth. The "
    "reported split's novel objects are among them: under their names where base names compete, as background where "
    "they do not."
)
SCALE_NOTE = (
    " This CLIP's own T is {learned}, that of OpenAI's CLIPs 100: the paper's T is off this CLIP's scale, and what "
    "another T gains here need not carry over to a CLIP whose own T is 100."
)
OWN_SCALE = (50.0, 200.0)  # a learned T within a factor of 2 of the paper's
END_NOTE = (
    "In brackets, what of the selected lies at an end of the values tried, beyond which no one has looked (c = 0 and "
    "c = 1 are no such end), and a fitted T that is no minimum."
)
# as `str(Combination)` has it
COMBINATION = re.compile(
    r"(?P<space>[^,]+), T (?P<t>[^,]+), [^,]+, c=(?P<c>[^,]+), "
    r"(?:visual α=(?P<alpha>\S+) β=(?P<beta>\S+)|no visual)"
)
VOCABULARY_NOTE = "The generic vocabulary is {vocabulary}."
KNOWN_CLUTTER = (
    " In that world these are the very names of the unlabelled clutter in the images, and CLIP's corpus shows them: a "
    "favourable case that a vocabulary for real images need not be."
)


def study_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of part "result": one for each (vocabulary, role, arm, loss, shots, seed, what)."""
    sources = {record["run_id"]: _vocabulary(record) for record in records if notebook_of(record) == NOTEBOOK}
    frame = rows_of(records, NOTEBOOK)
    keys = [*KEYS, "role", "split", "seed", "what"]
    if frame.empty or "part" not in frame or not (frame["part"] == "result").any():
        return pd.DataFrame(columns=[*keys, "combination", *METRICS])
    frame = frame[frame["part"] == "result"]
    frame = frame.assign(vocabulary=frame["run_id"].map(sources))
    return sort_cells(drop_repeats(frame, keys, METRICS), keys)


def _vocabulary(record: Mapping) -> str:
    vocabularies = (record.get("metrics") or {}).get("vocabulary") or {}
    return ", ".join(dict.fromkeys(one["source"] for one in vocabularies.values()))


def differences(frame: pd.DataFrame, second: str, first: str, metric: str) -> pd.DataFrame:
    """Paired differences ``second - first`` of two things reported of a cell: `KEYS`, split, seed, difference."""
    keys = [*KEYS, "role", "split", "seed"]
    sides = [frame.loc[frame["what"] == what, [*keys, metric]] for what in (first, second)]
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("_first", "_second"), validate="one_to_one")
    return pairs.assign(difference=pairs[f"{metric}_second"] - pairs[f"{metric}_first"])


def _means(frame: pd.DataFrame, what: str, value: str) -> pd.DataFrame:
    rows = []
    for key, group in frame.groupby(KEYS, sort=False):
        interval = student_interval(group[value])
        up = int((group[value] > 0).sum())
        rows.append((*key, what, interval.mean, interval.half_width, interval.n, up))
    return pd.DataFrame(rows, columns=[*KEYS, "what", "mean", "half_width", "n", "up"])


def temperature_note(records: Sequence[Mapping]) -> str:
    """The CLIP's own T, the fitted ones and how many of them are no minimum, for a caption; all from the records."""
    metrics = [record.get("metrics") or {} for record in records if notebook_of(record) == NOTEBOOK]
    learned = sorted({one["learned_temperature"] for one in metrics if "learned_temperature" in one})
    values = ", ".join(map(number, learned))
    is_own_scale = all(OWN_SCALE[0] <= value <= OWN_SCALE[1] for value in learned)
    text = (
        (f" This CLIP's own T is {values}." if is_own_scale else SCALE_NOTE.format(learned=values))
        if learned
        else ""
    )
    fits, at_bound = [], []
    for one in metrics:
        for shots, own in (one.get("fitted_temperatures") or {}).items():
            fits += own.values()
            at_bound += [(name, own[name]) for name in one.get("fitted_at_bound", {}).get(shots, ())]
    if not fits:
        return text
    text += f"{FIT_NOTE} It ranges from {min(fits):.3g} to {max(fits):.3g} over names, caches and K"
    if not at_bound:
        return f"{text}."
    spaces = ", ".join(sorted({name.split(",")[0] for name, _ in at_bound}))
    bounds = ", ".join(sorted({f"{value:.3g}" for _, value in at_bound}))
    return (
        f"{text}; {len(at_bound)} of {len(fits)} fits ended at a bound, no minimum (T = {bounds}; {spaces})."
    )


def grid_sizes(records: Sequence[Mapping]) -> dict[str, str]:
    """How many combinations were tried, for each vocabulary."""
    sizes: dict[str, set[int]] = {}
    for record in records:
        if notebook_of(record) == NOTEBOOK and "grid" in (record.get("metrics") or {}):
            count = len(record["metrics"]["grid"]["combinations"])
            sizes.setdefault(_vocabulary(record), set()).add(count)
    return {source: ", ".join(f"{count:,}" for count in sorted(counts)) for source, counts in sizes.items()}


def at_ends(combination: str, metrics: Mapping, params: Mapping, shots: int) -> list[str]:
    """Which numbers of a combination lie at an end of the values tried: c, α, β, or T at a bound of its fit.

    c = 0 and c = 1 are no ends of a search, nor is the smallest α, below which lies 0, which is tried.
    """
    found = COMBINATION.fullmatch(combination)
    if not found:
        return []
    c, alpha, beta = (float(found[name] or 0.0) for name in ("c", "alpha", "beta"))
    tried = {name: params.get(name) or [math.nan] for name in ("c", "visual_alphas", "visual_betas")}
    fit = f"{found['space']}, α={alpha:g}, β={beta:g}"
    is_at_end = {
        "c": 0 < c < 1 and c in (min(tried["c"]), max(tried["c"])),
        "α": alpha == max(tried["visual_alphas"]),
        "β": beta in (min(tried["visual_betas"]), max(tried["visual_betas"])),
        "T": found["t"] == "fitted" and fit in metrics.get("fitted_at_bound", {}).get(str(shots), ()),
    }
    return [name for name, is_end in is_at_end.items() if is_end]


SELECTION_COLUMNS = {
    "none": "without re-scoring",
    "paper": "paper value",
    "selected": "selected value",
    "selected over K": "one selected for all K",
    "test oracle": "TEST ORACLE (no result)",
}
GAINS = {
    "selected − paper": ("selected", "paper"),
    "selected over K − paper": ("selected over K", "paper"),
    "paper − none": ("paper", "none"),
}


def selection_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """For each vocabulary and K the mean of what is reported and of the paired gains; ``combination`` names it."""
    frame = study_rows(records)
    frame = frame[frame["role"] == "reported"]
    parts = []
    for what in SELECTION_COLUMNS:
        own = frame[frame["what"] == what]
        own = own.reindex(columns=[*own.columns, *({"temperature"} - set(own.columns))])
        names = own.groupby(KEYS, sort=False)[["combination", "temperature"]].first().reset_index()
        parts.append(_means(own, what, metric).drop(columns="up").merge(names, on=KEYS, how="left"))
    for name, (second, first) in GAINS.items():
        parts.append(_means(differences(frame, second, first, metric), name, "difference"))
    columns = [*KEYS, "what", "mean", "half_width", "n", "up", "combination", "temperature"]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=columns)
    order = {name: place for place, name in enumerate((*SELECTION_COLUMNS, *GAINS))}
    cells = pd.concat(parts, ignore_index=True)[columns]
    return sort_cells(cells.assign(place=cells["what"].map(order)), [*KEYS, "place"]).drop(columns="place")


@warned
def selection_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """For each K: the paper's value, the selected one and which it is, the test oracle, and the paired gain."""
    cells, sizes = selection_cells(records, metric=metric), grid_sizes(records)
    lines, over_k = [], {}
    for key, group in cells.groupby(KEYS, sort=False):
        by_name = {row.what: row for row in group.itertuples()}
        line = dict(zip(KEYS, key, strict=True)) | {"n": str(by_name["paper"].n)}
        for what, head in SELECTION_COLUMNS.items():
            line[head] = interval_text(by_name[what].mean, by_name[what].half_width)
        for name in GAINS:
            row = by_name[name]
            line[name] = difference_text(row.mean, row.half_width, int(row.up), row.n, "complete", 0)
        line["combinations"] = sizes.get(key[0], "–")
        line["what was selected"] = _with_ends(by_name["selected"], records)
        line["its T"] = number(float(by_name["selected"].temperature))
        over_k[f"{_with_ends(by_name['selected over K'], records)} ({key[0]})"] = None
        lines.append(line)
    caption = (
        f"{NOT_THE_PAPER} {metric} (%) of the same stored detections (split {_splits(records, 'reported')}) with "
        f"CM-CLIP in the paper's setting and in others that need no training. {choice_note(records)} The three columns "
        f"with − are paired differences in points. combinations: how many were tried. {END_NOTE} "
        f"Selected for all K: {'; '.join(over_k) or '–'}. "
        f"{GRID_NOTE}{temperature_note(records)} {vocabulary_note(records)} {INTERVAL_NOTE}"
    )
    return Table("label_space_selection", caption, cells, readable(pd.DataFrame(lines, dtype=object)))


def _with_ends(row, records: Sequence[Mapping]) -> str:
    """What was selected, with what of it lies at an end of the values tried."""
    for record in records:
        if notebook_of(record) == NOTEBOOK and _vocabulary(record) == row.vocabulary:
            if ends := at_ends(row.combination, record["metrics"], record.get("params") or {}, row.shots):
                return f"{row.combination} [at its end: {', '.join(ends)}]"
    return row.combination


def _splits(records: Sequence[Mapping], role: str) -> str:
    frame = study_rows(records)
    splits = sorted({int(split) for split in frame.loc[frame["role"] == role, "split"]})
    return ", ".join(map(str, splits)) or "–"


def choice_note(records: Sequence[Mapping]) -> str:
    """Where is chosen and where is reported, for a caption."""
    chosen, reported = (_splits(records, role) for role in ("selection", "reported"))
    sides = ONE_SPLIT if chosen == reported else TWO_SPLITS
    return CHOICE_NOTE.format(chosen=chosen, reported=reported, sides=sides)


def vocabulary_note(records: Sequence[Mapping]) -> str:
    """Which generic names compete and how many were removed since they are classes, for a caption."""
    found: dict[str, dict] = {}
    for record in records:
        if notebook_of(record) == NOTEBOOK:
            found |= {one["source"]: one for one in (record["metrics"].get("vocabulary") or {}).values()}
    counts = [
        f"{source} ({len(one['names'])} names, {len(one['removed'])} removed that are classes or repeated)"
        for source, one in found.items()
    ]
    names = "; ".join(counts) or "named in the records"
    clutter = KNOWN_CLUTTER if "pictogram world" in names else ""
    return VOCABULARY_NOTE.format(vocabulary=names) + clutter


def single_change_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Paired differences of each "only X" to the paper and of the selected to each "all but X", for each K."""
    frame = study_rows(records)
    frame = frame[frame["role"] == "reported"]
    columns = [*KEYS, "what", "against", "mean", "half_width", "n", "up"]
    parts = []
    for what in dict.fromkeys(frame["what"]):
        if what.startswith("only "):
            own, against = differences(frame, what, "paper", metric), "paper"
        elif what.startswith("all but "):
            own, against = differences(frame, "selected", what, metric), "selected − this"
        else:
            continue
        parts.append(_means(own, what, "difference").assign(against=against))
    if not parts:
        return pd.DataFrame(columns=columns)
    cells = pd.concat(parts, ignore_index=True)[columns]
    place = [(what.startswith("all"), what.split(",")[0], what) for what in cells["what"]]
    order = {value: number for number, value in enumerate(sorted(set(place)))}
    return sort_cells(cells.assign(place=[order[value] for value in place]), [*KEYS[:3], "place", "shots"])


def change_text(what: str) -> str:
    """A change as a reader has it: ``only label space +base``."""
    return what.replace("label_space: novel", "label space ").replace("+background", "").replace("_", " ")


def single_changes_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """What each thing contributes: the paper's setting with it alone changed, and the selected one without it."""
    cells = single_change_cells(records, metric=metric)
    data = cells.drop(columns="place", errors="ignore")
    lines: dict[tuple, dict] = {}
    for row in cells.itertuples():
        key = (row.vocabulary, row.arm, row.loss, change_text(row.what), row.against)
        text = difference_text(row.mean, row.half_width, int(row.up), row.n, "complete", 0)
        lines.setdefault(key, {})[f"K={row.shots}"] = text
    heads = [f"K={shots}" for shots in sorted(set(cells["shots"]))]
    rows = [[*key, *(values.get(head, "–") for head in heads)] for key, values in lines.items()]
    display = pd.DataFrame(
        rows, columns=["vocabulary", "arm", "loss", "change", "difference to", *heads], dtype=object
    )
    caption = (
        f"{NOT_THE_PAPER} Paired differences of {metric} in points. 'only X': the paper's setting with X alone "
        "changed, at the paper's c or with c chosen as well. 'all but X': what the selected setting gains over the "
        "best one that keeps X as in the paper. Numbers without a name (visual, c) are the best of the grid for that "
        f"K. {choice_note(records)} {GRID_NOTE}{temperature_note(records)} {vocabulary_note(records)} {INTERVAL_NOTE}"
    )
    return Table("label_space_single_changes", caption, data, readable(display))
