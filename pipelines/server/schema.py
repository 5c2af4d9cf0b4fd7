"""The answers as OpenAPI tells them, with examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ITEM: dict[str, Any] = {
    "key": "0094",
    "source": "clothes-0.tar",
    "label": "Coat",
    "image_id": "4815412980976406279",
    "cluster": 0,
}
NEIGHBOUR: dict[str, Any] = {
    **ITEM,
    "score": 0.987654,
    "pose": {"angle_degrees": 90.0, "mirror": True},
}


class Pose(BaseModel):
    """Mirror left-right if `mirror`, then turn counter-clockwise: the query = this of the hit."""

    angle_degrees: float
    mirror: bool


class Item(BaseModel):
    """One image of the store."""

    model_config = ConfigDict(json_schema_extra={"examples": [ITEM]})

    key: str
    source: str
    label: str | None
    image_id: str = Field(description="decimal number of up to 19 digits, as a string")
    cluster: int | None


class Neighbour(Item):
    """One image of the store and how near it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [NEIGHBOUR]})

    score: float = Field(description="inner product, -1 to 1")
    pose: Pose | None = Field(None, description="only with align=true")


class Neighbours(BaseModel):
    """The answer to a search, best first."""

    neighbours: list[Neighbour]


class ItemDetail(Item):
    """One image, and where its bytes lie."""

    width: int | None
    height: int | None
    digest: str | None


class LabelCount(BaseModel):
    """How often a label occurs."""

    label: str
    count: int


class Cluster(BaseModel):
    """One cluster; `medoid` is the image nearest to its centre."""

    cluster: int
    size: int
    share: float
    medoid: dict[str, Any]
    labels: list[LabelCount]


class Clusters(BaseModel):
    """The clusters of the publication, in the order of their ids."""

    clusters: list[Cluster]


class ClusterMembers(Cluster):
    """One cluster and those of its images that are nearest to its medoid."""

    members: list[Neighbour]


class Error(BaseModel):
    """What was found, what was expected, what to do."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": "k = 0: a number from 1 to 1,000 is expected"}]}
    )

    error: str


WORDS = {
    400: "a query, an image or a parameter that cannot be read",
    404: "no such key, image or cluster in the publication",
    408: "the body came too slowly",
    413: "the body or the image is too large",
    415: "neither an image nor JSON",
    429: "too many searches at once; try again after Retry-After seconds",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route."""
    return {status: {"model": Error, "description": WORDS[status]} for status in statuses}


_FILE = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
SEARCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": _FILE}}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"key": _TEXT, "image_id": _TEXT},
                    "minProperties": 1,
                    "maxProperties": 1,
                },
                "examples": {
                    "by key": {"value": {"key": "0094"}},
                    "by source and key": {"value": {"key": "clothes-0.tar/0094"}},
                    "by id": {"value": {"image_id": ITEM["image_id"]}},
                },
            },
        },
    }
}
