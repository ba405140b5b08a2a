"""What the report shows: of each profile its own current records or, where it was not run here, the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from risf_core.records import read_records
from risf_core.report.publish import headline, load_records, planned_runs
from risf_core.report.selection import plan_of, tables_of, write_all
from risf_core.report.table_format import Table
from risf_core.report.warning_signs import warning_sentences
from risf_core.runs.run_specs import RunSpec
from risf_core.runs.state import load_record, run_id, why_not_current
from risf_core.runs.yaml_files import project_root

ORDER = ("mini", "studies", "mini-full", "latency", "cards", "photos")  # of the report; others follow by name
NO_PROFILES = (
    "published",
    "scratch",
    "smoke",
)  # folders of results/ whose numbers mean nothing or are others'
PRESENTING = ("report/*.py", "tables.py", "figures.py")  # code that draws


@dataclass(frozen=True)
class Source:
    """One profile of the report.

    Attributes:
        profile: Its name.
        folder: Has records/, figures/ and, where it was run here, runs/.
        is_published: Whether it is the committed copy and not what was run here.
        records: Its records, sorted by file name.
        stale: (run id, why) of records that are not current and therefore left out; of a published copy none is
            checked.
        runs: The profile's list of runs.
    """

    profile: str
    folder: Path
    is_published: bool
    records: tuple[dict, ...]
    stale: tuple[tuple[str, str], ...] = ()
    runs: Sequence[RunSpec] = field(default=())

    @cached_property
    def tables(self) -> list[Table]:
        """Its tables, from the records."""
        return tables_of(self.records, self.runs)

    @cached_property
    def headline(self) -> pd.DataFrame:
        """Its numbers to look at first, see `publish.headline`."""
        return headline(self.records, plan=plan_of(self.runs))

    @cached_property
    def signs(self) -> list[str]:
        """Known signs of failure in its records, a sentence each."""
        return warning_sentences(self.records, plan=plan_of(self.runs))

    @property
    def missing(self) -> list[str]:
        """Ids of planned runs without a record."""
        there = {record["run_id"] for record in self.records}
        return [name for name in (run_id(spec.params) for spec in self.runs) if name not in there]

    def figures(self) -> list[tuple[Path, str]]:
        """(PNG, caption) of its figures in the order of their tables, pictures of detections last.

        Equal pictures, and captions without a picture, are left out.
        """
        places = {table.name: place for place, table in enumerate(self.tables)}
        paths = sorted(
            (self.folder / "figures").glob("*.png"), key=lambda path: (places.get(path.stem, 999), path)
        )
        found: dict[bytes, tuple[Path, str]] = {}
        for path in paths:
            caption = path.with_suffix(".txt")
            text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else path.stem
            found.setdefault(path.read_bytes(), (path, text))
        return list(found.values())


def sources(
    *, profiles: Sequence[str] | None = None, published_only: bool = False, root: Path | None = None
) -> list[Source]:
    """Every profile that has records, here or published, in the report's order.

    Args:
        profiles: Take these alone.
        published_only: Take the published copies, whatever was run here.
        root: Of the project, for tests.
    """
    results = (root or project_root()) / "results"
    names = {path.parent.name for path in results.glob("*/records") if any(path.glob("*.json"))}
    names = (set() if published_only else names - set(NO_PROFILES)) | {
        path.parent.name for path in (results / "published").glob("*/records") if any(path.glob("*.json"))
    }
    if profiles is not None:
        names = set(profiles)
    in_order = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    found = [_source(results, name, published_only=published_only) for name in in_order]
    return [source for source in found if source is not None]


def _source(results: Path, profile: str, *, published_only: bool) -> Source | None:
    own, copied = results / profile, results / "published" / profile
    if not published_only and any((own / "records").glob("*.json")):
        records = tuple(read_records(profile))
        there = {record["run_id"] for record in records}
        paths = [path for path in sorted((own / "records").glob("*.json")) if path.stem not in there]
        stale = [(path.stem, why_not_current(path)) for path in paths if not _is_summary(path)]
        if records:
            return Source(profile, own, False, records, tuple(stale), planned_runs(profile))
    if any((copied / "records").glob("*.json")):
        return Source(
            profile, copied, True, tuple(load_records(copied / "records")), (), planned_runs(profile)
        )
    return None


def _is_summary(path: Path) -> bool:
    """Whether it is the record of 40_results, which every new record outdates."""
    return (load_record(path) or {}).get("notebook") == "40_results"


def refresh(source: Source) -> bool:
    """Draw tables and figures of a profile that was run here anew, unless they are newer than records and code.

    Returns:
        Whether they were drawn.
    """
    if source.is_published:
        return False
    package = project_root() / "risf_core"
    made_from = [*(source.folder / "records").glob("*.json")]
    made_from += [path for pattern in PRESENTING for path in package.glob(pattern)]
    drawn = [path for kind in ("tables", "figures") for path in (source.folder / kind).glob("*")]
    own = {table.name for table in source.tables}
    oldest = min((path.stat().st_mtime for path in drawn if path.stem in own), default=0.0)
    if oldest > max(path.stat().st_mtime for path in made_from):
        return False
    write_all(source.records, source.folder, runs=source.runs)
    return True
