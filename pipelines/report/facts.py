"""report.json: every figure of the page, in sections with stable names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import clusters, duplicates
from pipelines.pictures import Pose, poses_of
from pipelines.report.findings import Findings
from pipelines.report.outliers import outliers_section, strangest

FORMAT_VERSION = 1
NEAREST, FARTHEST, LABELS = 18, 6, 200
_VERSIONS = ("torch", "ray", "faiss-cpu", "faiss-gpu", "deltalake", "pyarrow", "numpy")
THROUGHPUT = (
    "images_per_s",
    "efficiency",
    "efficiency_total",
    "limit",
    "fetch_per_s",
    "decode_per_s",
    "model_per_s",
    "startup_s",
    "steady_s",
    "commit_s",
    "elapsed_s",
    "num_encoded",
)


def build_document(found: Findings, plots: Sequence[str] = ()) -> dict[str, Any]:
    """The whole of report.json, as schema.json describes it; ``plots`` are the files beside it."""
    return {
        "format_version": FORMAT_VERSION,
        "publication": _publication(found) | {"plots": list(plots)},
        "collection": _collection(found),
        "clusters": _clusters(found),
        "duplicates": duplicates.report_section(found.duplicates, found.rows),
        "outliers": _outliers(found),
        "rejects": _rejects(found),
        "drift": dict(found.drift),
        "invariance": _invariance(found),
        "recall": _recall(found),
        "efficiency": _efficiency(found.run),
    }


def member_poses(found: Findings, reference: int, rows: NDArray[np.int64]) -> list[Pose]:
    """For each row the pose with reference = g(row), from the stored pose codes."""
    from eqmodel.actions import best_pose

    codes = found.rows.poses
    if not len(rows) or codes.shape[1] != found.group.order * 8:
        return [Pose()] * len(rows)
    poses = poses_of(found.group)
    best = best_pose(np.asarray(codes[reference]), np.asarray(codes[rows]), found.group)
    return [poses[int(g)] for g in best]


def _publication(found: Findings) -> dict[str, Any]:
    return {
        "id": found.publication,
        "created": found.created.isoformat(timespec="seconds"),
        "table_version": found.table_version,
        "model_id": found.identity.model_id,
        "model": dict(found.model),
        "versions": installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that computed this."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _collection(found: Findings) -> dict[str, Any]:
    rows = found.rows.table
    labels = pc.value_counts(rows["label"].combine_chunks().drop_null()).to_pylist()
    labels.sort(key=lambda item: (-item["counts"], item["values"]))
    counts = found.counts
    return {
        "input": found.identity.input_url,
        "num_seen": counts.num_seen,
        "num_embedded": counts.num_embedded,
        "num_rejected": counts.num_rejected,
        "num_damaged_shards": counts.num_damaged_shards,
        "num_shards": counts.num_shards,
        "num_labelled": len(rows) - rows["label"].null_count,
        "num_labels": len(labels),
        "labels": [{"label": i["values"], "count": i["counts"]} for i in labels[:LABELS]],
        "width": _spread(rows["width"]),
        "height": _spread(rows["height"]),
    }


def _spread(column: Any) -> dict[str, int] | None:
    values = column.drop_null().to_numpy()
    if not len(values):
        return None
    low, middle, high = np.quantile(values, [0, 0.5, 1], method="nearest")
    return {"min": int(low), "median": int(middle), "max": int(high)}


def _named(found: Findings, rows: NDArray[np.int64] | list[int]) -> list[dict[str, Any]]:
    taken = found.rows.records(rows, ["source", "key", "image_id", "label"])
    return [record | {"image_id": str(record["image_id"])} for record in taken]


def _clusters(found: Findings) -> dict[str, Any]:
    section = found.clustering.as_dict()
    section["clusters"] = [_cluster(found, cluster) for cluster in found.clustering.clusters]
    return section | {"map": found.map.as_dict(found.rows.ids)}


def _cluster(found: Findings, cluster: clusters.Cluster) -> dict[str, Any]:
    members = found.clustering.members(cluster.id)
    nearest = members[members != cluster.medoid][:NEAREST]
    farthest = members[len(nearest) + 1 :][-FARTHEST:][::-1]
    return {
        "cluster": cluster.id,
        "size": cluster.size,
        "share": round(cluster.size / max(1, len(found.rows)), 5),
        "cohesion": cluster.cohesion,
        "medoid": _named(found, [cluster.medoid])[0],
        "labels": [{"label": name, "count": count} for name, count in cluster.labels],
        "nearest": _posed(found, cluster.medoid, nearest),
        "farthest": _posed(found, cluster.medoid, farthest),
    }


def _posed(found: Findings, reference: int, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    poses = member_poses(found, reference, rows)
    named = _named(found, rows)
    return [record | {"pose": pose.as_dict()} for record, pose in zip(named, poses, strict=True)]


def _outliers(found: Findings) -> dict[str, Any]:
    return outliers_section(found, _named(found, strangest(found)))


def _rejects(found: Findings) -> dict[str, Any]:
    return {
        "num_rejected": found.counts.num_rejected,
        "reasons": [
            {"reason": r.reason, "count": r.count, "example": {"source": r.source, "key": r.key}}
            for r in found.rejects
        ],
        "num_damaged_shards": found.counts.num_damaged_shards,
        "damaged_shards": [{"source": r.source, "reason": r.reason} for r in found.damaged],
    }


def _invariance(found: Findings) -> dict[str, Any]:
    redrawn = found.invariance.redrawn
    told = None if redrawn is None else dict(redrawn.section)
    return {**found.invariance.section, "reconstruction": told}


def _recall(found: Findings) -> dict[str, Any]:
    spec = found.spec.as_dict()
    recall = spec.pop("recall")
    names = ("kind", "metric", "num", "dim", "nlist", "nprobe", "factor", "curve", "how", "why")
    turned = found.invariance.turned
    return {
        "recall_at_10": recall.get("recall"),
        "num_queries": recall.get("num_queries"),
        "num_turned_queries": 0 if turned is None else len(turned),
        **{name: spec[name] for name in names},
    }


def _efficiency(run: Mapping[str, Any]) -> dict[str, Any]:
    section = {name: run.get(name) for name in THROUGHPUT}
    measured = section["images_per_s"] is not None
    return section | {"skipped": None if measured else "no image was encoded by this run"}
