"""SIGTERM and SIGINT as a request: finish what is in hand, commit, then go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.errors import StoppedError


class StopRequest:
    """Which signal asked the run to stop, None while none did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """True once a signal came."""
        return self.number is not None

    def error(self) -> StoppedError | None:
        """The error to exit with: 143 for SIGTERM, 130 for SIGINT."""
        return None if self.number is None else StoppedError(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise StoppedError(number)  # asked twice: now
        self.number = number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGTERM and SIGINT over, in the main thread; elsewhere whoever runs us takes them."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.signal(n, request._note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
