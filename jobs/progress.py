"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from pipelines.telemetry import StageSpans, log

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 5.0
HELD_S = 10.0
"""How long the first stage keeps quiet: what is refused before any work is told in one line."""


class Progress:
    """Shows stages, one after the other or side by side, each with a count of a total.

    Call it with the stage's name, how much is done, of how much (None: not known), and a note.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}
        self._began = time.monotonic()
        self._first: str | None = None
        self._held: list[str] = []
        self._spans = StageSpans()

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        self._spans.note(stage, done, total)
        if self._stream.isatty() and not log().as_json:
            self._draw(stage, done, total, note)
        else:
            self._tell(stage, done, total, note)

    def say(self, line: str) -> None:
        """One line that stays."""
        if log().as_json:
            log().line("note", message=line)
        elif self._bars is not None:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._spans.close()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _draw(self, stage: str, done: int, total: int | None, note: str) -> None:
        if self._bars is None:
            self._bars = bars(self._stream)
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)

    def _tell(self, stage: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        finished = total is not None and done >= total
        quiet_until = self._told.get(stage, 0.0)
        if now < quiet_until and not (finished and quiet_until < math.inf):
            return
        self._told[stage] = math.inf if finished else now + PLAIN_INTERVAL_S
        if log().as_json:
            log().line("progress", stage=stage, done=done, total=total, note=note)
            return
        count = [f"{done:,} of {total:,}"] if total is not None else [f"{done:,}"] if done else []
        what = ", ".join([*count, *([note] if note else [])])
        self._hold(stage, f"{stage}: {what}" if what else stage, now)

    def _hold(self, stage: str, line: str, now: float) -> None:
        self._first = self._first or stage
        self._held.append(line)
        if stage != self._first or now - self._began > HELD_S:
            print("\n".join(self._held), file=self._stream, flush=True)
            self._held = []


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
