"""The same encoder in what people write by hand: `python -m tests.bench.plain_loops KIND SHARDS`.

webdataset: webdataset + torch DataLoader of two workers, the encoder in the main process. raydata:
Ray Data's read_webdataset, map_batches with the encoder in two actors, write_parquet. Each prints
the seconds from its first line, and from its first batch to its end, and the number of images.
"""

import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODEL, BATCH = "d4-28-grey", 256


def decoded(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def sample(fields: dict[str, Any]) -> tuple[str, Any]:
    data = next(fields[name] for name in ("png", "jpg") if name in fields)
    return fields["__key__"], decoded(data)


def as_is(batch: Any) -> Any:
    """Leaves arrays arrays, which a DataLoader makes tensors of by itself."""
    return batch


def with_webdataset(shards: list[str]) -> tuple[float, int]:
    """(time of the first batch, images)."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    import webdataset

    from eqmodel import Embedder

    torch.set_num_threads(2)
    embedder = Embedder.load(MODEL)
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=False)
        .map(sample)
        .batched(BATCH, collation_fn=list)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=as_is)
    first, count = 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        writer = None
        for batch in loader:
            first = first or time.perf_counter()
            found, _ = embedder.encode(embedder.preprocess([pixels for _, pixels in batch]))
            table = pa.table({"key": [key for key, _ in batch], "embedding": list(found)})
            writer = writer or pq.ParquetWriter(Path(place, "out.parquet"), table.schema)
            writer.write_table(table)
            count += len(batch)
        if writer is not None:
            writer.close()
    return first, count


class Encode:
    """An actor of Ray Data."""

    def __init__(self) -> None:
        import torch

        from eqmodel import Embedder

        torch.set_num_threads(1)
        self.embedder = Embedder.load(MODEL)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        name = "png" if "png" in batch else "jpg"
        images = [decoded(data) for data in batch[name]]
        found, _ = self.embedder.encode(self.embedder.preprocess(images))
        return {"key": batch["__key__"], "embedding": found}


def with_ray_data(shards: list[str]) -> tuple[float, int]:
    """(time when Ray runs, images)."""
    import pyarrow.parquet as pq
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    first = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        ray.data.read_webdataset(shards, decoder=None).map_batches(
            Encode, batch_size=BATCH, concurrency=1, num_cpus=1
        ).write_parquet(place)
        count = sum(pq.read_metadata(file).num_rows for file in Path(place).glob("*.parquet"))
    ray.shutdown()
    return first, count


def main(kind: str, folder: str) -> None:
    began = time.perf_counter()
    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    first, count = {"webdataset": with_webdataset, "raydata": with_ray_data}[kind](shards)
    end = time.perf_counter()
    print(json.dumps({"whole_s": end - began, "steady_s": end - first, "num_images": count}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
