"""What the routes answer with: rows, clusters and pictures as the interface has them."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import Response
from starlette.responses import JSONResponse

from pipelines.pictures import kind_of
from pipelines.search import Only
from pipelines.server.live import View


def answer(document: dict[str, Any], view: View) -> JSONResponse:
    """A JSON answer that names its publication."""
    return JSONResponse(document, headers={"X-Orbit-Publication": view.id})


def item(record: dict[str, Any], detail: bool = False) -> dict[str, Any]:
    """One row of the sidecar as the interface has it; ``detail``: with its size and digest."""
    found = {
        "key": record["key"],
        "source": record["source"],
        "label": record["label"],
        "image_id": str(record["image_id"]),
        "cluster": record["cluster"] if record["cluster"] >= 0 else None,
    }
    return found | ({n: record[n] for n in ("width", "height", "digest")} if detail else {})


def cluster(found: dict[str, Any]) -> dict[str, Any]:
    """One cluster of report.json as the interface has it."""
    return {name: found[name] for name in ("cluster", "size", "share", "medoid", "labels")}


def members(view: View, found: dict[str, Any], k: int) -> list[dict[str, Any]]:
    """The ``k`` images of a cluster that are nearest to its medoid, turned to match it."""
    row = view.row_of_id(found["medoid"]["image_id"])
    only = Only(cluster=found["cluster"])
    hits = view.neighbours(*view.stored(row), k, only, look=view.look(row))
    return [hit.as_dict() for hit in hits]


def picture(data: bytes, known: str) -> Response:
    """A thumbnail; 304 when the caller's tags (``known``, of If-None-Match) name it."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=300"}
    if tag in [part.strip().removeprefix("W/") for part in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind_of(data), headers=headers)
