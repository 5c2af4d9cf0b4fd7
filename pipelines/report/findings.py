"""Everything found out about one table version, before it is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eqmodel.groups import FiniteGroup
from pipelines.clusters import Clustering
from pipelines.duplicates import Duplicates, Thumbnails
from pipelines.index import IndexSpec, Neighbours, Rows
from pipelines.report.invariance import Invariance
from pipelines.report.map import CollectionMap
from pipelines.table import MARKER, Counts, TableIdentity


@dataclass(frozen=True)
class Rejected:
    """Images turned away for one reason, with the first of them; ``count`` of them."""

    reason: str
    count: int
    source: str
    key: str


@dataclass(frozen=True)
class Findings:
    """What the report is made of. Arrays are aligned with ``rows``."""

    publication: str
    created: datetime
    identity: TableIdentity
    table_version: int
    model: Mapping[str, Any]
    group: FiniteGroup
    counts: Counts
    rows: Rows
    spec: IndexSpec
    neighbours: Neighbours
    outlier: NDArray[np.float32]
    clustering: Clustering
    duplicates: Duplicates
    rejects: tuple[Rejected, ...]
    damaged: tuple[Rejected, ...]
    drift: Mapping[str, Any]
    invariance: Invariance
    map: CollectionMap
    thumbnails: Thumbnails
    run: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def median_sides(self) -> dict[str, int | None]:
        """The median width and height of the images, None where they are not known."""
        sides = {name: self.rows.table[name].drop_null().to_numpy() for name in ("width", "height")}
        return {
            name: int(np.quantile(values, 0.5, method="nearest")) if len(values) else None
            for name, values in sides.items()
        }


def read_rejects(
    batches: Iterable[pa.RecordBatch],
) -> tuple[tuple[Rejected, ...], tuple[Rejected, ...]]:
    """Rejected images by reason, most frequent first, and damaged shards one by one.

    ``batches`` carry source, key and error, marker rows included. Reasons that differ only in
    their numbers are one.
    """
    reasons: dict[str, Rejected] = {}
    damaged: list[Rejected] = []
    for batch in batches:
        for row in batch.filter(pc.is_valid(batch["error"])).to_pylist():
            text, source, key = row["error"], row["source"], row["key"]
            if key.startswith(MARKER) and not key.startswith(2 * MARKER):
                damaged.append(Rejected(text, 1, source, key))
                continue
            kind = re.sub(r"\d+", "#", text)
            seen = reasons.get(kind)
            if seen is None:
                reasons[kind] = Rejected(text, 1, source, key)
            else:
                same = seen.reason if seen.reason == text else kind.replace("#", "…")
                reasons[kind] = Rejected(same, seen.count + 1, seen.source, seen.key)
    ordered = sorted(reasons.values(), key=lambda reject: (-reject.count, reject.reason))
    return tuple(ordered), tuple(damaged)
