"""Every row's nearest others, through an index: what outliers, duplicates and 5-NN are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from pipelines.index.rows import Rows
from pipelines.index.searching import OrbitIndex, use_threads

CHUNK = 8_192
FLAT_UP_TO, PROBES, TRAINING_ROUNDS = 20_000, 12, 8
"""Vectors that are no embeddings get an index of their own: above so many an inverted file."""


@dataclass(frozen=True)
class Neighbours:
    """rows (N, k) int64, -1 where there are fewer; scores (N, k) float32, -inf there."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def nearest_others(
    index: OrbitIndex,
    rows: Rows,
    k: int,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Neighbours:
    """The k nearest other rows of each row, best first; a row is never its own neighbour."""
    num, ids = len(rows), rows.ids
    k = max(0, min(k, num - 1))
    found = np.full((num, k), -1, np.int64)
    scores = np.full((num, k), -np.inf, np.float32)
    for start in range(0, num if k else 0, CHUNK):
        part = slice(start, min(num, start + CHUNK))
        got_scores, got = index.search(np.asarray(rows.vectors[part]), k + 1, threads)
        near = np.where(got >= 0, np.searchsorted(ids, np.maximum(got, ids[0])), -1)
        own = near == np.arange(part.start, part.stop)[:, None]
        # Own row to the end, the others in their order; where copies crowded it out, the last goes.
        order = np.argsort(own, axis=1, kind="stable")[:, :k]
        found[part] = np.take_along_axis(near, order, 1)
        scores[part] = np.take_along_axis(got_scores, order, 1)
        if progress is not None:
            progress(part.stop)
    scores[found < 0] = -np.inf
    return Neighbours(found, scores)


def nearest_vectors(vectors: NDArray[np.float32], k: int, threads: int = 0) -> Neighbours:
    """The k nearest other rows by inner product among vectors (N, d) of length 1 that no
    publication holds; approximate above 20,000."""
    num, dim = vectors.shape
    k = max(0, min(k, num - 1))
    if not k:
        return Neighbours(np.empty((num, 0), np.int64), np.empty((num, 0), np.float32))
    use_threads(threads)
    index: faiss.Index = faiss.IndexFlatIP(dim)
    if num > FLAT_UP_TO:
        lists = int(4 * num**0.5)
        index = faiss.IndexIVFFlat(index, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.seed, index.nprobe = TRAINING_ROUNDS, 0, PROBES
        index.cp.min_points_per_centroid = 1
        index.train(vectors)
    index.add(vectors)
    scores, rows = index.search(vectors, k + 1)
    own = rows == np.arange(num)[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :k]
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    scores[rows < 0] = -np.inf
    return Neighbours(rows, scores)
