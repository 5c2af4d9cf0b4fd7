"""What runs in an actor: a thin coat around ``ShardEmbedder``."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipelines.efficiency import Rates
from pipelines.embed import ShardEmbedder, ShardWork, WorkerSettings
from pipelines.failures import Failure, failure_of
from pipelines.layout import Layout
from pipelines.pool.meters import Meters
from pipelines.table import Receipt
from pipelines.telemetry import worker_log

CALLS_AT_ONCE = 2
"""One in work, and one that is fetched ahead."""


@dataclass(frozen=True)
class Ready:
    """The word of the process ``pid`` that it has its model; it encodes ``batch_size`` images at
    once."""

    batch_size: int | None = None
    pid: int = 0


@dataclass(frozen=True)
class Answer:
    """What became of the shards of one call, in their order, in so many seconds.

    They end with the first one that failed; the call's other shards were not begun.
    """

    results: tuple[Receipt | Failure, ...]
    seconds: float


@dataclass(frozen=True)
class Whereabouts:
    """A process: its id, the ``machine`` in which that id means something, and its Ray node."""

    pid: int
    machine: str
    node: str


def whereabouts() -> Whereabouts:
    """Of this process. Containers of one machine have process ids of their own."""
    machine = socket.gethostname()
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return Whereabouts(os.getpid(), machine, node)


def spare_what_stays() -> None:
    """Let the garbage collector pass over all that a loaded worker holds: it stays to the end.

    Rows come by thousands, and set it off again and again: 15 of 65 microseconds that preparing a
    28 x 28 PNG took.
    """
    gc.collect()
    gc.freeze()


class ShardWorker:
    """The actor. Its methods return what happened; an exception never crosses to the driver.

    Shards are embedded by threads of its own: they start when the model is loaded, and so share the
    memory that is kept (see ``allocator.py``), which Ray's threads would not.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "embed")
        self._embedder: ShardEmbedder | None = None
        self._meters: Meters | None = None

    def load(self, settings: WorkerSettings, name: str) -> Ready | Failure:
        worker_log(settings.log_format, settings.run, name)
        self._meters = Meters(settings.model_id)
        try:
            self._embedder = ShardEmbedder(settings, name)
        except Exception as error:  # the process boundary
            return failure_of(error)
        spare_what_stays()
        return Ready(self._embedder.batching.batch_size, os.getpid())

    def embed(self, works: Sequence[ShardWork]) -> Answer:
        return self._threads.submit(self._answer, works).result()

    def _answer(self, works: Sequence[ShardWork]) -> Answer:
        began, results = time.monotonic(), list[Receipt | Failure]()
        for work in works:
            results.append(self._embed(work))
            if isinstance(results[-1], Failure):
                break
        return Answer(tuple(results), time.monotonic() - began)

    def _embed(self, work: ShardWork) -> Receipt | Failure:
        if self._embedder is None:
            return Failure("retry", "the worker has no model loaded")
        result: Receipt | Failure
        try:
            result = self._embedder.embed(work)
        except Exception as error:  # the process boundary
            result = failure_of(error)
        if self._meters is not None:
            self._meters.take(work.shard.source, result)
        return result

    def calibrate(self) -> Rates | None:
        return None if self._embedder is None else self._embedder.calibrate()

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def where(self) -> Whereabouts:
        return whereabouts()

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def use_threads(self, threads: int) -> None:
        if self._embedder is not None:
            self._embedder.lanes.use(threads)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def progress(self) -> int:
        return 0 if self._embedder is None else self._embedder.progress


def start_actor(layout: Layout) -> Any:
    """A new actor with its share of the machine; two calls at once, and a line for questions."""
    kind = ray.remote(
        num_cpus=layout.cpus_per_worker,
        num_gpus=layout.gpus_per_worker,
        memory=layout.memory_per_worker or None,
        max_restarts=0,
        max_concurrency=CALLS_AT_ONCE,
        concurrency_groups={"control": 1},
    )(ShardWorker)
    return kind.remote()
