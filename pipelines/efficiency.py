"""What a run's numbers mean: the time an ideal run would have needed on the same machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipelines.pacing import Seconds


@dataclass(frozen=True)
class Rates:
    """Measured on workers that are warm, each phase by itself, on images of the run.

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
    """``ideal_s`` seconds, set by the resource ``limit``: cpu, gpu or network.

    ``fetch_per_s``, ``decode_per_s`` and ``model_per_s``: images per second that all of the run's
    resources would do of that alone; decoding goes as far as the model's input.
    """

    ideal_s: float
    limit: str
    fetch_per_s: float | None
    decode_per_s: float | None
    model_per_s: float | None


def mean(measured: Sequence[Rates]) -> Rates | None:
    """The rates of the mean worker; None of none."""
    if not measured:
        return None
    readers = [rates.fetch_bytes_per_s for rates in measured if rates.fetch_bytes_per_s]
    return Rates(
        fmean(rates.decode_s for rates in measured),
        fmean(rates.preprocess_s for rates in measured),
        fmean(rates.encode_s for rates in measured),
        measured[0].encode_on_gpu,
        fmean(readers) if readers else None,
        sum(rates.num_images for rates in measured),
    )


def ideal(rates: Rates, demand: Demand) -> Ideal:
    """The largest of demand / capacity over CPU, GPU and network.

    Thumbnails, Parquet, uploads, commits and waiting are not work in this sense: they lower the
    efficiency. The network's capacity is one reader's rate for each worker.
    """
    images, gpus = demand.num_encoded, max(demand.gpus, 1.0)
    decode_s = images * (rates.decode_s + rates.preprocess_s) / demand.cores
    model_s = images * rates.encode_s / (gpus if rates.encode_on_gpu else demand.cores)
    needs = (
        {"cpu": decode_s, "gpu": model_s} if rates.encode_on_gpu else {"cpu": decode_s + model_s}
    )
    if rates.fetch_bytes_per_s:
        needs["network"] = demand.in_bytes / (rates.fetch_bytes_per_s * demand.workers)
    limit = max(needs, key=lambda name: needs[name])
    alone = (ratio(float(images), s) for s in (needs.get("network", 0.0), decode_s, model_s))
    return Ideal(needs[limit], limit, *alone)


def core_us(
    core_s: Sequence[Mapping[str, float]], num_encoded: int, cores: float, steady_s: float
) -> dict[str, float] | None:
    """Microseconds of the cores for each encoded image, by what they did; None of no image.

    By phase, from the receipts; ``other`` is what the workers took besides: Python, Ray, the other
    threads of torch. ``outside`` is what no worker had: other programs, waiting, nothing to do.
    """
    if not num_encoded:
        return None
    phases = Seconds()
    for spent in core_s:
        phases.absorb(spent)
    whole = phases.pop("whole", 0.0)
    phases["other"] = max(0.0, whole - sum(phases.values()))
    phases["outside"] = max(0.0, cores * steady_s - whole)
    return {phase: 1e6 * seconds / num_encoded for phase, seconds in phases.items()}


def ratio(ideal_s: float | None, actual_s: float) -> float | None:
    """Efficiency: ideal over actual time, None where nothing was measured; or images over time."""
    return None if ideal_s is None or actual_s <= 0 else ideal_s / actual_s
