"""What a reader sees of the records: all tables and figures, the headline, the published copy.

The command line of :mod:`risf_core.tables`. Imports no torch.
"""

import argparse
import json
import logging
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from risf_core.errors import RecordError, RisfError
from risf_core.records import read_records
from risf_core.report.base_models import has_several_bases, of_one_base
from risf_core.report.crossed_numbers import crossed_numbers
from risf_core.report.literature import published
from risf_core.report.plan import Plan
from risf_core.report.selection import plan_of, write_all
from risf_core.report.statistics import HeadlineNumber, fine_tuning_rows, notebook_of, pair, student_interval
from risf_core.report.study_numbers import study_numbers
from risf_core.report.sweep_tables import backbone_cells, backbone_rows
from risf_core.report.table_format import interval_text, number, to_markdown
from risf_core.report.warning_signs import WARNING, warning_sentences
from risf_core.runs.run_specs import RunSpec, load_list
from risf_core.runs.state import results_dir, run_id
from risf_core.runs.yaml_files import project_root
from risf_core.tables import CM_CLIP_GAIN, interaction_cells, paired_cells, takes_a_clip

logger = logging.getLogger(__name__)
HEADLINE_SHOTS = 5  # of the reported cells; the nearest K of the records where it was not run
HEADLINE = "headline.md"  # of the published tables
SYSTEM_GAIN = "RISF over cross-entropy"
SYSTEM = ("ce, none", "bnrl, cm_clip")  # DeFRCN's way, and RISF's
SYSTEM_SHOTS = (1, 10, 30)  # K of which the paper's numbers are at hand
OPEN_VOCABULARY = "50_open_vocabulary"
OTHER_DATA = "not comparable"
NOTE = (
    "Where the paper's column holds a number, it is the paper's gain over DeFRCN on COCO, with ImageNet weights and "
    "OpenAI's CLIP; the mini profiles are a world of pictograms, not comparable with it in level. ± is the half-width "
    "of the 95 % Student-t interval over n few-shot seeds of one base model and one CLIP, where nothing else is said; "
    "gains are paired differences in points."
)


def load_records(folder: Path) -> list[dict]:
    """Every record of a folder as it is, sorted by name, whether or not it fits the current code.

    Raises:
        RecordError: If there is none, or a file is not readable as a record.
    """
    records = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RecordError(
                f"{path}: not readable as a record ({error}). Repeat its run with --force."
            ) from None
        if not isinstance(records[-1], dict) or not {"run_id", "notebook"} <= records[-1].keys():
            raise RecordError(
                f"{path}: not a record: expected at least run_id and notebook. Remove the file."
            )
    if not records:
        raise RecordError(f"{folder}: no record there.")
    return records


def planned_runs(profile: str) -> list[RunSpec]:
    """The profile's list of runs; empty where it has none."""
    path = project_root() / "params" / profile / "runs.yaml"
    return load_list(path) if path.is_file() else []


def headline(records: Sequence[Mapping], *, plan: Plan | None = None) -> pd.DataFrame:
    """The few numbers to look at first, of the lowest split and K = 5.

    Returns:
        Columns quantity, value (text with interval), n, notebook, run_ids (tuple), mean and half_width (numbers, None
        where the value is a text or has no interval), see `HeadlineNumber`.
    """
    crossed, records = crossed_numbers(records), of_one_base(records)
    rows = _single_numbers(records)
    everything = fine_tuning_rows(records)
    everything = everything[everything["variant"] == ""]
    frame = everything[everything["setting"] == "fsod"]
    if len(frame):
        frame = frame[frame["split"] == frame["split"].min()]
        shots = min(frame["shots"].unique(), key=lambda value: (abs(value - HEADLINE_SHOTS), value))
        rows += _cell_numbers(frame[frame["shots"] == shots], shots)
        rows += _paired_numbers(frame, shots, plan or Plan.from_rows(frame))
        rows += _system_numbers(frame)
        rows += _released_numbers(records, shots)
        both = everything[(everything["setting"] == "gfsod") & (everything["split"] == frame["split"].min())]
        if len(both):
            rows += _paired_numbers(both, shots, plan or Plan.from_rows(both), where=", gfsod")
    rows += [*crossed, *study_numbers(records)]
    numbers = [HeadlineNumber.of(row) for row in rows]
    # dtype object keeps None apart from NaN, and n an integer
    return pd.DataFrame(numbers, columns=HeadlineNumber._fields, dtype=object)


def _single_numbers(records: Sequence[Mapping]) -> list[tuple]:
    """Base model and CLIPs: one training each, no interval."""
    rows = []
    for record in records:
        if notebook_of(record) == "10_base_training":
            split, names = record["params"].get("split", 1), {"bAP50": "bAP50 (%)"}
            names["recall_novel_at_100"] = "proposal recall@100 of novel objects (%)"
            for metric, name in names.items():
                value = record["metrics"].get(metric)
                text = number(None if value is None else float(value))
                seed = f", seed {record['params']['seed']}" if record["params"].get("seed") else ""
                what = f"base model of split {split}{seed}: {name}"
                rows.append((what, text, 1, "10_base_training", (record["run_id"],), value))
    clips = backbone_rows(records)
    clips = clips[clips["variant"] == ""]
    if len(clips):
        for clip, group in clips.groupby("clip", sort=True):
            value, runs = float(group["crop_accuracy"].iloc[0]), tuple(sorted(group["run_id"].unique()))
            what = f"CLIP {clip}: accuracy on novel crops (%)"
            rows.append((what, number(value), 1, "32_clip_backbones", runs, value))
    return rows


def _cell_numbers(frame: pd.DataFrame, shots: int) -> list[tuple]:
    """nAP50 of the losses with and without CM-CLIP at one K."""
    rows = []
    for arm in ("kshot", "missing"):
        for loss in ("ce", "ce_bg", "bnrl"):
            for rescoring, suffix in (("none", ""), ("cm_clip", " + CM-CLIP")):
                is_cell = (frame["arm"] == arm) & (frame["loss"] == loss) & (frame["rescoring"] == rescoring)
                cell = frame[is_cell].dropna(subset=["nAP50"])
                if len(cell):
                    interval = student_interval(cell["nAP50"])
                    text, runs = (
                        interval_text(interval.mean, interval.half_width),
                        tuple(sorted(set(cell["run_id"]))),
                    )
                    named = "ce_bg (as released)" if loss == "ce_bg" else loss
                    name = f"nAP50 (%), K={shots}, {arm}: {named}{suffix}"
                    values = interval.mean, interval.half_width
                    rows.append((name, text, interval.n, "20_fine_tuning", runs, *values))
    return rows


def _paired_numbers(frame: pd.DataFrame, shots: int, plan: Plan, *, where: str = "") -> list[tuple]:
    """The two gains at one K and over all K, and the interaction at that K; ``where`` ends each name."""
    rows, cells = [], paired_cells(frame, "nAP50", plan)
    wanted = {
        (CM_CLIP_GAIN, "ce"): "CM-CLIP's gain with ce",
        (CM_CLIP_GAIN, "bnrl"): "CM-CLIP's gain with bnrl",
    }
    wanted |= {
        ("bnrl − ce", "none"): "BNRL's gain over ce",
        ("bnrl − ce", "cm_clip"): "BNRL's gain with CM-CLIP",
        ("ce_bg − ce", "none"): "gain of ce_bg (as released) over ce",
    }
    for key, name in wanted.items():
        own = cells[(cells["comparison"] == key[0]) & (cells["given"] == key[1]) & (cells["n"] > 0)]
        for row in own[own["shots"].isin([shots, "all"])].itertuples():
            which = "mean over K" if row.shots == "all" else f"K={row.shots}"
            is_used = (frame["arm"] == row.arm) & ((row.shots == "all") | (frame["shots"] == row.shots))
            text = f"{interval_text(row.mean, row.half_width, sign=True)} ({row.up}/{row.n} up)"
            runs = tuple(sorted(set(frame.loc[is_used, "run_id"])))
            what, values = f"{name}, nAP50, {which}, {row.arm}{where}", (row.mean, row.half_width)
            rows.append((what, text, row.n, "20_fine_tuning", runs, *values))
    for row in interaction_cells(frame[frame["shots"] == shots], "nAP50", plan).itertuples():
        text = interval_text(row.interaction_mean, row.interaction_half_width, sign=True)
        runs = tuple(sorted(set(frame.loc[(frame["arm"] == row.arm) & (frame["shots"] == shots), "run_id"])))
        what = f"interaction of the two, nAP50, K={shots}, {row.arm}{where}"
        values = row.interaction_mean, row.interaction_half_width
        rows.append((what, text, row.n, "20_fine_tuning", runs, *values))
    return rows


def _system_numbers(frame: pd.DataFrame) -> list[tuple]:
    """All of RISF over cross-entropy without re-scoring, as the paper sets itself against DeFRCN: in nAP."""
    frame = frame.assign(system=frame["loss"] + ", " + frame["rescoring"])
    pairs = pair(frame, "system", *SYSTEM, "nAP", keys=["arm", "shots", "seed"])
    rows = []
    for (arm, shots), own in pairs[pairs["shots"].isin(SYSTEM_SHOTS)].groupby(["arm", "shots"], sort=False):
        gain, up = student_interval(own["difference"]), int((own["difference"] > 0).sum())
        text = f"{interval_text(gain.mean, gain.half_width, sign=True)} ({up}/{gain.n} up)"
        is_used = (frame["arm"] == arm) & (frame["shots"] == shots) & frame["system"].isin(SYSTEM)
        runs = tuple(sorted(set(frame.loc[is_used, "run_id"])))
        what = f"{SYSTEM_GAIN}, nAP, K={shots}, {arm}"
        rows.append((what, text, gain.n, "20_fine_tuning", runs, gain.mean, gain.half_width))
    return rows


def _released_numbers(records: Sequence[Mapping], shots: int) -> list[tuple]:
    """What CM-CLIP adds at one K where crops are made in another way, such as the released code's."""
    cells = backbone_cells(records)
    cells = cells[(cells["variant"] != "") & (cells["shots"] == shots)]
    rows = backbone_rows(records)
    found = []
    for row in cells.itertuples():
        is_used = (rows["variant"] == row.variant) & (rows["clip"] == row.clip)
        text = f"{interval_text(row.gain, row.gain_half_width, sign=True)} ({row.up}/{row.n} up)"
        name = f"CM-CLIP's gain with {row.loss}, {row.variant}, nAP50, K={shots}, {row.arm}"
        runs = tuple(sorted(set(rows.loc[is_used, "run_id"])))
        found.append((name, text, row.n, "32_clip_backbones", runs, row.gain, row.gain_half_width))
    return found


def summary(profile: str, records: Sequence[Mapping], runs: Sequence[RunSpec], folder: Path) -> str:
    """The headline, the runs that are missing, and where everything lies, as text for a terminal."""
    table = headline(records, plan=plan_of(runs))[["quantity", "value", "n"]]
    finished = {record["run_id"] for record in records}
    missing = [run_id(spec.params) for spec in runs if run_id(spec.params) not in finished]
    lines = [f"Results of profile {profile}, {len(records)} records", "", to_markdown(table)]
    lines += [
        interval_note(records),
        "",
    ]
    lines += [*warning_lines(records, runs), ""]
    if missing:
        lines += [
            f"MISSING: {len(missing)} of {len(runs)} runs have no current record: {', '.join(missing)}",
            "",
        ]
    for name, what in (
        ("tables", "tables (CSV, Markdown, LaTeX)"),
        ("figures", "figures (PNG, PDF)"),
        ("runs", "executed notebooks and logs"),
        ("records", "records (JSON)"),
    ):
        count = len(list((folder / name).glob("*"))) if (folder / name).is_dir() else 0
        lines.append(f"  {what:32} {count:4} files in {folder / name}")
    return "\n".join(lines) + "\n"


def interval_note(records: Sequence[Mapping]) -> str:
    """What ± is in the headline."""
    if has_several_bases(records):
        return "± is the half-width of the hierarchical 95 % interval: splits fixed, base models and draws crossed."
    clip = " and one CLIP" if takes_a_clip(fine_tuning_rows(records)) else ""
    own = own_seeds_note(records)
    return f"± is the half-width of the 95 % Student-t interval over few-shot seeds of one base model{clip}.{own}"


def own_seeds_note(records: Sequence[Mapping]) -> str:
    """That seeds of open-vocabulary detection are no few-shot draws; "" without a record of it."""
    if not any(notebook_of(record) == OPEN_VOCABULARY for record in records):
        return ""
    return f" Of {OPEN_VOCABULARY}, n counts seeds that each have their own base detector."


def publish(
    profile: str, records: Sequence[Mapping], runs: Sequence[RunSpec], folder: Path, target: Path
) -> None:
    """Copy tables, figures and records of a profile to ``target``, replacing what is there; host names are removed.

    Args:
        profile: Name of the profile.
        records: Its records.
        runs: Its list of runs, for what is missing and for the README's commands.
        folder: Its results folder; tables and figures are written anew before they are copied.
        target: ``results/published/<profile>``.
    """
    write_all(records, folder, runs=runs)
    for name in ("tables", "figures", "records"):
        shutil.rmtree(target / name, ignore_errors=True)
        if name != "records":
            shutil.copytree(folder / name, target / name)
    (target / "records").mkdir(parents=True)
    for record in records:
        environment = {
            key: value for key, value in (record.get("environment") or {}).items() if key != "host"
        }
        text = json.dumps({**record, "environment": environment}, indent=1, sort_keys=True, allow_nan=False)
        (target / "records" / f"{record['run_id']}.json").write_text(f"{text}\n", encoding="utf-8")
    (target / "tables" / HEADLINE).write_text(headline_text(target), encoding="utf-8", newline="\n")
    publish_demo(records, folder, target)


def publish_demo(records: Sequence[Mapping], folder: Path, target: Path) -> None:
    """Copy the small weights of ``make demo`` that a run of 22_predict has made; without one nothing changes.

    Raises:
        RecordError: If several runs have made some.
    """
    made = [folder / "artifacts" / r["run_id"] / "demo" for r in records if notebook_of(r) == "22_predict"]
    made = [path for path in made if (path / "demo.json").is_file()]
    if len(made) > 1:
        raise RecordError(
            f"{made[0]}, {made[1]}: two runs made weights for the demo. Remove one of the records."
        )
    if made:
        shutil.rmtree(target / "demo", ignore_errors=True)
        shutil.copytree(made[0], target / "demo")


def result_rows(
    profile: str, records: Sequence[Mapping], runs: Sequence[RunSpec], *, records_at: str
) -> pd.DataFrame:
    """The headline as the README has it: paper, ours, n, difference, command, record (a link), notebook."""
    commands = {run_id(spec.params): spec.command for spec in runs}
    rows = []
    for row in headline(records, plan=plan_of(runs)).itertuples():
        command, link = f"make reproduce PROFILE={profile}", f"[{len(row.run_ids)} records]({records_at}/)"
        if len(row.run_ids) == 1:
            name = row.run_ids[0]
            command, link = commands.get(name, command), f"[{name}]({records_at}/{name}.json)"
        paper, difference = paper_of(row.quantity), "–"
        if paper != "–":
            difference = OTHER_DATA  # in level; the paper's data are others
        rows.append(
            (row.quantity, paper, row.value, row.n, difference, f"`{command}`", link, f"`{row.notebook}`")
        )
    columns = ["what", "paper", "ours", "n", "difference", "command", "record", "notebook"]
    return pd.DataFrame(rows, columns=columns)


def paper_of(quantity: str) -> str:
    """What the paper reports of a quantity, on its own data; – where it reports nothing that we know."""
    found = re.fullmatch(rf"{SYSTEM_GAIN}, nAP, K=(\d+), \w+", quantity)
    if not found:
        return "–"
    own, other = (published(f"{name}-coco-{found[1]}shot").value for name in ("risf", "defrcn"))
    return f"{number(own - other, sign=True)} ({own:g} − {other:g}, COCO)"


def headline_text(target: Path) -> str:
    """The whole headline of a published profile as Markdown, from its records.

    Args:
        target: ``results/published/<profile>``.
    """
    records = load_records(target / "records")
    runs = planned_runs(target.name)
    rows = result_rows(target.name, records, runs, records_at="../records")
    warnings = "".join(f"\n{line}\n" for line in warning_lines(records, runs))
    return f"{to_markdown(rows, is_padded=False)}\n{NOTE}{own_seeds_note(records)}\n{warnings}"


def warning_lines(records: Sequence[Mapping], runs: Sequence[RunSpec]) -> list[str]:
    """The warnings of a profile's records, a line each."""
    return [f"{WARNING} {text}" for text in warning_sentences(records, plan=plan_of(runs))]


def check_profile(arguments: argparse.Namespace) -> None:
    """Refuse a profile that has neither params nor results; a folder that is named is taken as it is.

    Raises:
        RecordError: With the profiles that there are.
    """
    profiles = sorted(path.name for path in (project_root() / "params").glob("*") if path.is_dir())
    if not (arguments.results or arguments.profile in profiles or results_dir(arguments.profile).is_dir()):
        raise RecordError(f"There is no profile {arguments.profile}; params/ has {', '.join(profiles)}.")


def run_command(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for; the README's generated parts follow from what is published."""
    from risf_core.report.readme_blocks import refresh  # which is made of the functions above

    check_profile(arguments)
    folder = arguments.results or results_dir(arguments.profile)
    records = load_records(folder / "records") if arguments.results else read_records(arguments.profile)
    if not records:
        raise RecordError(
            f"{folder / 'records'}: no current record there. "
            f"Make them with `make reproduce PROFILE={arguments.profile}`."
        )
    runs = planned_runs(arguments.profile)
    if arguments.show:
        sys.stdout.write(summary(arguments.profile, records, runs, folder))
        return
    if arguments.publish:
        target = project_root() / "results" / "published" / arguments.profile
        publish(arguments.profile, records, runs, folder, target)
        refresh()
        sys.stdout.write(f"Published to {target}; look at it, then commit it.\n")
        return
    paths = write_all(records, folder, runs=runs)
    if not arguments.results:
        refresh()
    sys.stdout.write(
        f"Wrote {len(paths)} files from {len(records)} records to {folder}/tables and {folder}/figures.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m risf_core.tables``: write tables and figures, or ``--show``, or ``--publish``."""
    parser = argparse.ArgumentParser(prog="python -m risf_core.tables", description=__doc__)
    parser.add_argument("--profile", default="mini", help="name of the profile")
    parser.add_argument(
        "--results", type=Path, help="take DIR/records as they are, instead of the current records"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--show", action="store_true", help="print the headline and where everything lies")
    action.add_argument(
        "--publish", action="store_true", help="copy tables, figures and records to be committed"
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run_command(parser.parse_args(argv))
    except RisfError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(1) from None
