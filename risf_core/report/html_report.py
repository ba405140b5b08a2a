"""``make report``: one page, ``results/report.html``, of all records: claims, figures, tables, notebooks, provenance.

``python -m risf_core.report.html_report``. The page loads nothing from elsewhere and holds no date of its own, so that
the same records give the same bytes. Imports no torch.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import risf_core
from risf_core.errors import RecordError, RisfError
from risf_core.report import html_parts as parts
from risf_core.report.claims import ClaimResult, evaluate_claims
from risf_core.report.claims_file import FILE, read_claims
from risf_core.report.claims_page import how_to_read
from risf_core.report.html_notebooks import export_all
from risf_core.report.html_page import anchor, contents, page, paragraph
from risf_core.report.html_sources import Source, refresh, sources
from risf_core.runs.yaml_files import project_root

PAGE = "report.html"
TITLE = "RISF, reproduced: the report"
INTRO = (
    f"Made by make report (version {risf_core.__version__}) from records alone. RISF (Jung, Han and Kim, CVIU 2024) is "
    "a few-shot detector with two ideas: BNRL, a loss that forgives missing annotations, and CM-CLIP, which re-scores "
    "detections by image-text similarity."
)


def report(own: Sequence[Source], pages: Mapping[str, Mapping[str, Path]], target: Path) -> str:
    """The page as HTML.

    Args:
        own: The profiles, see `html_sources.sources`.
        pages: Of each profile, run id to the page of its executed notebook.
        target: Where the page will lie, for links.

    Raises:
        RecordError: If no profile has a record.
    """
    if not own:
        raise RecordError("No record, neither of a run made here nor published. Begin with `make reproduce`.")
    claims, how_to_judge = _claims(own)
    entries, body = {}, []

    def section(at: str, title: str, html: str) -> None:
        entries[at] = title
        body.append(f'<section>\n<h2 id="{at}">{title}</h2>\n{html}\n</section>')

    section("summary", "Summary", parts.summary(own, claims))
    shown = parts.claims_section(claims, own, target) if claims else ""
    section("claims", "Claims", paragraph(how_to_judge) + shown)
    for name, of in (
        ("Figures", lambda source: parts.figures_section(source, target)),
        ("Tables", parts.tables_section),
        (
            "Executed notebooks",
            lambda source: parts.notebooks_section(source, pages.get(source.profile, {}), target),
        ),
        ("Provenance", lambda source: parts.provenance_section(source, target)),
    ):
        for source in own:
            section(anchor(name.split()[-1].lower(), source.profile), f"{name}: {source.profile}", of(source))
    head = f"<h1>{TITLE}</h1>\n{paragraph(INTRO)}\n{contents(entries)}"
    return page(TITLE, "\n".join([head, *body]))


def _claims(own: Sequence[Source]) -> tuple[list[ClaimResult], str]:
    """The claims with their verdicts, and how to read them; or why there are none."""
    if not (project_root() / FILE).is_file():
        return [], f"There is no {FILE}, which names the claims and what decides each."
    file = read_claims()
    results = evaluate_claims(file, {source.profile: source.records for source in own})
    return results, how_to_read(file).replace("*", "")


def write_report(
    target: Path, *, profiles: Sequence[str] | None = None, published_only: bool = False
) -> list[Source]:
    """Draw what is outdated, export executed notebooks, and write the page.

    Args:
        target: File of the page.
        profiles: Take these alone.
        published_only: Take the published copies, whatever was run here.

    Returns:
        What it shows.
    """
    own, pages = sources(profiles=profiles, published_only=published_only), {}
    for source in own:
        refresh(source)
        if not source.is_published:
            pages[source.profile] = export_all(source.folder)
    text = report(own, pages, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", newline="\n")
    return own


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m risf_core.report.html_report``."""
    parser = argparse.ArgumentParser(prog="python -m risf_core.report.html_report", description=__doc__)
    parser.add_argument("--to", type=Path, help=f"another file than results/{PAGE}")
    parser.add_argument("--profiles", nargs="+", help="take these profiles alone")
    parser.add_argument("--published", action="store_true", help="take the published copies of all profiles")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    target = (arguments.to or project_root() / "results" / PAGE).resolve()
    try:
        own = write_report(target, profiles=arguments.profiles, published_only=arguments.published)
    except RisfError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(1) from None
    shown = ", ".join(f"{s.profile} ({'published' if s.is_published else 'run here'})" for s in own)
    sys.stdout.write(f"Wrote {target} of {shown}. Open it in a browser.\n")


if __name__ == "__main__":
    main()
