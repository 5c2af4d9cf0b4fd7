"""Two nights side by side: the publication before, and the one being made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import clusters, drift
from pipelines.index import Rows, Sidecar


@dataclass(frozen=True)
class Before:
    """What tonight's publication takes from the one before."""

    clusters: clusters.Previous
    snapshot: drift.Snapshot


def snapshot(name: str, rows: Rows) -> drift.Snapshot:
    """The publication being made, as drift sees it."""
    assigned: NDArray[np.int64] = rows.table["cluster"].to_numpy().astype(np.int64)
    digests = rows.table["digest"].combine_chunks()
    mean = _mean(rows.vectors, rows.ids[:0])
    return drift.Snapshot(name, rows.ids, assigned, digests, mean, rows.vectors)


def of_previous(name: str, rows: Sidecar) -> Before:
    """The publication before as it was told: images in ascending image_id."""
    live = np.flatnonzero(rows.alive())
    ids = rows.ids_of(live)
    order = live[np.argsort(ids, kind="stable")]
    ids = np.sort(ids)
    assigned = rows.cluster_of(order).astype(np.int64)
    columns = [chunk for part in rows.segments for chunk in part.table["digest"].chunks]
    digests = pa.chunked_array(columns, pa.string()).take(pa.array(order)).combine_chunks()
    mean = _mean(rows.vectors, rows.dead)
    found = drift.Snapshot(name, ids, assigned, digests, mean, rows.vectors, order)
    return Before(clusters.Previous(ids, assigned), found)


def _mean(vectors: Any, dead: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean embedding of all rows but the dead, read piece by piece."""
    total = np.zeros(vectors.shape[1], np.float64)
    for start in range(0, len(vectors), 65_536):
        total += vectors[start : start + 65_536].sum(0, dtype=np.float64)
    total -= np.asarray(vectors[dead]).sum(0, dtype=np.float64)
    return total / max(1, len(vectors) - len(dead))
