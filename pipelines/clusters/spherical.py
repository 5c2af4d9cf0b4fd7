"""Spherical k-means: how many clusters, where their centres are, and who is nearest to which."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import silhouette_score

from pipelines.clusters.naming import centroids_before
from pipelines.clusters.types import Ints, Previous, Vectors
from pipelines.index import kmeans

CANDIDATES = (4, 6, 8, 10, 12, 16, 20, 24, 32)
CRITERION = "chosen among {tried} by the mean silhouette (cosine) of a sample of {num:,}"
SAMPLE, SILHOUETTE_SAMPLE, TRAIN_SAMPLE = 6_000, 2_000, 200_000
CHUNK = 65_536


def by_centroids(
    vectors: Vectors, ids: Ints, k: int | None, previous: Previous | None, seed: int, threads: int
) -> tuple[Ints, str]:
    """Cluster numbers (N,) and the words for how many there are.

    Without ``k`` the previous number is kept while the collection has not doubled or halved, and
    k-means starts from the previous centroids; else k is chosen. Never more than distinct images.
    """
    start = None if k else centroids_before(vectors, ids, previous)
    if start is not None:
        wanted, criterion = len(start), "kept from the previous publication"
    else:
        wanted, criterion = (k, "asked for") if k else choose_k(vectors, seed, threads)
    allowed = distinct(vectors, wanted)
    if allowed < wanted:
        criterion += f" ({wanted}), but there are {allowed} distinct images"
        wanted = allowed
    if start is not None and wanted != len(start):
        start = None
    sample = _sample(len(vectors), TRAIN_SAMPLE, seed)
    centroids = kmeans(vectors[sample], wanted, seed=seed, threads=threads, start=start)
    return assign(vectors, centroids)[0], criterion


def choose_k(vectors: Vectors, seed: int = 0, threads: int = 0) -> tuple[int, str]:
    """The k of CANDIDATES with the largest mean silhouette on a sample, and the words for it."""
    sample = vectors[_sample(len(vectors), SAMPLE, seed)]
    several = distinct(sample, max(CANDIDATES) + 1)
    tried = [k for k in CANDIDATES if k < several]
    if not tried:
        k = max(1, min(several, CANDIDATES[0]))
        return k, f"as many as {several} distinct image{'s allow' if several > 1 else ' allows'}"
    shown = sample[_sample(len(sample), SILHOUETTE_SAMPLE, seed)]
    scores = []
    for k in tried:
        assigned, _ = assign(shown, kmeans(sample, k, seed=seed, threads=threads, rounds=15))
        parted = 1 < len(np.unique(assigned)) < len(shown)
        scores.append(silhouette_score(shown, assigned, metric="cosine") if parted else -1.0)
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


def distinct(vectors: Vectors, enough: int) -> int:
    """How many distinct rows there are (to 1e-4 per value), counted no further than needed."""
    seen: set[bytes] = set()
    for start in range(0, len(vectors), 1024):
        piece = np.round(np.asarray(vectors[start : start + 1024]), 4) + 0.0
        seen.update(row.tobytes() for row in piece)
        if len(seen) > enough:
            break
    return max(1, len(seen))


def _sample(num: int, size: int, seed: int) -> Ints | slice:
    if num <= size:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(num, size, replace=False))
