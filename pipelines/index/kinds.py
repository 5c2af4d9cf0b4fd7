"""The kinds of index, how one is chosen, built, saved and loaded, and k-means beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index.recall import Recall, RowNumbers, Vectors, measure_recall
from pipelines.index.sidecar import file_sha256

EXACT_UP_TO = 50_000
"""Up to so many vectors exact search is fast enough (shared rule, measured with FAISS 1.15)."""

POINTS_PER_LIST = 64  # training points for each list of an inverted file
ADD_CHUNK = 65_536
LOAD_LIMIT_BYTES = 1 << 40


@dataclass(frozen=True)
class IndexSpec:
    """What index.json says, and what a loaded index must agree with.

    ``curve`` is recall against time while ``nprobe`` was tuned; empty for an exact index.
    """

    kind: str
    num: int
    dim: int
    model_id: str
    table_version: int
    metric: str = "inner_product"
    nlist: int = 0
    nprobe: int = 0
    recall: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    trained_num: int = 0
    format_version: int = 1

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"curve": [dict(point) for point in self.curve]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> IndexSpec:
        """The reverse. ArtifactError when fields are missing or of a newer format."""
        try:
            spec = cls(**{**stored, "curve": tuple(stored.get("curve", ()))})
        except TypeError as error:
            raise ArtifactError(
                f"index.json is not one of this Orbit's ({error}); publish again"
            ) from error
        if spec.format_version > cls.format_version:
            raise ArtifactError(
                f"index.json has format {spec.format_version}, this Orbit knows up to "
                f"{cls.format_version}; use a newer Orbit"
            )
        return spec


class OrbitIndex:
    """A FAISS index that answers with image_ids (int64) and inner products."""

    def __init__(self, index: Any, nprobe: int = 0) -> None:
        self._index = index
        self.nprobe = nprobe

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: Vectors, k: int, threads: int = 0, nprobe: int = 0
    ) -> tuple[NDArray[np.float32], RowNumbers]:
        """Queries (Q, d) float32 -> scores and image_ids (Q, k), best first; -1 past the end.

        An inverted file whose probed lists hold fewer than k is asked again with more of them.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        use_threads(threads)
        probes = nprobe or self.nprobe
        k = min(k, max(1, len(self)))
        scores, ids = self._index.search(queries, k, params=self._parameters(probes))
        nlist = int(getattr(self._index, "nlist", 0))
        while probes < nlist and (short := np.flatnonzero((ids < 0).any(1))).size:
            probes = min(nlist, probes * 4)
            scores[short], ids[short] = self._index.search(
                queries[short], k, params=self._parameters(probes)
            )
        return scores, ids

    def save(self, path: Path) -> None:
        """Write the index to a local file."""
        faiss.write_index(self._index, str(path))

    def _parameters(self, nprobe: int) -> Any:
        return faiss.SearchParametersIVF(nprobe=nprobe) if nprobe else None


def use_threads(threads: int) -> None:
    """Bound FAISS's threads; 0 leaves them as they are."""
    if threads > 0:
        faiss.omp_set_num_threads(threads)


def choose_kind(num: int, dim: int) -> str:
    """The FAISS factory string for ``num`` vectors of ``dim`` values."""
    if num <= EXACT_UP_TO:
        return "IDMap2,Flat"
    return f"IVF{round(4 * math.sqrt(num))},Flat"


def build_index(
    vectors: Vectors,
    ids: RowNumbers,
    spec: IndexSpec,
    held_out: RowNumbers,
    *,
    extra_queries: Vectors | None = None,
    target: float = 0.99,
    threads: int = 0,
    seed: int = 0,
) -> tuple[OrbitIndex, IndexSpec]:
    """Build the index of ``spec.kind`` over rows (N, d) with ascending image_ids (N,).

    ``held_out`` rows take no part in training: every second one tunes ``nprobe`` to ``target``,
    the others, and ``extra_queries`` (turned copies, no rows of the index), measure the recall
    that the spec returned carries.
    """
    use_threads(threads)
    index = _trained(vectors, spec.kind, held_out, seed)
    for start in range(0, len(vectors), ADD_CHUNK):
        piece = np.ascontiguousarray(vectors[start : start + ADD_CHUNK], np.float32)
        index.add_with_ids(piece, ids[start : start + ADD_CHUNK])
    built = OrbitIndex(index)
    measured = held_out[1::2] if len(held_out) > 1 else held_out
    queries, own = np.asarray(vectors[measured]), measured
    if extra_queries is not None and len(extra_queries):
        queries = np.concatenate([queries, extra_queries])
        own = np.concatenate([own, np.full(len(extra_queries), -1, np.int64)])
    if not spec.kind.startswith("IVF"):
        recall = _recall_at(built, vectors, ids, queries, own, 0)[0]
        return built, replace(spec, recall=recall.as_dict(), trained_num=len(vectors))
    nprobe, curve = _tune(built, vectors, ids, held_out[::2], target)
    recall, _ = _recall_at(built, vectors, ids, queries, own, nprobe)
    nlist = int(index.nlist)
    while recall.recall < target and nprobe < nlist:
        nprobe = min(nlist, nprobe * 2)
        recall, _ = _recall_at(built, vectors, ids, queries, own, nprobe)
    index.nprobe = built.nprobe = nprobe
    return built, replace(
        spec,
        nlist=nlist,
        nprobe=nprobe,
        recall=recall.as_dict(),
        curve=tuple(curve),
        trained_num=len(vectors),
    )


def _trained(vectors: Vectors, kind: str, held_out: RowNumbers, seed: int) -> Any:
    index = faiss.index_factory(int(vectors.shape[1]), kind, faiss.METRIC_INNER_PRODUCT)
    if index.is_trained:
        return index
    rest = np.setdiff1d(np.arange(len(vectors)), held_out, assume_unique=True)
    size = min(len(rest), index.nlist * POINTS_PER_LIST)
    chosen = np.sort(np.random.default_rng(seed).choice(rest, size, replace=False))
    index.cp.seed, index.cp.min_points_per_centroid = seed, 1
    index.train(np.ascontiguousarray(vectors[chosen], np.float32))
    return index


def _recall_at(
    index: OrbitIndex,
    vectors: Vectors,
    ids: RowNumbers,
    queries: Vectors,
    own: RowNumbers,
    nprobe: int,
) -> tuple[Recall, float]:
    spent = 0.0

    def search(asked: Vectors, k: int) -> RowNumbers:
        nonlocal spent
        began = time.perf_counter()
        found = index.search(asked, k, nprobe=nprobe)[1]
        spent = time.perf_counter() - began
        return np.where(found >= 0, np.searchsorted(ids, found), -1)

    recall = measure_recall(search, vectors, queries, own)
    return recall, spent / max(1, len(queries))


def _tune(
    index: OrbitIndex, vectors: Vectors, ids: RowNumbers, rows: RowNumbers, target: float
) -> tuple[int, list[dict[str, float]]]:
    """The smallest nprobe (to an eighth) with recall >= target on ``rows``, and the curve seen."""
    queries, seen = np.asarray(vectors[rows]), dict[int, tuple[float, float]]()
    nlist = int(index._index.nlist)

    def reaches(nprobe: int) -> bool:
        recall, seconds = _recall_at(index, vectors, ids, queries, rows, nprobe)
        seen[nprobe] = (recall.recall, seconds)
        return recall.recall >= target

    high = 1
    while not reaches(high) and high < nlist:
        high = min(nlist, high * 2)
    low = high // 2
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    curve = [
        {"nprobe": n, "recall": seen[n][0], "seconds_per_query": seen[n][1]} for n in sorted(seen)
    ]
    return high, curve


def load_index(path: Path, sha256: str, spec: IndexSpec) -> OrbitIndex:
    """Load an index from a local file. ArtifactError unless digest, type, dimension, number of
    vectors and metric are all as recorded; the digest is checked before FAISS reads a byte."""
    found = file_sha256(path)
    if found != sha256:
        raise ArtifactError(
            f"{path.name} has sha256 {found[:12]}, {sha256[:12]} was published; "
            "delete the cache, or publish again"
        )
    faiss.set_deserialization_vector_byte_limit(min(LOAD_LIMIT_BYTES, 2 * path.stat().st_size))
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path.name}: FAISS cannot read it; publish again") from error
    _check(index, spec, path.name)
    return OrbitIndex(index, spec.nprobe)


def _check(index: Any, spec: IndexSpec, name: str) -> None:
    wanted = faiss.IndexIVFFlat if spec.kind.startswith("IVF") else faiss.IndexIDMap2
    facts = (
        ("type", type(index).__name__, wanted.__name__),
        ("dimension", int(index.d), spec.dim),
        ("number of vectors", int(index.ntotal), spec.num),
        ("metric", int(index.metric_type), int(faiss.METRIC_INNER_PRODUCT)),
    )
    for what, found, expected in facts:
        if found != expected:
            raise ArtifactError(
                f"{name} has {what} {found}, index.json says {expected}; publish again"
            )


def kmeans(
    vectors: Vectors,
    k: int,
    *,
    seed: int = 0,
    threads: int = 0,
    rounds: int = 60,
    start: Vectors | None = None,
) -> Vectors:
    """Spherical k-means: centroids (k, d) float32 of unit length for unit rows (N, d), N >= k.

    ``start`` (k, d) are centroids to begin from, so that tonight's clusters continue last night's.
    """
    use_threads(threads)
    algorithm = faiss.Kmeans(
        int(vectors.shape[1]),
        k,
        niter=rounds,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, len(vectors)),  # the caller has taken its sample
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
    )
    algorithm.train(np.ascontiguousarray(vectors, np.float32), init_centroids=start)
    centroids: Vectors = algorithm.centroids
    return centroids
