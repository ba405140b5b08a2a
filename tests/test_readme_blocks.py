"""The README's generated parts: what the published records give, and nothing else."""

import shutil

import pytest

from risf_core.errors import RecordError
from risf_core.report.claims import evaluate_claims, published_records
from risf_core.report.claims_file import read_claims
from risf_core.report.literature import literature, published
from risf_core.report.publish import headline_text, paper_of
from risf_core.report.readme_blocks import (
    PUBLISHED,
    benchmark_table,
    blocks,
    claim_lines,
    notebook_table,
    picture,
    refresh,
    update_readme,
)
from risf_core.runs.yaml_files import project_root

ROOT = project_root()


@pytest.fixture(scope="module")
def claims():
    file = read_claims()
    return evaluate_claims(file, published_records(file.profiles()))


@pytest.fixture(scope="module")
def made(claims):
    return blocks(ROOT, claims)


def block(text: str, name: str) -> str:
    """What stands between the two markers of a name."""
    return text.split(f"<!-- {name}: begin")[1].split("-->", 1)[1].split(f"<!-- {name}: end -->")[0].strip()


def test_every_generated_part_of_the_readme_is_what_the_records_give(made):
    readme = (ROOT / "README.md").read_text()
    assert readme.count(": begin") == len(made) >= 7
    for name, text in made.items():
        assert block(readme, name) == text.strip(), f"{name}: run `make figures`"


@pytest.mark.parametrize("folder", sorted(path.parent for path in (ROOT / PUBLISHED).glob("*/tables")))
def test_every_published_headline_is_what_its_records_give(folder):
    assert (folder / "tables" / "headline.md").read_text() == headline_text(folder), "run `make figures`"


def test_refreshing_twice_changes_nothing_more(made, tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    readme.write_text(readme.read_text().replace("| 5 |", "| 6 |"))
    for name, text in made.items():
        update_readme(readme, text, name=name)
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_a_folder_without_a_readme_is_left_alone(tmp_path):
    (tmp_path / PUBLISHED).mkdir(parents=True)
    assert refresh(tmp_path) == [] and not (tmp_path / "README.md").exists()


def test_commands_links_and_pictures_of_the_readme_exist(made):
    for text in made.values():
        for target in [part.split(")")[0] for part in text.split("](")[1:]]:
            assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_papers_gain_stands_beside_ours_and_is_not_subtracted(made):
    (line,) = [
        line for line in made["results"].splitlines() if "RISF over cross-entropy, nAP, K=10, kshot" in line
    ]
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert cells[1] == "+3.4 (21.9 − 18.5, COCO)" and cells[4] == "not comparable"
    assert paper_of("BNRL's gain over ce, nAP50, K=5, kshot") == "–"


def test_the_picture_is_of_the_plain_run(made):
    name = made["picture"].split("before_after-")[1].split(".png")[0]
    assert "-5shot-" in name and "gfsod" not in name
    with pytest.raises(RecordError, match="before_after"):
        picture(ROOT / PUBLISHED / "latency", "x")


def test_claims_without_records_say_only_that(claims):
    lines = claim_lines(claims).splitlines()
    assert all(line.startswith("- **") for line in lines[:3])
    assert not any("no record yet" in line and "points" in line for line in lines)


def test_every_notebook_has_a_row_and_its_cost_is_of_its_records(made):
    table = notebook_table(ROOT)
    assert all(f"[`{path.stem}`]" in table for path in (ROOT / "notebooks").glob("*.ipynb"))
    records = published_records(["mini"])["mini"]
    seconds = sum(r["environment"]["cpu_seconds"] for r in records if r["notebook"] == "20_fine_tuning")
    assert f"| {seconds / 60:.1f} (mini) |" in table


def test_benchmarks_follow_their_file(tmp_path):
    folder = tmp_path / PUBLISHED / "benchmarks"
    folder.mkdir(parents=True)
    text = (ROOT / PUBLISHED / "benchmarks" / "detector.csv").read_text()
    (folder / "detector.csv").write_text(text.replace("8.299", "9.444"))
    assert "9.4 s, 1,855 MiB" in benchmark_table(tmp_path) and "8.3 s" not in benchmark_table(tmp_path)


# ---- published numbers of others


def test_claims_and_literature_name_the_same_numbers():
    values = {entry.value for entry in literature().values()}
    for claim in read_claims().claims:
        for value in claim.values:
            assert {value.paper, value.other} <= values, value.what


def test_an_unknown_number_names_the_nearest_and_a_wrong_file_says_where(tmp_path):
    with pytest.raises(RecordError, match="nearest: risf-coco-10shot"):
        published("risf-coco-10shots")
    path = tmp_path / "literature.yaml"
    path.write_text("one: {value: 1.0, what: x}\n")
    with pytest.raises(RecordError, match="one.source"):
        literature(path)
    with pytest.raises(RecordError, match="no such file"):
        literature(tmp_path / "nowhere.yaml")
