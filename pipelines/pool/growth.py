"""A cluster that changes during a run: machines that come, and machines that go."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress

import ray
from ray.exceptions import ActorDiedError, RayError

from pipelines.layout import Layout, grown

LOOK_EVERY_S = 3.0
ASK_S = 5.0
_LOGGER = logging.getLogger(__name__)


class Growth:
    """How many workers there may be now: called by the pool, all the time.

    On a Ray of our own nothing changes. On a cluster that was joined, machines that come are used,
    up to ``most`` workers; with ``asked`` its autoscaler is told that ``most`` are wanted, for as
    long as the ``with`` lasts. Workers of machines that go are replaced by the pool: ``leaving``
    names the nodes whose end was announced; the others it finds dead. New actors wait until there
    is room.
    """

    def __init__(self, layout: Layout, *, most: int, joined: bool, asked: bool) -> None:
        self.layout = layout
        self._most, self._joined, self._asked = max(1, most), joined, asked and joined
        self._next_look = 0.0
        self._leaving: frozenset[str] = frozenset()

    def __enter__(self) -> Growth:
        if self._asked:
            each = {"CPU": self.layout.cpus_per_worker, "GPU": self.layout.gpus_per_worker}
            bundle = {name: count for name, count in each.items() if count > 0}
            _ask_autoscaler([bundle] * self._most if bundle else [])
        return self

    def __exit__(self, *exception: object) -> None:
        if self._asked:
            _ask_autoscaler([])

    def __call__(self) -> int:
        """The number of workers, looked at again every few seconds."""
        now = time.monotonic()
        if self._joined and now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            with suppress(RayError):
                there = ray.cluster_resources()
                self.layout = grown(
                    self.layout,
                    float(there.get("CPU", 0.0)),
                    float(there.get("GPU", 0.0)),
                    float(there.get("memory", 0.0)),
                    self._most,
                )
                self._leaving = draining_nodes()
        return self.layout.workers

    def leaving(self) -> frozenset[str]:
        """Ids of the nodes that are drained or preempted, as of the last look."""
        return self._leaving


def memory_there() -> float:
    """Bytes of memory that Ray may give to workers."""
    return float(ray.cluster_resources().get("memory", 0.0))


def largest_node() -> float:
    """CPUs of the machine that has the most of them; infinity while none has any."""
    found = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return float(max(found, default=0.0)) or math.inf


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that were announced to go, by their cloud or by an operator."""
    from ray._private.worker import global_worker

    try:
        return frozenset(global_worker.gcs_client.get_draining_nodes(timeout=ASK_S))
    except (AttributeError, RayError, RuntimeError) as error:
        _LOGGER.info("draining nodes are not known: %s", error)
        return frozenset()


def node_is_lost(error: RayError) -> bool:
    """Whether a worker died because its machine did: drained, preempted, or gone."""
    if not isinstance(error, ActorDiedError):
        return False
    text = str(error).lower()
    return bool(error.preempted) or "node has died" in text or "node was" in text


def _ask_autoscaler(bundles: list[dict[str, float]]) -> None:
    """Tell what is wanted; a cluster without an autoscaler does not mind."""
    from ray.autoscaler.sdk import request_resources

    try:
        request_resources(bundles=bundles)
    except (RayError, RuntimeError, AssertionError) as error:
        _LOGGER.info("the autoscaler was not asked: %s", error)
