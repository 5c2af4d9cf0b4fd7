"""Drift: what changed between the publication before and this one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Snapshot:
    """One publication as drift sees it: ids (N,) ascending, clusters (N,), digests (N,).

    ``mean`` (d,) is the mean embedding; None where it is not known.
    """

    publication: str
    ids: Ints
    clusters: Ints
    digests: pa.ChunkedArray | pa.Array
    mean: NDArray[np.float64] | None = None


def compare(before: Snapshot | None, now: Snapshot) -> dict[str, Any]:
    """The ``drift`` section of report.json; ``previous`` is None for a first publication.

    An image is known by its image_id, which it keeps when its content changes: added and removed
    are ids, changed is the same id with another digest. ``mean_shift`` is the length of the
    difference of the two mean embeddings, in units of an embedding's length.
    """
    if before is None:
        return {"previous": None}
    common, there, here = np.intersect1d(before.ids, now.ids, return_indices=True)
    same = pc.equal(before.digests.take(pa.array(there)), now.digests.take(pa.array(here)))
    num_same = pc.sum(same).as_py() or 0
    return {
        "previous": before.publication,
        "num_before": len(before.ids),
        "num_now": len(now.ids),
        "num_added": len(now.ids) - len(common),
        "num_removed": len(before.ids) - len(common),
        "num_changed": len(common) - num_same,
        "num_unchanged": num_same,
        "num_moved_cluster": int((before.clusters[there] != now.clusters[here]).sum()),
        "mean_shift": _mean_shift(before, now),
        "clusters": _sizes(before.clusters, now.clusters),
    }


def _sizes(before: Ints, now: Ints) -> list[dict[str, Any]]:
    old, new = Counter(before.tolist()), Counter(now.tolist())
    return [
        {
            "cluster": int(cluster),
            "before": old[cluster],
            "now": new[cluster],
            "changed": old[cluster] != new[cluster],
            "state": "new" if cluster not in old else "gone" if cluster not in new else "kept",
        }
        for cluster in sorted(old.keys() | new.keys())
    ]


def _mean_shift(before: Snapshot, now: Snapshot) -> float | None:
    if before.mean is None or now.mean is None:
        return None
    return round(float(np.linalg.norm(before.mean - now.mean)), 5)
