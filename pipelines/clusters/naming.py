"""Ids that stay: tonight's clusters have the names of last night's, where they are the same."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipelines.clusters.types import ALONE, Ints, Previous, Vectors

CHUNK = 65_536


def match_ids(assigned: Ints, k: int, ids: Ints, previous: Previous | None) -> Ints:
    """Names (k,) for clusters 0..k-1: those of the previous clusters they overlap most with.

    One to one, by the largest total overlap (Hungarian method); a cluster that shares no image
    with a previous one gets a number never used there. ``assigned`` (N,) may hold ALONE.
    """
    if previous is None or not (previous.clusters != ALONE).any():
        return np.arange(k, dtype=np.int64)
    _, here, there = np.intersect1d(ids, previous.ids, return_indices=True)
    kept = (assigned[here] != ALONE) & (previous.clusters[there] != ALONE)
    here, there = here[kept], there[kept]
    before = np.unique(previous.clusters[previous.clusters != ALONE])
    overlap = np.zeros((k, len(before)), np.int64)
    np.add.at(overlap, (assigned[here], np.searchsorted(before, previous.clusters[there])), 1)
    names = np.full(k, -1, np.int64)
    for mine, theirs in zip(*linear_sum_assignment(-overlap), strict=True):
        if overlap[mine, theirs]:
            names[mine] = before[theirs]
    fresh = np.flatnonzero(names < 0)
    names[fresh] = int(before.max()) + 1 + np.arange(len(fresh))
    return names


def centroids_before(vectors: Vectors, ids: Ints, previous: Previous | None) -> Vectors | None:
    """Where the previous clusters' members lie now (k, d); None where the collection has doubled
    or halved since, or a cluster has none of them left."""
    if previous is None or not len(previous.ids):
        return None
    if not 0.5 < len(ids) / len(previous.ids) < 2.0:
        return None
    _, here, there = np.intersect1d(ids, previous.ids, return_indices=True)
    kept = previous.clusters[there] != ALONE
    here, there = here[kept], there[kept]
    names = np.unique(previous.clusters[previous.clusters != ALONE])
    where = np.searchsorted(names, previous.clusters[there])
    centroids, found = mean_directions(vectors, here, where, len(names))
    return centroids if len(names) and found.all() else None


def mean_directions(
    vectors: Vectors, rows: Ints, where: Ints, k: int
) -> tuple[Vectors, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Unit means (k, d) of rows (M,) that are in clusters ``where`` (M,), and which there are."""
    sums = np.zeros((k, vectors.shape[1]), np.float64)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        piece = np.asarray(vectors[rows[part]], np.float64)
        for cluster in np.unique(where[part]).tolist():
            sums[cluster] += piece[where[part] == cluster].sum(0)
    lengths = np.linalg.norm(sums, axis=1)
    means = sums / np.maximum(lengths, 1e-12)[:, None]
    return np.ascontiguousarray(means, np.float32), lengths > 1e-6
