"""What a table's function is marked with so that its caption says the warnings its own data show."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps

from risf_core.report.table_format import Table


def warned(make: Callable[..., Table]) -> Callable[..., Table]:
    """A function of records that makes a table, with `warning_signs.with_warnings` applied to what it makes."""

    @wraps(make)
    def made(records: Sequence[Mapping], **options: object) -> Table:
        from risf_core.report.warning_signs import with_warnings  # which reads the tables' own modules

        return with_warnings([make(records, **options)], records)[0]

    return made
