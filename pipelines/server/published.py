"""What the live publication says of itself, as gauges: the alerts of infra/monitoring ask for them.

A run ends and takes its metrics along; the server stays, and knows what the last run published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.table import PublicationRow

Gauge = tuple[str, str, str, float]
"""(name, type, help, value)."""


def published_gauges(row: PublicationRow) -> Iterator[Gauge]:
    """Age, recall, rejects and drift of a publication; what is not known is left out."""
    prefix, facts = "orbit_publication", row.facts
    seen = facts.get("num_seen") or 0
    moved = [facts.get(name) for name in ("num_added", "num_removed", "num_changed")]
    values: list[tuple[str, str, float | None]] = [
        ("created_timestamp_seconds", "When it was published.", row.created.timestamp()),
        ("recall_at_10", "Measured recall of the index.", row.recall_at_10),
        ("embedded_images", "Images with an embedding.", facts.get("num_embedded")),
        ("damaged_shards", "Shards that end too soon.", facts.get("num_damaged_shards")),
        ("reject_share", "Rejected images of all seen.", _share(facts.get("num_rejected"), seen)),
        (
            "changed_share",
            "Images added, removed or changed since the publication before, of all seen.",
            None if None in moved else _share(sum(part or 0 for part in moved), seen),
        ),
        (
            "mean_shift",
            "Distance of the mean embedding from the one before, of an embedding's length.",
            facts.get("mean_shift"),
        ),
        *_drift(facts.get("drift") or {}),
    ]
    for name, words, value in values:
        if value is not None:
            yield f"{prefix}_{name}", "gauge", words, float(value)


def _drift(told: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    compared = [
        told[f"{name}_distance"] / told[f"{name}_threshold"]
        for name in ("distribution", "arrivals")
        if told.get(f"{name}_distance") is not None and told.get(f"{name}_threshold")
    ]
    unfit = None if "verdict" not in told else float(told["verdict"] == "unfit")
    return [
        (
            "drift_ratio",
            "Distance of the embeddings from those before, over its threshold.",
            max(compared, default=None),
        ),
        (
            "unfamiliar_share",
            "Share of the new images that are like none before.",
            told.get("unfamiliar_share"),
        ),
        ("model_unfit", "1 where the model may no longer fit the data.", unfit),
    ]


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else part / whole
