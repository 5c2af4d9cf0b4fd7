"""What frozen embeddings are worth: probes that see labels, clusterings that do not.

The readings of Kuzminykh et al. (ACML 2018) and of later work; see eqmodel/DESIGN.md. No label is
used to train or to select a representation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
Labels = NDArray[Any]


def evaluate(
    train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels, *, seed: int = 0
) -> dict[str, float]:
    """Readings of embeddings (N, d) with labels (N,): shares of 1.

    Multinomial logistic regression and 5 nearest neighbours fitted on ``train``, and K-means with
    as many clusters as there are labels on ``test``: purity, NMI, ARI.
    """
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    neighbours = KNeighborsClassifier(5)
    clusters = KMeans(len(np.unique(test_labels)), n_init=10, random_state=seed).fit_predict(test)
    return {
        "logistic_regression": float(probe.fit(train, train_labels).score(test, test_labels)),
        "nearest_neighbours_5": float(neighbours.fit(train, train_labels).score(test, test_labels)),
        "kmeans_purity": purity(clusters, test_labels),
        "kmeans_nmi": float(normalized_mutual_info_score(test_labels, clusters)),
        "kmeans_ari": float(adjusted_rand_score(test_labels, clusters)),
    }


def purity(clusters: NDArray[Any], labels: Labels) -> float:
    """Share of images that carry the commonest label of their cluster."""
    _, inverse = np.unique(labels, return_inverse=True)
    largest = [np.bincount(inverse[clusters == c]).max() for c in np.unique(clusters)]
    return float(sum(largest) / len(labels))
