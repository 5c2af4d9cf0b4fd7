"""Recall, measured by score: what an index returns against what exact search would have.

A returned item counts when its exact score is at least the k-th exact score minus 1e-5, because
the copies of an orbit tie and any order among them is right (design.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Scores = NDArray[np.float32]
RowNumbers = NDArray[np.int64]
Search = Callable[[Vectors, int], RowNumbers]
"""(Q, d) queries and k -> (Q, k) row numbers, -1 where nothing was found."""

TIE = 1e-5
CHUNK = 65_536


@dataclass(frozen=True)
class Recall:
    """``recall``: mean share of the k nearest that came back, over ``num_queries``."""

    recall: float
    k: int
    num_queries: int

    def as_dict(self) -> dict[str, Any]:
        """As report.json and index.json hold it."""
        return asdict(self)


def held_out_rows(num: int, wanted: int, seed: int = 0) -> RowNumbers:
    """Sorted row numbers of the queries: at most ``wanted``, and at most a tenth of the rows.

    A held-out row takes no part in training the index and never counts as its own neighbour.
    """
    size = min(wanted, max(1, num // 10)) if num else 0
    return np.sort(np.random.default_rng(seed).choice(num, size, replace=False)).astype(np.int64)


def exact_top(
    vectors: Vectors, queries: Vectors, k: int, own: RowNumbers | None = None
) -> tuple[Scores, RowNumbers]:
    """The k best rows for each query by inner product, best first, reading ``vectors`` in pieces.

    vectors (N, d), queries (Q, d); ``own`` (Q,) rows are left out of their query's answer
    (-1: nothing to leave out). Returns scores and rows (Q, min(k, N)), rows -1 past the end.
    """
    k = min(k, len(vectors))
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(vectors), CHUNK):
        scores = queries @ np.asarray(vectors[start : start + CHUNK]).T
        if own is not None:
            inside = np.flatnonzero((own >= start) & (own < start + scores.shape[1]))
            scores[inside, own[inside] - start] = -np.inf
        best, rows = _merge(best, rows, scores, start, k)
    order = np.argsort(-best, axis=1, kind="stable")
    best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    rows[np.isneginf(best)] = -1
    return best, rows


def _merge(
    best: Scores, rows: RowNumbers, scores: Scores, start: int, k: int
) -> tuple[Scores, RowNumbers]:
    numbers = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
    both, both_rows = np.hstack([best, scores]), np.hstack([rows, numbers])
    top = np.argpartition(-both, k - 1, axis=1)[:, :k]
    return np.take_along_axis(both, top, 1), np.take_along_axis(both_rows, top, 1)


def measure_recall(
    search: Search, vectors: Vectors, queries: Vectors, own: RowNumbers, k: int = 10
) -> Recall:
    """Recall@k of ``search`` over rows (N, d) for queries (Q, d).

    ``own`` (Q,) is each query's own row, -1 for a query that is no row (a turned copy).
    """
    k = min(k, len(vectors) - 1 if (own >= 0).any() else len(vectors))
    if k < 1 or not len(queries):
        # One image alone, or none: there is nothing that could be missed.
        return Recall(1.0, max(k, 0), 0)
    scores, _ = exact_top(vectors, queries, k, own)
    answers = zip(search(queries, k + 1), own, strict=True)
    found = np.array([_without(rows, mine, k) for rows, mine in answers])
    kept = np.asarray(vectors[np.maximum(found, 0)])
    exact = np.einsum("qkd,qd->qk", kept, queries)
    good = (found >= 0) & (exact >= scores[:, k - 1, None] - TIE)
    return Recall(round(float(good.mean()), 6), k, len(queries))


def _without(found: RowNumbers, own: int, k: int) -> RowNumbers:
    others = found[found != own] if own >= 0 else found
    return np.pad(others[:k], (0, max(0, k - len(others))), constant_values=-1)
