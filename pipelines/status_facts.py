"""What the log of publications keeps of each: the figures for `orbit status` and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.index import IndexSpec
from pipelines.report import THROUGHPUT


def status_facts(document: Mapping[str, Any], spec: IndexSpec) -> dict[str, Any]:
    """The figures that ``orbit status`` shows without opening an artifact."""
    collection, invariance = document["collection"], document["invariance"]
    counted = ("num_seen", "num_embedded", "num_rejected", "num_damaged_shards", "num_shards")
    moved = ("num_added", "num_removed", "num_changed", "mean_shift")
    return {
        **{name: collection[name] for name in counted},
        "num_clusters": document["clusters"]["num_clusters"],
        "num_duplicate_groups": document["duplicates"]["num_groups"],
        "index_kind": spec.kind,
        "index": spec.facts(),
        "invariance_error": invariance.get("invariance_error"),
        "free_angle_rank1": invariance.get("free_angle_rank1"),
        **{name: document["efficiency"][name] for name in THROUGHPUT},
        **{name: document["drift"].get(name) for name in moved},
        "drift": _drift_facts(document["drift"]),
    }


def _drift_facts(section: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict, and the figures behind it that an alert can be set on."""
    told: dict[str, Any] = {name: section[name] for name in ("verdict", "word")}
    for name in ("distribution", "arrivals"):
        part = section.get(name) or {}
        told |= {f"{name}_{figure}": part.get(figure) for figure in ("distance", "threshold")}
    told["unfamiliar_share"] = (section.get("arrivals") or {}).get("unfamiliar_share")
    told["new_clusters"] = section.get("new_clusters", [])
    told["gone_clusters"] = section.get("gone_clusters", [])
    return told
