"""What is wrong with annotations: collected one by one with file and entry, then raised or listed all at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from risf_core.errors import DataError

logger = logging.getLogger(__name__)

SHOWN = 5  # in the message of an error and in a line of the log; an error has all of them as its `problems`


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: Short name of the kind, such as ``empty box``.
        line: The entry, what is wrong with it and what was expected.
        file: The file that it stands in.
        drop: Entries of a COCO file that a clean copy leaves out, as ``(list of the file, position in it)``; none if
            that would not mend it.
    """

    kind: str
    line: str
    file: Path
    drop: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.file}: {self.line}"


class Problems:
    """What is wrong in one file or folder of annotations; collected first, raised once.

    Attributes:
        where: The file or folder.
        found: The problems.
        hints: What may explain many of them, and what is odd but as published.
        dropped: A line for each box that was left out on request.
    """

    def __init__(self, where: str | Path) -> None:
        self.where = Path(where)
        self.found: list[Problem] = []
        self.hints: list[str] = []
        self.dropped: list[str] = []

    def add(self, kind: str, line: str, *drop: tuple[str, int], file: str | Path | None = None) -> None:
        """Add a problem of `file` (None: of `where`)."""
        entries = tuple((name, int(position)) for name, position in drop)
        self.found.append(Problem(kind, line, self.where if file is None else Path(file), entries))

    def add_similar_names(self, first: Mapping[str, str | Path]) -> None:
        """Report class names that differ in case, blanks, ``_`` and ``-`` alone; `first`: where each stands first."""
        seen: dict[str, str] = {}
        for name, where in first.items():
            other = seen.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()).strip(), name)
            if other != name:
                line = f"class {name!r} (first in {where}) is {other!r} (first in {first[other]}) but for its spelling"
                self.add("similar class names", f"{line}; expected one name for a class")

    def mention_duplicates(self, lines: Sequence[str]) -> None:
        """A hint for all boxes that stand twice in files that are taken as they were published."""
        if lines:
            what = f"{len(lines)} boxes stand twice and are kept, as published"
            self.hints.append(f"{self.where}: {what}; first: {lines[0]}")

    def raise_if_any(self, check: str) -> None:
        """Raise one DataError: the first problems, how many there are, what to do; `check`: what the check is given.

        Boxes that were left out are counted and named in the log.
        """
        if self.dropped:
            count, shown = len(self.dropped), "; ".join(self.dropped[:SHOWN])
            more = "; ..." if count > SHOWN else ""
            logger.warning("%s: %d boxes are invalid and dropped: %s%s", self.where, count, shown, more)
        if not self.found:
            return
        count = len(self.found)
        shown = [str(self.found[0])]
        shown += [
            f"  {problem.line if problem.file == self.where else problem}" for problem in self.found[1:SHOWN]
        ]
        if count > SHOWN:
            shown.append(f"  ... {count - SHOWN} more")
        shown += [
            *self.hints,
            f"{count} problem{'s' if count > 1 else ''} in total. Fix the file, or write a copy without what is wrong "
            f"(COCO files: --drop NEW.json). Every problem: python -m risf_core.data.check {check}",
        ]
        raise DataError("\n".join(shown), problems=tuple(map(str, self.found)))
