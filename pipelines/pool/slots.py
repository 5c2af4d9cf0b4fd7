"""One actor as the driver sees it."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.embed import ShardWork, WorkerSettings
from pipelines.layout import Layout
from pipelines.pool.actor import Ready, Whereabouts, start_actor, whereabouts

_LOGGER = logging.getLogger(__name__)


@dataclass
class Slot:
    """``there`` once its process runs, ``ready`` once its model is loaded, ``works`` the
    shards it has, by call.

    ``changed_at`` is when anything was last heard of it (time.monotonic). ``leaving`` once its node
    is drained: it gets no more shards.
    """

    name: str
    actor: Any
    starting: Any | None
    loading: Any | None
    started_at: float
    changed_at: float
    threads: int
    there: Whereabouts | None = None
    ready: Ready | None = None
    works: dict[Any, tuple[ShardWork, ...]] = field(default_factory=dict)
    seen: int = -1
    asked: Any | None = None
    leaving: bool = False

    @classmethod
    def start(cls, name: str, layout: Layout, worker: WorkerSettings, now: float) -> Slot:
        """A new actor; it waits until there is room for it, and then loads its model."""
        actor = start_actor(layout)
        starting, loading = actor.where.remote(), actor.load.remote(worker, name)
        return cls(name, actor, starting, loading, now, now, layout.threads)

    @property
    def place(self) -> str | None:
        """The machine it runs on, once it runs."""
        return None if self.there is None else self.there.machine

    @property
    def busy(self) -> bool:
        """Whether something is to be heard of it: an actor that waits for room is not busy."""
        return bool(self.works) or (self.there is not None and self.ready is None)

    def hear(self, now: float) -> None:
        """Ask how far it is, and note when the answer changes."""
        if self.starting is not None:
            there = _answer(self.starting)
            if there is None:
                return
            self.starting, self.there, self.changed_at = None, there, now
        if self.asked is not None:
            seen = _answer(self.asked)
            if seen is None:
                return
            if seen != self.seen:
                self.seen, self.changed_at = seen, now
        self.asked = self.actor.progress.remote() if self.works else None

    def kill(self) -> None:
        """Have Ray end the actor."""
        ray.kill(self.actor, no_restart=True)

    def end_process(self) -> None:
        """End its process by a signal, wherever it is: a stopped process does not hear Ray, and
        its memory and CPU would stay taken.
        """
        there = self.there
        if there is None:
            return
        if there.machine == whereabouts().machine:
            return _kill(there.pid)
        where = NodeAffinitySchedulingStrategy(there.node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=where)
        try:
            task.remote(there.pid)
        except (RayError, ValueError) as error:
            _LOGGER.info("%s could not be ended on its machine: %s", self.name, error)


def answered(asked: list[Any], wait_s: float) -> dict[Any, Any]:
    """What has been answered of ``asked``, each as its result or as the RayError it met; waits for
    the first one, ``wait_s`` at most."""
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
    if not done:
        done, _ = ray.wait(asked, num_returns=1, timeout=wait_s)
    try:
        return dict(zip(done, ray.get(done), strict=True))
    except RayError:  # of one of them
        return {ref: _result(ref) for ref in done}


def _result(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        return error


def _answer(asked: Any) -> Any | None:
    """What was answered, None while nothing was (or when the actor is gone: its loading and its
    works will tell).
    """
    answered, _ = ray.wait([asked], timeout=0)
    if not answered:
        return None
    with suppress(RayError):
        return ray.get(asked)
    return None


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
