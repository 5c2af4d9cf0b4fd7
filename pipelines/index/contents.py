"""What a loaded index holds, read back out of it: for the comparison with the table."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from pipelines.index.kinds import OrbitIndex

CHUNK = 65_536


def contents(index: OrbitIndex) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """image_ids (B,) and the vectors (B, d) stored under them, piece by piece."""
    stored = index._index
    if isinstance(stored, faiss.IndexIVF):
        yield from _lists(stored)
        return
    ids = faiss.vector_to_array(stored.id_map).astype(np.int64)
    inner = faiss.downcast_index(stored.index)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        yield part, inner.reconstruct_n(start, len(part))


def _lists(stored: faiss.IndexIVF) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """One inverted list after another; its codes are the vectors themselves (Flat)."""
    lists = stored.invlists
    for number in range(stored.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size).copy()
        yield ids.astype(np.int64), codes.view(np.float32).reshape(size, stored.d)
