"""The numbers that claims rest on, looked up in the records of their profiles. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from risf_core.report.claims_file import ClaimsError, Evidence
from risf_core.report.statistics import CONFIDENCE, notebook_of
from risf_core.report.table_format import interval_text, number
from risf_core.runs.run_specs import RunSpec
from risf_core.runs.state import run_id
from risf_core.runs.yaml_files import nearest

EFFECT_KEYS = ("effect", "loss", "arm", "shots")
NO_RECORD = "no record yet"
SIGNED = ("gain", "change", "difference", "regret")  # columns whose numbers are differences


@dataclass(frozen=True)
class Found:
    """One number as the records have it.

    Attributes:
        value: As a reader sees it.
        mean: The number; None where there is no record.
        half_width: Half the width of its 95 % interval; NaN where it has none.
        n: How many values stand behind it.
        count: The same as a reader sees it, such as splits × base models × draws × CLIPs.
        p: Two-sided p of a mean of 0; NaN without an interval.
        standard_error: Of the mean; NaN without an interval.
        df: Degrees of freedom of its t statistic; NaN without an interval.
        run_ids: Its records.
    """

    value: str
    mean: float | None = None
    half_width: float = math.nan
    n: int = 0
    p: float = math.nan
    standard_error: float = math.nan
    df: float = math.nan
    run_ids: tuple[str, ...] = ()
    count: str = ""

    @property
    def is_there(self) -> bool:
        """Whether a record gives it."""
        return self.mean is not None


def student_test(mean: float, half_width: float, n: int) -> tuple[float, float, float]:
    """Two-sided p, standard error and degrees of freedom of a mean, from its 95 % interval; all NaN without one."""
    if n < 2 or math.isnan(half_width):
        return math.nan, math.nan, math.nan
    error = half_width / float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    if error == 0:
        return (1.0 if mean == 0 else 0.0), error, n - 1
    return float(2 * stdtr(n - 1, -abs(mean) / error)), error, n - 1


@dataclass
class ProfileNumbers:
    """What the records of one profile say, computed when first asked for.

    Attributes:
        profile: Name of the profile.
        records: Its records; none is a profile that was not run.
        runs: Its list of runs, for what may yet come.
    """

    profile: str
    records: Sequence[Mapping] = ()
    runs: Sequence[RunSpec] = field(default=())

    @cached_property
    def headline(self) -> pd.DataFrame:
        """`publish.headline` of the records."""
        from risf_core.report.publish import headline  # which itself writes the claims
        from risf_core.report.selection import plan_of

        return headline(self.records, plan=plan_of(self.runs))

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The data of every table, by name."""
        from risf_core.report.selection import tables_of

        return {table.name: table.data for table in tables_of(self.records, self.runs)}

    @cached_property
    def effects(self) -> pd.DataFrame:
        """The data of the table ``claims_effects``; empty where no record has any."""
        from risf_core.report.crossed_tables import claims_effects_table

        return claims_effects_table(self.records).data

    def planned(self, notebooks: Sequence[str]) -> tuple[int, int]:
        """How many planned runs of these notebooks have no record, and how many are planned."""
        finished = {record["run_id"] for record in self.records}
        names = [run_id(spec.params) for spec in self.runs if spec.params.notebook in notebooks]
        return sum(name not in finished for name in names), len(names)

    def awaits(self, notebooks: Sequence[str]) -> bool:
        """Whether a planned run of these notebooks, or all of the profile, has no record yet."""
        return not self.records or self.planned(notebooks)[0] > 0


def find(evidence: Evidence, source: ProfileNumbers, *, notebooks: Sequence[str], where: str) -> Found:
    """The number that a piece of evidence names.

    Args:
        evidence: What is looked for.
        source: The numbers of its profile.
        notebooks: The claim's notebooks; where a planned run of them is missing, the number may yet come.
        where: The claim's id, for messages.

    Raises:
        ClaimsError: If nothing has that name and nothing is missing, if several rows have it, or it is no number.
    """
    if not source.records:
        return Found(NO_RECORD)
    if evidence.quantity:
        return _quantity(evidence, source, notebooks, where)
    return _row(evidence, source, notebooks, where)


def _absent(evidence: Evidence, what: str, known: Sequence[str], source, notebooks, where: str) -> Found:
    if source.awaits(notebooks):
        return Found(NO_RECORD)
    hint = f" (nearest: {nearest(what, known)})" if known else ""
    raise ClaimsError(f"claims.yaml: {where}: profile {evidence.profile} has no {what}{hint}.")


def _quantity(evidence: Evidence, source: ProfileNumbers, notebooks: Sequence[str], where: str) -> Found:
    rows = source.headline
    own = rows[rows["quantity"] == evidence.quantity]
    if own.empty:
        known = list(rows["quantity"])
        return _absent(evidence, evidence.quantity, known, source, notebooks, where)
    row = own.iloc[0]
    if row["mean"] is None or math.isnan(row["mean"]):
        raise ClaimsError(
            f"claims.yaml: {where}: {evidence.quantity!r} is a text ({row['value']}) and not a number."
        )
    mean, n = float(row["mean"]), int(row["n"])
    half_width = math.nan if row["half_width"] is None else float(row["half_width"])
    test = student_test(mean, half_width, n)
    return Found(row["value"], mean, half_width, n, *test, tuple(row["run_ids"]))


def _named_row(evidence: Evidence, source: ProfileNumbers) -> tuple[pd.DataFrame, dict, str]:
    """The table that holds the row, the values that name it, and a text of them."""
    if evidence.effect:
        wanted = {key: getattr(evidence, key) for key in EFFECT_KEYS if getattr(evidence, key) is not None}
        return source.effects, wanted, "effect " + ", ".join(map(str, wanted.values()))
    text = ", ".join(f"{key}: {value}" for key, value in evidence.where.items())
    return source.tables.get(evidence.table, pd.DataFrame()), dict(evidence.where), f"{evidence.table} {text}"


def _row(evidence: Evidence, source: ProfileNumbers, notebooks: Sequence[str], where: str) -> Found:
    data, wanted, what = _named_row(evidence, source)
    if data.empty:
        known = [] if source.awaits(notebooks) else sorted(source.tables)
        return _absent(evidence, what, known, source, notebooks, where)
    columns = [evidence.value, evidence.half_width, evidence.count] if evidence.table else ["mean"]
    for column in (*wanted, *filter(None, columns)):
        if column not in data:
            raise ClaimsError(
                f"claims.yaml: {where}: {what}: its table has no column {column} (nearest: {nearest(column, data)})."
            )
    own = data
    for key, value in wanted.items():
        own = own[np.array([_same(found, value) for found in own[key]], dtype=bool)]
    if own.empty:
        lines = [", ".join(map(str, row)) for row in data[list(wanted)].itertuples(index=False, name=None)]
        return _absent(evidence, what, list(dict.fromkeys(lines)), source, notebooks, where)
    if len(own) > 1:
        raise ClaimsError(f"claims.yaml: {where}: {what}: {len(own)} rows fit; name one.")
    row = own.iloc[0]
    mean, half_width, count = columns if evidence.table else ("mean", "half_width", "n")
    return _found(row, mean, half_width, count, source, notebooks, is_effect=bool(evidence.effect))


def _found(row: pd.Series, mean: str, half: str | None, count: str | None, source, notebooks, *, is_effect):
    half_width = float(row[half]) if half else math.nan
    n, value = (int(row[count]) if count else 1), float(row[mean])
    if n == 0 or math.isnan(value):
        return Found(NO_RECORD)
    decimals = 1 if abs(value) >= 10 else 2
    is_signed = is_effect or any(word in mean for word in SIGNED)
    text = interval_text(value, half_width, sign=is_signed) if half else number(value, decimals=decimals)
    test = student_test(value, half_width, n)
    if is_effect:  # its interval holds base models and draws, so that n - 1 is not its degrees of freedom
        test = tuple(float(row[column]) for column in ("p", "standard_error", "df"))
    runs = row.get("run_ids")
    if isinstance(runs, str):
        runs = tuple(runs.split())
    elif not isinstance(runs, tuple | list):
        single = row.get("run_id")
        runs = [single] if isinstance(single, str) else runs_of(source.records, notebooks)
    return Found(text, value, half_width, n, *test, tuple(runs), effect_count(row) if is_effect else "")


def effect_count(row: pd.Series) -> str:
    """``3 × 3 × 10 × 2``: splits, base models, draws and CLIPs of an effect, as its table has it."""
    from risf_core.report.crossed_tables import count_text

    return count_text(row)


def _same(found: object, wanted: object) -> bool:
    """Equal as numbers, or as texts where a table has both."""
    if isinstance(wanted, str):
        return _plain(found) == _plain(wanted)
    return isinstance(found, Real) and float(found) == float(wanted) or str(found) == str(wanted)


def _plain(value: object) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value).replace("−", "-")


def runs_of(records: Sequence[Mapping], notebooks: Sequence[str]) -> tuple[str, ...]:
    """Run ids of these notebooks' records, sorted."""
    return tuple(sorted(record["run_id"] for record in records if notebook_of(record) in notebooks))
