"""Clusters for who does not know their number: HDBSCAN of a bounded sample, the others by it."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA

from pipelines.clusters.types import ALONE, Ints, Vectors
from pipelines.sampling import steady_sample

SAMPLE, DIMENSIONS, CHUNK = 6_000, 16, 8_192
LEAST, SHARE = 5, 0.01
"""A cluster has at least LEAST images, and SHARE of the sample."""


def by_density(vectors: Vectors, ids: Ints, threads: int = 0) -> tuple[Ints, str]:
    """Cluster numbers (N,), ALONE where an image is in none, and the words for how.

    HDBSCAN (Campello, Moulavi and Sander 2013, as in scikit-learn) looks at SAMPLE images at most,
    in their first DIMENSIONS principal components, as in more of them all distances are alike.
    Every other image is in the cluster of the nearest one of the sample, or in none as that one is.
    """
    sample = steady_sample(ids, SAMPLE)
    shown = np.ascontiguousarray(vectors[sample], np.float32)
    least = max(LEAST, round(SHARE * len(sample)))
    if len(sample) < 2 * least or float(np.var(shown, axis=0).sum()) < 1e-10:
        return np.zeros(len(vectors), np.int64), "as so few images, or such equal ones, allow"
    components = min(DIMENSIONS, *shown.shape)
    flat = PCA(components, svd_solver="full").fit_transform(shown)
    model = HDBSCAN(
        min_cluster_size=least,
        min_samples=LEAST,
        cluster_selection_method="eom",
        algorithm="brute",
        n_jobs=threads or None,
        copy=True,
    )
    groups = model.fit_predict(flat.astype(np.float64)).astype(np.int64)
    if not (groups != ALONE).any():
        return np.zeros(len(vectors), np.int64), "one, as none stood out by its density"
    words = f"found by density in {len(sample):,} images (HDBSCAN, {least} or more in each)"
    return groups[_nearest(vectors, shown, sample)], words


def _nearest(vectors: Vectors, shown: Vectors, sample: Ints) -> Ints:
    """For each row the place in the sample of its nearest image there; of a sampled row its own."""
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), CHUNK):
        piece = np.asarray(vectors[start : start + CHUNK])
        nearest[start : start + CHUNK] = (piece @ shown.T).argmax(1)
    nearest[sample] = np.arange(len(sample))
    return nearest
