"""The duplicates section of report.json."""

from __future__ import annotations

from typing import Any

from pipelines.duplicates.finding import Duplicates
from pipelines.index import Rows


def report_section(found: Duplicates, rows: Rows, max_groups: int = 10_000) -> dict[str, Any]:
    """The ``duplicates`` section of report.json."""
    ids = rows.ids
    shown = found.groups[:max_groups]
    named = list(dict.fromkeys(member.row for group in shown for member in group.members))
    records = dict(zip(named, rows.records(named, ["source", "key"]), strict=True))
    sizes = [len(group.members) for group in found.groups]
    return {
        "num_groups": len(found.groups),
        "num_images": sum(sizes),
        "num_redundant": sum(sizes) - len(sizes),
        "num_byte_equal_groups": sum(group.kind == "bytes" for group in found.groups),
        "num_turned_groups": sum(group.turned for group in found.groups),
        "num_proposed_pairs": found.num_proposed,
        "num_pairs_not_looked_at": found.num_unseen,
        "threshold": found.options.threshold,
        "cost": round(found.cost, 4),
        "pose": "reference = g(member): mirror left-right if mirror, then turn counter-clockwise",
        "groups": [
            {
                "kind": group.kind,
                "members": [
                    {
                        **records[member.row],
                        "image_id": str(ids[member.row]),
                        "pose": member.pose.as_dict(),
                        "agreement": member.agreement,
                    }
                    for member in group.members
                ],
            }
            for group in shown
        ],
    }
