"""A report of many images, in a process of its own, so that its memory can be told apart.

`python -m tests.bench.report_scale synthetic NUM STORE` fills a store with NUM made embeddings
(2,000 directions and noise; no images behind them); `... images NUM STORE` with NUM real ones,
turned views of clothes and digits of ORBIT_DATA, embedded by the model; `... publish STORE kmeans`
(or density) publishes, and prints seconds, memory and sizes.
"""

import gzip
import io
import json
import os
import resource
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eqmodel.checkpoint import resolve
from pipelines import open_store
from pipelines.models import keep_copy, model_id_of
from pipelines.publication import PublishOptions, publish
from pipelines.shard_file import Row, ShardFile
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, Receipt, TableIdentity, file_statistics
from tests.bench.views import clothes
from tests.pipelines.conftest import MODEL, embed_here

PER_SHARD, DIM, AROUND = 10_000, 128, 2_000


def synthetic(num: int, where: Path) -> None:
    """A table of made embeddings: every second image of a direction has the label of it."""
    store, folder = Folder(str(where)), resolve(MODEL)
    model_id = model_id_of(folder)
    keep_copy(store, model_id, folder)
    table = EmbeddingTable.create(store, TableIdentity(model_id, str(where / "in"), 4, DIM, "d4"))
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(AROUND, DIM)).astype(np.float32)
    receipts = []
    for first in range(0, num, PER_SHARD):
        size = min(PER_SHARD, num - first)
        kinds = chance.integers(0, AROUND, size)
        vectors = centres[kinds] + 0.6 * chance.normal(size=(size, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        receipts.append(_shard(table, where, first, vectors, kinds))
    table.commit(receipts)


def _shard(
    table: EmbeddingTable,
    where: Path,
    first: int,
    vectors: NDArray[np.float32],
    kinds: NDArray[np.int64],
) -> Receipt:
    source, etag = f"shard-{first // PER_SHARD:05}.tar", "etag"
    local = where / "shard.parquet"
    with ShardFile(local, source, etag) as file:
        file.add(
            [
                Row(
                    key=f"image-{first + i:08}", digest=f"{first + i:064x}", width=28, height=28,
                    label=f"kind {kind % 10}" if kind % 2 else None, embedding=vector,
                    pose_code=bytes(64),
                )
                for i, (vector, kind) in enumerate(zip(vectors, kinds.tolist(), strict=True))
            ]
        )  # fmt: skip
        checked = file.finish()
    path = f"{source}/{checked.sha256}.parquet"
    table.folder.upload(local, path)
    local.unlink()
    counted = (file.num_rows, file.num_embedded, file.num_rejected)
    return Receipt(
        source, etag, path, checked.size, checked.sha256, *counted, num_encoded=0, damaged=False,
        stats=file_statistics(source, etag, *counted, False), worker="", pid=0, in_bytes=0,
    )  # fmt: skip


def images(num: int, where: Path) -> None:
    """A store of real images in tars of PER_SHARD, each mirrored or not and turned at random."""
    digits = gzip.decompress(
        Path(os.environ["ORBIT_DATA"], "mnist", "train-images-idx3-ubyte.gz").read_bytes()
    )
    every = np.concatenate(
        [clothes(), np.frombuffer(digits, np.uint8, offset=16).reshape(-1, 28, 28)]
    )
    chance, place = np.random.default_rng(0), where / "input"
    place.mkdir(parents=True, exist_ok=True)
    order = chance.permutation(max(num, len(every)))[:num] % len(every)
    for first in range(0, num, PER_SHARD):
        with tarfile.open(place / f"{first // PER_SHARD:03}.tar", "w") as tar:
            for i in order[first : first + PER_SHARD].tolist():
                pixels = every[i][:, ::-1] if chance.random() < 0.5 else every[i]
                picture = Image.fromarray(np.ascontiguousarray(pixels))
                buffer = io.BytesIO()
                picture.rotate(chance.uniform(0, 360), Image.Resampling.BICUBIC).save(buffer, "PNG")
                info = tarfile.TarInfo(f"{i:06}.png")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)
    embed_here(str(place), str(where))


def published(where: Path, clustering: str) -> dict[str, object]:
    """Publish on two threads; seconds of each stage, the peak of resident memory, sizes."""
    torch.set_num_threads(2)
    stages: dict[str, float] = {}
    began = last = time.monotonic()

    def show(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        stages[stage] = round(stages.get(stage, 0.0) + now - last, 1)
        last = now

    store = open_store(str(where))
    options = PublishOptions(force=True, threads=2, clustering=clustering)
    row = publish(store.folder, store.model_id, options, show)
    page = where / "artifacts" / row.id / "report.html"
    return {
        "num": row.facts["num_embedded"],
        "seconds": time.monotonic() - began,
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "page_bytes": page.stat().st_size,
        "index_kind": row.facts["index_kind"],
        "recall_at_10": row.recall_at_10,
        "num_clusters": row.facts["num_clusters"],
        "stages_s": stages,
    }


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        print(json.dumps(published(Path(sys.argv[2]), sys.argv[3])))
    else:
        make = {"synthetic": synthetic, "images": images}[sys.argv[1]]
        make(int(sys.argv[2]), Path(sys.argv[3]))
