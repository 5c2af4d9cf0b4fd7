"""The first seconds of a worker: its model is run until it is warm, and its batches are chosen.

How many images at once, and whether each lane encodes batches of its own or all threads share one,
depends on model and processor: both are measured, in ``BUDGET_S`` at most, unless they are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pipelines.allocator import keep_freed_memory
from pipelines.errors import ModelMismatchError
from pipelines.faults import faultpoint
from pipelines.models import checkpoint_of_store
from pipelines.storage import Folder

if TYPE_CHECKING:
    from eqmodel import Embedder
    from pipelines.embed import WorkerSettings

MOST_AT_ONCE = 256
CANDIDATES = (256, 128, 64, 32)
BATCH_BYTES = 64 << 20
"""Model input of one batch at most, whatever the batch size says."""

BUDGET_S = 2.0
ROUNDS = 5
WORTH = 1.03
"""A smaller batch is taken when it is so many times as fast as a larger one."""


@dataclass(frozen=True)
class Batching:
    """Images that are encoded at once, and whether the lanes encode (see ``lanes.py``)."""

    batch_size: int
    in_lanes: bool


def load_embedder(settings: WorkerSettings, place: Path) -> Embedder:
    """The run's model on the worker's device.

    Taken from the driver's folder where that exists, else from the copy in the store (into
    ``place``). ModelMismatchError when it is another model than the driver planned with.
    """
    import torch

    from eqmodel import Embedder

    faultpoint("worker.load")
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    folder = Path(settings.model_folder)
    if not folder.is_dir():
        folder = checkpoint_of_store(Folder(settings.store_url), settings.model_id, place)
    embedder = Embedder.load(folder, device=settings.device)
    if embedder.model_id != settings.model_id:
        raise ModelMismatchError(
            f"{folder}: model {embedder.model_id} found, {settings.model_id} expected: "
            "the checkpoint changed during the run; run again"
        )
    if settings.compile:
        torch.set_num_threads(1)  # as in the lanes: it is compiled for so many
        embedder.compile()
    return embedder


def warm_up(embedder: Embedder, threads: int, batch_size: int | None) -> Batching:
    """Two batches of real size; then, where ``batch_size`` is None, the fastest batching.

    On a GPU one thread encodes, and batches are as large as they may be.
    """
    import torch

    most = at_most(embedder, batch_size or MOST_AT_ONCE)
    size = embedder.image_size
    images = torch.zeros(most, embedder.channels, size, size)
    ends = time.perf_counter() + BUDGET_S
    for _ in range(2):
        embedder.encode(images)
    if not embedder.device.startswith("cpu"):
        return Batching(most, in_lanes=False)
    torch.set_num_threads(1)
    if batch_size is None:
        sizes = [count for count in CANDIDATES if count < most]
        most = fastest([most, *sizes], lambda count: embedder.encode(images[:count]), ends)
    # What was compiled is for one thread: for another number torch would compile it again.
    alone = threads == 1 or embedder.compiled
    in_lanes = alone or lanes_are_faster(embedder, images[:most], threads, ends)
    torch.set_num_threads(1 if in_lanes else threads)
    return Batching(most, in_lanes)


def at_most(embedder: Embedder, asked: int) -> int:
    """Images per batch: what was asked for, within 64 MiB of model input."""
    image_bytes = embedder.channels * embedder.image_size**2 * 4
    return max(1, min(asked, BATCH_BYTES // image_bytes))


def fastest(
    sizes: list[int],
    encode: Callable[[int], object],
    ends: float,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The size with the least median time an image, of rounds that all take their turn in.

    They end half way to ``ends``; without one whole round it is the first size.
    """
    begun = clock()
    until, taken = begun + (ends - begun) / 2, dict[int, list[float]]()
    for _ in range(ROUNDS):
        for size in sizes:
            started = clock()
            if started >= until:
                break
            encode(size)
            taken.setdefault(size, []).append((clock() - started) / size)
    best = sizes[0]
    for size in sizes[1:]:
        if size in taken and median(taken[size]) * WORTH < median(taken[best]):
            best = size
    return best


def lanes_are_faster(embedder: Embedder, images: object, threads: int, ends: float) -> bool:
    """Whether so many threads with a batch each do more than all of them with one after another."""
    import torch

    def apart() -> None:
        list(pool.map(lambda _: embedder.encode(images), range(threads)))  # type: ignore[arg-type]

    def together() -> None:
        torch.set_num_threads(threads)
        for _ in range(threads):
            embedder.encode(images)  # type: ignore[arg-type]

    taken: dict[str, list[float]] = {"apart": [], "together": []}
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        apart()
        for _ in range(ROUNDS):
            for name, act in (("apart", apart), ("together", together)):
                started = time.perf_counter()
                act()
                taken[name].append(time.perf_counter() - started)
            if time.perf_counter() > ends:
                break
    return median(taken["apart"]) <= median(taken["together"])
