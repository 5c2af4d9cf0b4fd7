"""How the images of a publication look: thumbnails of its table, or the originals in INPUT."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from eqmodel.errors import OrbitError
from pipelines.errors import NotPublishedError
from pipelines.index import Sidecar
from pipelines.originals import read_originals
from pipelines.pictures import from_pixels, open_picture
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationRow, RowGroups
from pipelines.thumbnails import encode_thumbnail
from pipelines.turning import Look, look_of

HELD_BYTES, HELD_MADE, HELD_FILES = 128 << 20, 4_096, 256
"""Held in memory: thumbnails of the row groups used last, those made here, and names of shards."""
STRIPES = 16
"""So many shards are read at once; who asks for the same one waits, and finds it read."""


class Gallery:
    """Pictures by row. Thumbnails are read by row groups: of a shard's Parquet file the bytes of
    its keys and of the thumbnails of one group, a few megabytes at most."""

    def __init__(self, store: Folder, publication: PublicationRow, rows: Sidecar) -> None:
        self._store, self._publication, self._rows = store, publication, rows
        self._lock = threading.Lock()
        self._table: EmbeddingTable | None = None
        self._reading = [threading.Lock() for _ in range(STRIPES)]
        self._files: OrderedDict[str, RowGroups | None] = OrderedDict()
        self._held: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._made: OrderedDict[int, bytes] = OrderedDict()

    @property
    def table(self) -> EmbeddingTable:
        """The published version of the table. NotPublishedError when it is gone."""
        if self._table is None:
            row = self._publication
            self._table = EmbeddingTable.open(self._store, row.model_id, row.table_version)
        if self._table is None:
            raise NotPublishedError(
                f"{self._store.url}: the embeddings of publication {self._publication.id} are "
                "gone; run 'orbit run' again"
            )
        return self._table

    def thumbnail(self, row: int) -> bytes | None:
        """The thumbnail of a row; where the table has none, made of the image itself, of which only
        its own bytes are fetched from INPUT. None when that cannot be read."""
        return self.stored(row) or self._made_here(row)

    def stored(self, row: int) -> bytes | None:
        """The thumbnail in the table, None when the image has none."""
        (record,) = self._rows.records([row], ["source", "key"])
        source = str(record["source"])
        with self._reading[hash(source) % STRIPES]:
            data: bytes | None = self._read(source, str(record["key"]))
        return data

    def picture(self, row: int) -> Image.Image | None:
        """The thumbnail in the table, opened."""
        return open_picture(self.stored(row))

    def looks(self, rows: Sequence[int]) -> list[Look | None]:
        """How images look by their thumbnails, where there is none by the originals; None where
        those cannot be read either."""
        pictures = {row: self.picture(row) for row in rows}
        missing = sorted(row for row, picture in pictures.items() if picture is None)
        originals = self.originals(missing) if missing else {}
        pictures |= {row: from_pixels(pixels) for row, pixels in originals.items()}
        found = ((row, pictures[row]) for row in rows)
        return [None if picture is None else look_of(picture) for _, picture in found]

    def originals(self, rows: Sequence[int]) -> dict[int, NDArray[Any]]:
        """Decoded images of INPUT by row: those that are there unchanged, and can be reached."""
        known = self.table.known()
        records = dict(zip(rows, self._rows.records(rows), strict=True))
        for record in records.values():
            # A row may be older than its shard, if only others in the shard changed.
            file = known.get(record["source"])
            record["source_etag"] = record["source_etag"] if file is None else file.etag
        identity = self.table.identity
        try:
            return read_originals(identity.input_url, records, buckets=identity.buckets)
        except (OrbitError, OSError):
            return {}

    def _read(self, source: str, key: str) -> Any:
        file = self._file(source)
        place = None if file is None else file.find(key)
        if file is None or place is None:
            return None
        group, row = place
        with self._lock:
            held = self._held.get((source, group))
        if held is None:
            held = file.read(group, "thumbnail")
        with self._lock:
            self._held[source, group] = held
            self._held.move_to_end((source, group))
            while len(self._held) > 1 and sum(h.nbytes for h in self._held.values()) > HELD_BYTES:
                self._held.popitem(last=False)
        return held[row].as_py()

    def _file(self, source: str) -> RowGroups | None:
        with self._lock:
            known, file = source in self._files, self._files.get(source)
        if not known:
            file = self.table.row_groups(source)
        with self._lock:
            self._files[source] = file
            self._files.move_to_end(source)
            while len(self._files) > HELD_FILES:
                self._files.popitem(last=False)
        return file

    def _made_here(self, row: int) -> bytes | None:
        with self._lock:
            if row in self._made:
                self._made.move_to_end(row)
                return self._made[row]
        pixels = self.originals([row]).get(row)
        if pixels is None:
            return None
        data = encode_thumbnail(np.asarray(pixels))
        with self._lock:
            self._made[row] = data
            while len(self._made) > HELD_MADE:
                self._made.popitem(last=False)
        return data
