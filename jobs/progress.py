"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 5.0


class Progress:
    """Shows stages, one after the other or side by side, each with a count of a total.

    Call it with the stage's name, how much is done, of how much (None: not known), and a note.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if self._stream.isatty():
            self._draw(stage, done, total, note)
        else:
            self._tell(stage, done, total, note)

    def say(self, line: str) -> None:
        """One line that stays."""
        if self._bars is not None:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _draw(self, stage: str, done: int, total: int | None, note: str) -> None:
        if self._bars is None:
            self._bars = bars(self._stream)
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)

    def _tell(self, stage: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        finished = total is not None and done >= total
        if not finished and now - self._told.get(stage, -PLAIN_INTERVAL_S) < PLAIN_INTERVAL_S:
            return
        self._told[stage] = now
        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        print(f"{stage}: {count}{f', {note}' if note else ''}", file=self._stream, flush=True)


def bars(stream: TextIO) -> "RichProgress":
    """Rich's bars, as we like them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=Console(file=stream),
    )


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress that leaves the terminal clean, also when what it shows fails."""
    shown = Progress()
    try:
        yield shown
    finally:
        shown.close()
