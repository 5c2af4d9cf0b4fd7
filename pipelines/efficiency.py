"""What a run's numbers mean: the time an ideal run would have needed on the same machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Measured on one worker, warm and alone, on images of the run itself.

    ``decode_s``, ``preprocess_s`` and ``encode_s`` are seconds per image on one core (``encode_s``
    on the GPU where the worker has one); ``fetch_bytes_per_s`` is one reader's rate on the input.
    """

    decode_s: float
    preprocess_s: float
    encode_s: float
    encode_on_gpu: bool
    fetch_bytes_per_s: float | None
    num_images: int


@dataclass(frozen=True)
class Demand:
    """What the run asked for, and what it had: images, bytes, cores, GPUs, workers."""

    num_encoded: int
    in_bytes: int
    cores: float
    gpus: float
    workers: int


@dataclass(frozen=True)
class Ideal:
    """``ideal_s`` seconds, set by the resource ``limit``: cpu, gpu or network."""

    ideal_s: float
    limit: str


def ideal(rates: Rates, demand: Demand) -> Ideal:
    """The largest of demand / capacity over CPU, GPU and network.

    Thumbnails, Parquet, uploads, commits and waiting are not work in this sense: they lower the
    efficiency. The network's capacity is one reader's rate for each worker.
    """
    images = demand.num_encoded
    on_cpu = rates.decode_s + rates.preprocess_s
    if not rates.encode_on_gpu:
        on_cpu += rates.encode_s
    needs = {"cpu": images * on_cpu / demand.cores}
    if rates.encode_on_gpu:
        needs["gpu"] = images * rates.encode_s / max(demand.gpus, 1.0)
    if rates.fetch_bytes_per_s:
        needs["network"] = demand.in_bytes / (rates.fetch_bytes_per_s * demand.workers)
    limit = max(needs, key=lambda name: needs[name])
    return Ideal(needs[limit], limit)


def ratio(ideal_s: float | None, actual_s: float) -> float | None:
    """Efficiency: ideal over actual time, None where nothing was measured."""
    return None if ideal_s is None or actual_s <= 0 else ideal_s / actual_s
