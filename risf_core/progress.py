"""One progress helper: a bar where someone watches, a line every 30 s where nobody does.

Under the launcher ``RISF_LOG`` names a file; lines are appended to it, so that the executed notebook holds no
dozens of bars and the launcher can show the last line (more often, ``RISF_LOG_EVERY``, where it has a terminal).
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)


def log_line(text: str) -> None:
    """Append a line to the launcher's log file, or hand it to logging."""
    if path := os.environ.get("RISF_LOG"):
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    else:
        logger.info(text)


class Once(logging.Filter):
    """Lets a line pass the first time: a grid reads the same data again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is new."""
        line = record.getMessage()
        is_new = line not in self.seen
        self.seen.add(line)
        return is_new


class LogFile(logging.Handler):
    """Sends what is logged where `log_line` sends the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        log_line(self.format(record))


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel; that ipykernel is imported does not make it one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def show_log() -> None:
    """Let the reader of a notebook see what the package logs: what was left out, dropped, restored.

    Under the launcher everything goes to its log file, and warnings to the notebook too; by hand all goes there.
    """
    package = logging.getLogger("risf_core")
    if not in_notebook() or package.handlers:
        return
    package.setLevel(logging.INFO)
    package.propagate = False  # a library may give the root logger a handler, which would say all of it again
    handlers = [logging.StreamHandler()]
    if os.environ.get("RISF_LOG"):
        handlers[0].setLevel(logging.WARNING)
        handlers.append(LogFile())
    for handler in handlers:
        handler.addFilter(Once())
        package.addHandler(handler)


class Progress(Generic[T]):
    """An iterable that shows how far it is; see :func:`progress`."""

    num_open = 0  # bars on the screen; one opened inside another goes when it is full

    def __init__(self, items: Iterable[T], *, total: int | None, desc: str, unit: str, every: float) -> None:
        self.items, self.desc, self.unit = items, desc, unit
        self.every = float(os.environ.get("RISF_LOG_EVERY", every))
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.done = 0
        self.notes: dict[str, Any] = {}

    def note(self, **values: Any) -> None:
        """Show values beside the progress, such as ``note(loss=0.3)``; floats to three digits."""
        self.notes |= {name: f"{v:.3g}" if isinstance(v, float) else str(v) for name, v in values.items()}

    def line(self, seconds: float) -> str:
        """The state as text: ``base training: 300/1200 it, 2.5 it/s, 360 s left, loss 0.3``."""
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.desc}: {self.done}{of} {self.unit}"]
        if self.done and seconds > 0:
            rate = self.done / seconds
            parts.append(f"{rate:.3g} {self.unit}/s")
            if self.total is not None and self.done < self.total:
                parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.notes.items())])

    def __iter__(self) -> Iterator[T]:
        self.done, start = 0, time.monotonic()
        with self._open_bar() as bar:
            last = start
            if bar is None:
                log_line(self.line(0.0))
            for item in self.items:
                yield item
                self.done += 1
                if bar is not None:
                    bar.set_postfix(self.notes, refresh=False)
                    bar.update()
                elif (now := time.monotonic()) - last >= self.every:
                    last = now
                    log_line(self.line(now - start))
            if bar is None:
                log_line(f"{self.line(time.monotonic() - start)}, done in {time.monotonic() - start:.0f} s")

    @contextmanager
    def _open_bar(self) -> Iterator[Any]:
        """A tqdm bar (a widget in a live notebook), or None where nobody watches."""
        if os.environ.get("RISF_LOG") or not (in_notebook() or sys.stderr.isatty()):
            yield None
            return
        if in_notebook():
            from tqdm.notebook import tqdm
        else:
            from tqdm import tqdm
        with tqdm(total=self.total, desc=self.desc, unit=self.unit, leave=Progress.num_open == 0) as bar:
            Progress.num_open += 1
            try:
                yield bar
            finally:
                Progress.num_open -= 1


def progress(
    iterable: Iterable[T], *, total: int | None = None, desc: str, unit: str = "it", every: float = 30.0
) -> Progress[T]:
    """Iterate with visible progress.

    Args:
        iterable: What is iterated; its items are handed on.
        total: Number of items, where `iterable` has no length.
        desc: What is being done.
        unit: Name of one item.
        every: Seconds between lines where no bar is shown.

    Returns:
        The iterable; its ``note(loss=0.3)`` shows values beside the progress.
    """
    return Progress(iterable, total=total, desc=desc, unit=unit, every=every)
