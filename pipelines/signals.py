"""SIGTERM and SIGINT as a request: finish what is in hand, commit, then go, and go in time."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.errors import StoppedError

GRACE_S = 18.0
"""How long a process that was told to stop may take; whoever told it waits for 20 to 30 s."""


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


@contextmanager
def ended_in_time() -> Iterator[None]:
    """SIGTERM and SIGINT end this process within ``GRACE_S``, whatever it is doing.

    Python hears a signal only between two steps of its own: not in foreign code that computes, and
    to no avail where a storage does not answer. What was not committed by then is lost, as when the
    process is killed, and the next run does it again. In the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    watch = threading.Thread(target=_end_in_time, args=(heard,), daemon=True, name="signals")
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        watch.join()
        os.close(heard)


def _end_in_time(heard: int) -> None:
    """Wait for a signal's number in the pipe, then for the pipe's end, but not for long."""
    number = None
    while number is None:
        numbers = os.read(heard, 64)
        if not numbers:
            return
        number = next((n for n in numbers if n in (signal.SIGTERM, signal.SIGINT)), None)
    until = time.monotonic() + GRACE_S
    while (left := until - time.monotonic()) > 0:
        if select.select([heard], [], [], left)[0] and not os.read(heard, 64):
            return
    name = signal.Signals(number).name
    told = f"orbit: stopped by {name}, ended {GRACE_S:.0f} s later; the next run goes on from there"
    os.write(2, f"{told}\n".encode())
    os._exit(128 + number)
