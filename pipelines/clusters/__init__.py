"""Clusters of the collection: by k-means or by density, what describes each, and ids that stay.

All scores are inner products of unit embeddings (cosines), in [-1, 1].
"""

from pipelines.clusters.clustering import METHODS, cluster, write_clusters
from pipelines.clusters.labels import agreement
from pipelines.clusters.naming import match_ids
from pipelines.clusters.outliers import outlier_scores
from pipelines.clusters.spherical import choose_k
from pipelines.clusters.types import ALONE, Cluster, Clustering, Previous

__all__ = [
    "ALONE",
    "METHODS",
    "Cluster",
    "Clustering",
    "Previous",
    "agreement",
    "choose_k",
    "cluster",
    "match_ids",
    "outlier_scores",
    "write_clusters",
]
