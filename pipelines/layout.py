"""How many workers, and what each of them gets: decided from what is there and what was asked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from pipelines.errors import SettingsError


@dataclass(frozen=True)
class WorkerFlags:
    """``--workers MIN[:MAX] --cpus-per-worker --gpus-per-worker --memory-per-worker`` (bytes).

    None where nothing was said.
    """

    min_workers: int | None = None
    max_workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    memory_per_worker: int | None = None

    @classmethod
    def parse(
        cls,
        workers: str | None,
        cpus: float | None = None,
        gpus: float | None = None,
        memory: str | None = None,
    ) -> WorkerFlags:
        """From the flags as typed. SettingsError where they make no sense."""
        low, high = _bounds(workers) if workers else (None, None)
        for name, value in (("cpus", cpus), ("gpus", gpus)):
            if value is not None and value < 0:
                raise SettingsError(f"--{name}-per-worker {value}: expected a number of 0 or more")
        return cls(low, high, cpus, gpus, _bytes(memory) if memory else None)


@dataclass(frozen=True)
class Layout:
    """``workers`` actors with so many CPUs, GPUs and bytes of memory each (0: not said).

    ``threads`` is what torch may use in each.

    ``cores`` and ``gpus`` are the capacity that the run is measured against.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int
    cores: float
    gpus: float
    memory_per_worker: int = 0

    @property
    def device(self) -> str:
        """Where a worker encodes."""
        return "cuda" if self.gpus_per_worker > 0 else "cpu"


def lay_out(
    cpus: float,
    gpus: float,
    shards: int,
    flags: WorkerFlags,
    memory: float | None = None,
    largest_node: float = math.inf,
) -> Layout:
    """One GPU for each worker where there are GPUs, else one CPU; never more workers than shards.

    CPUs that nobody asked for are shared out among the workers, so that a few shards on a large
    machine still use it; a worker fits on the machine with the most CPUs (``largest_node``). MIN
    workers are started even where they do not fit at once: a cluster may grow.
    """
    each_gpus = flags.gpus_per_worker
    if each_gpus is None:
        each_gpus = 1.0 if gpus >= 1 else 0.0
    asked_cpus = flags.cpus_per_worker
    least_cpus = 1.0 if asked_cpus is None else asked_cpus
    fits = [int(cpus // least_cpus)] if least_cpus > 0 else []
    if each_gpus > 0:
        fits.append(int(gpus // each_gpus))
    if flags.memory_per_worker and memory is not None:
        fits.append(int(memory // flags.memory_per_worker))
    possible = max(1, min(fits) if fits else 1)
    if flags.max_workers is not None:
        possible = min(possible, flags.max_workers)
    workers = max(1, min(max(possible, flags.min_workers or 1), shards))
    each_cpus = asked_cpus
    if each_cpus is None:
        each_cpus = float(max(1, int(min(cpus // workers, largest_node))))
    restricted = flags.max_workers is not None or asked_cpus is not None
    return Layout(
        workers=workers,
        cpus_per_worker=each_cpus,
        gpus_per_worker=each_gpus,
        threads=max(1, int(each_cpus)),
        cores=min(cpus, workers * max(each_cpus, 1.0)) if restricted else cpus,
        gpus=workers * each_gpus,
        memory_per_worker=flags.memory_per_worker or 0,
    )


def grown(layout: Layout, cpus: float, gpus: float, memory: float, most: int) -> Layout:
    """The layout once a cluster has other resources: workers of the same size, ``most`` at most."""
    fits = [
        int(there // each)
        for there, each in (
            (cpus, layout.cpus_per_worker),
            (gpus, layout.gpus_per_worker),
            (memory, layout.memory_per_worker),
        )
        if each > 0
    ]
    workers = max(1, min([*fits, most]))
    if workers <= layout.workers:
        return layout
    return replace(
        layout,
        workers=workers,
        cores=max(layout.cores, min(cpus, workers * max(layout.cpus_per_worker, 1.0))),
        gpus=workers * layout.gpus_per_worker,
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = (
        0.0 if found is None else float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")
    )
    if size < 1 << 20:
        raise SettingsError(f"--memory-per-worker {text}: expected a size such as 4G or 512M")
    return int(size)


def _bounds(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if low.isdecimal() and (high.isdecimal() or not high):
        least, most = int(low), int(high or low)
        if 1 <= least <= most:
            return least, most
    raise SettingsError(f"--workers {text}: expected MIN or MIN:MAX, such as 2 or 2:8")
