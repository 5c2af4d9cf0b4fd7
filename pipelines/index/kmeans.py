"""Spherical k-means, for the clusters that the report tells of."""

from __future__ import annotations

import faiss
import numpy as np

from pipelines.index import gpu
from pipelines.index.recall import Vectors
from pipelines.index.searching import use_threads

TRIES, FEW, MIDDLE = (2, 8), 64, 4
"""A start is the best of several tries (fewer for many clusters, whose tries cost more and differ
less) on FEW rows for each cluster, made better on MIDDLE times as many: k-means of everything has
then little left to do, and starts from no poor place."""
LEAST, TRY_ROUNDS, GAIN = 8_192, 10, 1e-4


def kmeans(
    vectors: Vectors,
    k: int,
    *,
    seed: int = 0,
    threads: int = 0,
    rounds: int = 60,
    start: Vectors | None = None,
) -> Vectors:
    """Spherical k-means: centroids (k, d) float32 of unit length for unit rows (N, d), N >= k.

    ``start`` (k, d) are centroids to begin from, so that tonight's clusters continue last night's;
    without it k-means++ on nested samples finds some (as in Newling and Fleuret, "Nested mini-batch
    k-means", NeurIPS 2016). At most ``rounds`` over all rows, fewer when a round gains less than
    GAIN of the whole; those that continue go on until nothing moves, as else images would change
    cluster every night.
    """
    use_threads(threads)
    vectors = np.ascontiguousarray(vectors, np.float32)
    continued = start is not None
    if start is None:
        size = max(LEAST, FEW * k)
        nested = np.random.default_rng(seed).permutation(len(vectors))[: MIDDLE * size]
        num = min(max(128 // k, TRIES[0]), TRIES[1])
        tries = [_fit(vectors[nested[:size]], k, seed + 1_000 * t, TRY_ROUNDS) for t in range(num)]
        start = max(tries, key=lambda found: found[1])[0]
        if len(vectors) > size:
            start = _fit(vectors[nested], k, seed, TRY_ROUNDS, start)[0]
    return _fit(vectors, k, seed, rounds, start, 0.0 if continued else GAIN)[0]


def _fit(
    vectors: Vectors,
    k: int,
    seed: int,
    rounds: int,
    start: Vectors | None = None,
    gain: float = GAIN,
) -> tuple[Vectors, float]:
    """Centroids, and the sum of the scores of the rows with theirs."""
    algorithm = faiss.Kmeans(
        int(vectors.shape[1]),
        k,
        niter=rounds,
        spherical=True,
        seed=seed,
        gpu=gpu.is_there(),
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, len(vectors)),  # the caller has taken its sample
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        early_stop_threshold=gain,
    )
    algorithm.train(np.ascontiguousarray(vectors), init_centroids=start)
    centroids: Vectors = algorithm.centroids
    return centroids, float(algorithm.obj[-1])
