"""Clusterings of frozen embeddings, which see no label, and how well they meet the labels.

Fitted on at most 10,000 test embeddings; every test embedding is assigned and counted.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
Labels = NDArray[Any]
FITTED_ON = 10_000
MIXTURE_COMPONENTS = 32


def purity(clusters: NDArray[Any], labels: Labels) -> float:
    """Share of images that carry the commonest label of their cluster."""
    return float(contingency(clusters, labels).max(1).sum() / len(labels))


def hungarian(clusters: NDArray[Any], labels: Labels) -> float:
    """Share of images that carry their cluster's label, each label given to one cluster at most."""
    from scipy.optimize import linear_sum_assignment

    counts = contingency(clusters, labels)
    rows, columns = linear_sum_assignment(-counts)
    return float(counts[rows, columns].sum() / len(labels))


def contingency(clusters: NDArray[Any], labels: Labels) -> NDArray[np.int64]:
    """(number of clusters, number of labels): how many images lie in each cell."""
    found, row = np.unique(clusters, return_inverse=True)
    known, column = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(found), len(known)), np.int64)
    np.add.at(counts, (row, column), 1)
    return counts


def scores(clusters: NDArray[Any], labels: Labels, name: str) -> dict[str, float]:
    """Purity, Hungarian accuracy, NMI and ARI of a clustering, under its name."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        f"{name}_purity": purity(clusters, labels),
        f"{name}_hungarian": hungarian(clusters, labels),
        f"{name}_nmi": float(normalized_mutual_info_score(labels, clusters)),
        f"{name}_ari": float(adjusted_rand_score(labels, clusters)),
    }


def kmeans(embeddings: Embeddings, count: int, seed: int, tries: int = 10) -> NDArray[np.int32]:
    """(N, d) -> (N,): the clusters of K-means, the try of least inertia."""
    from sklearn.cluster import KMeans

    fitted = KMeans(count, n_init=tries, random_state=seed).fit(embeddings[:FITTED_ON])
    clusters: NDArray[np.int32] = fitted.predict(embeddings)
    return clusters


def gaussian_mixture(embeddings: Embeddings, count: int, seed: int) -> NDArray[np.int64]:
    """(N, d) -> (N,): the likeliest of ``count`` Gaussians with full covariances, in the space of
    the first 32 principal components, the likeliest of 3 tries.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    part = embeddings[:FITTED_ON]
    dim = min(MIXTURE_COMPONENTS, part.shape[1], len(part))
    reduced = PCA(
        dim, svd_solver="full" if part.shape[1] <= 512 else "randomized", random_state=seed
    )
    scale = float(np.sqrt(reduced.fit(part).explained_variance_[0])) or 1.0
    mixture = GaussianMixture(count, n_init=3, max_iter=100, reg_covar=1e-5, random_state=seed)
    space = (reduced.transform(embeddings) / scale).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(space[:FITTED_ON])
    clusters: NDArray[np.int64] = mixture.predict(space)
    return clusters


def clusterings(embeddings: Embeddings, labels: Labels, seed: int) -> dict[str, float]:
    """K-means and Gaussian mixture with a cluster per label, and K-means with 64 clusters."""
    count = len(np.unique(labels))
    readings = scores(kmeans(embeddings, count, seed), labels, "kmeans")
    if len(embeddings) >= 128:
        many = kmeans(embeddings, 64, seed, tries=2)
        readings["kmeans64_purity"] = purity(many, labels)
    return readings | scores(gaussian_mixture(embeddings, count, seed), labels, "gmm")
