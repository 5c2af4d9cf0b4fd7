"""What a worker counts while it works, in Ray's metrics: scraped from every node as ray_orbit_*."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.util.metrics import Counter, Histogram

from pipelines.failures import Failure
from pipelines.table import Receipt
from pipelines.telemetry import log

BOUNDS_S = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class Meters:
    """One worker's counters; ``model_id`` is their label."""

    def __init__(self, model_id: str) -> None:
        self._labels = {"model_id": model_id}
        self._images = _counter("orbit_images", "Images seen, by what became of them.", "kind")
        self._bytes = _counter("orbit_read_bytes", "Bytes of the shards read.")
        self._shards = _counter("orbit_shards", "Shards by what became of them.", "state")
        self._seconds = Histogram(
            "orbit_shard_seconds",
            description="Seconds of a shard, by phase.",
            boundaries=BOUNDS_S,
            tag_keys=("model_id", "phase"),
        )

    def take(self, source: str, result: Receipt | Failure) -> None:
        """Count one shard, and tell it in the log."""
        if isinstance(result, Failure):
            self._shards.inc(1, self._labels | {"state": result.action})
            log().event("shard", source=source, state=result.action, message=result.message)
            return
        kinds = {"embedded": result.num_embedded, "rejected": result.num_rejected,
                 "encoded": result.num_encoded}  # fmt: skip
        for kind, count in kinds.items():
            if count:
                self._images.inc(count, self._labels | {"kind": kind})
        if result.in_bytes:
            self._bytes.inc(result.in_bytes, self._labels)
        self._shards.inc(1, self._labels | {"state": "done"})
        for phase, seconds in result.seconds.items():
            self._seconds.observe(seconds, self._labels | {"phase": phase})
        log().event(
            "shard", source=source, state="done", **kinds, bytes=result.in_bytes,
            seconds={phase: round(seconds, 4) for phase, seconds in result.seconds.items()},
        )  # fmt: skip


def _counter(name: str, words: str, *labels: str) -> Counter:
    return Counter(name, description=words, tag_keys=("model_id", *labels))
