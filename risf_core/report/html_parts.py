"""The sections of the report: summary, claims, figures, tables, notebooks, provenance, each from records to HTML."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from risf_core.report.claims import (
    IN_PART,
    NOT,
    PARTLY,
    REPRODUCED,
    YES,
    ClaimResult,
    EvidenceRow,
)
from risf_core.report.claims import NO as NO_ANSWER
from risf_core.report.claims_page import RULES, p_text, verdict_text
from risf_core.report.html_page import (
    anchor,
    escape,
    figure,
    link,
    paragraph,
    table,
    table_of,
)
from risf_core.report.html_sources import ORDER, Source
from risf_core.report.readme_blocks import in_readme
from risf_core.report.statistics import notebook_of
from risf_core.report.table_format import MISSING, number

LONG_TABLE = 40  # rows from which on a table is folded
PICTURES = 3  # of detections, each of 0.8 MB, that a profile shows inside the page; the others are linked
KINDS = {
    REPRODUCED: "good", YES: "good", PARTLY: "some", IN_PART: "some", NOT: "bad", NO_ANSWER: "bad",
}  # fmt: skip


def relative(path: Path, page: Path) -> str:
    """Address of a file as the page at ``page`` links it."""
    return Path(os.path.relpath(path, page.parent)).as_posix()


def summary(sources: Sequence[Source], claims: Sequence[ClaimResult]) -> str:
    """What was run, what came out first, and what to beware of."""
    rows = []
    for source in sources:
        seconds = sum(
            (record.get("environment") or {}).get("cpu_seconds") or 0.0 for record in source.records
        )
        rows.append(
            [
                link(source.profile, f"#{anchor('figures', source.profile)}"),
                "published copy" if source.is_published else "run here",
                str(len(source.records)),
                str(len(source.missing)) if source.runs else "no list of runs",
                number(seconds / 60),
            ]
        )
    heads = ["profile", "records are of", "records", "planned runs without one", "CPU minutes of the records"]
    parts = [table(heads, rows)]
    parts.append(paragraph(NOT_THE_LEVEL, kind="note"))
    counts = {result.verdict: 0 for result in claims}
    for result in claims:
        counts[result.verdict] += 1
    if counts:
        text = ", ".join(f"{verdict} {count}" for verdict, count in counts.items())
        parts.append(f"<p>Claims and questions ({link('all of them', '#claims')}): {escape(text)}.</p>")
    parts.append("<h3 id='headline'>Headline numbers</h3>")
    parts += [_headline(source) for source in sources]
    parts += ["<h3 id='warnings'>Warnings</h3>", _warnings(sources, claims)]
    return "\n".join(parts)


NOT_THE_LEVEL = (
    "± is the half-width of a 95 % Student-t interval over the n few-shot seeds, gains are paired differences in "
    "points. The mini profiles are a world of pictograms: they show whether, and which way, a part of RISF works, and "
    "say nothing of the level on COCO or VOC."
)


def _headline(source: Source) -> str:
    """The few numbers that the README shows, and all of them folded."""
    heads, few = ["what", "ours", "n", "notebook"], source.headline[in_readme(source.headline["quantity"])]
    if source.headline.empty:
        return ""

    def rows(numbers) -> list[list[str]]:
        return [
            [escape(row.quantity), escape(row.value), escape(row.n), f"<code>{escape(row.notebook)}</code>"]
            for row in numbers.itertuples()
        ]

    name, count = escape(source.profile), len(source.headline)
    shown = table(heads, rows(few)) if source.profile == ORDER[0] else ""
    return (
        f"{shown}<details><summary>{name}: all {count} numbers</summary>\n"
        f"{table(heads, rows(source.headline))}</details>"
    )


def warnings(sources: Sequence[Source], claims: Sequence[ClaimResult]) -> list[str]:
    """What a reader should know before believing a number: missing, outdated, uncommitted, underpowered, announced."""
    found = []
    for source in sources:
        name = source.profile
        if source.missing:
            found.append(f"{name}: {len(source.missing)} of {len(source.runs)} planned runs have no record.")
        if source.stale:
            found.append(
                f"{name}: {len(source.stale)} records are not current and left out (see Provenance)."
            )
        dirty = [r["run_id"] for r in source.records if (r.get("environment") or {}).get("dirty")]
        if dirty:
            found.append(f"{name}: {len(dirty)} records were made with uncommitted changes (see Provenance).")
        lacking = [own.name for own in source.tables if own.display.astype(str).eq(MISSING).any(axis=None)]
        if lacking:
            found.append(f"{name}: {MISSING} in the tables {', '.join(lacking)}.")
        found += [f"{name}: {text}" for text in source.signs]
    weak = [result.id for result in claims if result.is_underpowered]
    if weak:
        found.append(f"Underpowered, so that a null says little: {', '.join(weak)}.")
    return found


def _warnings(sources: Sequence[Source], claims: Sequence[ClaimResult]) -> str:
    """The warnings as a list; the tables that they name are linked."""
    tables = {(source.profile, own.name) for source in sources for own in source.tables}
    items = []
    for text in warnings(sources, claims):
        profile = text.partition(":")[0]

        def linked(found: re.Match, profile: str = profile) -> str:
            at = anchor("table", profile, found[1])
            return f"(table {link(found[1], f'#{at}')})" if (profile, found[1]) in tables else found[0]

        items.append(f"<li>{re.sub(r'[(]table ([^)]+)[)]', linked, escape(text))}</li>")
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else paragraph("None.")


def claims_section(claims: Sequence[ClaimResult], sources: Sequence[Source], page: Path) -> str:
    """Every claim and question: an overview, then each with its numbers."""
    rows = [
        [link(result.says, f"#{anchor('claim', result.id)}"), badge(result), _notebooks(result)]
        for result in claims
    ]
    folders = {source.profile: source.folder for source in sources}
    parts = [table(["claim or question", "verdict", "notebooks"], rows)]
    parts += [_claim(result, folders, page) for result in claims]
    return "\n".join(parts)


def badge(result: ClaimResult) -> str:
    """A verdict as words on a colour; the words alone say it too."""
    return f'<span class="verdict {KINDS.get(result.verdict, "none")}">{escape(verdict_text(result))}</span>'


def _notebooks(result: ClaimResult) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in result.notebooks) or "–"


def _claim(result: ClaimResult, folders: Mapping[str, Path], page: Path) -> str:
    where = f" ({escape(result.claim.where)})" if result.claim.where else ""
    facts = {"Rule": RULES.get(result.claim.rule), "n": result.claim.n}
    known = "".join(f"<br>{name}: {escape(text)}" for name, text in facts.items() if text)
    heads = [
        "evidence",
        "profile",
        "value",
        "n",
        "p",
        "p (Holm)",
        "smallest visible effect",
        "expected",
        "lies",
    ]
    expected = result.claim.expectations() or [None] * len(result.rows)
    rows = [
        _evidence(row, expectation, folders, page)
        for row, expectation in zip(result.rows, expected, strict=True)
    ]
    return (
        f'<h3 id="{anchor("claim", result.id)}">{escape(result.says)}{where}</h3>\n'
        f"<p>{badge(result)} {escape(result.reason)}{known}</p>\n{table([*heads, 'records'], rows)}"
    )


def _evidence(row: EvidenceRow, expected: str | None, folders: Mapping[str, Path], page: Path) -> list[str]:
    folder = folders.get(row.profile)
    if row.run_ids and folder is not None:
        links = [link(name, relative(folder / "records" / f"{name}.json", page)) for name in row.run_ids[:2]]
        more = len(row.run_ids) - 2
        if more > 0:
            links.append(link(f"and {more} more", f"#{anchor('provenance', row.profile)}"))
    else:
        parts = [part for _, to in row.links for part in to.split("; ")]
        links = [link(urlsplit(part).netloc, part) if "://" in part else escape(part) for part in parts]
    mde = "–" if row.mde != row.mde else number(float(row.mde), decimals=1)
    n = str(row.n) if row.n else "–"
    return [
        escape(row.text),
        escape(row.profile or "–"),
        escape(row.value),
        n,
        p_text(row.p) or "–",
        p_text(row.holm_p) or "–",
        mde,
        f"{expected} 0" if expected else "–",
        escape(f"{row.lies}, underpowered" if row.is_underpowered else row.lies) or "–",
        ", ".join(links) or "–",
    ]


def figures_section(source: Source, page: Path) -> str:
    """The figures of a profile; beyond a few pictures of detections the others are linked."""
    parts, linked, pictures = [], [], 0
    for path, caption in source.figures():
        is_picture = path.stem.startswith("before_after-")
        pictures += is_picture
        if is_picture and pictures > PICTURES:
            linked.append(link(path.stem, relative(path, page)))
        else:
            at = anchor("figure", source.profile, path.stem)
            parts.append(figure(path, caption, name=path.stem, at=at))
    if linked:
        parts.append(f"<p>More pictures of detections, as files: {', '.join(linked)}.</p>")
    return "\n".join(parts) or paragraph("No figure.")


def tables_section(source: Source) -> str:
    """The tables of a profile; long ones are folded."""
    parts = []
    for own in source.tables:
        is_open = "" if len(own.display) >= LONG_TABLE else " open"
        parts.append(
            f'<details id="{anchor("table", source.profile, own.name)}"{is_open}>'
            f"<summary>{escape(own.name)} ({len(own.display)} rows)</summary>\n"
            f"{table_of(own.display)}\n{paragraph(own.caption, kind='note')}</details>"
        )
    return "\n".join(parts) or paragraph("No table.")


def notebooks_section(source: Source, pages: Mapping[str, Path], page: Path) -> str:
    """The runs of a profile, each with its executed notebook where that lies here."""
    rows = []
    for record in source.records:
        name, environment = record["run_id"], record.get("environment") or {}
        shown = link("read it", relative(pages[name], page)) if name in pages else "not here"
        rows.append(
            [
                f"<code>{escape(notebook_of(record))}</code>",
                escape(name),
                shown,
                number(float(environment.get("cpu_seconds") or 0.0), decimals=0),
            ]
        )
    failed = [name for name in pages if name not in {record["run_id"] for record in source.records}]
    text = ""
    if failed:
        links = ", ".join(link(name, relative(pages[name], page)) for name in failed)
        text = f"<p>Executed, but without a current record (failed, outdated or still running): {links}.</p>"
    if not pages:
        text = (
            "<p>Executed notebooks are not published. <code>make reproduce "
            f"PROFILE={escape(source.profile)}</code> makes them; then call <code>make report</code> again.</p>"
        )
    return table(["notebook", "run", "executed notebook", "CPU seconds"], rows) + text


def provenance_section(source: Source, page: Path) -> str:
    """Where each record comes from: date, commit, machine, hashes; versions once; what is not current, and why."""
    rows, versions = [], {}
    for record in source.records:
        environment = record.get("environment") or {}
        own = ", ".join(
            f"{name} {value}" for name, value in sorted((environment.get("versions") or {}).items())
        )
        versions.setdefault(f"Python {environment.get('python', '?')}, {own}", []).append(record["run_id"])
        commit = str(environment.get("commit") or "?")[:10]
        device = " ".join(str(environment.get(name, "")) for name in ("machine", "device"))
        rows.append(
            [
                link(
                    record["run_id"], relative(source.folder / "records" / f"{record['run_id']}.json", page)
                ),
                escape(str(environment.get("finished", "?"))[:16].replace("T", " ")),
                f"<code>{escape(commit)}</code>{' + uncommitted changes' if environment.get('dirty') else ''}",
                escape(device),
                *(_short_hash(record, name) for name in ("params_hash", "state_hash", "data_hash")),
            ]
        )
    heads = ["record", "finished (UTC)", "commit", "machine", "parameters", "code, data, upstream", "data"]
    said = "".join(
        f"<li>{escape(text)}: {len(names)} records</li>" for text, names in sorted(versions.items())
    )
    stale = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in source.stale)
    note = (
        "A published copy: what was committed, not checked against the code of today."
        if source.is_published
        else "Run here; every record below is current: its hash is that of today's code, parameters and data."
    )
    return (
        f"{paragraph(note)}<ul>{said}</ul>{table(heads, rows)}"
        + (f"<p>Not current, left out of everything above:</p><ul>{stale}</ul>" if stale else "")
    )  # fmt: skip


def _short_hash(record: Mapping, name: str) -> str:
    value = record.get(name)
    return f"<code>{escape(str(value)[:10])}</code>" if value else "–"
