"""How fast the driver plans, hands out and commits shards, and in how much memory.

    python tests/bench/dispatch_scale.py [NUM_SHARDS] [NUM_WORKERS]

Everything of `orbit embed` is real but the embedding: workers are its Ray actors with their meters,
which write a small file for each shard and vouch for it. Prints one JSON object: shards per second
between the first shard handed out and the last receipt, commits included; the driver's CPU seconds
and peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))


def stub(actor: Any) -> type:
    """A worker that embeds nothing; made here so that it travels by value."""
    import hashlib
    from pathlib import Path

    from pipelines.table import Receipt, file_statistics

    digest = hashlib.sha256(b"stub").hexdigest()

    class StubEmbedder:
        def __init__(self, settings: Any, name: str) -> None:
            self._name, self.threads, self.progress = name, 1, 0
            self._folder = Path(settings.store_url, "embeddings", settings.model_id, "stub")
            self._folder.mkdir(exist_ok=True)

        def embed(self, work: Any) -> Any:
            shard, began = work.shard, time.monotonic()
            name = f"{work.run}-{work.attempt}-{shard.source}.parquet"
            (self._folder / name).write_bytes(b"stub")
            self.progress += 1
            took = time.monotonic() - began
            return Receipt(
                source=shard.source, etag=shard.etag, path=f"stub/{name}", size=4, sha256=digest,
                num_rows=100, num_embedded=100, num_rejected=0, num_encoded=100, damaged=False,
                stats=file_statistics(shard.source, shard.etag, 100, 100, 0, False),
                worker=self._name, pid=1, in_bytes=shard.size,
                seconds={"fetch": 0.0, "decode": 0.0, "encode": 0.0, "write": took, "upload": 0.0},
            )  # fmt: skip

        def calibrate(self) -> None:
            return None

    class Stub(actor.ShardWorker):  # type: ignore[misc]
        def load(self, settings: Any, name: str) -> Any:
            self._embedder = StubEmbedder(settings, name)
            self._meters = actor.Meters(settings.model_id)
            return actor.Ready()

    return Stub


def measure(num_shards: int, num_workers: int) -> dict[str, Any]:
    """Run the driver over so many shards; what it took."""
    from pipelines import batch
    from pipelines.batch import embed_input
    from pipelines.config import EmbedSettings
    from pipelines.pool import actor, ray_session
    from pipelines.shards import Shard

    shards = tuple(
        Shard(f"{number:06d}.tar", f"{number:032x}", 1_000_000 + number, "tar")
        for number in range(num_shards)
    )
    batch.list_input = lambda *_: shards
    batch.guards.check_images = lambda *_: None
    actor.ShardWorker = stub(actor)  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="orbit-dispatch-") as place, ray_session("local", 2):
        Path(place, "in").mkdir()
        settings = EmbedSettings(
            f"{place}/in", "d4-28-grey", f"{place}/store",
            workers=str(num_workers), cpus_per_worker=2 / num_workers,
        )  # fmt: skip
        began, cpu = time.monotonic(), time.process_time()
        summary = embed_input(settings)
        elapsed, cpu = time.monotonic() - began, time.process_time() - cpu
    clock = summary.clock
    return {
        "num_shards": summary.counts.num_shards,
        "failure": None if summary.failure is None else str(summary.failure),
        "num_workers": num_workers,
        "shards_per_s": round(num_shards / clock.steady_s, 1),
        "steady_s": round(clock.steady_s, 2),
        "startup_s": round(clock.startup_s, 2),
        "commit_s": round(clock.commit_s, 2),
        "elapsed_s": round(elapsed, 2),
        "driver_cpu_s": round(cpu, 2),
        "driver_cpu_ms_per_shard": round(1e3 * cpu / num_shards, 3),
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(measure(*[*numbers, *[100_000, 8][len(numbers) :]])))
