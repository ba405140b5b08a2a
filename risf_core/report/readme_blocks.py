"""The generated parts of README.md, between its markers: functions of the published records alone. No torch.

``make figures`` writes them, ``claims.md`` and each ``headline.md``; nothing changes where no record did.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from risf_core.errors import RecordError
from risf_core.notebook_models import MODELS
from risf_core.report import claims_page, publish
from risf_core.report.claims import PAGE as CLAIMS_PAGE
from risf_core.report.claims import ClaimResult, evaluate_claims, published_records
from risf_core.report.claims_evidence import NO_RECORD
from risf_core.report.claims_file import FILE as CLAIMS
from risf_core.report.claims_file import read_claims
from risf_core.report.html_page import first_sentence
from risf_core.report.statistics import fine_tuning_rows, notebook_of
from risf_core.report.study_numbers import study_numbers
from risf_core.report.table_format import number, to_markdown
from risf_core.runs.run_specs import RunSpec
from risf_core.runs.yaml_files import project_root

PUBLISHED = Path("results") / "published"
IN_README = (
    r"bAP50|^CLIP |^gain of ce_bg|preprocess=released|^RISF over cross-entropy|"
    r"^(?:CM-CLIP's gain with ce|BNRL's gain (?:over ce|with CM-CLIP)), nAP50, (?:.*, gfsod$|"
)
# Of a study's numbers those to look at first; of a notebook that is not here the first FEW.
TELLING = {
    "36_label_space": r"over the paper's CM-CLIP",
    "37_rescoring_controls": r"CM-CLIP \(paper\)|permuted|random-weight|by the K shots",
    "35_other_detectors": r"(?:RetinaNet|FCOS), paper",
    "34_latency": r"\(both read files\)",
    "50_open_vocabulary": r": gain over base, .*nAP50$|gain over RKD \+ ILS|relations alone.*(?:chance|CKA)|shuffled",
    "51_distilled_rescoring": r"^share of CM-CLIP's gain .*split 1, K=5, novel names$|detector's time.*split 1$"
    r"|of (?:no novel|as many|shuffled teacher), .*split 1",
}
FEW = 2
FIRST_CLAIMS = 5  # named in the first screen
NOT_COMPARABLE = (
    "The paper's column: its gain over DeFRCN on COCO, with ImageNet weights and OpenAI's CLIP. A world of pictograms "
    "is not comparable with it in level, so no difference is taken. ± is the half-width of the 95 % Student-t interval "
    "over n few-shot seeds of one base model and one CLIP; gains are paired differences in points."
)
STUDY_NOTE = (
    "± is the half-width of the 95 % Student-t interval over n few-shot seeds of one base model and one CLIP; gains "
    "are paired differences in points."
)
LATENCY_NOTE = (
    "Ratios are of milliseconds in one run on one machine, the one its record names; change of nAP in points."
)
SECOND_SYSTEM = ("50_open_vocabulary", "51_distilled_rescoring")
SECOND_SYSTEM_IN = ("mini-full", "ovd")  # the first with a run of these: several seeds, or one
SECOND_SYSTEM_NOTE = (
    "A world of pictograms. ± is the half-width of the 95 % Student-t interval over n seeds, of notebook 50 each with "
    "its own base detector; gains are paired differences in points."
)
NOT_PUBLISHED = "No run of it is published yet: `make reproduce-ovd` makes them.\n"
PICTURE_SHOTS = 5  # of the run whose picture is shown
PROFILES = (
    "mini",
    "studies",
    "latency",
    "ovd",
    "mini-full",
    "cards",
    "photos",
)  # the first with a run says its cost


def in_readme(quantities: pd.Series) -> pd.Series:
    """Which of the headline the README names: of gains those over all K, or of one K where one was run."""
    over_all = quantities.str.contains(", mean over K, ").any()
    which = "mean over K" if over_all else "K="
    return quantities.str.contains(rf"{IN_README}{which})")


def readme_table(profile: str, records: Sequence[Mapping], runs: Sequence[RunSpec]) -> str:
    """The table of the reproduction with its note: levels of the parts, gains over all K; the whole is linked."""
    folder = (PUBLISHED / profile).as_posix()
    table = publish.result_rows(profile, records, runs, records_at=f"{folder}/records")
    table = table[in_readme(table["what"])]
    return f"{to_markdown(table, is_padded=False)}\n{NOT_COMPARABLE} {_more(folder)}\n"


def study_table(profile: str, records: Sequence[Mapping], runs: Sequence[RunSpec], *, note: str) -> str:
    """The few most telling numbers of the studies or of the latency profile, with the whole linked."""
    folder = (PUBLISHED / profile).as_posix()
    table = publish.result_rows(profile, records, runs, records_at=f"{folder}/records")
    wanted = {quantity for quantity, *_ in study_numbers(records)}
    table = table[table["what"].isin(wanted)].drop(columns=["paper", "difference"])
    parts = []
    for notebook, own in table.groupby("notebook", sort=False):
        pattern = TELLING.get(notebook.strip("`"))
        parts.append(own[own["what"].str.contains(pattern)] if pattern else own.head(FEW))
    few = pd.concat(parts) if parts else table
    return f"{to_markdown(few, is_padded=False)}\n{note} {_more(folder)}\n"


def second_system(root: Path) -> str:
    """The few most telling numbers of the second system, of the profile with the most seeds."""
    for profile in SECOND_SYSTEM_IN:
        folder = root / PUBLISHED / profile / "records"
        found = publish.load_records(folder) if any(folder.glob("*.json")) else []
        own = [record for record in found if notebook_of(record) in SECOND_SYSTEM]
        if own:
            return study_table(profile, own, publish.planned_runs(profile), note=SECOND_SYSTEM_NOTE)
    return NOT_PUBLISHED


def _more(folder: str) -> str:
    return f"More: [{publish.HEADLINE}]({folder}/tables/{publish.HEADLINE}); all tables and figures: `{folder}/`."


def claim_lines(results: Sequence[ClaimResult]) -> str:
    """The first claims that were tested, a line each: verdict, how many numbers are as the claim says, their range."""
    lines = []
    for result in [one for one in results if one.kind == "test"][:FIRST_CLAIMS]:
        means = [row.mean for row in result.rows if row.mean is not None]
        met = sum(row.is_met is True for row in result.rows)
        text = f" ({met} of {len(result.rows)} numbers as claimed"
        if result.verdict == NO_RECORD:
            text = ""
        elif means:
            low, high = (number(float(value), sign=True) for value in (min(means), max(means)))
            text += f"; {low} to {high} points of nAP50)" if len(means) > 1 else f"; {low} points of nAP50)"
        lines.append(f"- **{claims_page.verdict_text(result)}**: {result.says}{text}")
    counted = ", ".join(
        f"{sum(one.verdict == verdict for one in results)} {verdict}"
        for verdict in dict.fromkeys(one.verdict for one in results)
    )
    return "\n".join([*lines, "", f"All {len(results)} claims and questions: {counted}.", ""])


def picture(folder: Path, at: str) -> str:
    """The picture of detections before and after re-scoring: of the plain run at K = 5, or the nearest K there is.

    Args:
        folder: A published profile.
        at: Its address as the README has it.

    Raises:
        RecordError: If no run has one.
    """
    rows = fine_tuning_rows(publish.load_records(folder / "records"))
    rows = rows[(rows["setting"] == "fsod") & (rows["variant"] == "")]
    rows = rows.assign(far=(rows["shots"] - PICTURE_SHOTS).abs()).sort_values(["split", "far", "run_id"])
    for run in rows["run_id"].unique():
        name = f"before_after-{run}"
        if (folder / "figures" / f"{name}.png").is_file():
            caption = (folder / "figures" / f"{name}.txt").read_text(encoding="utf-8").strip()
            alt = re.sub(r"[\[\]]", "", first_sentence(caption))
            return f"![{alt}]({at}/figures/{name}.png)\n\n{caption}\n"
    raise RecordError(f"{folder / 'figures'}: no picture before_after-<run> of a run in setting fsod there.")


def notebook_table(root: Path) -> str:
    """Every notebook with its title, CPU minutes of its published runs, and hardware."""
    costs = _costs(root)
    rows = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        name = path.stem
        head = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title = head.splitlines()[0].lstrip("# ").strip()
        minutes, profile = costs.get(name, (None, ""))
        cost = "–" if minutes is None else f"{max(minutes, 0.1):.1f} ({profile})"
        hardware = "CPU, GPU" if name in MODELS and MODELS[name].needs_torch else "CPU"
        rows.append((f"[`{name}`](notebooks/{path.name})", title, cost, hardware))
    columns = ["notebook", "purpose", "CPU minutes (profile)", "hardware"]
    table = to_markdown(pd.DataFrame(rows, columns=columns), is_padded=False)
    note = "CPU minutes are those of all published runs of a notebook in the profile named; –: none is published."
    return f"{table}\n{note}\n"


def _costs(root: Path) -> dict[str, tuple[float, str]]:
    """Notebook to the CPU minutes of its published runs, and in which profile."""
    costs: dict[str, tuple[float, str]] = {}
    for profile in PROFILES:
        folder = root / PUBLISHED / profile / "records"
        seconds: dict[str, float] = {}
        for record in publish.load_records(folder) if any(folder.glob("*.json")) else []:
            own = (record.get("environment") or {}).get("cpu_seconds") or 0.0
            seconds[notebook_of(record)] = seconds.get(notebook_of(record), 0.0) + own
        for name, total in seconds.items():
            costs.setdefault(name, (total / 60, profile))
    return costs


def benchmark_table(root: Path) -> str:
    """Seconds and memory of an image, from ``results/published/benchmarks/detector.csv``."""
    path = root / PUBLISHED / "benchmarks" / "detector.csv"
    data = pd.read_csv(path)
    rows: dict[tuple, dict[str, str]] = {}
    for row in data.itertuples():
        text = f"{row.seconds:.1f} s" if row.seconds >= 1 else f"{row.seconds:.3f} s"
        kind = "train" if row.mode == "train" else "detect"
        rows.setdefault((row.detector, row.image), {})[kind] = f"{text}, {row.peak_memory_mib:,} MiB"
    lines = [(*key, own.get("detect", "–"), own.get("train", "–")) for key, own in rows.items()]
    machine, threads = data["machine"].iloc[0], data["threads"].iloc[0]
    columns = ["what", "image", "detection, or encoding", "a training step of one image"]
    table = to_markdown(pd.DataFrame(lines, columns=columns), is_padded=False)
    source = f"[detector.csv]({path.relative_to(root).as_posix()})"
    return f"{table}\nMeasured with {threads} thread on: {machine}. Source: {source}.\n"


def blocks(root: Path, claims: Sequence[ClaimResult] | None = None) -> dict[str, str]:
    """The text of each generated part by the name of its markers; a part without published records is left out.

    Args:
        root: Of the project.
        claims: Verdicts on the published records; None leaves the part out.
    """
    made: dict[str, Callable[[], str]] = {}
    there = [name for name in PROFILES if any((root / PUBLISHED / name / "records").glob("*.json"))]

    def records(profile: str) -> list[dict]:
        return publish.load_records(root / PUBLISHED / profile / "records")

    def study(profile: str, note: str) -> str:
        return study_table(profile, records(profile), publish.planned_runs(profile), note=note)

    if "mini" in there:
        made["results"] = lambda: readme_table("mini", records("mini"), publish.planned_runs("mini"))
        made["picture"] = lambda: picture(root / PUBLISHED / "mini", (PUBLISHED / "mini").as_posix())
    if "studies" in there:
        made["studies"] = lambda: study("studies", STUDY_NOTE)
    if "latency" in there:
        made["latency"] = lambda: study("latency", LATENCY_NOTE)
    if (root / "notebooks" / f"{SECOND_SYSTEM[0]}.ipynb").is_file():
        made["open_vocabulary"] = lambda: second_system(root)
    if claims is not None:
        made["claims"] = lambda: claim_lines(claims)
    if (root / "notebooks").is_dir():
        made["notebooks"] = lambda: notebook_table(root)
    if (root / PUBLISHED / "benchmarks" / "detector.csv").is_file():
        made["benchmarks"] = lambda: benchmark_table(root)
    return {name: make() for name, make in made.items()}


def refresh(root: Path | None = None) -> list[Path]:
    """Write the README's generated parts, ``claims.md`` and the ``headline.md`` of each published profile anew.

    Returns:
        The files whose bytes changed; none where there is no README or nothing is published.

    Raises:
        RecordError: If the README does not hold the two markers of a part once.
    """
    root = root or project_root()
    readme, changed = root / "README.md", []
    if not readme.is_file() or not (root / PUBLISHED).is_dir():
        return []
    before, claims = readme.read_bytes(), None
    if (root / CLAIMS).is_file():
        file = read_claims(root / CLAIMS)
        records = published_records(file.profiles())
        claims = evaluate_claims(file, records)
        text = claims_page.page(file, claims, claims_page.warnings_by_profile(records))
        changed += _write(root / CLAIMS_PAGE, text)
    for name, text in blocks(root, claims).items():
        update_readme(readme, text, name=name)
    changed += [readme] if readme.read_bytes() != before else []
    for folder in sorted(path.parent for path in (root / PUBLISHED).glob("*/tables")):
        changed += _write(folder / "tables" / publish.HEADLINE, publish.headline_text(folder))
    return changed


def _write(path: Path, text: str) -> list[Path]:
    """Write a file unless it holds the text already; returns it if it was written."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return []
    path.write_text(text, encoding="utf-8", newline="\n")
    return [path]


def update_readme(path: Path, text: str, *, name: str = "results") -> None:
    """Put ``text`` between the two markers of that name in the README; an unchanged file is not written.

    Raises:
        RecordError: If the README does not hold the two markers once.
    """
    readme = path.read_text(encoding="utf-8")
    pattern = re.compile(f"(<!-- {name}: begin[^>]*-->).*?(<!-- {name}: end -->)", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise RecordError(
            f"{path}: expected the markers of the {name} once, <!-- {name}: begin --> to <!-- {name}: end -->."
        )
    new = pattern.sub(lambda found: f"{found[1]}\n\n{text}\n{found[2]}", readme)
    if new != readme:
        path.write_text(new, encoding="utf-8", newline="\n")
