"""An index that is searched: a base, since its last fold a delta, and the ids that are no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from pipelines.index.recall import RowNumbers, Scores, Vectors

FEW = 8
"""Up to so many queries are answered by one thread."""
SPARE = 8
"""So many more are asked of a base with tombstones, in case one of them is among the best."""


class Originals(Protocol):
    """The embeddings themselves, by image_id: what candidates are compared again by."""

    @property
    def vectors(self) -> Any: ...

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]: ...


class OrbitIndex:
    """A FAISS index that answers with image_ids (int64) and inner products.

    With ``factor`` above 1 so many times k candidates of the codes are compared again by the
    embeddings of ``originals``. ``dead`` are sorted image_ids of the base that are no more.
    """

    def __init__(
        self,
        base: Any,
        nprobe: int = 0,
        factor: int = 1,
        originals: Originals | None = None,
        delta: Any = None,
        dead: NDArray[np.int64] | None = None,
    ) -> None:
        self.base, self.delta = base, delta
        self.nprobe, self.factor, self.originals = nprobe, factor, originals
        self.dead = np.empty(0, np.int64) if dead is None else dead

    def __len__(self) -> int:
        added = 0 if self.delta is None else int(self.delta.ntotal)
        return int(self.base.ntotal) - len(self.dead) + added

    @property
    def nlist(self) -> int:
        """Inverted lists; 0 for an exact index."""
        return int(getattr(self.base, "nlist", 0))

    def search(
        self, queries: Vectors, k: int, threads: int = 0, nprobe: int = 0, factor: int = 0
    ) -> tuple[Scores, RowNumbers]:
        """Queries (Q, d) float32 -> scores and image_ids (Q, k), best first; -1 past the end.

        An inverted file whose probed lists hold fewer than k is asked again with more of them.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        with _threads_for(len(queries), threads):
            return self._search(queries, k, nprobe, factor)

    def _search(
        self, queries: Vectors, k: int, nprobe: int, factor: int
    ) -> tuple[Scores, RowNumbers]:
        probes, k = nprobe or self.nprobe, min(k, max(1, len(self)))
        wanted = min(k * (factor or self.factor), max(1, len(self)))
        scores, ids = self._best(queries, k, wanted, probes)
        while probes < self.nlist and (short := np.flatnonzero((ids < 0).any(1))).size:
            probes = min(self.nlist, probes * 4)
            scores[short], ids[short] = self._best(queries[short], k, wanted, probes)
        return scores, ids

    def _best(
        self, queries: Vectors, k: int, wanted: int, probes: int
    ) -> tuple[Scores, RowNumbers]:
        scores, ids = self._living(queries, wanted, probes)
        if self.delta is not None and self.delta.ntotal:
            more, more_ids = _ask(self.delta, queries, min(wanted, self.delta.ntotal), probes)
            scores, ids = np.hstack([scores, more]), np.hstack([ids, more_ids])
        if wanted > k and self.originals is not None:
            scores = _compared(queries, ids, self.originals)
        scores = np.where(ids < 0, -np.inf, scores).astype(np.float32)
        return _first(scores, ids, k)

    def _living(self, queries: Vectors, wanted: int, probes: int) -> tuple[Scores, RowNumbers]:
        """Of the base: the best ``wanted`` that are no tombstones."""
        if not len(self.dead):
            return _ask(self.base, queries, wanted, probes)
        scores, ids = _ask(self.base, queries, wanted + SPARE, probes)
        ids = np.where(self._is_dead(ids), -1, ids)
        crowded = np.flatnonzero((ids < 0).sum(1) > SPARE)
        if crowded.size:
            chosen = faiss.IDSelectorNot(faiss.IDSelectorBatch(self.dead))
            scores[crowded], ids[crowded] = _ask(
                self.base, queries[crowded], wanted + SPARE, probes, chosen
            )
        scores = np.where(ids < 0, -np.inf, scores)
        return _first(scores, ids, wanted)

    def _is_dead(self, ids: RowNumbers) -> NDArray[np.bool_]:
        place = np.minimum(np.searchsorted(self.dead, ids), len(self.dead) - 1)
        found: NDArray[np.bool_] = self.dead[place] == ids
        return found

    def save(self, path: Path) -> None:
        """Write the base to a local file."""
        faiss.write_index(self.base, str(path))

    def save_delta(self, path: Path) -> None:
        """Write the delta to a local file."""
        faiss.write_index(self.delta, str(path))


def _ask(
    index: Any, queries: Vectors, k: int, nprobe: int, selector: Any = None
) -> tuple[Scores, RowNumbers]:
    # The selector must outlive the search: the parameters hold no reference to it.
    if nprobe:
        chosen = faiss.SearchParametersIVF(nprobe=min(nprobe, index.nlist), sel=selector)
    else:
        chosen = faiss.SearchParameters(sel=selector) if selector is not None else None
    scores, ids = index.search(queries, k, params=chosen)
    return scores, ids


def _compared(queries: Vectors, ids: RowNumbers, originals: Originals) -> Scores:
    rows = np.maximum(originals.rows_of(ids), 0)
    kept = np.asarray(originals.vectors[rows.ravel()]).reshape(*rows.shape, -1)
    found: Scores = np.einsum("qkd,qd->qk", kept, queries)
    return found


def _first(scores: Scores, ids: RowNumbers, k: int) -> tuple[Scores, RowNumbers]:
    """The k best of each row, best first; padded with -1 where there are fewer."""
    if scores.shape[1] < k:
        missing = ((0, 0), (0, k - scores.shape[1]))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        ids = np.pad(ids, missing, constant_values=-1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


@contextmanager
def _threads_for(num_queries: int, threads: int) -> Iterator[None]:
    """FAISS's threads while so many queries are asked: one for a few.

    A query takes a fraction of a millisecond; threads that are woken for it, and wait for one that
    another process has put aside, take ten (990,000 embeddings, two cores, others at work).
    """
    before = faiss.omp_get_max_threads()
    use_threads(1 if num_queries <= FEW else threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def use_threads(threads: int) -> None:
    """Bound FAISS's threads; 0 leaves them as they are."""
    if threads > 0:
        faiss.omp_set_num_threads(threads)
