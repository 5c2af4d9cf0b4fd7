"""Small parts of a worker: whose turn it is on the encoder, and where the time went."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from pipelines.shards import Sample

T = TypeVar("T")
CHUNK_BYTES = 4 << 20


class Turn:
    """One holder at a time; of those that wait, the oldest ticket goes first.

    So the shard that began first finishes first, and the next one fills its pauses.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count()
        self._free = threading.Condition()
        self._waiting: set[int] = set()
        self._held = False

    def ticket(self) -> int:
        """A place in the queue; the lower the earlier."""
        return next(self._tickets)

    @contextmanager
    def hold(self, ticket: int) -> Iterator[None]:
        """Wait for the turn and keep it inside the ``with``."""
        with self._free:
            self._waiting.add(ticket)
            self._free.wait_for(lambda: not self._held and ticket == min(self._waiting))
            self._waiting.remove(ticket)
            self._held = True
        try:
            yield
        finally:
            with self._free:
                self._held = False
                self._free.notify_all()


class Seconds(dict[str, float]):
    """Seconds by the name of a phase."""

    def add(self, phase: str, seconds: float) -> None:
        """More of one phase."""
        self[phase] = self.get(phase, 0.0) + seconds

    def absorb(self, other: Mapping[str, float]) -> None:
        """More of every phase of another."""
        for phase, seconds in other.items():
            self.add(phase, seconds)


class Phases:
    """What each phase took: ``seconds`` by the clock, ``core_s`` of its thread's time on a core."""

    def __init__(self) -> None:
        self.seconds, self.core_s = Seconds(), Seconds()

    def add(self, phase: str, seconds: float, core_s: float) -> None:
        """More of one phase."""
        self.seconds.add(phase, seconds)
        self.core_s.add(phase, core_s)

    def absorb(self, other: Phases) -> None:
        """More of every phase of another."""
        self.seconds.absorb(other.seconds)
        self.core_s.absorb(other.core_s)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside the ``with`` to one phase."""
        started, worked = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - started, time.thread_time() - worked)

    def each(self, phase: str, items: Iterator[T]) -> Iterator[T]:
        """The same items; what it takes to get each is added to one phase."""
        while True:
            with self.timed(phase):
                found = list(itertools.islice(items, 1))
            if not found:
                return
            yield found[0]


class Tally:
    """One shard: its phases, of several threads together, what was encoded, and bytes read."""

    def __init__(self) -> None:
        self.phases = Phases()
        self.num_encoded = 0
        self.in_bytes = 0


def chunked(samples: Iterable[Sample], count: int) -> Iterator[list[Sample]]:
    """Samples in lists of at most ``count`` and, beyond the first image, 4 MiB of bytes."""
    chunk: list[Sample] = []
    size = 0
    for sample in samples:
        if chunk and (len(chunk) >= count or size + len(sample.data) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(sample)
        size += len(sample.data)
    if chunk:
        yield chunk
