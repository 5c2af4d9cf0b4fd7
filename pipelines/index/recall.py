"""Recall, measured by score: what an index returns against what exact search would have.

A returned item counts when its exact score is at least the k-th exact score minus 1e-5, because
the copies of an orbit tie and any order among them is right (design.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Scores = NDArray[np.float32]
RowNumbers = NDArray[np.int64]
Search = Callable[[Vectors, int], RowNumbers]
"""(Q, d) queries and k -> (Q, k) row numbers, -1 where nothing was found."""

TIE = 1e-5
CHUNK = 65_536


class Stored(Protocol):
    """Embeddings (N, d) that are read in slices or row by row; need not be in memory."""

    def __getitem__(self, rows: Any) -> Any: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Recall:
    """``recall``: mean share of the k nearest that came back, over ``num_queries``."""

    recall: float
    k: int
    num_queries: int

    def as_dict(self) -> dict[str, Any]:
        """As report.json and index.json hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Truth:
    """Queries (Q, d) with the exact score of their k-th neighbour (Q,); ``own`` (Q,) is each
    query's own row, -1 for a query that is no row (a turned copy)."""

    queries: Vectors
    own: RowNumbers
    kth: Scores
    k: int

    def part(self, start: int, step: int) -> Truth:
        """Every ``step``-th query."""
        chosen = slice(start, None, step)
        return Truth(self.queries[chosen], self.own[chosen], self.kth[chosen], self.k)

    def recall_of(self, search: Search, vectors: Stored) -> Recall:
        """Recall@k of a search over the rows whose embeddings are ``vectors``."""
        if self.k < 1 or not len(self.queries):
            # One image alone, or none: there is nothing that could be missed.
            return Recall(1.0, max(self.k, 0), 0)
        answers = zip(search(self.queries, self.k + 1), self.own, strict=True)
        found = np.array([_without(rows, mine, self.k) for rows, mine in answers])
        kept = np.asarray(vectors[np.maximum(found, 0).ravel()]).reshape(*found.shape, -1)
        exact = np.einsum("qkd,qd->qk", kept, self.queries)
        good = (found >= 0) & (exact >= self.kth[:, None] - TIE)
        return Recall(round(float(good.mean()), 6), self.k, len(self.queries))


def is_held_out(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) image_ids -> (N,): whether an image never takes part in training an index.

    One in 16, by its id, so that it stays so through every update and fold.
    """
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    held: NDArray[np.bool_] = (mixed >> np.uint64(60)) == 0
    return held


def held_out_rows(ids: NDArray[np.int64], wanted: int, seed: int = 0) -> RowNumbers:
    """Sorted row numbers of the queries: at most ``wanted``, and at most a tenth of the rows.

    A held-out row takes no part in training the index and never counts as its own neighbour. Where
    there are too few images for one to be held out the index is exact, and any will do.
    """
    num = len(ids)
    candidates = np.flatnonzero(is_held_out(ids))
    size = min(wanted, max(1, num // 10)) if num else 0
    if not len(candidates):
        candidates = np.arange(num)
    size = min(size, len(candidates))
    return np.sort(np.random.default_rng(seed).choice(candidates, size, replace=False)).astype(
        np.int64
    )


def exact_top(
    vectors: Stored,
    queries: Vectors,
    k: int,
    own: RowNumbers | None = None,
    alive: NDArray[np.bool_] | None = None,
) -> tuple[Scores, RowNumbers]:
    """The k best rows for each query by inner product, best first, reading ``vectors`` in pieces.

    vectors (N, d), queries (Q, d); ``own`` (Q,) rows are left out of their query's answer
    (-1: nothing to leave out), and rows that are not ``alive`` (N,) of all. Returns scores and
    rows (Q, min(k, N)), rows -1 past the end.
    """
    k, num = min(k, len(vectors)), len(queries)
    best = np.full((num, k), -np.inf, np.float32)
    rows = np.full((num, k), -1, np.int64)
    queries = np.ascontiguousarray(queries, np.float32)
    for numbers, piece in _pieces(vectors, alive) if k and num else ():
        more = min(len(piece), k + 1)
        scores, places = faiss.knn(queries, piece, more, metric=faiss.METRIC_INNER_PRODUCT)
        found = numbers[places]
        if own is not None:
            scores[found == own[:, None]] = -np.inf
        both, both_rows = np.hstack([best, scores]), np.hstack([rows, found])
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(both, order, 1)
        rows = np.take_along_axis(both_rows, order, 1)
    rows[np.isneginf(best)] = -1
    return best, rows


def _pieces(
    vectors: Stored, alive: NDArray[np.bool_] | None
) -> Iterator[tuple[RowNumbers, Vectors]]:
    for start in range(0, len(vectors), CHUNK):
        piece = np.asarray(vectors[start : start + CHUNK])
        numbers = np.arange(start, start + len(piece))
        if alive is not None and not alive[numbers].all():
            kept = alive[numbers]
            piece, numbers = piece[kept], numbers[kept]
        if len(piece):
            yield numbers, np.ascontiguousarray(piece, np.float32)


def find_truth(
    vectors: Stored,
    queries: Vectors,
    own: RowNumbers,
    k: int = 10,
    alive: NDArray[np.bool_] | None = None,
) -> Truth:
    """The exact k-th scores that the recall of any index over ``vectors`` is measured by."""
    num = len(vectors) if alive is None else int(alive.sum())
    k = min(k, num - 1 if (own >= 0).any() else num)
    if k < 1 or not len(queries):
        return Truth(queries[:0], own[:0], np.empty(0, np.float32), max(k, 0))
    scores, _ = exact_top(vectors, queries, k, own, alive)
    return Truth(np.asarray(queries), own, scores[:, k - 1], k)


def measure_recall(
    search: Search, vectors: Stored, queries: Vectors, own: RowNumbers, k: int = 10
) -> Recall:
    """Recall@k of ``search`` over rows (N, d) for queries (Q, d), all in one."""
    return find_truth(vectors, queries, own, k).recall_of(search, vectors)


def _without(found: RowNumbers, own: int, k: int) -> RowNumbers:
    others = found[found != own] if own >= 0 else found
    return np.pad(others[:k], (0, max(0, k - len(others))), constant_values=-1)
