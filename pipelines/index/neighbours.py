"""Every row's nearest others, through the index: what outliers, duplicates and 5-NN are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.index.rows import Rows
from pipelines.index.searching import OrbitIndex

CHUNK = 8_192


@dataclass(frozen=True)
class Neighbours:
    """rows (N, k) int64, -1 where there are fewer; scores (N, k) float32, -inf there."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def nearest_others(
    index: OrbitIndex,
    rows: Rows,
    k: int,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Neighbours:
    """The k nearest other rows of each row, best first; a row is never its own neighbour."""
    num, ids = len(rows), rows.ids
    k = max(0, min(k, num - 1))
    found = np.full((num, k), -1, np.int64)
    scores = np.full((num, k), -np.inf, np.float32)
    for start in range(0, num if k else 0, CHUNK):
        part = slice(start, min(num, start + CHUNK))
        got_scores, got = index.search(np.asarray(rows.vectors[part]), k + 1, threads)
        near = np.where(got >= 0, np.searchsorted(ids, np.maximum(got, ids[0])), -1)
        own = near == np.arange(part.start, part.stop)[:, None]
        # Own row to the end, the others in their order; where copies crowded it out, the last goes.
        order = np.argsort(own, axis=1, kind="stable")[:, :k]
        found[part] = np.take_along_axis(near, order, 1)
        scores[part] = np.take_along_axis(got_scores, order, 1)
        if progress is not None:
            progress(part.stop)
    scores[found < 0] = -np.inf
    return Neighbours(found, scores)
