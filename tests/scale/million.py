"""A publication's index over so many made embeddings, streamed as from a table; in a process of its
own, so that its memory can be told apart."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.index import (
    TRAINED,
    Asked,
    IndexSpec,
    build_index,
    choose_kind,
    collect,
    collected_columns,
    held_out_rows,
)
from pipelines.table import SCHEMA

DIM, BATCH, AROUND = 64, 16_384, 2_000


class Peak:
    """The most anonymous memory (bytes) while this is open; mapped files are the kernel's."""

    def __enter__(self) -> "Peak":
        self.bytes, self._over = _anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, _anonymous())


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def batches(num: int, seed: int = 0) -> Iterator[pa.RecordBatch]:
    """Embeddings around 2,000 centres, as the table's batches; never all at once."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(AROUND, DIM)).astype(np.float32)
    for start in range(0, num, BATCH):
        size = min(BATCH, num - start)
        noise = chance.normal(size=(size, DIM)).astype(np.float32)
        vectors = centres[chance.integers(0, AROUND, size)] + 0.7 * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        numbers = range(start, start + size)
        made: dict[str, Any] = {
            "image_id": [(n * 0x9E3779B97F4A7C15) % (1 << 63) for n in numbers],
            "key": [f"folder/image-{n:08}" for n in numbers],
            "source": [f"shard-{start // (4 * BATCH):05}.tar"] * size,
            "source_etag": [f"etag-{start // (4 * BATCH)}"] * size,
            "digest": [f"{n:064x}" for n in numbers],
            "label": [f"label {n % 10}" for n in numbers],
            "pose_code": [bytes(64)] * size,
        }
        flat = pa.array(vectors.ravel())
        offsets = pa.array(np.arange(0, size * DIM + 1, DIM, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, flat)
        arrays = [
            lists if f.name == "embedding" else pa.array(made.get(f.name, [None] * size), f.type)
            for f in SCHEMA
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=SCHEMA.names).select(collected_columns())


def build(num: int, folder: Path) -> dict[str, Any]:
    """Build, and tell memory, time and recall."""
    before, began = _anonymous(), time.monotonic()
    with Peak() as collecting:
        rows = collect(batches(num), num, DIM, folder)
    collected = time.monotonic()
    spec = IndexSpec(choose_kind(num, DIM), num, DIM, "0" * 16, 1)
    with Peak() as building:
        asked = Asked(held_out_rows(rows.ids, 1_000))
        index, spec = build_index(rows, spec, asked, folder / TRAINED)
    index.save(folder / "index.faiss")
    return {
        "kind": spec.kind,
        "num": num,
        "recall": spec.recall["recall"],
        "before_bytes": before,
        "collect_bytes": collecting.bytes - before,
        "build_bytes": building.bytes - before,
        "index_bytes": (folder / "index.faiss").stat().st_size,
        "vectors_bytes": num * DIM * 4,
        "collect_s": collected - began,
        "build_s": time.monotonic() - collected,
    }


if __name__ == "__main__":
    print(json.dumps(build(int(sys.argv[1]), Path(sys.argv[2]))))
