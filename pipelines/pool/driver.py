"""The driver's side of the pool: start, hand out, collect, end the stuck, replace the dead.

Descriptors go in, receipts come out; pixels never leave an actor. Each actor has one call in work
and one with which it fetches ahead; a call carries one shard, or several small ones. What a failure
means is decided in ``dispatch.py``.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from pipelines.dispatch import Dispatch
from pipelines.efficiency import Rates, mean
from pipelines.embed import ShardWork
from pipelines.errors import RayError as OrbitRayError
from pipelines.failures import Failure
from pipelines.pool.actor import Answer, Ready
from pipelines.pool.bundles import Pace, after_death, after_standstill
from pipelines.pool.growth import node_is_lost
from pipelines.pool.settings import PoolSettings
from pipelines.pool.slots import Slot, answered
from pipelines.table import Receipt

POLL_S = 0.2
PROGRESS_EVERY_S = 2.0
GATHER_S = 5.0
"""How long the first worker that is ready waits for the others before shards are handed out."""
LOADING_DEADLINE_S = 120.0
"""A worker whose process runs has its model by then, or hangs; where the deadline is shorter."""
MAX_LOADING_DEATHS = 8
LONGEST_RESTART_S = 5.0
_LOGGER = logging.getLogger(__name__)


class Pool:
    """Actors of one run. ``run`` works a ``Dispatch`` off; a context manager that ends the actors.

    ``on_receipt`` is called with each receipt and says whether it is believed; ``on_tick``
    several times a second. Both run between events, so a commit in them delays no actor: each has
    a second call at hand. ``stop`` is asked all the time and ends the run when true.
    """

    def __init__(
        self,
        settings: PoolSettings,
        on_receipt: Callable[[Receipt], bool],
        on_tick: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        self._settings, self._on_receipt, self._on_tick = settings, on_receipt, on_tick
        self._stop = stop
        self._slots: list[Slot] = []
        self._numbers = itertools.count()
        self._pace = Pace()
        self._worker = settings.worker
        self._loading_deaths = 0
        self._next_start = 0.0
        self._next_look = 0.0
        self._first_ready: float | None = None
        self.first_handed_out: float | None = None
        self.num_restarts = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for slot in self._slots:
            slot.kill()
        self._slots = []

    def run(self, dispatch: Dispatch) -> Failure | None:
        """Work until nothing is left or ``stop`` is true; returns a Failure that ended the run."""
        while not dispatch.finished and not self._stop():
            now = time.monotonic()
            self._let_go()
            self._start_missing(dispatch, now)
            self._hand_out(dispatch, now)
            self._share_threads(dispatch)
            fatal = self._collect(dispatch)
            if fatal is not None:
                return fatal
            self._look_for_stuck(dispatch, time.monotonic())
            self._on_tick()
        return None

    def calibrate(self, timeout_s: float = 15.0) -> Rates | None:
        """Rates of the mean worker, all of them asked at once; None when none could be measured."""
        idle = [slot for slot in self._slots if slot.ready is not None and not slot.works]
        asked = [slot.actor.calibrate.remote() for slot in idle]
        ends, measured = time.monotonic() + timeout_s, list[Rates]()
        while asked and time.monotonic() < ends:
            answers = answered(asked, POLL_S)
            measured += [rates for rates in answers.values() if isinstance(rates, Rates)]
            asked = [ref for ref in asked if ref not in answers]
        return mean(measured)

    # -- starting -----------------------------------------------------------------------------

    def _start_missing(self, dispatch: Dispatch, now: float) -> None:
        """Keep as many actors as the layout says; after deaths while loading, with back-off."""
        left = dispatch.pending + sum(len(slot.works) for slot in self._slots)
        wanted = min(self._most(), left)
        while len(self._slots) < wanted and now >= self._next_start:
            self._slots.append(self._start(now))

    def _most(self) -> int:
        growing = self._settings.workers
        return growing() if growing else self._settings.layout.workers

    def _start(self, now: float) -> Slot:
        name = f"worker-{next(self._numbers)}"
        return Slot.start(name, self._settings.layout, self._worker, now)

    def _let_go(self) -> None:
        """A worker on a node that is drained gets no more shards, and ends when it has none."""
        going = self._settings.leaving()
        for slot in [slot for slot in self._slots if slot.there and slot.there.node in going]:
            if not slot.leaving:
                _LOGGER.info("%s leaves: its node is drained", slot.name)
            slot.leaving = True
            if slot.ready is not None and not slot.works:
                slot.kill()
                self._slots.remove(slot)

    # -- handing out --------------------------------------------------------------------------

    def _hand_out(self, dispatch: Dispatch, now: float) -> None:
        """One call for each idle worker, then one ahead while there is enough for everybody.

        A shard in quarantine has its worker for itself.
        """
        ready = [slot for slot in self._slots if slot.ready is not None and not slot.leaving]
        if not ready or not self._gathered(len(ready), now):
            return
        for ahead in (0, 1):
            for slot in ready:
                if len(slot.works) > ahead or (ahead and dispatch.pending < len(self._slots)):
                    continue
                if any(work.quarantine for works in slot.works.values() for work in works):
                    continue
                most = self._pace.shards(dispatch.pending, len(ready))
                works = dispatch.bundle(now, most, beside=bool(slot.works))
                if not works:
                    break
                self._give(slot, works, now)

    def _gathered(self, num_ready: int, now: float) -> bool:
        if self.first_handed_out is not None or num_ready == len(self._slots):
            return True
        if self._first_ready is None:
            self._first_ready = now
        return now - self._first_ready > GATHER_S

    def _give(self, slot: Slot, works: tuple[ShardWork, ...], now: float) -> None:
        if not slot.works:
            slot.changed_at = now
        if works[0].quarantine:
            _LOGGER.info("%s goes to quarantine %d", works[0].shard.source, works[0].quarantine)
        if self.first_handed_out is None:
            self.first_handed_out = now
        slot.works[slot.actor.embed.remote(works)] = works

    def _share_threads(self, dispatch: Dispatch) -> None:
        """At the end of a run the busy workers get the CPUs of the idle ones on their machine."""
        usual = self._settings.layout.threads
        ready = [slot for slot in self._slots if slot.ready is not None]
        busy = [slot for slot in ready if slot.works]
        wanted = usual
        if busy and not dispatch.pending and len({slot.place for slot in ready}) == 1:
            wanted = usual * len(ready) // len(busy)
        for slot in busy:
            if slot.threads != wanted:
                slot.threads = wanted
                slot.actor.use_threads.remote(wanted)

    # -- collecting ---------------------------------------------------------------------------

    def _collect(self, dispatch: Dispatch) -> Failure | None:
        """Handle whatever ended within a fraction of a second."""
        waiting: dict[Any, Slot] = {}
        for slot in self._slots:
            waiting.update(dict.fromkeys(slot.works, slot))
            if slot.loading is not None:
                waiting[slot.loading] = slot
        if not waiting:
            time.sleep(POLL_S)
            return None
        answers = answered(list(waiting), POLL_S)
        of_calls = [a.results for a in answers.values() if isinstance(a, Answer)]
        receipts = [r for results in of_calls for r in results if isinstance(r, Receipt)]
        self._settings.expect(receipts)
        for ref, answer in answers.items():
            slot = waiting[ref]
            if slot not in self._slots:
                continue  # died of an earlier one of these
            if isinstance(answer, RayError):
                self._bury(slot, dispatch, str(answer), lost=node_is_lost(answer))
                continue
            fatal = self._take(slot, ref, answer, dispatch)
            if fatal is not None:
                return fatal
        return None

    def _take(
        self, slot: Slot, ref: Any, result: Answer | Failure | Ready, dispatch: Dispatch
    ) -> Failure | None:
        now = time.monotonic()
        slot.changed_at = now
        if isinstance(result, Ready):
            slot.ready, slot.loading = result, None
            if result.batch_size:  # workers that come later need not measure it again
                self._worker = replace(self._worker, batch_size=result.batch_size)
            self._loading_deaths = 0
            age = now - slot.started_at
            _LOGGER.info("%s is ready after %.2f s as process %d", slot.name, age, result.pid)
        elif isinstance(result, Failure):
            return result
        elif ref in slot.works:
            works = slot.works.pop(ref)
            self._pace.note(len(result.results), result.seconds)
            for work in works[len(result.results) :][::-1]:
                dispatch.give_back(work.shard.source)
            settled = [
                self._settle(work.shard.source, of_it, dispatch, now)
                for work, of_it in zip(works, result.results, strict=False)
            ]
            return next((fatal for fatal in settled if fatal is not None), None)
        return None

    def _settle(
        self, source: str, result: Receipt | Failure, dispatch: Dispatch, now: float
    ) -> Failure | None:
        """What became of one shard; a Failure when it ends the run."""
        if isinstance(result, Receipt):
            if self._on_receipt(result):
                dispatch.finish(source)
            else:
                dispatch.fail(source, "its file was not found in the store", now)
        elif result.action == "fatal":
            dispatch.give_back(source)
            return result
        elif result.action == "refused":
            return dispatch.refuse(result, source)
        elif result.action == "replan":
            dispatch.changed(source)
        else:
            _LOGGER.info("%s: %s", source, result.message)
            dispatch.fail(source, result.message, now, result.smaller)
        return None

    # -- ends ---------------------------------------------------------------------------------

    def _bury(self, slot: Slot, dispatch: Dispatch, why: str, lost: bool) -> None:
        """A worker died: its shards go elsewhere, another worker takes its place.

        ``lost``: its machine went, which says nothing of the shards it had.
        """
        now = time.monotonic()
        age, loading = now - slot.started_at, "" if slot.ready else ", while loading"
        said = why.splitlines()[0] if why else ""
        _LOGGER.info("%s died after %.2f s%s: %s", slot.name, age, loading, said)
        after_death(list(slot.works.values()), dispatch, now, lost)
        self._remove(slot)
        if not lost:
            self._count_loading_death(slot, now)

    def _remove(self, slot: Slot) -> None:
        slot.kill()
        self._slots.remove(slot)
        self.num_restarts += 1

    def _look_for_stuck(self, dispatch: Dispatch, now: float) -> None:
        """Ask every busy worker how far it is; end the ones that stand still past the deadline."""
        if now < self._next_look:
            return
        self._next_look = now + min(PROGRESS_EVERY_S, self._settings.deadline_s / 4)
        for slot in list(self._slots):
            slot.hear(now)
            allowed = self._settings.deadline_s
            allowed = allowed if slot.ready is not None else max(allowed, LOADING_DEADLINE_S)
            if slot.busy and now - slot.changed_at > allowed:
                self._end_stuck(slot, dispatch, now, f"no progress for {allowed:.0f} s")

    def _end_stuck(self, slot: Slot, dispatch: Dispatch, now: float, reason: str) -> None:
        after_standstill(list(slot.works.values()), dispatch, now, reason)
        _LOGGER.info("%s: %s", slot.name, reason)
        self._remove(slot)
        slot.end_process()
        self._count_loading_death(slot, now)

    def _count_loading_death(self, slot: Slot, now: float) -> None:
        """Workers that do nothing but die, more in a row than there are, come with a pause between
        them. One that had its model says nothing of the next: its shard is watched instead."""
        if slot.ready is not None:
            return
        self._loading_deaths += 1
        if self._loading_deaths >= MAX_LOADING_DEATHS:
            raise OrbitRayError(
                f"{self._loading_deaths} workers in a row died or hung while loading the model; "
                "give them more memory (--workers with a smaller number)"
            )
        beyond = self._loading_deaths - self._most()
        if beyond > 0:
            self._next_start = now + min(LONGEST_RESTART_S, 0.2 * 2**beyond)
