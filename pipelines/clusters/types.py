"""What a clustering is: clusters, and for each image the one it is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

ALONE = -1
"""The cluster of an image that is in none; density clustering alone leaves such."""


@dataclass(frozen=True)
class Previous:
    """The clusters of the publication before: image_ids (M,) and their cluster ids (M,)."""

    ids: Ints
    clusters: Ints


@dataclass(frozen=True)
class Cluster:
    """``medoid`` is a row; ``cohesion`` the mean score of the members with the centroid."""

    id: int
    size: int
    medoid: int
    cohesion: float
    labels: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Clustering:
    """Clusters, largest first, and for each row its cluster id and centroid distance.

    assigned (N,) int32, ALONE where an image is in no cluster; distance (N,) float32, 1 - score
    with the centroid (of the nearest cluster, for such an image); centroids (k, d), in the order
    of ``clusters``; ``criterion``: what their number follows from; ``agreement`` with labels, None
    where there are none.
    """

    clusters: tuple[Cluster, ...]
    assigned: NDArray[np.int32]
    distance: NDArray[np.float32]
    centroids: Vectors
    criterion: str
    method: str = "kmeans"
    agreement: dict[str, float] | None = None

    @property
    def num_alone(self) -> int:
        """Images in no cluster."""
        return int((self.assigned == ALONE).sum())

    def members(self, cluster: int) -> Ints:
        """Rows of a cluster, nearest to its centroid first."""
        rows = np.flatnonzero(self.assigned == cluster)
        return rows[np.argsort(self.distance[rows], kind="stable")]

    def as_dict(self) -> dict[str, Any]:
        """The part of report.json that needs no pictures."""
        return {
            "method": self.method,
            "num_clusters": len(self.clusters),
            "num_alone": self.num_alone,
            "criterion": self.criterion,
            "agreement": self.agreement,
        }
