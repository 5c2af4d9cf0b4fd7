"""Outliers, told with reasons: how far from company, and what else is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.clusters import ALONE
from pipelines.pictures import open_picture

if TYPE_CHECKING:
    from pipelines.report.findings import Findings

OUTLIERS, NEAREST = 24, 5
FLAT, TIE, LOOSE, SIZE = 6.0, 0.02, 0.7, 2.0
"""Grey levels (standard deviation) under which an image is of one colour; difference of two scores
that are a tie; share of a cluster's cohesion below which a member is loose; times the median side
beyond which a size is unusual."""


def outliers_section(found: Findings, named: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ``outliers`` section of report.json; ``named`` describes the rows of strangest()."""
    scores = found.outlier
    typical, limit, spread = _limits(scores)
    order = strangest(found)
    pictures = found.thumbnails([int(i) for i in found.rows.ids[order]])
    return {
        "score": f"1 - mean score with the {NEAREST} nearest other images",
        "typical": round(typical, 5),
        "stands_out_above": round(limit, 5),
        "num_standing_out": int((scores > limit).sum()) if spread > 0 else 0,
        "images": [
            _told(found, row, record, typical, pictures.get(int(record["image_id"])))
            for row, record in zip(order.tolist(), named, strict=True)
        ],
    }


def strangest(found: Findings) -> NDArray[np.int64]:
    """Rows of the images with the least company, the strangest first; none that has a copy."""
    order = np.argsort(-found.outlier, kind="stable")[:OUTLIERS].astype(np.int64)
    return order[found.outlier[order] > 1e-6]


def _limits(scores: NDArray[np.float32]) -> tuple[float, float, float]:
    typical = float(np.median(scores)) if len(scores) else 0.0
    spread = float(np.median(np.abs(scores - typical))) if len(scores) else 0.0
    return typical, typical + 8 * spread, spread


def _told(
    found: Findings, row: int, record: dict[str, Any], typical: float, thumbnail: bytes | None
) -> dict[str, Any]:
    score = float(found.outlier[row])
    reasons = [
        f"its {NEAREST} nearest score {1 - score:.3f} on average, typical is {1 - typical:.3f}",
        *_place(found, row),
        *_label(found, row, record["label"]),
        *_size(found, row),
        *_flat(thumbnail),
    ]
    return record | {
        "cluster": int(found.clustering.assigned[row]),
        "outlier_score": round(score, 5),
        "reason": "; ".join(reasons),
        "reasons": reasons,
    }


def _place(found: Findings, row: int) -> list[str]:
    clustering = found.clustering
    if int(clustering.assigned[row]) == ALONE:
        return ["in no cluster"]
    if len(clustering.clusters) < 2:
        return []
    scores = clustering.centroids @ np.asarray(found.rows.vectors[row])
    best, second = np.argsort(-scores, kind="stable")[:2].tolist()
    if scores[best] - scores[second] < TIE:
        names = sorted((clustering.clusters[best].id, clustering.clusters[second].id))
        return [f"between clusters {names[0]} and {names[1]}"]
    home = clustering.clusters[best]
    if scores[best] >= LOOSE * home.cohesion:
        return []
    return [
        f"loosely in cluster {home.id}: {scores[best]:.2f} with its centre, others "
        f"{home.cohesion:.2f}"
    ]


def _label(found: Findings, row: int, label: str | None) -> list[str]:
    near = found.neighbours.rows[row, :NEAREST]
    near = near[near >= 0]
    if label is None or not len(near):
        return []
    others = [record["label"] for record in found.rows.records(near, ["label"])]
    if label in others or None in others:
        return []
    common = max(others, key=others.count)
    return [f"labelled {label}, its nearest are not; most of them {common}"]


def _size(found: Findings, row: int) -> list[str]:
    (record,) = found.rows.records([row], ["width", "height"])
    if record["width"] is None or record["height"] is None:
        return []
    for name in ("width", "height"):
        side, median = record[name], found.median_sides[name]
        if median and not 1 / SIZE <= side / median <= SIZE:
            return [f"{record['width']} x {record['height']} pixels; the median {name} is {median}"]
    return []


def _flat(thumbnail: bytes | None) -> list[str]:
    picture = open_picture(thumbnail)
    if picture is None or float(np.asarray(picture.convert("L"), np.float32).std()) >= FLAT:
        return []
    return ["almost all of one colour"]
