"""Verdicts on the paper's claims: ``claims.yaml`` against records, by rules fixed before the runs.

``python -m risf_core.report.claims`` writes ``claims.md`` from the published records alone: same records, same bytes.
Imports no torch.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from risf_core.errors import RisfError
from risf_core.report.claims_evidence import NO_RECORD, Found, ProfileNumbers, find
from risf_core.report.claims_file import FILE, ORDER_RULES, Claim, ClaimsFile, Family, read_claims
from risf_core.report.crossed import holm, holm_levels, minimum_detectable_effect
from risf_core.report.table_format import number
from risf_core.runs.yaml_files import project_root

REPRODUCED, PARTLY, NOT, NOT_TESTABLE = "reproduced", "partly", "not", "not testable here"
YES, NO, IN_PART, UNCLEAR = "yes", "no", "in part", "unclear"
PUBLISHED = Path("results") / "published"
PAGE = "claims.md"
# How the interval lies, for a reader.
ABOVE, BELOW, UNDECIDED, NO_INTERVAL, NEAR, NOT_NEAR = (
    "above 0", "below 0", "undecided", "no interval", "near 0", "not near 0",
)  # fmt: skip


@dataclass(frozen=True)
class EvidenceRow:
    """One number of a claim, judged.

    Attributes:
        text: What it is.
        profile: Whose records hold it; "" for a published number.
        value: As a reader sees it, with its interval.
        mean: The number; None where there is no record.
        half_width: Half the width of its 95 % interval; NaN without one.
        n: How many values stand behind it.
        count: The same as a reader sees it: a number, or splits × base models × draws × CLIPs.
        p: Two-sided p of a mean of 0; NaN where nothing was tested.
        holm_p: The same after Holm's correction over the family; NaN outside the family.
        mde: Smallest effect that would have been seen with a power of 0.8 at the corrected level; NaN where nothing was
            tested.
        lies: How it lies to 0 after the correction: above 0, below 0, undecided, near 0, ...; "" where 0 is no matter.
        is_met: Whether it is as the rule expects; None where there is no record or it is judged with others alone.
        is_underpowered: Whether its half-width exceeds what the file calls underpowered.
        run_ids: Its records.
        links: (text, address from the project's root) of its records, or of a published number's sources, where the
            address may be "".
    """

    text: str
    profile: str
    value: str
    mean: float | None = None
    half_width: float = math.nan
    n: int = 0
    p: float = math.nan
    holm_p: float = math.nan
    mde: float = math.nan
    lies: str = ""
    is_met: bool | None = None
    is_underpowered: bool = False
    run_ids: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    count: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its verdict.

    Attributes:
        claim: As the file has it: id, says, where, kind, rule, n, notebook.
        verdict: reproduced, partly, not, not testable here or no record yet; of a question yes, no, in part, unclear
            or no record yet.
        reason: Why, from the numbers, and then the file's own sentence.
        rows: The evidence in the file's order.
        is_preliminary: Whether planned runs of its notebooks are missing, so that its numbers may yet change.
    """

    claim: Claim
    verdict: str
    reason: str
    rows: tuple[EvidenceRow, ...]
    is_preliminary: bool = False

    @property
    def id(self) -> str:
        """The claim's id, an anchor on the page."""
        return self.claim.id

    @property
    def says(self) -> str:
        """The claim in our words."""
        return self.claim.says

    @property
    def kind(self) -> str:
        """test, levels, published or question."""
        return self.claim.kind

    @property
    def notebooks(self) -> tuple[str, ...]:
        """Names of the notebooks that make the evidence."""
        return self.claim.notebook

    @property
    def is_underpowered(self) -> bool:
        """Whether a number that is not as expected has too wide an interval to say so."""
        return any(row.is_underpowered and row.is_met is False for row in self.rows)


def evaluate_claims(
    claims: ClaimsFile,
    records: Mapping[str, Sequence[Mapping]],
    *,
    numbers: Callable[[str, Sequence[Mapping]], ProfileNumbers] | None = None,
) -> list[ClaimResult]:
    """Every claim and question with its verdict, in the file's order.

    Args:
        claims: What is claimed and what decides it.
        records: Records of each profile; a profile without an entry has none.
        numbers: What makes the numbers of a profile from its records; by default its headline, tables and effects,
            with its list of runs.

    Raises:
        ClaimsError: If a piece of evidence names no number that its records hold, although no run is missing.
    """
    make = numbers or numbers_of
    sources = {profile: make(profile, records.get(profile, ())) for profile in claims.profiles()}
    found: dict[tuple[str, str], Found] = {}
    for claim in claims.all():
        for evidence in claim.evidence:
            source = sources[evidence.profile]
            place = claim.id, evidence.key()
            found[place] = find(evidence, source, notebooks=claim.notebook, where=claim.id)
    p_values = {key: one.p for (_, key), one in found.items() if one.is_there}
    tests = {asked: _corrected(claims, p_values, questions=asked) for asked in (False, True)}
    results = [
        _evaluate(claim, claims.family, found, tests[claim.kind == "question"]) for claim in claims.all()
    ]
    return [_with_missing_runs(result, sources) for result in results]


def _with_missing_runs(result: ClaimResult, sources: Mapping[str, ProfileNumbers]) -> ClaimResult:
    """The result, marked as preliminary where planned runs of its notebooks have no record."""
    if result.verdict == NO_RECORD:
        return result
    texts = []
    for profile in dict.fromkeys(row.profile for row in result.rows if row.profile):
        missing, planned = sources[profile].planned(result.claim.notebook)
        if missing:
            texts.append(f"{missing} of {planned} planned runs of {profile} have no record")
    if not texts:
        return result
    reason = f"PRELIMINARY: {', '.join(texts)}. {result.reason}"
    return replace(result, reason=reason, is_preliminary=True)


class Corrected(NamedTuple):
    """A test within the family: its p after the correction, and the level at which its own p was tested."""

    p: float
    level: float


def _corrected(claims: ClaimsFile, p_values: Mapping[str, float], *, questions: bool) -> dict[str, Corrected]:
    """Holm over a whole family; a number without a record counts as p = 1, so that it makes no other p smaller."""
    keys = claims.family_keys(questions=questions)
    values = [p_values.get(key, 1.0) for key in keys]
    levels = holm_levels(values, alpha=claims.family.alpha)
    return {key: Corrected(p, level) for key, p, level in zip(keys, holm(values), levels, strict=True)}


def numbers_of(profile: str, records: Sequence[Mapping]) -> ProfileNumbers:
    """The numbers of a profile's records, with its list of runs."""
    from risf_core.report.publish import planned_runs  # which itself writes the claims

    return ProfileNumbers(profile, records, planned_runs(profile))


def _evaluate(
    claim: Claim, family: Family, found: Mapping[tuple[str, str], Found], tests: Mapping[str, Corrected]
) -> ClaimResult:
    if claim.kind == "published":
        rows = tuple(_published_row(value) for value in claim.values)
        return ClaimResult(claim, NOT_TESTABLE, claim.reason or "", rows)
    rows = []
    for evidence, expected in zip(claim.evidence, claim.expectations(), strict=True):
        one = found[claim.id, evidence.key()]
        test = tests[evidence.key()] if expected in ("above", "below") else None
        rows.append(_judge(evidence.name(), evidence.profile, one, expected, test, family))
    verdict, reason = _verdict(claim, rows, family)
    return ClaimResult(claim, verdict, " ".join(filter(None, (reason, claim.reason))), tuple(rows))


def _published_row(value) -> EvidenceRow:
    difference = number(value.paper - value.other, sign=True)
    text = f"{value.paper:g} against {value.other:g} of {value.other_name}: {difference}"
    parts = [part.strip() for part in value.source.split(";")]
    links = tuple((part, part if part.startswith(("https://", "http://")) else "") for part in parts)
    return EvidenceRow(value.what, "", text, value.paper, links=links)


def _judge(
    text: str, profile: str, one: Found, expected: str | None, test: Corrected | None, family: Family
) -> EvidenceRow:
    if not one.is_there:
        return EvidenceRow(text, profile, NO_RECORD)
    lies, is_met = "", None
    if expected == "near":
        is_near = abs(one.mean) + one.half_width < family.smallest_relevant  # False without an interval
        lies, is_met = (NO_INTERVAL if math.isnan(one.half_width) else NEAR if is_near else NOT_NEAR), is_near
    elif test:
        lies = _sign(one, test.p, family.alpha)
        is_met = lies == {"above": ABOVE, "below": BELOW}[expected]
    return EvidenceRow(
        text=text,
        profile=profile,
        value=one.value,
        mean=one.mean,
        half_width=one.half_width,
        n=one.n,
        p=one.p if test else math.nan,
        holm_p=test.p if test else math.nan,
        mde=minimum_detectable_effect(one.standard_error, one.df, alpha=test.level) if test else math.nan,
        lies=lies,
        is_met=is_met,
        is_underpowered=bool(expected) and one.half_width > family.underpowered_above,
        run_ids=one.run_ids,
        links=record_links(profile, one.run_ids),
        count=one.count or str(one.n),
    )


def _sign(one: Found, holm_p: float, alpha: float) -> str:
    if math.isnan(holm_p):
        return NO_INTERVAL
    if holm_p > alpha or one.mean == 0:
        return UNDECIDED
    return ABOVE if one.mean > 0 else BELOW


def record_links(profile: str, run_ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(text, address from the project's root) of published records: each of up to two, else their folder."""
    folder = (PUBLISHED / profile / "records").as_posix()
    if len(run_ids) <= 2:
        return tuple((name, f"{folder}/{name}.json") for name in run_ids)
    return ((f"{len(run_ids)} records", f"{folder}/"),)


def _verdict(claim: Claim, rows: Sequence[EvidenceRow], family: Family) -> tuple[str, str]:
    """The verdict and why, from the judged rows."""
    lacking = sum(row.mean is None for row in rows)
    if lacking:
        return NO_RECORD, f"{lacking} of {len(rows)} numbers have no record yet."
    if claim.rule in ORDER_RULES:
        return _order_verdict(claim, rows)
    met = sum(bool(row.is_met) for row in rows)
    against = sum(
        row.lies == {"above": BELOW, "below": ABOVE}.get(expected)
        for row, expected in zip(rows, claim.expectations(), strict=True)
    )
    opposite = f", {against} CONTRADICT it (the other sign after correction)" if against else ""
    reason = f"{met} of {len(rows)} as expected{opposite}{_what_is_not(rows, family)}."
    if claim.kind != "question":
        return (REPRODUCED if met == len(rows) else PARTLY if met else NOT), reason
    excluded = sum(
        _is_excluded(row, expected, family)
        for row, expected in zip(rows, claim.expectations(), strict=True)
        if not row.is_met
    )
    if met == len(rows):
        return YES, reason
    if met + excluded < len(rows):
        return UNCLEAR, reason
    return (IN_PART if met else NO), reason


def _is_excluded(row: EvidenceRow, expected: str, family: Family) -> bool:
    """Whether the 95 % interval leaves no relevant effect of the expected kind."""
    low, high = row.mean - row.half_width, row.mean + row.half_width  # NaN without an interval: not excluded
    if expected == "near":
        return low > family.smallest_relevant or high < -family.smallest_relevant
    return high < family.smallest_relevant if expected == "above" else low > -family.smallest_relevant


def _what_is_not(rows: Sequence[EvidenceRow], family: Family) -> str:
    """The numbers that are not as expected, each with how it lies and what could have been seen."""
    parts = []
    for row in rows:
        if not row.is_met:
            text = f"{row.text}: {row.value} {_lies_text(row)}"
            if row.lies == UNDECIDED:
                text += f" (smallest effect that would have been seen: {number(row.mde)})"
            if row.is_underpowered:
                text += f", underpowered (half-width above {family.underpowered_above:g})"
            parts.append(text)
    return f"; not so {'; '.join(parts)}" if parts else ""


def _lies_text(row: EvidenceRow) -> str:
    if row.lies == UNDECIDED and abs(row.mean) > row.half_width:
        return "lies beside 0, but not after the correction"
    return {
        ABOVE: "lies above 0",
        BELOW: "lies below 0",
        UNDECIDED: "holds 0",
        NO_INTERVAL: "has no interval",
        NOT_NEAR: "may be as large as matters",
    }[row.lies]


def _order_verdict(claim: Claim, rows: Sequence[EvidenceRow]) -> tuple[str, str]:
    """Reproduced if each number lies beyond the one before it; partly if only the last lies beyond the first."""
    sign = 1 if claim.rule == "rising" else -1
    steps = [sign * (after.mean - before.mean) > 0 for before, after in zip(rows, rows[1:])]
    reason = f"{sum(steps)} of {len(steps)} steps are {claim.rule}; an order of values, not a test."
    is_beyond = sign * (rows[-1].mean - rows[0].mean) > 0
    if claim.kind == "question":
        return (YES if all(steps) else IN_PART if is_beyond else NO), reason
    return (REPRODUCED if all(steps) else PARTLY if is_beyond else NOT), reason


def published_records(profiles: Sequence[str]) -> dict[str, list[dict]]:
    """Published records of each profile; none for one that was not published."""
    from risf_core.report.publish import load_records  # which itself writes the claims

    folders = {profile: project_root() / PUBLISHED / profile / "records" for profile in profiles}
    return {
        profile: load_records(folder) if any(folder.glob("*.json")) else []
        for profile, folder in folders.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m risf_core.report.claims``: write ``claims.md`` from ``claims.yaml`` and the published records."""
    from risf_core.report.claims_page import write_page  # which names the types above

    parser = argparse.ArgumentParser(prog="python -m risf_core.report.claims", description=__doc__)
    parser.add_argument("--claims", type=Path, help=f"another file than {FILE}")
    parser.add_argument("--to", type=Path, help=f"another page than {PAGE}")
    arguments = parser.parse_args(argv)
    try:
        claims = read_claims(arguments.claims)
        records = published_records(claims.profiles())
        path = write_page(claims, records, arguments.to or project_root() / PAGE)
    except RisfError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(f"Wrote {path}.\n")


if __name__ == "__main__":
    main()
