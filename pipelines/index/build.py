"""An index built from embeddings in a file: trained on a sample, filled piece by piece, tuned.

Memory: the index itself (codes and ids), the training sample (64 vectors for each list, half a
gigabyte at ten million vectors of 128 values) and one piece of 65,536 vectors. Embeddings are read
from their file, never all at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index import gpu
from pipelines.index.answers import Answers
from pipelines.index.kinds import factors_of
from pipelines.index.recall import (
    RowNumbers,
    Stored,
    Truth,
    Vectors,
    find_truth,
    is_held_out,
)
from pipelines.index.searching import OrbitIndex, use_threads
from pipelines.index.spec import ANSWERS, IndexSpec

POINTS_PER_LIST = 64  # training points for each list of an inverted file
ADD_CHUNK, FIT_SAMPLE = 65_536, 5_000

Parts = Callable[[NDArray[np.uint8]], Iterable[NDArray[np.uint8]]]
"""A trained, empty index as FAISS serializes it -> the same filled with disjoint parts of the rows,
one after another."""


class Population(Protocol):
    """Rows that an index is over: image_ids (N,), embeddings (N, d), and the way from one to the
    other."""

    @property
    def vectors(self) -> Any: ...

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]: ...


class SortedPopulation(Population, Protocol):
    """The same with ascending image_ids."""

    @property
    def ids(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Asked:
    """How good an index must be and by which queries that is told: rows ``held_out`` (H,) and
    ``turned`` (M, d), embeddings of copies that are no rows of it."""

    held_out: RowNumbers
    turned: Vectors | None = field(default=None, repr=False)
    target: float = 0.99
    threads: int = 0
    seed: int = 0

    def measuring(self) -> Asked:
        """Without the queries that an index is tuned by: for one that was tuned before."""
        return self if len(self.held_out) < 2 else replace(self, held_out=self.held_out[1::2])

    def queries(self, vectors: Stored) -> tuple[Vectors, RowNumbers]:
        """First the held-out rows, then the turned copies; with each one's own row, or -1."""
        queries, own = np.asarray(vectors[self.held_out]), self.held_out
        if self.turned is not None and len(self.turned):
            queries = np.concatenate([queries, self.turned])
            own = np.concatenate([own, np.full(len(self.turned), -1, np.int64)])
        return queries, own

    def truth(self, vectors: Stored, alive: NDArray[np.bool_] | None = None) -> Truth:
        """The exact answers, found by a pass over all embeddings."""
        return find_truth(vectors, *self.queries(vectors), alive=alive)


def build_index(
    rows: SortedPopulation,
    spec: IndexSpec,
    asked: Asked,
    trained: Path | None = None,
    parts: Parts | None = None,
) -> tuple[OrbitIndex, IndexSpec]:
    """Build the index of ``spec.kind`` over rows with ascending image_ids.

    Every second held-out row tunes nprobe and factor to the target; the others and the turned
    copies measure the recall that the spec returned carries. An inverted file is written to
    ``trained`` while it is empty, and its answers beside it. ``parts`` fills it elsewhere (Ray
    tasks); what it yields is merged in memory.
    """
    use_threads(asked.threads)
    inverted = spec.kind.startswith("IVF")
    empty = _trained(rows, spec.kind, asked.seed)
    if trained is not None and inverted:
        faiss.write_index(empty, str(trained))
    index = OrbitIndex(_filled(empty, rows, parts if inverted else None), originals=rows)
    num = len(rows.vectors)
    spec = replace(
        spec,
        num=num,
        base_num=num,
        delta_num=0,
        num_dead=0,
        trained_num=num,
        nlist=index.nlist,
        fit=fit_of(index.base, rows, asked.seed),
    )
    answers = Answers.find(rows.vectors, *asked.queries(rows.vectors))
    if trained is not None and inverted:
        answers.of(_measuring(asked, len(answers.queries))).save(trained.with_name(ANSWERS))
    return index, measured(index, rows, spec, answers.truth(num), asked)


def _trained(rows: SortedPopulation, kind: str, seed: int) -> Any:
    index = faiss.index_factory(int(rows.vectors.shape[1]), kind, faiss.METRIC_INNER_PRODUCT)
    if index.is_trained:
        return index
    rest = np.flatnonzero(~is_held_out(rows.ids))
    size = min(len(rest), index.nlist * POINTS_PER_LIST)
    chosen = np.sort(np.random.default_rng(seed).choice(rest, size, replace=False))
    sample = np.ascontiguousarray(rows.vectors[chosen], np.float32)
    index.cp.seed, index.cp.min_points_per_centroid = seed, 1
    with gpu.clustering(index):
        index.train(sample)
    return index


def _filled(index: Any, rows: SortedPopulation, parts: Parts | None) -> Any:
    num = len(rows.vectors)
    if parts is not None:
        for part in parts(faiss.serialize_index(index)):
            index.merge_from(faiss.deserialize_index(part), 0)
        if int(index.ntotal) != num:
            raise ArtifactError(
                f"{int(index.ntotal)} embeddings in the parts of the index, {num} expected; "
                "the table changed meanwhile: run again"
            )
        return index
    for start in range(0, num, ADD_CHUNK):
        piece = np.ascontiguousarray(rows.vectors[start : start + ADD_CHUNK], np.float32)
        index.add_with_ids(piece, rows.ids[start : start + ADD_CHUNK])
    return index


def fit_of(index: Any, rows: Population, seed: int, alive: RowNumbers | None = None) -> float:
    """The mean of 1 - score with the nearest centroid, over a sample; 0 for an exact index."""
    if not hasattr(index, "quantizer"):
        return 0.0
    candidates = np.arange(len(rows.vectors)) if alive is None else alive
    size = min(FIT_SAMPLE, len(candidates))
    chosen = np.sort(np.random.default_rng(seed).choice(candidates, size, replace=False))
    sample = np.ascontiguousarray(rows.vectors[chosen], np.float32)
    scores, nearest = index.quantizer.search(sample, 1)
    # A centroid of an inner-product quantizer is no unit vector: its direction is what counts.
    lengths = np.linalg.norm(index.quantizer.reconstruct_batch(nearest[:, 0]), axis=1)
    return round(float((1 - scores[:, 0] / np.maximum(lengths, 1e-12)).mean()), 6)


def measured(
    index: OrbitIndex,
    rows: Population,
    spec: IndexSpec,
    truth: Truth,
    asked: Asked,
    most: int | None = None,
) -> IndexSpec:
    """Set the index to the target and measure its recall by other queries than it was tuned by.

    With ``most`` it was tuned before: it stays as it is, but for more lists, up to so many, and
    ``truth`` is of ``asked.measuring()`` alone.
    """
    tuning, measuring = _halves(truth, asked) if most is None else (truth, truth)
    meter = _Meter(index, rows)
    if index.nlist and most is None:
        _tune(index, meter, tuning, asked.target, factors_of(spec.kind))
    recall, most = meter(measuring), most or index.nlist
    while recall < asked.target and index.nprobe < most:
        index.nprobe = min(most, index.nprobe + max(1, index.nprobe // 2))
        recall = meter(measuring)
    found = {"recall": recall, "k": measuring.k, "num_queries": len(measuring.queries)}
    return replace(
        spec,
        nprobe=index.nprobe,
        factor=index.factor,
        recall=found,
        target=asked.target,
        curve=tuple(meter.curve(spec.curve)) if index.nlist else (),
    )


def _halves(truth: Truth, asked: Asked) -> tuple[Truth, Truth]:
    """Every second held-out query, and the others with all that are no rows."""
    if len(asked.held_out) < 2:
        return truth, truth
    measuring = _measuring(asked, len(truth.queries))

    def chosen(mask: NDArray[np.bool_]) -> Truth:
        return Truth(truth.queries[mask], truth.own[mask], truth.kth[mask], truth.k)

    return chosen(~measuring), chosen(measuring)


def _measuring(asked: Asked, num: int) -> NDArray[np.bool_]:
    """(num,): the queries that tune nothing."""
    places = np.arange(num)
    if len(asked.held_out) < 2:
        return np.ones(num, bool)
    found: NDArray[np.bool_] = (places % 2 == 1) | (places >= len(asked.held_out))
    return found


class _Meter:
    """Recall of an index as it is set, and the memory of what was seen: the curve."""

    def __init__(self, index: OrbitIndex, rows: Population) -> None:
        self._index, self._rows = index, rows
        self._seen: dict[tuple[int, int], tuple[float, float]] = {}

    def __call__(self, truth: Truth) -> float:
        spent = 0.0

        def search(asked: Vectors, k: int) -> RowNumbers:
            nonlocal spent
            began = time.perf_counter()
            found = self._index.search(asked, k)[1]
            spent = time.perf_counter() - began
            return np.where(found >= 0, self._rows.rows_of(found), -1)

        recall = truth.recall_of(search, self._rows.vectors).recall
        setting = (self._index.factor, self._index.nprobe)
        self._seen[setting] = (recall, spent / max(1, len(truth.queries)))
        return recall

    def curve(self, before: Iterable[Mapping[str, float]] = ()) -> Iterator[Mapping[str, float]]:
        """Points in the order of their work; what was seen now replaces what was seen before."""
        points = {(int(point["factor"]), int(point["nprobe"])): point for point in before}
        for (factor, nprobe), (recall, seconds) in self._seen.items():
            points[factor, nprobe] = {
                "nprobe": nprobe,
                "factor": factor,
                "recall": recall,
                "seconds_per_query": seconds,
            }
        for setting in sorted(points):
            yield points[setting]


def _tune(
    index: OrbitIndex, meter: _Meter, truth: Truth, target: float, factors: tuple[int, ...]
) -> None:
    """The fewest lists (to an eighth) that reach the target with all candidates compared, then the
    fewest candidates with which they still do."""
    index.factor = factors[-1]

    def reaches(nprobe: int) -> bool:
        index.nprobe = nprobe
        return meter(truth) >= target

    high = 1
    while not reaches(high) and high < index.nlist:
        high = min(index.nlist, high * 2)
    low = high // 2
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    index.nprobe = high
    for factor in factors:
        index.factor = factor
        if meter(truth) >= target or factor == factors[-1]:
            return
