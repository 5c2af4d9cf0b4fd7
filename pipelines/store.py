"""A store for people with a notebook: ``from pipelines import open_store``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eqmodel.errors import OrbitError
from pipelines.artifacts import ArtifactCache
from pipelines.errors import NotPublishedError, StoreError
from pipelines.search import Hit, Searcher
from pipelines.storage import Folder
from pipelines.table import CANDIDATE, EmbeddingTable, PublicationLog, PublicationRow, live_model

if TYPE_CHECKING:
    import pandas as pd

RUNS_LOOKED_AT = 8
SILENT_S = 150.0
"""Seconds after which a run counts as ended: two and a half heartbeats."""


def open_store(url: str, cache: str | os.PathLike[str] | None = None) -> Store:
    """Open a store by URL or local path. StoreError when it is not one."""
    return Store(Folder(str(url)), cache)


class Store:
    """One store and its live model: embeddings, clusters, publications, search."""

    def __init__(self, folder: Folder, cache: str | os.PathLike[str] | None = None) -> None:
        """Use ``open_store``. StoreError when no embeddings table is there."""
        self.folder = folder
        self._cache = cache
        model_id = live_model(folder)
        table = None if model_id is None else EmbeddingTable.open(folder, model_id)
        if model_id is None or table is None:
            raise StoreError(
                f"{folder.url} is not a store: no embeddings are there; make one with "
                f"'orbit run INPUT --model MODEL --out {folder.url}'"
            )
        self.model_id: str = model_id
        self.table: EmbeddingTable = table
        self._searcher: Searcher | None = None

    @property
    def url(self) -> str:
        """The store's URL in normal form."""
        return self.folder.url

    def embeddings(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The embeddings table as Arrow, one row per image seen; some columns, or all."""
        return self.table.read(columns)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The embeddings table as a pandas data frame."""
        frame: pd.DataFrame = self.embeddings(columns).to_pandas()
        return frame

    def clusters(self) -> pa.Table:
        """image_id, cluster, distance, outlier_score of the live publication."""
        row = self._live()
        folder = ArtifactCache(self.folder, self._cache).fetch(row, ["clusters.parquet"])
        return pq.read_table(folder / "clusters.parquet")

    def publications(self) -> list[PublicationRow]:
        """Every publication, oldest first; the last one is live."""
        log = PublicationLog.open(self.folder)
        return [] if log is None else log.rows()

    def searcher(self) -> Searcher:
        """The searcher of the live publication."""
        if self._searcher is None:
            self._searcher = Searcher.open(self.url, self._cache)
        else:
            self._searcher = self._searcher.refresh()
        return self._searcher

    def search(self, image: NDArray[Any], k: int = 10, align: bool = False) -> list[Hit]:
        """The k nearest images to one image, (H, W) or (H, W, C), uint8, uint16 or float32."""
        return self.searcher().search([np.asarray(image)], k, align)[0]

    def status(self) -> dict[str, Any]:
        """What the store holds and whether its publication is up to date, as JSON values."""
        counts, rows = self.table.counts(), self.publications()
        live = rows[-1] if rows else None
        seen = {row.id for row in rows if row.state != CANDIDATE}
        waiting = [row for row in rows if row.state == CANDIDATE and row.id not in seen]
        current = live is not None and live.model_id == self.model_id
        return {
            "store": self.url,
            "input": self.table.identity.input_url,
            **({"inputs": dict(self.table.identity.inputs)} if self.table.identity.inputs else {}),
            "model_id": self.model_id,
            "group": self.table.identity.group,
            "dim": self.table.identity.dim,
            "table_version": self.table.version,
            "num_seen": counts.num_seen,
            "num_embedded": counts.num_embedded,
            "num_rejected": counts.num_rejected,
            "num_damaged_shards": counts.num_damaged_shards,
            "num_shards": counts.num_shards,
            "num_publications": len(rows),
            "waiting": [row.id for row in waiting],
            "up_to_date": bool(current and live and live.table_version == self.table.version),
            "publication": None if live is None else describe(live, self.url),
        }

    def runs_at_work(self) -> list[dict[str, Any]]:
        """Runs with a sign of life in the last minutes: how many shards are done, newest last."""
        beats = [e.path for e in self.folder.entries("runs") if e.path.endswith("/heartbeat.json")]
        found: list[dict[str, Any]] = []
        for path in sorted(beats)[-RUNS_LOOKED_AT:]:
            with suppress(OrbitError, ValueError, KeyError):
                beat = json.loads(self.folder.read(path))
                age = (datetime.now(UTC) - datetime.fromisoformat(beat["time"])).total_seconds()
                if age < SILENT_S:
                    names = ("run", "shards_done", "shards_total", "table_version")
                    found.append({name: beat[name] for name in names})
        return found

    def _live(self) -> PublicationRow:
        rows = self.publications()
        if not rows:
            raise NotPublishedError(
                f"{self.url} holds no publication yet; make one with 'orbit index {self.url}'"
            )
        return rows[-1]


def describe(row: PublicationRow, store_url: str) -> dict[str, Any]:
    """A publication as JSON values: who, when, of what, how good, and where its report is."""
    pages = [file.path for file in row.files if file.path.endswith("/report.html")]
    return {
        "id": row.id,
        "seq": row.seq,
        "created": row.created.isoformat(timespec="seconds"),
        "model_id": row.model_id,
        "table_version": row.table_version,
        "state": row.state,
        "recall_at_10": row.recall_at_10,
        "report": f"{store_url}/{pages[0]}" if pages else None,
        **dict(row.facts),
    }
