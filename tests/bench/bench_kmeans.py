"""K-means of the report against scikit-learn's MiniBatchKMeans, on real embeddings, in one run.

`ORBIT_DATA=/data make bench` (the folder with fashion-mnist/*.gz). Equal inertia: scikit-learn runs
as it is, its centroids are set to unit length as the spherical objective has them, and ours is
given no more than the rounds it needs to reach what it reached.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.clusters.spherical import assign
from tests.bench.results import number_of

NUM, REPEATS, RATIO = number_of("ORBIT_BENCH_NUM", 200_000), 3, 1.0

Vectors = NDArray[np.float32]


def inertia(vectors: Vectors, centroids: Vectors) -> float:
    """Mean of 1 - score with the nearest centroid of unit length."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return float(1.0 - assign(vectors, unit.astype(np.float32))[1].mean(dtype=np.float64))


def timed(work: Callable[[int], Vectors]) -> list[tuple[float, Vectors]]:
    """(seconds, centroids) of each repeat."""
    made = []
    for seed in range(REPEATS):
        began = time.perf_counter()
        centroids = work(seed)
        made.append((time.perf_counter() - began, centroids))
    return made
