"""What a search answers with, and which images may be in the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hit:
    """One neighbour. ``score`` is the inner product in [-1, 1]; ``pose`` the turn with
    query = g(hit), None unless asked for."""

    key: str
    source: str
    label: str | None
    score: float
    image_id: str
    cluster: int | None
    pose: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON of the query verb and of the server: ``pose`` only when it was asked for."""
        found = dict(vars(self))
        if self.pose is None:
            del found["pose"]
        return found


@dataclass(frozen=True)
class Only:
    """Which images count: those with a label, of a source, in a cluster; None: any."""

    label: str | None = None
    source: str | None = None
    cluster: int | None = None

    def __bool__(self) -> bool:
        return self != Only()


ANY = Only()
