"""Progress bars that speak the language of the algorithm, on stderr, when there is time to read them.

A stretch of work that is over within two seconds shows nothing and costs nothing. Nothing is shown where
stderr is not a terminal, or where ``OPENWORK_PROGRESS=0``; ``NO_COLOR`` makes the bars plain. Phases may be
nested: each is one line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before a phase is shown."""


class Phase:
    """One named stretch of work, and how far it has come.

    Args:
        description: what is being done, in the words of the method: "solving block 3 of 12".
        total: how many steps it takes, if that is known.
    """

    def __init__(self, description: str, total: int | None = None) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self.began = time.monotonic()
        self.is_over = False

    def advance(self, steps: int = 1) -> None:
        """Say that ``steps`` more steps are done."""
        self.done += steps
        _terminal.update(self)

    def describe(self, description: str) -> None:
        """Say what is being done now."""
        self.description = description
        _terminal.update(self)


@contextmanager
def phase(description: str, total: int | None = None) -> Iterator[Phase]:
    """Show the work inside the ``with`` as one line, if it takes long enough.

    Args:
        description: what is being done.
        total: how many steps it takes; None if unknown, then the bar only shows that time passes.

    Yields:
        The :class:`Phase`, to ``advance()`` after each step.
    """
    current = Phase(description, total)
    if not _is_watched():
        yield current
        return
    timer = Timer(PATIENCE, _terminal.show, [current])
    timer.daemon = True
    timer.start()
    try:
        yield current
    finally:
        timer.cancel()
        _terminal.hide(current)


def track(steps: Iterable[T], description: str) -> Iterator[T]:
    """Yield from ``steps`` and show how many have been done.

    Args:
        steps: anything iterable; the bar has an end if it has a length.
        description: what is being done.
    """
    with phase(description, len(steps) if isinstance(steps, Sized) else None) as current:
        for step in steps:
            yield step
            current.advance()


def _is_watched() -> bool:
    wanted = os.environ.get("OPENWORK_PROGRESS") != "0" and os.environ.get("TERM") != "dumb"
    return wanted and sys.stderr.isatty()


class _Terminal:
    """The lines on the screen. Rich is loaded when the first one appears, and gone with the last."""

    def __init__(self) -> None:
        self._lock = Lock()  # a phase appears from the thread of its timer
        self._bars: Progress | None = None
        self._lines: dict[Phase, TaskID] = {}

    def show(self, shown: Phase) -> None:
        with self._lock:
            if shown.is_over:
                return
            if self._bars is None:
                self._bars = _bars()
                self._bars.start()
            line = self._bars.add_task(shown.description, total=shown.total, completed=shown.done)
            self._lines[shown] = line
            self._bars.tasks[-1].start_time = shown.began

    def update(self, shown: Phase) -> None:
        with self._lock:
            if self._bars is not None and shown in self._lines:
                self._bars.update(self._lines[shown], description=shown.description, completed=shown.done)

    def hide(self, shown: Phase) -> None:
        with self._lock:
            shown.is_over = True
            if self._bars is None or shown not in self._lines:
                return
            self._bars.remove_task(self._lines.pop(shown))
            if not self._lines:
                self._bars.stop()
                self._bars = None


def _bars() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # what is printed meanwhile goes above the bars, but what is meant for a file or a pipe must arrive
        redirect_stdout=sys.stdout.isatty(),
    )


_terminal = _Terminal()
