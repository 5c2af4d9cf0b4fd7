"""The clusters of a collection, whichever way they are found: named, described, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.clusters.density import by_density
from pipelines.clusters.labels import agreement, label_mix
from pipelines.clusters.naming import match_ids, mean_directions
from pipelines.clusters.spherical import CHUNK, assign, by_centroids
from pipelines.clusters.types import ALONE, Cluster, Clustering, Ints, Previous, Vectors

METHODS = ("kmeans", "density")


def cluster(
    vectors: Vectors,
    ids: Ints,
    labels: Sequence[str | None],
    *,
    method: str = "kmeans",
    k: int | None = None,
    previous: Previous | None = None,
    neighbours: Ints | None = None,
    seed: int = 0,
    threads: int = 0,
) -> Clustering:
    """Cluster unit rows (N, d) with ascending image_ids (N,) and a label or None for each.

    ``method``: one of METHODS; ``k`` and how it is chosen: by_centroids. ``previous`` gives the
    clusters their names; ``neighbours`` (N, >= 5) rows give the 5-NN accuracy.
    """
    if not len(vectors):
        nothing = np.empty((0, vectors.shape[1]), np.float32)
        empty = np.empty(0, np.int32)
        return Clustering((), empty, empty.astype(np.float32), nothing, "no image", method)
    if method == "density":
        numbers, criterion = by_density(vectors, ids, threads)
    else:
        numbers, criterion = by_centroids(vectors, ids, k, previous, seed, threads)
    numbers, num = _by_size(numbers)
    inside = np.flatnonzero(numbers != ALONE)
    centroids, _ = mean_directions(vectors, inside, numbers[inside], num)
    score = _scores(vectors, centroids, numbers)
    names = match_ids(numbers, num, ids, previous)
    named = np.where(numbers == ALONE, ALONE, names[numbers])
    return Clustering(
        clusters=_describe(numbers, num, score, names, labels),
        assigned=named.astype(np.int32),
        distance=(1.0 - score).astype(np.float32),
        centroids=centroids,
        criterion=criterion,
        method=method,
        agreement=agreement(named, labels, neighbours),
    )


def _by_size(numbers: Ints) -> tuple[Ints, int]:
    """Clusters renumbered 0.. by falling size, and how many have a member."""
    found, sizes = np.unique(numbers[numbers != ALONE], return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    place = np.full(int(found.max(initial=0)) + 2, ALONE, np.int64)
    place[found[order]] = np.arange(len(found))
    return place[numbers], len(found)


def _scores(vectors: Vectors, centroids: Vectors, numbers: Ints) -> Vectors:
    """The score of each row with the centroid of its cluster; without one, with the nearest."""
    score = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), CHUNK):
        part = slice(start, start + CHUNK)
        piece = np.asarray(vectors[part])
        score[part] = np.einsum("nd,nd->n", piece, centroids[numbers[part]])
    alone = np.flatnonzero(numbers == ALONE)
    score[alone] = assign(vectors[alone], centroids)[1]
    return np.clip(score, -1.0, 1.0)


def _describe(
    numbers: Ints, num: int, score: Vectors, names: Ints, labels: Sequence[str | None]
) -> tuple[Cluster, ...]:
    by_cluster = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers + 1, minlength=num + 1))
    found = []
    for number, rows in enumerate(np.split(by_cluster, ends[:-1])[1:]):
        mix = label_mix([labels[row] for row in rows])
        # For unit rows the member nearest to the mean direction has the least total distance.
        medoid = int(rows[np.argmax(score[rows])])
        cohesion = round(float(score[rows].mean()), 4)
        found.append(Cluster(int(names[number]), len(rows), medoid, cohesion, mix))
    return tuple(found)


def write_clusters(
    path: Path, ids: Ints, clustering: Clustering, outlier: NDArray[np.float32]
) -> None:
    """``clusters.parquet``: image_id, cluster, distance (to the centroid), outlier_score."""
    columns = {
        "image_id": pa.array(ids, pa.int64()),
        "cluster": pa.array(clustering.assigned, pa.int32()),
        "distance": pa.array(clustering.distance, pa.float32()),
        "outlier_score": pa.array(outlier, pa.float32()),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
