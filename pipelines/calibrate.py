"""How fast one worker is when it is warm and alone: the denominator of the efficiency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eqmodel.errors import Refused
from pipelines.decode import decode
from pipelines.efficiency import Rates
from pipelines.errors import Rejected
from pipelines.shards import Sample, Shard
from pipelines.storage import Folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eqmodel import Embedder

IMAGES = 256
BUDGET_S = 0.4
FETCH_BYTES = 8 << 20


def measure(
    embedder: Embedder, samples: Sequence[Sample], input_folder: Folder, shard: Shard
) -> Rates | None:
    """Rates on one core (the encoder on the GPU if it is there); None when no image decodes.

    Core-seconds are CPU time, so other programs on the machine do not make the ideal easier. Each
    phase is repeated for about 0.4 s and its best pass counts.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images, decode_s = _decoding(embedder, samples)
        if not images:
            return None
        batch = embedder.preprocess(images)
        preprocess_s = best_of(lambda: embedder.preprocess(images)) / len(images)
        on_gpu = not embedder.device.startswith("cpu")
        clock = time.perf_counter if on_gpu else time.thread_time
        encode_s = best_of(lambda: embedder.encode(batch), clock) / len(images)
    finally:
        torch.set_num_threads(threads)
    rate = fetch_rate(input_folder, shard)
    return Rates(decode_s, preprocess_s, encode_s, on_gpu, rate, len(images))


def fetch_rate(folder: Folder, shard: Shard) -> float | None:
    """Bytes per second of one reader on the input, None when there is nothing to read."""
    started, got = time.perf_counter(), 0
    if shard.kind != "folder":
        got = len(folder.read(shard.source, 0, min(shard.size, FETCH_BYTES)))
    for item in shard.items[:16]:
        got += len(folder.read(item.key))
        if got >= FETCH_BYTES or time.perf_counter() - started > BUDGET_S:
            break
    elapsed = time.perf_counter() - started
    return got / elapsed if got and elapsed > 0 else None


def best_of(action: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds of the fastest of several calls by ``clock``: two at least, for about 0.4 s."""
    begun, best, passes = time.perf_counter(), float("inf"), 0
    while passes < 2 or time.perf_counter() - begun < BUDGET_S:
        started = clock()
        action()
        best = min(best, clock() - started)
        passes += 1
    return best


def _decoding(embedder: Embedder, samples: Sequence[Sample]) -> tuple[list[NDArray[Any]], float]:
    good: list[bytes] = []
    images: list[NDArray[Any]] = []
    for sample in samples[:IMAGES]:
        try:
            image = decode(sample.data)
            embedder.accepts(image)
        except (Rejected, Refused):
            continue
        good.append(sample.data)
        images.append(image)
    if not images:
        return [], 0.0
    return images, best_of(lambda: [decode(data) for data in good]) / len(good)
