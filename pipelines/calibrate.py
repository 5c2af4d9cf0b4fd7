"""How fast one worker is when it is warm: the denominator of the efficiency."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from eqmodel.errors import Refused
from pipelines.decode import Caps, decode, quiet_decoders
from pipelines.efficiency import Rates
from pipelines.errors import Rejected
from pipelines.fast_decode import decode_reduced
from pipelines.shards import Sample, Shard
from pipelines.storage import Folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eqmodel import Embedder

IMAGES = 256
KEPT_BYTES = 32 << 20
"""Of the images kept for it, as stored."""
BUDGET_S = 1.5
"""At most: a run of less work is not worth it."""
LEAST_PASSES = 4
FETCH_S = 0.4
FETCH_BYTES = 8 << 20

Phase = tuple[Callable[[], object], Callable[[], float]]


def measure(
    embedder: Embedder,
    samples: Sequence[Sample],
    input_folder: Folder,
    shard: Shard,
    threads: int = 1,
    reduced: int = 0,
    budget_s: float = BUDGET_S,
) -> Rates | None:
    """Core-seconds of each phase by itself (the encoder's on the GPU if it is there) with
    ``threads`` of them at work at once; None when no image decodes.

    Core-seconds are CPU time, so other programs on the machine do not make the ideal easier; all
    the cores of the run are busy with the same, by threads here and by the other workers, which are
    asked at once: one core alone has caches and clock that two together have not. The phases
    take turns for ``budget_s``, so that a slow moment of the machine meets all of them, and of each
    the lower quartile of its passes counts: the best pass alone varied by 25% between runs.
    """
    import torch

    good, images = _decodable(embedder, samples, reduced)
    if not images:
        return None
    batch = embedder.model_input(images)
    on_gpu = not embedder.device.startswith("cpu")
    clock = time.perf_counter if on_gpu else time.thread_time
    phases: list[Phase] = [
        (lambda: _decode_all(good, reduced), time.thread_time),
        (lambda: embedder.model_input(images), time.thread_time),
        (lambda: embedder.encode(batch), clock),
    ]
    before, at_once = torch.get_num_threads(), 1 if on_gpu else threads
    torch.set_num_threads(1)
    with ThreadPoolExecutor(at_once, initializer=lambda: torch.set_num_threads(1)) as pool:
        found = list(pool.map(lambda _: quartiles(phases, budget_s), range(at_once)))
    torch.set_num_threads(before)
    count, rate = len(images), fetch_rate(input_folder, shard)
    decode_s, preprocess_s, encode_s = (
        sum(taken) / (count * at_once) for taken in zip(*found, strict=True)
    )
    return Rates(decode_s, preprocess_s, encode_s, on_gpu, rate, count)


def bounded(rates: Rates, seen: Mapping[str, float], encodes: bool) -> Rates:
    """No phase needs more of a core than it took in the run itself, beside all the others.

    ``seen``: core-seconds per image by phase. ``encodes``: each thread encodes by itself; the time
    of one says nothing where several share a batch. Two cores that only encode get in each other's
    way: 385 microseconds an image of 28 x 28 were measured so after a run in which it took 333.
    """
    own = encodes and not rates.encode_on_gpu
    return replace(
        rates,
        decode_s=min(rates.decode_s, seen.get("decode", inf)),
        preprocess_s=min(rates.preprocess_s, seen.get("preprocess", inf)),
        encode_s=min(rates.encode_s, seen.get("encode", inf)) if own else rates.encode_s,
    )


def fetch_rate(folder: Folder, shard: Shard) -> float | None:
    """Bytes per second of one reader on the input, None when there is nothing to read."""
    started, got = time.perf_counter(), 0
    if shard.kind != "folder":
        got = len(folder.read(shard.source, 0, min(shard.size, FETCH_BYTES)))
    for item in shard.items[:16]:
        got += len(folder.read(item.key))
        if got >= FETCH_BYTES or time.perf_counter() - started > FETCH_S:
            break
    elapsed = time.perf_counter() - started
    return got / elapsed if got and elapsed > 0 else None


def quartiles(
    phases: Sequence[Phase],
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each phase by its own clock: the lower quartile of passes that take turns, four
    at least, for about ``budget_s``.
    """
    begun, taken = clock(), list[list[float]]()
    while len(taken) < LEAST_PASSES or clock() - begun < budget_s:
        taken.append([])
        for action, seconds in phases:
            started = seconds()
            action()
            taken[-1].append(seconds() - started)
    return [sorted(passes)[len(passes) // 4] for passes in zip(*taken, strict=True)]


def _decode_all(encoded: Sequence[bytes], reduced: int) -> None:
    with quiet_decoders():
        for data in encoded:
            _decoded(data, reduced)


def _decoded(data: bytes, reduced: int) -> NDArray[Any]:
    found = decode_reduced(data, Caps(), reduced) if reduced else None
    return decode(data) if found is None else found[0]


def _decodable(
    embedder: Embedder, samples: Sequence[Sample], reduced: int
) -> tuple[list[bytes], list[NDArray[Any]]]:
    good: list[bytes] = []
    images: list[NDArray[Any]] = []
    for sample in samples[:IMAGES]:
        try:
            image = _decoded(sample.data, reduced)
            embedder.accepts(image)
        except (Rejected, Refused):
            continue
        good.append(sample.data)
        images.append(image)
    return good, images
