"""Which shard is embedded next, and what a failure of it means: no Ray, no clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pipelines.embed import ShardWork
from pipelines.failures import Failure
from pipelines.shards import Shard
from pipelines.table import KnownFile

DEATHS_BEFORE_QUARANTINE = 2
REFUSED_BEFORE_THE_END = 3
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0


@dataclass(slots=True)
class Task:
    """One shard's history in this run."""

    shard: Shard
    previous: KnownFile | None
    handed_out: int = 0
    attempts: int = 0
    deaths: int = 0
    halvings: int = 0
    alone: bool = False
    not_before: float = 0.0

    @property
    def quarantine(self) -> int:
        """1 once two workers died with it, 2 after more: see ``ShardWork``."""
        return min(2, max(0, self.deaths - DEATHS_BEFORE_QUARANTINE + 1))

    @property
    def harmless(self) -> bool:
        """Whether nothing has gone wrong with it: it may share a call to a worker with others."""
        return not (self.alone or self.attempts or self.deaths)


class Dispatch:
    """Hands out shards, and takes back what failed.

    An attempt is a raised error or a deadline; the death of a worker is none, outside quarantine.
    After ``max_attempts`` a shard is given up and stands in ``failures`` with its last reason.
    """

    def __init__(
        self,
        shards: Iterable[tuple[Shard, KnownFile | None]],
        *,
        run: str,
        max_attempts: int,
        batch_size: int,
    ) -> None:
        self._run, self._max_attempts, self._batch_size = run, max_attempts, batch_size
        self._tasks = {shard.source: Task(shard, previous) for shard, previous in shards}
        self._pending = deque(sorted(self._tasks, key=self._by_size))
        self._running: set[str] = set()
        self._refused_in_a_row = 0
        self.done: set[str] = set()
        self.failures: dict[str, str] = {}
        self.replan: set[str] = set()

    @property
    def total(self) -> int:
        """Shards in all."""
        return len(self._tasks)

    @property
    def pending(self) -> int:
        """Shards that wait to be handed out."""
        return len(self._pending)

    @property
    def finished(self) -> bool:
        """True when nothing waits and nothing runs."""
        return not self._pending and not self._running

    def next(self, now: float, beside: bool = False) -> ShardWork | None:
        """The next shard that is due, None when there is none at this time (seconds).

        ``beside`` another one in the same worker: none of the quarantine, which a death of that
        worker counts against.
        """
        for _ in range(len(self._pending)):
            task = self._tasks[self._pending[0]]
            if task.not_before <= now and not (beside and task.quarantine):
                return self._hand_out(self._pending.popleft())
            self._pending.rotate(-1)
        return None

    def bundle(self, now: float, most: int, beside: bool = False) -> tuple[ShardWork, ...]:
        """``next``, and with it the shards after it, ``most`` in all: none with which anything went
        wrong before, so that what goes wrong again is known to be its own.
        """
        first = self.next(now, beside)
        if first is None:
            return ()
        works = [first]
        if self._tasks[first.shard.source].harmless:
            while len(works) < most and self._pending and self._tasks[self._pending[0]].harmless:
                works.append(self._hand_out(self._pending.popleft()))
        return tuple(works)

    def finish(self, source: str) -> None:
        """A receipt for it was believed."""
        self._running.discard(source)
        self.done.add(source)
        self._refused_in_a_row = 0

    def fail(self, source: str, reason: str, now: float, smaller: bool = False) -> None:
        """It raised, or made no progress until the deadline: an attempt.

        ``smaller``: for want of memory, so that it is tried again with half the batch.
        """
        task = self._tasks[source]
        task.attempts += 1
        task.halvings += smaller
        self._running.discard(source)
        if task.attempts >= self._max_attempts:
            self.failures[source] = f"{reason} ({task.attempts} attempts)"
            return
        task.not_before = now + min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**task.attempts)
        self._pending.append(source)

    def refuse(self, failure: Failure, source: str) -> Failure | None:
        """Access to it was denied: it is given up at once. What ends the run when access was denied
        to several in a row, which is then no matter of the object.
        """
        self._running.discard(source)
        self.failures[source] = failure.message
        self._refused_in_a_row += 1
        if self._refused_in_a_row < REFUSED_BEFORE_THE_END:
            return None
        return Failure("fatal", failure.message)

    def die(self, source: str, now: float) -> None:
        """The worker that had it died; says nothing against the shard, outside quarantine."""
        task = self._tasks[source]
        quarantined = task.quarantine > 0
        task.deaths += 1
        task.halvings += 1
        if quarantined:
            self.fail(source, "its worker died in quarantine", now)
        else:
            self.give_back(source)

    def give_back(self, source: str, alone: bool = False) -> None:
        """It was handed out and never finished, through no fault of its own. ``alone``: one of
        several in a call of which something went wrong; they share no call again.
        """
        self._tasks[source].alone |= alone
        self._running.discard(source)
        self._pending.appendleft(source)

    def changed(self, source: str) -> None:
        """Its object is no longer the one that was planned."""
        self._running.discard(source)
        self.replan.add(source)

    def drop(self, sources: Collection[str]) -> None:
        """Another writer has done them: what was not handed out yet need not be."""
        if not sources:
            return
        self.done.update(source for source in self._pending if source in sources)
        self._pending = deque(source for source in self._pending if source not in sources)

    def _hand_out(self, source: str) -> ShardWork:
        task = self._tasks[source]
        task.handed_out += 1
        self._running.add(source)
        return ShardWork(
            shard=task.shard,
            run=self._run,
            attempt=task.handed_out,
            previous=task.previous,
            batch_size=max(1, self._batch_size >> task.halvings),
            quarantine=task.quarantine,
        )

    def _by_size(self, source: str) -> tuple[int, str]:
        """Large shards first, so that the end of a run does not wait for one of them."""
        return -self._tasks[source].shard.size, source
