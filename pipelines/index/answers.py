"""The exact answers that recall is measured by, kept beside the base of an index.

Finding them costs a pass over all embeddings for every query. An update needs no such pass: what
was near a query in the base is known, and what came since is in the delta, which is small. Only
queries that lost too many of their neighbours, and images of the delta that become queries for
those that went, are asked anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index.recall import (
    RowNumbers,
    Scores,
    Stored,
    Truth,
    Vectors,
    exact_top,
    find_truth,
    held_out_rows,
)
from pipelines.index.sidecar import Sidecar

KEPT = 32
"""So many nearest are kept, that enough are left when some go."""
FEWEST = 0.5
"""With a smaller share of the queries left, all are chosen anew."""
NAMES = ("queries", "own", "rows", "scores")


@dataclass(frozen=True)
class Answers:
    """Queries (Q, d), their own rows of the base (Q,), -1 for copies that are no rows, and the rows
    (Q, KEPT) nearest to each, best first, -1 past the last, with their exact scores."""

    queries: Vectors
    own: RowNumbers
    rows: RowNumbers
    scores: Scores

    @classmethod
    def find(cls, vectors: Stored, queries: Vectors, own: RowNumbers) -> Answers:
        """By a pass over all embeddings."""
        scores, rows = exact_top(vectors, queries, KEPT, own)
        return cls(np.asarray(queries), own, rows, scores)

    def of(self, some: NDArray[Any]) -> Answers:
        """Of some of the queries."""
        return Answers(*(getattr(self, name)[some] for name in NAMES))

    def truth(self, num: int, k: int = 10) -> Truth:
        """As recall is measured by it, among ``num`` rows."""
        k = min(k, num - 1 if (self.own >= 0).any() else num)
        if k < 1 or not len(self.queries):
            return Truth(self.queries[:0], self.own[:0], np.empty(0, np.float32), max(k, 0))
        return Truth(self.queries, self.own, self.scores[:, k - 1], k)

    def save(self, path: Path) -> None:
        """Write them."""
        np.savez(path, **{name: getattr(self, name) for name in NAMES})

    @classmethod
    def load(cls, path: Path) -> Answers:
        """The reverse. ArtifactError when the file holds something else."""
        try:
            with np.load(path, allow_pickle=False) as held:
                return cls(*(held[name] for name in NAMES))
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ArtifactError(f"{path.name} cannot be read ({error}); publish again") from error


def truth_after(before: Answers, rows: Sidecar, seed: int = 0, k: int = 10) -> Truth | None:
    """The exact answers among ``rows``, whose base ``before`` was found in; None when too little of
    it is left."""
    left = before.of((before.own < 0) | ~rows.is_dead(before.own))
    if len(left.queries) < FEWEST * len(before.queries) or len(rows) <= k:
        return None
    kth, sure = _kth_after(left, rows, k)
    new = _fresh_queries(rows, len(before.queries), seed)
    queries = np.concatenate([left.queries, np.asarray(rows.vectors[new])])
    own = np.concatenate([left.own, new])
    kth = np.concatenate([kth, np.zeros(len(new), np.float32)])
    again = np.flatnonzero(np.concatenate([~sure, np.ones(len(new), bool)]))
    if len(again):
        kth[again] = find_truth(rows.vectors, queries[again], own[again], k, rows.alive()).kth
    return Truth(queries, own, kth, k)


def _kth_after(left: Answers, rows: Sidecar, k: int) -> tuple[Scores, NDArray[np.bool_]]:
    """The k-th scores (Q,), and which of them are sure: what is not listed scores no more than the
    last that was."""
    complete = left.rows[:, -1] < 0
    floor = np.where(complete, -np.inf, left.scores[:, -1])
    gone = rows.is_dead(left.rows) | (left.rows < 0)
    scores = np.where(gone, -np.inf, left.scores)
    if rows.delta is not None and len(rows.delta):
        fresh, _ = exact_top(rows.delta.vectors, left.queries, k)
        scores = np.concatenate([scores, fresh], 1)
    kth = -np.partition(-scores, k - 1, 1)[:, k - 1]
    return kth.astype(np.float32), (kth >= floor) & np.isfinite(kth)


def _fresh_queries(rows: Sidecar, wanted: int, seed: int) -> RowNumbers:
    """Held-out rows of the delta, as large a share of the queries as the delta is of all."""
    if rows.delta is None or not len(rows.delta):
        return np.empty(0, np.int64)
    most = max(1, round(wanted * len(rows.delta) / len(rows)))
    return held_out_rows(rows.delta.ids, most, seed) + len(rows.base)
