"""A part of an inverted file, filled apart from the others and merged later."""

from __future__ import annotations

from collections.abc import Iterable

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.index.searching import use_threads


def filled_part(
    trained: NDArray[np.uint8], batches: Iterable[pa.RecordBatch], threads: int = 1
) -> NDArray[np.uint8]:
    """A trained, empty index filled with the embedded rows of batches with image_id and embedding,
    both as FAISS serializes them."""
    use_threads(threads)
    index = faiss.deserialize_index(np.array(trained))  # Ray's arrays are read-only
    for batch in batches:
        kept = batch.filter(pc.is_valid(batch["embedding"]))
        if kept.num_rows:
            flat = kept["embedding"].flatten().to_numpy(zero_copy_only=False)
            vectors = flat.astype(np.float32, copy=False).reshape(kept.num_rows, -1)
            index.add_with_ids(np.ascontiguousarray(vectors), kept["image_id"].to_numpy())
    filled: NDArray[np.uint8] = faiss.serialize_index(index)
    return filled
