"""Clusters of the collection: spherical k-means, what describes each, and ids that stay.

All scores are inner products of unit embeddings (cosines), in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)

from pipelines.index import kmeans

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

CANDIDATES = (4, 6, 8, 10, 12, 16, 20, 24, 32)
CRITERION = "chosen among {tried} by the mean silhouette (cosine) of a sample of {num:,}"
SAMPLE, SILHOUETTE_SAMPLE, TRAIN_SAMPLE = 6_000, 2_000, 200_000
CHUNK = 65_536
NEIGHBOURS = 5


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

    assigned (N,) int32; distance (N,) float32, 1 - score with the centroid; centroids (k, d), in
    the order of ``clusters``; ``agreement`` with labels, None where there are none.
    """

    clusters: tuple[Cluster, ...]
    assigned: NDArray[np.int32]
    distance: NDArray[np.float32]
    centroids: Vectors
    criterion: str
    agreement: dict[str, float] | None = None

    def members(self, cluster: int) -> Ints:
        """Rows of a cluster, nearest to its centroid first."""
        rows = np.flatnonzero(self.assigned == cluster)
        return rows[np.argsort(self.distance[rows], kind="stable")]


def cluster(
    vectors: Vectors,
    ids: Ints,
    labels: Sequence[str | None],
    *,
    k: int | None = None,
    previous: Previous | None = None,
    neighbours: Ints | None = None,
    seed: int = 0,
    threads: int = 0,
) -> Clustering:
    """Cluster unit rows (N, d) with ascending image_ids (N,) and a label or None for each.

    Without ``k`` the previous number of clusters is kept while the collection has not doubled or
    halved, and k-means starts from the previous centroids; else k is chosen by silhouette.
    ``neighbours`` (N, >= 5) rows give the 5-NN accuracy. Never more clusters than distinct images.
    """
    if not len(vectors):
        nothing = np.empty((0, vectors.shape[1]), np.float32)
        empty = np.empty(0, np.int32)
        return Clustering((), empty, empty.astype(np.float32), nothing, "no image")
    start = None if k else _centroids_before(vectors, ids, previous)
    if start is not None:
        wanted, criterion = len(start), "kept from the previous publication"
    else:
        wanted, criterion = (k, "asked for") if k else choose_k(vectors, seed, threads)
    wanted = min(wanted, _distinct(vectors, wanted))
    if start is not None and wanted != len(start):
        start = None
    sample = _sample(len(vectors), TRAIN_SAMPLE, seed)
    centroids = kmeans(vectors[sample], wanted, seed=seed, threads=threads, start=start)
    assigned, score = assign(vectors, centroids)
    centroids, assigned, score = _by_size(vectors, centroids, assigned, score)
    names = match_ids(assigned, len(centroids), ids, previous)
    numbered = names[assigned]
    found = _describe(centroids, assigned, score, names, labels)
    return Clustering(
        clusters=found,
        assigned=numbered.astype(np.int32),
        distance=(1.0 - score).astype(np.float32),
        centroids=centroids,
        criterion=criterion,
        agreement=agreement(numbered, labels, neighbours),
    )


def choose_k(vectors: Vectors, seed: int = 0, threads: int = 0) -> tuple[int, str]:
    """The k of CANDIDATES with the largest mean silhouette on a sample, and the words for it."""
    sample = vectors[_sample(len(vectors), SAMPLE, seed)]
    distinct = _distinct(sample, max(CANDIDATES) + 1)
    tried = [k for k in CANDIDATES if k < distinct]
    if not tried:
        k = min(distinct, CANDIDATES[0])
        return max(1, k), f"what {distinct} distinct images allow"
    shown = sample[_sample(len(sample), SILHOUETTE_SAMPLE, seed)]
    scores = []
    for k in tried:
        assigned, _ = assign(shown, kmeans(sample, k, seed=seed, threads=threads, rounds=15))
        several = 1 < len(np.unique(assigned)) < len(shown)
        scores.append(silhouette_score(shown, assigned, metric="cosine") if several else -1.0)
    best = tried[int(np.argmax(scores))]
    return best, CRITERION.format(tried=", ".join(map(str, tried)), num=len(shown))


def assign(vectors: Vectors, centroids: Vectors) -> tuple[Ints, Vectors]:
    """The nearest centroid of each row and the score with it: (N,) and (N,)."""
    nearest = np.empty(len(vectors), np.int64)
    score = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), CHUNK):
        scores = np.asarray(vectors[start : start + CHUNK]) @ centroids.T
        part = slice(start, start + len(scores))
        nearest[part] = scores.argmax(1)
        score[part] = scores.max(1)
    return nearest, np.clip(score, -1.0, 1.0)


def match_ids(assigned: Ints, k: int, ids: Ints, previous: Previous | None) -> Ints:
    """Names (k,) for clusters 0..k-1: those of the previous clusters they overlap most with.

    One to one, by the largest total overlap (Hungarian method); a cluster that shares no image
    with a previous one gets a number never used there.
    """
    if previous is None or not len(previous.ids):
        return np.arange(k, dtype=np.int64)
    _, here, there = np.intersect1d(ids, previous.ids, return_indices=True)
    before = np.unique(previous.clusters)
    overlap = np.zeros((k, len(before)), np.int64)
    np.add.at(overlap, (assigned[here], np.searchsorted(before, previous.clusters[there])), 1)
    names = np.full(k, -1, np.int64)
    for mine, theirs in zip(*linear_sum_assignment(-overlap), strict=True):
        if overlap[mine, theirs]:
            names[mine] = before[theirs]
    fresh = np.flatnonzero(names < 0)
    names[fresh] = int(before.max()) + 1 + np.arange(len(fresh))
    return names


def agreement(
    assigned: Ints, labels: Sequence[str | None], neighbours: Ints | None
) -> dict[str, float] | None:
    """NMI, ARI, purity and 5-NN accuracy over the labelled rows; None with fewer than two."""
    known = np.array([label is not None for label in labels], bool)
    if known.sum() < 2:
        return None
    names, numbers = np.unique([label or "" for label in labels], return_inverse=True)
    mine, theirs = assigned[known], numbers[known]
    mix = np.zeros((int(mine.max()) + 1, len(names)), np.int64)
    np.add.at(mix, (mine, theirs), 1)
    found = {
        "num_labelled": int(known.sum()),
        "num_labels": len(np.unique(theirs)),
        "nmi": round(float(normalized_mutual_info_score(theirs, mine)), 4),
        "ari": round(float(adjusted_rand_score(theirs, mine)), 4),
        "purity": round(float(mix.max(1).sum() / known.sum()), 4),
    }
    accuracy = _neighbour_accuracy(numbers, known, neighbours, len(names))
    return found if accuracy is None else found | {"knn5_accuracy": accuracy}


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


def _sample(num: int, size: int, seed: int) -> Ints | slice:
    if num <= size:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(num, size, replace=False))


def _distinct(vectors: Vectors, enough: int) -> int:
    """How many distinct rows there are (to 1e-4 per value), counted no further than needed."""
    seen: set[bytes] = set()
    for start in range(0, len(vectors), 1024):
        piece = np.round(np.asarray(vectors[start : start + 1024]), 4) + 0.0
        seen.update(row.tobytes() for row in piece)
        if len(seen) > enough:
            break
    return max(1, len(seen))


def _centroids_before(vectors: Vectors, ids: Ints, previous: Previous | None) -> Vectors | None:
    if previous is None or not len(previous.ids):
        return None
    if not 0.5 < len(ids) / len(previous.ids) < 2.0:
        return None
    _, here, there = np.intersect1d(ids, previous.ids, return_indices=True)
    names = np.unique(previous.clusters)
    sums = np.zeros((len(names), vectors.shape[1]), np.float64)
    where = np.searchsorted(names, previous.clusters[there])
    for start in range(0, len(here), CHUNK):
        part = slice(start, start + CHUNK)
        np.add.at(sums, where[part], vectors[here[part]])
    lengths = np.linalg.norm(sums, axis=1)
    if not (lengths > 1e-6).all():
        return None
    return np.ascontiguousarray(sums / lengths[:, None], np.float32)


def _by_size(
    vectors: Vectors, centroids: Vectors, assigned: Ints, score: Vectors
) -> tuple[Vectors, Ints, Vectors]:
    """Clusters renumbered 0.. by falling size; those without a member are gone."""
    sizes = np.bincount(assigned, minlength=len(centroids))
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    place = np.full(len(centroids), -1, np.int64)
    place[order] = np.arange(len(order))
    return centroids[order], place[assigned], score


def _describe(
    centroids: Vectors,
    assigned: Ints,
    score: Vectors,
    names: Ints,
    labels: Sequence[str | None],
) -> tuple[Cluster, ...]:
    by_cluster = np.argsort(assigned, kind="stable")
    ends = np.cumsum(np.bincount(assigned, minlength=len(centroids)))
    found = []
    for number, rows in enumerate(np.split(by_cluster, ends[:-1])):
        mix = _label_mix([labels[row] for row in rows])
        # For unit rows the member nearest to the mean direction has the least total distance.
        medoid = int(rows[np.argmax(score[rows])])
        cohesion = round(float(score[rows].mean()), 4)
        found.append(Cluster(int(names[number]), len(rows), medoid, cohesion, mix))
    return tuple(found)


def _label_mix(labels: Sequence[str | None]) -> tuple[tuple[str, int], ...]:
    names, counts = np.unique([label for label in labels if label is not None], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple((str(names[i]), int(counts[i])) for i in order)


def _neighbour_accuracy(
    numbers: Ints, known: NDArray[np.bool_], neighbours: Ints | None, num_labels: int
) -> float | None:
    if neighbours is None or neighbours.shape[1] < 1:
        return None
    rows = np.flatnonzero(known)
    near = neighbours[rows, :NEIGHBOURS]
    usable = (near >= 0) & known[np.maximum(near, 0)]
    votes = np.zeros((len(rows), num_labels), np.float32)
    # Nearer ones win a tie: each vote weighs a little less than the one before.
    for place in range(near.shape[1]):
        good = np.flatnonzero(usable[:, place])
        votes[good, numbers[near[good, place]]] += 1.0 - 0.01 * place
    return round(float((votes.argmax(1) == numbers[rows]).mean()), 4)


def outlier_scores(neighbour_scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - the mean score with the 5 nearest others: (N, k) -> (N,); 0 where there are none."""
    near = neighbour_scores[:, :NEIGHBOURS]
    if not near.shape[1]:
        return np.zeros(len(near), np.float32)
    usable = np.where(np.isfinite(near), near, np.nan)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(usable, 1) / np.maximum(1, np.isfinite(usable).sum(1))
    return np.where(np.isfinite(usable).any(1), 1.0 - mean, 0.0).astype(np.float32)


def report_section(clustering: Clustering) -> dict[str, Any]:
    """The part of report.json that needs no pictures."""
    return {
        "num_clusters": len(clustering.clusters),
        "criterion": clustering.criterion,
        "agreement": clustering.agreement,
    }
