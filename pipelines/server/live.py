"""The publication that is served, and its exchange for a newer one while requests go on.

A request takes ``Live.view`` once and answers from it alone. A newer publication is opened, warmed
and tried in the background and then put in its place by one assignment; the old one lives until
the last request that holds it is done. One that cannot be opened (row 30 of the faults: truncated,
altered, of another dimension) raises an alarm and leaves the old one where it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import OrbitError
from pipelines.artifacts import ArtifactCache
from pipelines.errors import KeyNotFoundError
from pipelines.search import ANY, Hit, Only, Searcher
from pipelines.turning import Look

log = logging.getLogger("orbit.server")

MAX_RETRY_S = 300.0


class View:
    """One publication, opened: everything an answer is made of."""

    def __init__(self, searcher: Searcher, cache: str | None = None) -> None:
        self.searcher, self.publication = searcher, searcher.publication
        wanted = [
            file.path.rpartition("/")[2]
            for file in self.publication.files
            if file.path.rpartition("/")[2] in ("report.json", "report.html")
        ]
        folder = ArtifactCache(searcher.store, cache).fetch(self.publication, wanted)
        facts = json.loads((folder / "report.json").read_bytes()) if wanted else {}
        self.report = (folder / "report.html").read_bytes() if "report.html" in wanted else None
        self.collection: dict[str, Any] = facts.get("collection", {})
        self.clusters: list[dict[str, Any]] = facts.get("clusters", {}).get("clusters", [])

    @property
    def id(self) -> str:
        """The publication's id."""
        return self.publication.id

    def warm(self) -> None:
        """Load the model, the group and the index now rather than in the first request."""
        size = self.searcher.embedder.image_size
        shape = (size, size) if self.searcher.embedder.channels == 1 else (size, size, 3)
        self.searcher.search([np.zeros(shape, np.uint8)], 1, align=True)

    def row_of_id(self, image_id: str) -> int:
        """The row of a decimal image_id. KeyNotFoundError."""
        number = int(image_id) if image_id.isascii() and image_id.isdecimal() else -1
        row = -1
        if 0 <= number < 2**63 and len(self.searcher.rows):
            row = int(self.searcher.rows.rows_of(np.array([number], np.int64))[0])
        if row < 0:
            raise KeyNotFoundError(
                f"no image with the id '{image_id[:40]}' in publication {self.id}; an id is the "
                "decimal image_id of a neighbour"
            )
        return row

    def record(self, row: int) -> dict[str, Any]:
        """One row of the sidecar."""
        return self.searcher.rows.records([row])[0]

    def stored(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """The embedding (d,) and the pose code (p,) of a row."""
        rows = self.searcher.rows
        return np.asarray(rows.vectors[row]), np.asarray(rows.poses[row])

    def neighbours(
        self,
        vector: NDArray[np.float32],
        code: NDArray[np.int8] | None,
        k: int,
        only: Only = ANY,
        min_score: float | None = None,
        look: Look | None = None,
    ) -> list[Hit]:
        """The k nearest to an embedding of those that count, turned when given a pose code."""
        codes = None if code is None else code[None]
        return self.searcher.search_vectors(vector[None], k, codes, [look], only, min_score)[0]

    def look(self, row: int) -> Look | None:
        """How an image of the store looks."""
        return self.searcher.gallery.looks([row])[0]

    def thumbnail(self, row: int) -> bytes | None:
        """The thumbnail of a row; None when neither table nor INPUT can give one."""
        return self.searcher.gallery.thumbnail(row)


class Live:
    """The view that is served now."""

    def __init__(self, view: View, poll_s: float = 5.0, cache: str | None = None) -> None:
        self.view, self.poll_s = view, poll_s
        self.alarm: str | None = None
        self.num_swaps = self.num_refused = 0
        self._cache = cache
        self._wait_s = poll_s

    @classmethod
    def open(
        cls, store: str, device: str = "cpu", cache: str | None = None, poll_s: float = 5.0
    ) -> Live:
        """Open the live publication of a store, ready to answer. Errors as of Searcher.open."""
        view = View(Searcher.open(store, cache, device), cache)
        view.warm()
        return cls(view, poll_s, cache)

    def refresh(self) -> bool:
        """Serve a newer publication if there is one; True when the view was exchanged."""
        before = self.view
        try:
            searcher = before.searcher.refresh()
            if searcher is not before.searcher:
                fresh = View(searcher, self._cache)
                fresh.warm()
                self.view = fresh
                self.num_swaps += 1
                log.warning("now serving publication %s, before it %s", fresh.id, before.id)
        # At the boundary of a thread that must live: whatever is wrong with the new publication
        # must not touch the one that is served.
        except Exception as error:
            self._refuse(error)
            return False
        self.alarm, self._wait_s = None, self.poll_s
        return self.view is not before

    async def watch(self) -> None:
        """Ask the store again and again, until cancelled; more rarely while it is refused."""
        while True:
            await asyncio.sleep(self._wait_s)
            await asyncio.to_thread(self.refresh)

    def _refuse(self, error: Exception) -> None:
        self.num_refused += 1
        self._wait_s = min(MAX_RETRY_S, max(self.poll_s, 2 * self._wait_s))
        text = str(error) if isinstance(error, OrbitError) else f"{type(error).__name__}: {error}"
        self.alarm = " ".join(text.split())
        log.error(
            "publication %s stays: the newer one was refused at %s: %s",
            self.view.id,
            time.strftime("%H:%M:%S"),
            self.alarm,
        )
