"""Every number that a reader sees has a record: README, report and claims; a changed number is noticed.

Generated parts are tested in `test_readme_blocks.py`. What the README gives by hand (decimals, percent, intervals,
points, times, memory) is declared in `readme_numbers.yaml` with a source, and the source is looked up here.
"""

import csv
import html
import json
import re
from pathlib import Path

import pytest
import yaml

from risf_core.report import html_parts
from risf_core.report.claims import EvidenceRow
from risf_core.report.html_report import report
from risf_core.report.html_sources import sources
from risf_core.report.literature import literature
from risf_core.runs.yaml_files import project_root, read_yaml
from tests.synthetic_records import all_records

ROOT = project_root()
DECLARED = yaml.safe_load((ROOT / "tests" / "readme_numbers.yaml").read_text())
UNITS = r"%|points?|hours?|h|minutes?|min|seconds?|s|ms|[KMG]i?B|px|M"
NUMBER = re.compile(rf"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?:\s*±\s*[\d.]+)?(?:\s?(?:{UNITS})(?![\w-]))?")
VERSIONS = re.compile(r"Python (?:from )?3\.\d+|Apache-2\.0|torch \d+\.\d+")


def by_hand(readme: str) -> list[str]:
    """The README's lines without generated parts, code, addresses and versions."""
    text = re.sub(r"<!-- (\w+): begin.*?<!-- \1: end -->", "", readme, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?: {4,}|\t).*$", "", text, flags=re.MULTILINE)
    return VERSIONS.sub("", text).splitlines()


def numbers_of(line: str) -> list[str]:
    """The texts of a line that are numbers of results or settings: not bare integers, which count things."""
    line = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`", line))
    found = [text.strip() for text in NUMBER.findall(line)]
    return [text for text in found if re.search(r"\.\d|\de-|±|[A-Za-z%]", text)]


def undeclared(readme: str) -> list[str]:
    """Numbers of the README that `readme_numbers.yaml` does not hold for their line."""
    problems = []
    for line in by_hand(readme):
        known = {text for entry in DECLARED if entry["line"] in line for text in entry["numbers"]}
        problems += [f"{text!r} in: {line[:90]}" for text in numbers_of(line) if text not in known]
    return problems


def value_of(text: str) -> float:
    """The number of a text such as ``1,855 MiB`` or ``151 h``."""
    found = re.match(r"[+−-]?[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?", text)[0]
    return float(found.replace(",", "").replace("−", "-"))


def same(text: str, value: float) -> bool:
    """Whether a text gives a value to its own number of decimals."""
    number = re.match(r"[+−-]?[\d,]+(?:\.(\d+))?(?:e[+-]?\d+)?", text)
    if "e" in number[0]:
        return value_of(text) == value
    return value_of(text) == round(value, len(number[1] or ""))


def holds(text: str, source: str) -> bool:
    """Whether a declared source gives the number of a text."""
    kind, rest = source.split(" ", 1)
    if kind == "literature":
        return same(text, literature()[rest].value)
    if kind == "params":
        path, key = rest.split(" ")
        value = read_yaml(ROOT / path)
        for name in key.split("."):
            value = value[name]
        return value_of(text) == value
    if kind == "csv":
        path, column, *keys = rest.split(" ")
        wanted = dict(key.split("=") for key in keys)
        with (ROOT / path).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row[k] == v for k, v in wanted.items())]
        return len(rows) == 1 and same(text, float(rows[0][column]))
    assert kind == "says", source
    path, said = rest.split(": ", 1)
    in_it = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", said)
    return said in (ROOT / path).read_text() and value_of(text) in map(value_of, in_it)


# ---- README


def test_every_number_of_the_readme_is_declared():
    assert undeclared((ROOT / "README.md").read_text()) == []


@pytest.mark.parametrize("entry", DECLARED, ids=lambda entry: entry["line"][:30])
def test_every_declared_number_is_in_its_source_and_in_the_readme(entry):
    lines = [line for line in by_hand((ROOT / "README.md").read_text()) if entry["line"] in line]
    assert len(lines) == 1, f"{entry['line']!r} names {len(lines)} lines of the README"
    for text, source in entry["numbers"].items():
        assert text in numbers_of(lines[0]), f"{text} is not in the README's line any more"
        assert holds(text, source), f"{text}: not what is found by: {source}"


def test_a_changed_number_is_noticed():
    """Each kind of number, changed in a copy."""
    readme = (ROOT / "README.md").read_text()
    for old, new in (
        ("10 shots is 21.9", "10 shots is 22.9"),
        ("| 151 h | 21 h |", "| 150 h | 21 h |"),
        ("score 1e-5 |", "score 1e-6 |"),
        ("(8.3 s an image", "(8.4 s an image"),
    ):
        assert old in readme and undeclared(readme.replace(old, new)), old
    added = readme.replace("## Install", "It gains +3.2 ± 0.4 points, 12 % more.\n\n## Install")
    assert len(undeclared(added)) == 2


def test_a_wrong_source_is_noticed():
    assert holds("21.9", "literature risf-coco-10shot") and not holds("22.9", "literature risf-coco-10shot")
    cell = "csv results/published/benchmarks/detector.csv seconds detector=R-101-C4 mode=detect"
    assert holds("8.3 s", cell) and not holds("8.4 s", cell)
    assert holds("0.01", "params params/coco/fine_tuning.yaml solver.lr")
    assert not holds("0.02", "params params/coco/fine_tuning.yaml solver.lr")
    said = "says params/coco/10_base_training.yaml: about 151 hours on one V100"
    assert holds("151 h", said) and not holds("152 h", said)
    assert not holds("151 h", "says params/coco/10_base_training.yaml: about 151 hours on two V100")


# ---- messages of the section Troubleshooting


def test_messages_to_look_up_are_those_that_the_code_gives():
    section = (ROOT / "README.md").read_text().split("## Troubleshooting")[1].split("\n## ")[0]
    files = [*(ROOT / "risf_core").rglob("*.py"), *(ROOT / "tools").glob("*.py"), ROOT / "Makefile"]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))
    shown = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    messages = [message for cell in shown for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) >= 8
    for message in messages:  # between what the code fills in: numbers, quoted names, the demo's file
        parts = [
            part.strip() for part in re.split(r"\.\.\.|\b\d\d?\b|'\w+'|demo.json|the results|nAP50", message)
        ]
        said = [part for part in parts if len(part) > 3]
        assert said and all(part in code for part in said), message


# ---- report


def shown_numbers(page: str) -> set[str]:
    """The numbers with an interval, a sign or a percentage that a page of HTML shows."""
    text = html.unescape(
        re.sub(r"<[^>]+>", " ", re.sub(r'data:[^"]+|<style>.*?</style>', "", page, flags=re.S))
    )
    return set(re.findall(r"[+−]?\d+\.\d+ ± \d+\.\d+|[+−]\d+\.\d+|\d+(?:\.\d+)? %", text))


def test_every_number_of_the_report_is_one_of_its_tables_headline_or_captions(tmp_path):
    folder = tmp_path / "results" / "published" / "mini" / "records"
    folder.mkdir(parents=True)
    for record in all_records(seeds=2):
        (folder / f"{record['run_id']}.json").write_text(json.dumps(record))
    own = sources(root=tmp_path)
    page = report(own, {}, Path(tmp_path / "results" / "report.html"))
    claims = page.split('<h2 id="claims">')[1].split('<h2 id="figures')[0]
    from_records = " ".join(
        [
            *(
                cell
                for s in own
                for t in s.tables
                for cell in (*t.display.astype(str).to_numpy().ravel(), t.caption)
            )
        ]
        + [*(value for s in own for value in s.headline["value"])]
    )
    sections = page.replace(claims, "")
    missing = {text for text in shown_numbers(sections) if text not in from_records}
    assert missing <= {"95 %"}
    typed = shown_numbers(sections.replace("</h2>", "</h2> by hand: +99.9 ± 1.0, 71 %", 1))
    assert {"+99.9 ± 1.0", "71 %"} == {text for text in typed if text not in from_records} - {"95 %"}


def test_the_claims_of_the_report_are_the_evaluated_rows(tmp_path):
    """Each cell comes from a row: another mean gives another cell."""
    row = EvidenceRow(
        "x", "mini", "+1.5 ± 0.2", mean=1.5, half_width=0.2, n=5, p=0.001, holm_p=0.004, mde=0.3
    )
    cells = html_parts._evidence(row, "above", {}, tmp_path / "report.html")
    assert cells[2:8] == ["+1.5 ± 0.2", "5", "0.0010", "0.0040", "0.3", "above 0"]
