"""Spherical k-means, for the clusters that the report tells of."""

from __future__ import annotations

import faiss
import numpy as np

from pipelines.index import gpu
from pipelines.index.recall import Vectors
from pipelines.index.searching import use_threads


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

    ``start`` (k, d) are centroids to begin from, so that tonight's clusters continue last night's.
    """
    use_threads(threads)
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
    )
    algorithm.train(np.ascontiguousarray(vectors, np.float32), init_centroids=start)
    centroids: Vectors = algorithm.centroids
    return centroids
