"""What a loaded index holds, read back out of it: for the comparison with the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipelines.index.searching import OrbitIndex

CHUNK = 65_536
Piece = tuple[NDArray[np.int64], NDArray[np.float32] | None]


def contents(index: OrbitIndex) -> Iterator[Piece]:
    """image_ids (B,) and the vectors (B, d) stored under them, piece by piece.

    None in place of vectors where the index holds codes of them; tombstones are left out.
    """
    for ids, vectors in _stored(index.base):
        kept = ~np.isin(ids, index.dead)
        yield ids[kept], None if vectors is None else vectors[kept]
    if index.delta is not None:
        yield from _stored(index.delta)


def _stored(stored: Any) -> Iterator[Piece]:
    if isinstance(stored, faiss.IndexIVF):
        yield from _lists(stored)
        return
    ids = faiss.vector_to_array(stored.id_map).astype(np.int64)
    inner = faiss.downcast_index(stored.index)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        yield part, inner.reconstruct_n(start, len(part))


def _lists(stored: faiss.IndexIVF) -> Iterator[Piece]:
    """One inverted list after another; only the codes of a Flat one are the vectors themselves."""
    lists, flat = stored.invlists, isinstance(stored, faiss.IndexIVFFlat)
    for number in range(stored.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size).copy().astype(np.int64)
        if not flat:
            yield ids, None
            continue
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size).copy()
        yield ids, codes.view(np.float32).reshape(size, stored.d)
