"""The few numbers of a profile with several base models to look at first, in the form of `publish.headline`."""

from collections.abc import Mapping, Sequence

from risf_core.report.base_models import has_several_bases
from risf_core.report.crossed_rows import all_effects
from risf_core.report.crossed_tables import effect_cells, level_cells
from risf_core.report.statistics import HeadlineNumber
from risf_core.report.table_format import interval_text

NOTEBOOK = "20_fine_tuning"
WIDE_TEXT = "underpowered"


def over_text(row) -> str:
    """What varies behind a number: ``3 splits x 3 base models x 10 draws x 2 CLIPs``."""
    splits = f"splits {row.over}" if hasattr(row, "over") else f"{int(row.splits)} splits"
    parts = [splits, f"{int(row.bases)} base models", f"{int(row.draws)} draws"]
    parts += [f"{int(row.clips)} CLIP{'s' if row.clips > 1 else ''}"] if row.clips else []
    return " × ".join(parts)


def crossed_numbers(records: Sequence[Mapping]) -> list[HeadlineNumber]:
    """The levels at the largest K over the splits that all have, and the effects that claims rest on.

    Cross-entropy at its best learning rate, the strongest simple control, stands among the levels. An interval whose
    half-width exceeds a point is called underpowered. Nothing where no split has several base models.
    """
    if not has_several_bases(records):
        return []
    levels, rows = level_cells(records), []
    levels = levels[levels["shots"] == levels["shots"].max()]
    # the first splits of an arm are those that all its lines share
    first = levels.groupby("arm")["over"].transform("first")
    for row in levels[levels["over"] == first].itertuples():
        quantity = f"nAP50 (%), K={row.shots}, {row.arm}: {row.cell}, over {over_text(row)}"
        rows.append(_number(row, quantity, interval_text(row.mean, row.half_width)))
    cells = effect_cells(records, effects=all_effects(records))
    for row in cells[cells["in_family"]].itertuples():
        name = row.effect.replace(" - ", " − ") + (f", {row.loss}" if row.loss else "")
        quantity = f"{name}, nAP50, K={row.shots}, {row.arm}, over {over_text(row)}"
        text = interval_text(row.mean, row.half_width, sign=True)
        rows.append(_number(row, quantity, f"{text} ({WIDE_TEXT})" if row.is_underpowered else text))
    return rows


def _number(row, quantity: str, text: str) -> HeadlineNumber:
    runs = tuple(row.run_ids.split())
    return HeadlineNumber.of((quantity, text, int(row.n), NOTEBOOK, runs, row.mean, row.half_width))
