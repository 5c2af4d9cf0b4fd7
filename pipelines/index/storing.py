"""Index files: loaded only when they are what was published, memory-mapped where FAISS can."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss

from pipelines.errors import ArtifactError
from pipelines.index.digests import known_sha256
from pipelines.index.searching import OrbitIndex
from pipelines.index.sidecar import Sidecar
from pipelines.index.spec import IndexSpec

LOAD_LIMIT_BYTES = 1 << 40
_KINDS = (
    ("SQ", "IndexIVFScalarQuantizer"),
    ("PQ", "IndexIVFPQFastScan"),
    ("RaBitQ", "IndexIVFRaBitQ"),
    ("Flat", "IndexIVFFlat"),
)


def open_index(
    folder: Path,
    digests: Mapping[str, str],
    spec: IndexSpec,
    rows: Sidecar,
    *,
    mapped: bool = True,
) -> OrbitIndex:
    """The index of a publication from its local files; ``digests`` by file name.

    ArtifactError unless digest, type, dimension, number of vectors and metric are as recorded; the
    digest is checked before FAISS reads a byte. A ``mapped`` index cannot be changed.
    """
    base = read_index(folder / "index.faiss", digests["index.faiss"], spec, spec.base_num, mapped)
    delta, dead = None, None
    if spec.has_delta:
        path = folder / "delta.faiss"
        delta = read_index(path, digests["delta.faiss"], spec, spec.delta_num, mapped)
        dead = rows.base.ids[rows.dead]
    return OrbitIndex(base, spec.nprobe, spec.factor, rows, delta, dead)


def read_index(
    path: Path, sha256: str | None, spec: IndexSpec, num: int, mapped: bool = False
) -> Any:
    """One FAISS index of ``num`` vectors; see ``open_index``. Without a digest for a file that was
    checked just now."""
    found = sha256 if sha256 is None else known_sha256(path)
    if found is not None and found != sha256:
        raise ArtifactError(
            f"{path.name} has sha256 {found[:12]}, {str(sha256)[:12]} was published; "
            "delete the cache, or publish again"
        )
    limit = max(1 << 20, 2 * path.stat().st_size)
    faiss.set_deserialization_vector_byte_limit(min(LOAD_LIMIT_BYTES, limit))
    flags = faiss.IO_FLAG_MMAP_IFC if mapped and spec.nlist else 0
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ArtifactError(f"{path.name}: FAISS cannot read it; publish again") from error
    _check(index, spec, num, path.name)
    return index


def _check(index: Any, spec: IndexSpec, num: int, name: str) -> None:
    codes = spec.kind.rpartition(",")[2]
    wanted = next(made for prefix, made in (*_KINDS, ("", "")) if codes.startswith(prefix))
    if not spec.kind.startswith("IVF"):
        wanted = "IndexIDMap2"
    facts = (
        ("type", type(index).__name__, wanted or spec.kind),
        ("dimension", int(index.d), spec.dim),
        ("number of vectors", int(index.ntotal), num),
        ("metric", int(index.metric_type), int(faiss.METRIC_INNER_PRODUCT)),
    )
    for what, found, expected in facts:
        if found != expected:
            raise ArtifactError(
                f"{name} has {what} {found}, index.json says {expected}; publish again"
            )
