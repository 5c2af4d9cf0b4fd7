"""Calls that carry several shards: only small ones, and none that something went wrong with.

A call costs the driver and the worker about a millisecond each, whatever it carries; that is
nothing beside a shard of seconds, and most of the work where a shard holds a few images.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.dispatch import Dispatch
from pipelines.embed import ShardWork

CALL_S = 0.05
"""Seconds that the shards of one call may take together; so much more is lost with a worker."""
MOST_SHARDS = 32
SHARE = 4
"""Of what waits, one call carries at most a worker's share of this part."""


class Pace:
    """Seconds that a shard took of late: a slower one counts at once, quicker ones by and by."""

    def __init__(self) -> None:
        self._shard_s: float | None = None

    def note(self, num_shards: int, seconds: float) -> None:
        """A call with so many shards took so long in its worker."""
        if not num_shards:
            return
        took, before = seconds / num_shards, self._shard_s
        if before is None or took > before:
            self._shard_s = took
        else:
            self._shard_s = before + 0.2 * (took - before)

    def shards(self, num_pending: int, num_workers: int) -> int:
        """Shards that the next call may carry, 1 while nothing is known."""
        if self._shard_s is None:
            return 1
        fit = MOST_SHARDS if self._shard_s * MOST_SHARDS <= CALL_S else int(CALL_S / self._shard_s)
        return max(1, min(fit, MOST_SHARDS, num_pending // (SHARE * max(1, num_workers))))


def after_death(
    calls: Sequence[Sequence[ShardWork]], dispatch: Dispatch, now: float, lost: bool
) -> None:
    """A worker died with these calls: a death of the shard of its older one, where that had the
    call to itself. Images are decoded of the older call alone; what was fetched ahead goes back
    unharmed, and is the older one when its worker dies of it again.

    Which of several was the cause is not known: each is next tried in a call of its own. ``lost``:
    the machine went, which says nothing of any shard.
    """
    older = calls[:1] if not lost else []
    for works in calls[len(older) :][::-1]:
        for work in works[::-1]:
            dispatch.give_back(work.shard.source)
    for works in older:
        for work in works[::-1]:
            if len(works) > 1:
                dispatch.give_back(work.shard.source, alone=True)
            else:
                dispatch.die(work.shard.source, now)


def after_standstill(
    calls: Sequence[Sequence[ShardWork]], dispatch: Dispatch, now: float, reason: str
) -> None:
    """A worker stood still: the shard of its older call is held to be the cause, what was fetched
    ahead goes back unharmed. Of several in the older call none is: each is next tried in a call of
    its own.
    """
    for works in calls[1:][::-1]:
        for work in works[::-1]:
            dispatch.give_back(work.shard.source)
    for works in calls[:1]:
        for work in works[::-1]:
            if len(works) > 1:
                dispatch.give_back(work.shard.source, alone=True)
            else:
                dispatch.fail(work.shard.source, reason, now)
