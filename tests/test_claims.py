"""claims.yaml is read strictly, its rules decide as written, and claims.md holds nothing that has no record."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from risf_core.errors import RisfError
from risf_core.report import claims as module
from risf_core.report.claims import evaluate_claims, main, published_records
from risf_core.report.claims_evidence import ProfileNumbers, student_test
from risf_core.report.claims_file import ClaimsError, read_claims
from risf_core.report.claims_page import evidence_table, page, verdict_text
from risf_core.report.crossed import WIDE
from risf_core.report.publish import planned_runs
from risf_core.runs.state import run_id
from risf_core.runs.yaml_files import project_root
from tests.crossed_records import crossed_records
from tests.synthetic_records import fine_tuning_record, fine_tuning_row

FAMILY = {
    "alpha": 0.05,
    "correction": "holm",
    "smallest_relevant": 1.0,
    "underpowered_above": 1.0,
    "metric": "nAP50",
}
RUNS = ("fine_tuning-a", "fine_tuning-b")
RECORD = {"run_id": "x", "notebook": "20_fine_tuning"}


def number(name: str, mean: float, half_width: float, n: int = 5) -> dict:
    value = f"{mean:+.1f} ± {half_width:.1f}"
    found = {"quantity": name, "value": value, "n": n, "notebook": "20_fine_tuning", "run_ids": RUNS}
    return found | {"mean": mean, "half_width": half_width}


NUMBERS = {
    "sure": (6.0, 0.5),
    "also sure": (3.0, 0.5),
    "sure loss": (-3.0, 0.5),
    "unseen": (0.4, 3.0),
    "surely small": (0.2, 0.4),
    "beside 0 alone": (1.0, 0.99),
    "level 1": (10.0, math.nan),
    "level 2": (20.0, math.nan),
    "level 3": (15.0, math.nan),
}


class MadeNumbers(ProfileNumbers):
    """Numbers that stand in for those of records."""

    headline = pd.DataFrame([number(name, *values) for name, values in NUMBERS.items()], dtype=object)
    tables = {
        "t": pd.DataFrame(
            {"arm": ["a", "b", "b"], "K": [1, 1, 2], "mean": [2.0, 3.0, np.nan], "n": [5, 5, 0]}
        )
    }
    effects = pd.DataFrame(
        [
            {
                "effect": "bnrl - ce",
                "loss": "",
                "arm": "missing",
                "shots": shots,
                "mean": mean,
                "half_width": half,
            }
            | {
                "n": 90,
                "splits": 3,
                "bases": 3,
                "draws": 10,
                "clips": 0,
                "left_out": 0,
                "method": "crossed",
                "p": p,
                "standard_error": half / 2,
                "df": 20.0,
                "run_ids": "a b c",
            }
            for shots, mean, half, p in ((1, 2.0, 0.5, 1e-6), (10, 0.3, 0.5, 0.2), ("all", 1.0, 0.4, 1e-4))
        ]
    )


def made(profile: str, records) -> ProfileNumbers:
    return MadeNumbers(profile, records)


def claim(*quantities: str, kind="test", rule="all_above_zero", expect=(), **more) -> dict:
    evidence = [{"profile": "mini", "quantity": name} for name in quantities]
    for entry, expected in zip(evidence, expect):
        entry["expect"] = expected
    found = {"id": "a-claim", "says": "It helps", "kind": kind, "rule": rule, "evidence": evidence}
    return found | {"notebook": ["20_fine_tuning"]} | more


def write(path: Path, *claims: dict, questions=(), **more) -> Path:
    content = {"family": FAMILY, "claims": list(claims), "questions": list(questions)} | more
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    return path


def judge(tmp_path, *claims: dict, questions=(), records=(RECORD,)) -> list:
    """The results with made numbers; a claim that is always there lets questions be asked alone."""
    claims = claims or (claim("sure", id="filler"),)
    path = write(tmp_path / "claims.yaml", *claims, questions=questions)
    return evaluate_claims(read_claims(path), {"mini": list(records)}, numbers=made)


@pytest.mark.parametrize(
    ("quantities", "verdict"),
    [
        (("sure", "also sure"), "reproduced"),
        (("sure", "unseen"), "partly"),
        (("sure", "sure loss"), "partly"),
        (("unseen",), "not"),
        (("sure loss",), "not"),
        (("level 1",), "not"),  # no interval decides nothing
    ],
)
def test_a_claim_is_reproduced_partly_or_not(tmp_path, quantities, verdict):
    (result,) = judge(tmp_path, claim(*quantities))
    assert result.verdict == verdict


def test_reason_says_what_is_not_so_and_what_could_have_been_seen(tmp_path):
    (result,) = judge(tmp_path, claim("sure", "unseen", "sure loss", reason="A sentence."))
    assert result.reason.startswith(
        "1 of 3 as expected, 1 CONTRADICT it (the other sign after correction); "
        "not so unseen: +0.4 ± 3.0 holds 0 (smallest effect that"
    )
    assert (
        "underpowered (half-width above 1)" in result.reason
        and "sure loss: -3.0 ± 0.5 lies below 0" in result.reason
    )
    assert result.reason.endswith("A sentence.") and result.is_underpowered
    assert [row.lies for row in result.rows] == ["above 0", "undecided", "below 0"]


def test_holm_counts_every_tested_number_of_the_file_once(tmp_path):
    """By hand: p of 1.0 ± 0.99 is 0.049 alone; with another test of the family it must be below 0.025."""
    (alone,) = judge(tmp_path, claim("beside 0 alone"))
    p = alone.rows[0].p
    t = 1.0 / (0.99 / stats.t.ppf(0.975, 4))
    assert p == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-9) and p < 0.05
    assert alone.verdict == "reproduced" and alone.rows[0].holm_p == pytest.approx(p)
    (both, _) = judge(tmp_path, claim("beside 0 alone"), claim("unseen", "beside 0 alone", id="b"))
    assert both.verdict == "not" and both.rows[0].holm_p == pytest.approx(2 * p)
    assert "lies beside 0, but not after the correction" in both.reason
    question = claim("unseen", "beside 0 alone", id="b", kind="question")
    (first, asked) = judge(tmp_path, claim("beside 0 alone"), questions=[question])
    assert first.verdict == "reproduced"  # a question that is added changes no verdict on a claim
    assert asked.rows[1].holm_p == pytest.approx(2 * p) and asked.rows[1].lies == "undecided"


def test_a_number_without_a_record_makes_no_other_p_smaller(tmp_path):
    elsewhere = claim("sure", id="b")
    elsewhere["evidence"][0]["profile"] = "voc"
    first, second = judge(tmp_path, claim("beside 0 alone"), elsewhere)
    assert first.verdict == "not" and first.rows[0].holm_p == pytest.approx(2 * first.rows[0].p)
    assert second.verdict == "no record yet" and second.rows[0].value == "no record yet"
    assert second.rows[0].run_ids == () and second.rows[0].mean is None


def test_missing_runs_make_a_verdict_preliminary(tmp_path, monkeypatch):
    monkeypatch.setattr(MadeNumbers, "planned", lambda self, notebooks: (2, 9))
    (result,) = judge(tmp_path, claim("sure"))
    assert result.verdict == "reproduced" and verdict_text(result) == "reproduced (preliminary)"
    assert result.reason.startswith(
        "PRELIMINARY: 2 of 9 planned runs of mini have no record. 1 of 1 as expected."
    )
    monkeypatch.setattr(MadeNumbers, "planned", lambda self, notebooks: (0, 9))
    assert not judge(tmp_path, claim("sure"))[0].is_preliminary


def test_planned_runs_are_those_of_the_notebooks_of_the_claim():
    runs = planned_runs("mini")
    tunings = [run_id(spec.params) for spec in runs if spec.params.notebook == "20_fine_tuning"]
    source = ProfileNumbers("mini", [{"run_id": name} for name in tunings[1:]], runs)
    assert source.planned(["20_fine_tuning"]) == (1, len(tunings)) and source.awaits(["20_fine_tuning"])
    assert source.planned(["99_other"]) == (0, 0) and not source.awaits(["99_other"])


def test_all_below_zero_and_expected_signs(tmp_path):
    assert judge(tmp_path, claim("sure loss", rule="all_below_zero"))[0].verdict == "reproduced"
    as_said = claim(
        "sure", "sure loss", "surely small", rule="as_expected", expect=("above", "below", "near")
    )
    assert judge(tmp_path, as_said)[0].verdict == "reproduced"
    wrong = claim("sure", "unseen", rule="as_expected", expect=("near", "near"))
    (result,) = judge(tmp_path, wrong)
    assert result.verdict == "not" and "may be as large as matters" in result.reason


@pytest.mark.parametrize(
    ("names", "rule", "verdict"),
    [
        (("level 1", "level 3", "level 2"), "rising", "reproduced"),
        (("level 1", "level 2", "level 3"), "rising", "partly"),
        (("level 2", "level 1"), "rising", "not"),
        (("level 2", "level 3", "level 1"), "falling", "reproduced"),
    ],
)
def test_an_order_of_levels(tmp_path, names, rule, verdict):
    (result,) = judge(tmp_path, claim(*names, kind="levels", rule=rule))
    assert result.verdict == verdict and "not a test" in result.reason
    assert all(math.isnan(row.holm_p) for row in result.rows)


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (("sure",), "yes"),
        (("surely small",), "no"),  # its interval ends below what matters
        (("sure loss", "surely small"), "no"),
        (("unseen",), "unclear"),
        (("sure", "surely small"), "in part"),
        (("sure", "unseen"), "unclear"),
    ],
)
def test_a_question_is_answered(tmp_path, names, answer):
    *_, result = judge(tmp_path, questions=[claim(*names, kind="question")])
    assert result.verdict == answer


def test_published_numbers_are_not_testable_here_and_name_their_source(tmp_path):
    values = [
        {"what": "nAP", "paper": 21.9, "other": 18.5, "other_name": "X", "source": "https://a.org/b; a book"}
    ]
    (result,) = judge(tmp_path, {"id": "p", "says": "Best", "kind": "published", "values": values})
    assert result.verdict == "not testable here"
    assert result.rows[0].value == "21.9 against 18.5 of X: +3.4"
    assert result.rows[0].links == (("https://a.org/b", "https://a.org/b"), ("a book", ""))
    assert evidence_table(result)["source"].tolist() == ["[a.org](https://a.org/b), a book"]


def effect(**more) -> dict:
    return claim() | {"evidence": [{"profile": "mini", "effect": "bnrl - ce", "arm": "missing"} | more]}


def test_an_effect_has_its_own_p_and_degrees_of_freedom(tmp_path):
    (result,) = judge(tmp_path, effect(shots=1))
    row = result.rows[0]
    assert (result.verdict, row.value, row.n, row.p) == ("reproduced", "+2.0 ± 0.5", 90, 1e-6)
    assert row.count == "3 × 3 × 10" and evidence_table(result)["n"].tolist() == ["3 × 3 × 10"]
    assert row.text == "bnrl − ce, missing, K=1" and row.run_ids == ("a", "b", "c")
    assert row.links == (("3 records", "results/published/mini/records/"),)
    (result,) = judge(tmp_path, effect(shots=10))
    assert result.verdict == "not"
    # power of a two-sided test at 5 % with se 0.25 and df 20 is 80 % there
    critical = stats.t.ppf(0.975, 20)
    assert stats.nct.sf(critical, 20, result.rows[0].mde / 0.25) == pytest.approx(0.8, abs=1e-3)
    assert judge(tmp_path, effect(shots="all"))[0].rows[0].mean == 1.0


def test_an_effect_of_several_base_models_names_their_records(tmp_path):
    """Planted: CM-CLIP adds 6 with the first CLIP and 6.5 with the second; BNRL adds 1."""
    records = crossed_records(seeds=3, is_exact=True)
    entry = {"profile": "mini", "effect": "cm_clip - none", "loss": "ce", "arm": "kshot", "shots": 1}
    path = write(tmp_path / "claims.yaml", claim() | {"evidence": [entry]})
    (result,) = evaluate_claims(read_claims(path), {"mini": records}, numbers=ProfileNumbers)
    row = result.rows[0]
    assert row.mean == pytest.approx(6.25) and row.count == "3 × 3 × 3 × 2" and row.n == 54
    assert result.verdict == "reproduced" and row.p == 0.0
    used = {record["run_id"] for record in records if record["run_id"] in row.run_ids}
    assert used == set(row.run_ids)
    assert {name.split("-")[0] for name in used} == {"fine_tuning", "clip_backbones"}
    entry["shots"] = 3  # was not run
    with pytest.raises(ClaimsError, match="effect cm_clip - none, ce, kshot, 3"):
        path = write(tmp_path / "claims.yaml", claim() | {"evidence": [entry]})
        evaluate_claims(read_claims(path), {"mini": records}, numbers=ProfileNumbers)


def test_a_cell_of_a_table(tmp_path):
    entry = {"profile": "mini", "table": "t", "where": {"arm": "b", "K": 1}, "value": "mean", "count": "n"}
    levels = claim(kind="levels", rule="rising") | {"evidence": [entry | {"where": {"arm": "a"}}, entry]}
    (result,) = judge(tmp_path, levels)
    assert [row.run_ids for row in result.rows] == [("x",), ("x",)]  # the records of the claim's notebooks
    assert [row.mean for row in result.rows] == [2.0, 3.0] and result.verdict == "reproduced"
    assert result.rows[0].text == "mean of t (arm a)"
    levels["evidence"][1] = entry | {"where": {"arm": "b", "K": 2}}
    assert judge(tmp_path, levels)[0].verdict == "no record yet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kindd": "test"}, "unknown parameter 'claims[0].kindd' (nearest: 'claims[0].kind')"),
        ({"says": 5}, "claims[0].says: expected text, got 5"),
        ({"rule": "above"}, "claims[0].rule: expected one of all_above_zero"),
        ({"rule": "rising"}, "rule: kind test takes all_above_zero, all_below_zero, as_expected, got rising"),
        ({"rule": "as_expected"}, "rule as_expected: sure: say expect"),
        ({"kind": "question"}, "a-claim: a question belongs under questions"),
        ({"kind": "published"}, "kind published needs values"),
        ({"kind": "levels", "rule": "rising"}, "rule rising needs two numbers or more"),
        ({"evidence": []}, "kind test needs evidence, rule and notebook"),
        ({"evidence": [{"profile": "mini"}]}, "names one effect, quantity or table, got none of them"),
        ({"evidence": [{"profile": "mini", "quantity": "a", "effect": "b"}]}, "got effect and quantity"),
        (
            {"evidence": [{"profile": "mini", "quantity": "a", "arm": "b"}]},
            "arm: has no meaning beside quantity",
        ),
        ({"evidence": [{"profile": "mini", "table": "t"}]}, "a table needs where and value"),
        (
            {"evidence": [{"profile": "mini", "quantity": "a", "expect": "above"}]},
            "expect belongs to the rule",
        ),
        (
            {"evidence": [{"profile": "min", "quantity": "a"}]},
            "a-claim: there is no profile min (nearest: mini)",
        ),
        ({"notebook": ["20_finetuning"]}, "there is no notebook 20_finetuning (nearest: 20_fine_tuning)"),
        ({"id": "A claim"}, "claims[0].id"),
    ],
)
def test_a_wrong_file_is_one_error_that_says_where(tmp_path, change, message):
    path = write(tmp_path / "claims.yaml", claim("sure") | change)
    with pytest.raises(ClaimsError) as raised:
        read_claims(path)
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_an_id_that_is_given_twice_and_a_file_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ClaimsError, match="id a-claim is given twice"):
        read_claims(write(tmp_path / "claims.yaml", claim("sure"), claim("sure")))
    with pytest.raises(ClaimsError, match="there is no such file"):
        read_claims(tmp_path / "none.yaml")
    (tmp_path / "claims.yaml").write_text("family: {alpha: 1e-2}\nfamily: {}\n")
    with pytest.raises(RisfError, match="given twice"):
        read_claims(tmp_path / "claims.yaml")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quantity": "sur"}, "profile mini has no sur (nearest: sure)"),
        (
            {"effect": "bnrl - ce", "shots": 3},
            "profile mini has no effect bnrl - ce, 3 (nearest: bnrl - ce, ",
        ),
        (
            {"effect": "ce - bnrl", "arm": "full", "shots": 1},
            "has no effect ce - bnrl, full, 1 (nearest: bnrl - ce",
        ),
        ({"effect": "bnrl - ce", "arm": "missing"}, "3 rows fit; name one"),
        (
            {"table": "t", "where": {"arms": "a"}, "value": "mean"},
            "its table has no column arms (nearest: arm)",
        ),
    ],
)
def test_evidence_that_names_no_number_of_a_finished_profile_is_an_error(tmp_path, entry, message):
    with pytest.raises(ClaimsError) as raised:
        judge(tmp_path, claim() | {"evidence": [{"profile": "mini"} | entry]})
    assert message in str(raised.value) and "a-claim" in str(raised.value)


def test_student_test_is_that_of_the_values():
    values = np.array([1.0, 3.0, 2.0, 5.0])
    half_width = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    p, error, df = student_test(values.mean(), half_width, 4)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9)
    assert (error, df) == (pytest.approx(values.std(ddof=1) / 2), 3)
    assert student_test(2.0, 0.0, 4)[0] == 0.0 and student_test(0.0, 0.0, 4)[0] == 1.0
    assert all(math.isnan(value) for value in student_test(2.0, math.nan, 1))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one published record of ce with and without CM-CLIP, five seeds."""
    rows = [
        fine_tuning_row(seed=seed, rescoring=how, nAP50=50.0 + seed + (6.0 + 0.1 * seed) * (how == "cm_clip"))
        for seed in range(5)
        for how in ("none", "cm_clip")
    ]
    record = fine_tuning_record(rows)
    folder = tmp_path / "results" / "published" / "mini" / "records"
    folder.mkdir(parents=True)
    (folder / f"{record['run_id']}.json").write_text(json.dumps(record))
    for path in ("params/mini", "params/voc", "notebooks"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "notebooks" / "20_fine_tuning.ipynb").write_text("{}")
    monkeypatch.setenv("RISF_ROOT", str(tmp_path))
    quantity = "CM-CLIP's gain with ce, nAP50, K=5, kshot"
    write(tmp_path / "claims.yaml", claim(quantity))
    return tmp_path


def test_the_page_follows_from_published_records_and_is_the_same_twice(project, capsys):
    main([])
    text = (project / "claims.md").read_text()
    assert "Wrote" in capsys.readouterr().out
    (record,) = (project / "results" / "published" / "mini" / "records").iterdir()
    assert "| +6.2 ± 0.2 (5/5 up) | 5 |" in text and f"(results/published/mini/records/{record.name})" in text
    assert "**1 claim: 1 reproduced.**" in text and "(notebooks/20_fine_tuning.ipynb)" in text
    main([])
    assert (project / "claims.md").read_text() == text
    record.unlink()
    main([])
    assert "**1 claim: 1 no record yet.**" in (project / "claims.md").read_text()


def test_the_command_fails_in_one_line(project, capsys):
    write(project / "claims.yaml", claim("nosuch"))
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("ClaimsError: ") and error.count("\n") == 1 and "nosuch" in error


# What is committed.

LINK = re.compile(r"\]\(([^)#\s]+)\)")
DECIMAL = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def ours():
    """claims.yaml, its results from the published records, and these records."""
    claims = read_claims()
    records = published_records(claims.profiles())
    return claims, evaluate_claims(claims, records), records


def test_the_family_of_our_claims_is_that_of_the_tables(ours):
    assert ours[0].family.underpowered_above == WIDE


def test_every_number_of_our_claims_has_a_published_record(ours):
    claims, results, records = ours
    runs = {profile: {record["run_id"] for record in own} for profile, own in records.items()}
    for result in results:
        for row in result.rows:
            if row.profile and row.mean is not None:
                assert row.run_ids and set(row.run_ids) <= runs[row.profile], row.text
            for _, address in row.links:
                assert address.startswith("https://") or (project_root() / address).exists(), address


def test_our_sentences_hold_no_number_of_ours_that_was_typed(ours):
    for claim_ in ours[0].all():
        shown = " ".join(f"{value.paper} {value.other}" for value in claim_.values)
        for sentence in (claim_.says, claim_.reason or ""):
            assert not set(DECIMAL.findall(sentence)) - set(shown.split()), sentence


def test_our_page_is_what_the_published_records_give(ours):
    claims, results, records = ours
    from risf_core.report.claims_page import warnings_by_profile

    path = project_root() / module.PAGE
    if not path.is_file():
        pytest.skip("claims.md is not written yet: python -m risf_core.report.claims")
    text = path.read_text(encoding="utf-8")
    assert text == page(claims, results, warnings_by_profile(records)), (
        "run: python -m risf_core.report.claims"
    )
    for address in LINK.findall(text):
        assert address.startswith("https://") or (project_root() / address).exists(), address
