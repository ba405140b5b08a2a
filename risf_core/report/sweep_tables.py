"""The tables of the ablations, the CLIPs, base training and cost: functions of records."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from risf_core.report.statistics import (
    drop_repeats,
    fine_tuning_rows,
    notebook_of,
    ordered,
    rows_of,
    sort_cells,
    student_interval,
    summarize_cells,
)
from risf_core.report.table_format import NOT_PLANNED, Table, interval_text, number, readable, spread
from risf_core.report.warned import warned

PAPER_C = 0.7  # RISF's released configuration, CMCLIP_ALPHA
PAPER_BNRL = {
    "alpha": 0.2,
    "beta": 0.8,
    "gamma": 4.0,
    "epsilon": 1.0,
    "background_weight": 0.2,
}  # the same, all four yamls
# What a sweep over c may also vary; a row of an older record does not say, and has the paper's.
PAPER_RESCORING = {"temperature": 100.0, "score_thresh": 0.05, "fusion": "arithmetic"}
NOT_SELECTION = (
    "SENSITIVITY, not selection: made on the test images, so the best value is no result; the paper's value is "
    "reported whatever it gives."
)
INTERVAL_NOTE = "± is the half-width of the 95 % Student-t interval over few-shot seeds of one base model."
SENSITIVITY_NOTE = f"{NOT_SELECTION} {INTERVAL_NOTE}"
MAIN_CROPS = {"preprocess": "clip", "resize": "roi_align", "crop": "squash"}  # how CM-CLIP makes crops
# In the order of the tables.
SWEEP_NAMES = {"beta_tied": "β = 1 − α", "beta_fixed_alpha": "α fixed", "gamma_epsilon": "γ × ε"}


def sensitivity_c_rows(records: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of 30_ablation_c: one for each (split, arm, loss, label_space, *PAPER_RESCORING, shots, c, seed)."""
    keys = ["split", "arm", "loss", "label_space", "shots", "c", "seed"]
    frame = rows_of(records, "30_ablation_c", required=keys)
    keys[4:4] = PAPER_RESCORING
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "nAP50", "nAP"])
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *PAPER_RESCORING])))
    for name, value in PAPER_RESCORING.items():
        frame[name] = [value if pd.isna(found) else found for found in frame[name]]
    return sort_cells(drop_repeats(frame, keys, ["nAP50"]), keys)


def rescoring_axes(frame: pd.DataFrame) -> list[str]:
    """Which of `PAPER_RESCORING` the rows vary or have other than the paper: what tables and figures keep apart."""
    return [name for name, value in PAPER_RESCORING.items() if (frame[name] != value).any()]


def axis_text(value: float | str) -> str:
    """A temperature, threshold or fusion in a table or title."""
    return value if isinstance(value, str) else f"{value:g}"


@warned
def sensitivity_c_table(records: Sequence[Mapping], *, metric: str = "nAP50") -> Table:
    """``metric`` over c, the weight of the detector's score, for each label space and K."""
    frame = sensitivity_c_rows(records)
    axes = rescoring_axes(frame)
    keys = ["split", "arm", "loss", "label_space", *axes, "shots"]
    data = summarize_cells(frame, [*keys, "c"], metric)
    texts = _interval_texts(data)
    shown = data.assign(**{name: [axis_text(value) for value in data[name]] for name in axes})
    heads = {c: f"c={c:g}" + (" (paper)" if c == PAPER_C else "") for c in ordered("c", data["c"])}
    caption = (
        f"{metric} (%) over c, the weight of the detector's score (c = 1: no re-scoring), for each label space of "
        f"CM-CLIP's softmax; only novel+background is the paper's{paper_note(axes)}. {SENSITIVITY_NOTE}"
    )
    display = spread(shown, keys, "c", texts, heads=heads, with_n=True)
    return Table(f"sensitivity_c_{metric}", caption, data, display)


def paper_note(axes: Sequence[str]) -> str:
    """Which values of the axes are the paper's, for a caption, with a comma before it; nothing without axes."""
    return "".join(f", with {name} {axis_text(PAPER_RESCORING[name])}" for name in axes)


def _interval_texts(data: pd.DataFrame) -> list[str]:
    return [interval_text(*values) for values in zip(data["mean"], data["half_width"], strict=True)]


def sensitivity_bnrl_cells(
    records: Sequence[Mapping], sweeps: Sequence[str], *, metric: str = "nAP50"
) -> pd.DataFrame:
    """Cells of 31_ablation_bnrl with their paired difference to the paper's hyper-parameters in the same sweep.

    Returns:
        The keys, mean, half_width, n, is_paper, and difference, difference_half_width, up (against the paper's cell
        of the same sweep, split, arm and K, paired per seed).
    """
    hyper = list(PAPER_BNRL)
    keys = ["split", "sweep", "arm", "shots", *hyper]
    frame = rows_of(records, "31_ablation_bnrl", required=[*keys, "seed"])
    columns = [*keys, "mean", "half_width", "n", "is_paper", "difference", "difference_half_width", "up"]
    if frame.empty:
        return pd.DataFrame(columns=columns)
    frame = drop_repeats(frame, [*keys, "seed"], [metric])
    frame = (
        frame[frame["sweep"].isin(sweeps)].astype(dict.fromkeys(hyper, float)).round(dict.fromkeys(hyper, 9))
    )
    is_paper = (frame[hyper] == pd.Series(PAPER_BNRL)).all(axis=1)
    match = ["split", "sweep", "arm", "shots", "seed"]
    paper = frame.loc[is_paper, [*match, metric]].rename(columns={metric: "paper"})
    frame = frame.assign(is_paper=is_paper).merge(paper, on=match, how="left", validate="many_to_one")
    rows = []
    for key, group in frame.groupby([*keys, "is_paper"], sort=False):
        own, gain = student_interval(group[metric]), (group[metric] - group["paper"]).dropna()
        difference = student_interval(gain)
        rows.append(
            (*key[:-1], own.mean, own.half_width, own.n, key[-1], difference.mean, difference.half_width)
        )
        rows[-1] += (int((gain > 0).sum()),)
    return sort_cells(pd.DataFrame(rows, columns=columns), keys)


@warned
def beta_omega_table(records: Sequence[Mapping]) -> Table:
    """nAP50 over BNRL's beta and the background weight, with beta tied to 1 - alpha and with alpha fixed."""
    data = sensitivity_bnrl_cells(records, ["beta_tied", "beta_fixed_alpha"])
    return _bnrl_sweep_table("sensitivity_beta_omega", data, ["alpha", "beta"], "background_weight", "ω_bg")


@warned
def gamma_epsilon_table(records: Sequence[Mapping]) -> Table:
    """nAP50 over BNRL's gamma and epsilon."""
    data = sensitivity_bnrl_cells(records, ["gamma_epsilon"])
    return _bnrl_sweep_table("sensitivity_gamma_epsilon", data, ["gamma"], "epsilon", "ε")


def _bnrl_sweep_table(name: str, data: pd.DataFrame, rows: list[str], column: str, symbol: str) -> Table:
    texts = [
        interval_text(mean, half) + (" (paper)" if is_paper else "")
        for mean, half, is_paper in data[["mean", "half_width", "is_paper"]].itertuples(
            index=False, name=None
        )
    ]
    heads = {value: f"{symbol}={value:g}" for value in ordered(column, data[column])}
    shown = data.assign(sweep=[SWEEP_NAMES[sweep] for sweep in data["sweep"]])
    for hyper in rows:
        shown[hyper] = [f"{value:g}" for value in data[hyper]]
    display = spread(
        shown, ["split", "sweep", "arm", "shots", *rows], column, texts, heads=heads, with_n=True
    )
    display = display.rename(columns={"alpha": "α", "beta": "β", "gamma": "γ"})
    caption = (
        f"nAP50 (%) of BNRL without re-scoring over its hyper-parameters. The CSV holds the paired difference to the "
        f"paper's values (α 0.2, β 0.8, γ 4, ε 1, ω_bg 0.2). {SENSITIVITY_NOTE}"
    )
    return Table(name, caption, data, display)


def _crops_variant(row: Mapping) -> str:
    """What differs from ``MAIN_CROPS``; a row of an older record may not say."""
    named = {name: row[name] for name in MAIN_CROPS if isinstance(row.get(name), str)}
    return ", ".join(f"{name}={value}" for name, value in named.items() if value != MAIN_CROPS[name])


def backbone_rows(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Rows of 32_clip_backbones with ``gain``: ``metric`` less that of the same detections without re-scoring.

    ``variant`` names what of the crops differs from ``MAIN_CROPS``, such as ``preprocess=released``. The gain is the
    row's own ``gain`` (``gain_nAP`` for nAP) where it has one, else it is paired with the fine-tuning rows.
    """
    keys = ["split", "clip", "variant", "arm", "loss", "shots", "seed"]
    frame = rows_of(
        records, "32_clip_backbones", required=[*(key for key in keys if key != "variant"), "crop_accuracy"]
    )
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "tower", "parameters", "crop_accuracy", metric, "gain"])
    frame["variant"] = [_crops_variant(row) for row in frame.to_dict("records")]
    own = "gain" if metric == "nAP50" else f"gain_{metric}"
    if own in frame:
        frame["gain"] = frame[own]
    else:
        shared = ["split", "arm", "loss", "shots", "seed"]
        without = fine_tuning_rows(records)
        is_match = (
            (without["rescoring"] == "none") & (without["setting"] == "fsod") & (without["variant"] == "")
        )
        without = without.loc[is_match, [*shared, metric]].rename(columns={metric: "without"})
        frame = frame.merge(without, on=shared, how="left", validate="many_to_one")
        frame["gain"] = frame[metric] - frame["without"]
    if "path_only" in frame:
        frame["clip"] += frame["path_only"].map({True: " (path only)", False: ""})
    return sort_cells(drop_repeats(frame, keys, [metric]), keys)


def backbone_cells(records: Sequence[Mapping], *, metric: str = "nAP50") -> pd.DataFrame:
    """Each (split, clip, variant, arm, loss, shots) in a row: its CLIP's facts, mean and paired gain of ``metric``."""
    frame = backbone_rows(records, metric=metric)
    facts = [name for name in ("tower", "parameters", "crop_accuracy", "crop_accuracy_all") if name in frame]
    keys = ["split", "clip", "variant", "arm", "loss", "shots"]
    rows = []
    for key, group in frame.groupby(keys, sort=False):
        value, gain = student_interval(group[metric]), student_interval(group["gain"])
        up = int((group["gain"] > 0).sum())
        numbers = (value.mean, value.half_width, value.n, gain.mean, gain.half_width, up)
        rows.append((*key, *(group[name].iloc[0] for name in facts), *numbers))
    columns = [*keys, *facts, "mean", "half_width", "n", "gain", "gain_half_width", "up"]
    cells = pd.DataFrame(rows, columns=columns)
    # each CLIP's variants below it
    main = cells[cells["variant"] == ""].drop_duplicates(["split", "clip"]).set_index(["split", "clip"])
    places = [main["crop_accuracy"].get(key, 0.0) for key in zip(cells["split"], cells["clip"], strict=True)]
    return sort_cells(cells.assign(place=places), ["split", "place", *keys]).drop(columns="place")


@warned
def backbones_table(records: Sequence[Mapping]) -> Table:
    """For each CLIP: size, accuracy on novel crops, and what CM-CLIP gains with it."""
    data = backbone_cells(records)
    has_towers = "tower" in data and (data["tower"] != data["clip"]).any()
    display = data[["split", "clip", *(["tower"] if has_towers else []), "variant"]].copy()
    if "parameters" in data:
        display["parameters (M)"] = [number(value / 1e6, decimals=2) for value in data["parameters"]]
    display["crop accuracy, novel (%)"] = [number(float(value)) for value in data["crop_accuracy"]]
    if "crop_accuracy_all" in data:
        display["crop accuracy, all (%)"] = [number(float(value)) for value in data["crop_accuracy_all"]]
    display[["arm", "loss", "shots"]] = data[["arm", "loss", "shots"]]
    display["nAP50 (%)"] = _interval_texts(data)
    gains = data[["gain", "gain_half_width", "up", "n"]].itertuples(index=False, name=None)
    display["paired gain"] = [f"{interval_text(*gain, sign=True)} ({up}/{n} up)" for *gain, up, n in gains]
    caption = (
        "CM-CLIP (paper setting) with each CLIP on the same stored detections. Crop accuracy: top-1 of the "
        "ground-truth crops of the test images among the novel names, or among all. Gain: points of nAP50 against no "
        "re-scoring, paired per seed, ± the half-width of its 95 % Student-t interval over few-shot seeds of one "
        "base model; each CLIP was trained once, so the order of two CLIPs is not tested. preprocess=released: CLIP is "
        "fed BGR in 0-1 without mean and std, as by the released code; resize=bicubic: CLIP's own resize in place of "
        "RoIAlign. path only: random weights, its numbers mean nothing."
    )
    return Table("backbones", caption, data, readable(display))


def scalar_metrics(record: Mapping) -> dict[str, float | int | str]:
    """The single numbers and texts among a record's metrics, nested ones as ``a.b``; lists are left out."""
    found = {}

    def walk(values: Mapping, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{name}.")
            elif value is None or isinstance(value, (int, float, str)):
                found[f"{prefix}{name}"] = value

    walk(record.get("metrics") or {}, "")
    return found


def _metrics_table(
    records: Sequence[Mapping], notebook: str, name: str, caption: str, *, first: Sequence[str]
) -> Table:
    """All single metrics of one notebook's records: one by one in the data, a column for each run to read.

    Those in ``first`` stand at the top. To read, classes have AP50 alone.
    """
    rows = []
    for record in sorted(records, key=lambda record: record["run_id"]):
        if notebook_of(record) != notebook:
            continue
        metrics = scalar_metrics(record)
        order = [key for key in first if key in metrics] + sorted(set(metrics) - set(first))
        rows += [(record["run_id"], metric, metrics[metric]) for metric in order]
    texts = [value if isinstance(value, str) else "" for *_, value in rows]
    values = [math.nan if value is None or isinstance(value, str) else float(value) for *_, value in rows]
    data = pd.DataFrame([row[:2] for row in rows], columns=["run_id", "metric"]).assign(
        value=values, text=texts
    )
    runs: dict[str, dict[str, str]] = {}
    for run_id, metric, value in rows:
        if not (metric.startswith("per_class.") and metric.endswith((".AP", ".AP75"))):
            runs.setdefault(run_id, {})[metric] = number(value)
    metrics = list(dict.fromkeys(metric for values in runs.values() for metric in values))
    display = pd.DataFrame({"metric": metrics})
    seeds = {record["run_id"]: (record.get("params") or {}).get("seed", 0) for record in records}
    has_seeds = any(seeds[run_id] for run_id in runs)  # then several trainings share all but their seed
    for run_id, values in runs.items():
        head = f"{run_id} (seed {seeds[run_id]})" if has_seeds else run_id
        display[head] = [values.get(metric, NOT_PLANNED) for metric in metrics]
    return Table(name, caption, data, display)


def base_training_table(records: Sequence[Mapping]) -> Table:
    """AP of the base classes, proposal recall and pretraining accuracy of each base model."""
    first = ["bAP50", "bAP", "bAP75", "recall_novel_at_100", "recall_base_at_100", "pretraining_accuracy"]
    caption = (
        "The base detectors, each trained once (no interval). bAP, bAP50, bAP75: percent of the base classes on the "
        "test images. recall_novel_at_100, recall_base_at_100: percent of the objects that one of 100 proposals "
        "covers with IoU 0.5; the novel classes were never annotated. pretraining_accuracy: percent on the disjoint "
        "concepts. left_out: what of the annotations was no target in training. weights: tensors of the file that "
        "training started from. The CSV holds AP and AP75 of each class too."
    )
    return _metrics_table(records, "10_base_training", "base_training", caption, first=first)


def tiny_clip_table(records: Sequence[Mapping]) -> Table:
    """Accuracies of the tiny CLIPs trained here."""
    caption = (
        "The CLIPs, each trained once (no interval). Accuracies in percent: top-1 on ground-truth crops of test "
        "scenes. The training corpus shares no image with the test scenes; the glyph designs that stand in both are "
        "counted in the rows on seen and held-out designs, where the record has them."
    )
    return _metrics_table(records, "12_tiny_clip", "tiny_clip", caption, first=[])


def cost_table(records: Sequence[Mapping]) -> Table:
    """CPU seconds, wall seconds and peak memory of each run, the one table that reruns change."""
    names = {"cpu_seconds": "CPU (s)", "wall_seconds": "wall (s)", "peak_memory_mib": "peak memory (MiB)"}
    rows = []
    for record in records:
        environment = record.get("environment") or {}
        values = [environment.get(name) for name in names]
        rows.append(
            (
                notebook_of(record),
                record["run_id"],
                *(math.nan if value is None else value for value in values),
            )
        )
    data = pd.DataFrame(rows, columns=["notebook", "run_id", *names])
    data = data.sort_values(["notebook", "run_id"]).reset_index(drop=True)
    lines = []
    for notebook, group in [*data.groupby("notebook"), *([("all", data)] if len(data) else [])]:
        cpu, wall, memory = (
            group["cpu_seconds"].sum(),
            group["wall_seconds"].sum(),
            group["peak_memory_mib"].max(),
        )
        lines.append(
            (notebook, len(group), *(number(float(value), decimals=0) for value in (cpu, wall, memory)))
        )
    display = pd.DataFrame(lines, columns=["notebook", "runs", *names.values()])
    caption = (
        "Cost of the runs: CPU and wall seconds summed over the runs of a notebook, peak memory of the largest "
        "single process. Each run in the CSV. These numbers come from the machine and differ between repeats, as do "
        "those of the tables backbones_cost and latency_*; nothing else does."
    )
    return Table("cost", caption, data, display)
