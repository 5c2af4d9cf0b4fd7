"""What need not be computed again: the unchanged rows of a changed shard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shard_file import Row
from pipelines.shards import Shard
from pipelines.storage import Folder
from pipelines.table import MARKER, KnownFile

_COLUMNS = list(Row.__dataclass_fields__)


@dataclass(frozen=True)
class Carried:
    """Rows of the shard's previous file.

    For a folder's bucket ``rows`` are finished as they are and ``missing`` are the keys that must
    be fetched. For a tar or Parquet shard everything is read again (``missing`` is None), and
    ``by_digest`` spares the decoding and encoding of bytes seen before.
    """

    rows: list[Row] = field(default_factory=list)
    missing: frozenset[str] | None = None
    by_digest: Mapping[str, Row] = field(default_factory=dict)

    @classmethod
    def read(cls, table: Folder, previous: KnownFile | None, shard: Shard, place: Path) -> Carried:
        """Fetch the previous file into ``place`` and sort out what of it still holds."""
        if previous is None:
            return cls()
        local = place / "previous.parquet"
        if not _fetched(table, previous, local):
            return cls()
        rows = _rows(pq.read_table(local, columns=_COLUMNS))
        if shard.kind != "folder":
            return cls(by_digest={row.digest: row for row in rows if row.digest})
        listed = {(escaped(item.key), item.etag): item.key for item in shard.items}
        kept = [row for row in rows if (row.key, row.item_etag) in listed]
        finished = {listed[row.key, row.item_etag or ""] for row in kept}
        return cls(rows=kept, missing=frozenset(i.key for i in shard.items) - finished)


def _fetched(table: Folder, previous: KnownFile, local: Path) -> bool:
    """Whether the previous file came whole. One that is gone or altered carries nothing over."""
    try:
        table.download(previous.path, local)
    except FileNotFoundError:
        return False
    with local.open("rb") as file:
        return f"-{hashlib.file_digest(file, 'sha256').hexdigest()}." in previous.path


def escaped(key: str) -> str:
    """A key as it stands in the table: a real leading ``!`` is doubled."""
    return MARKER + key if key.startswith(MARKER) else key


def _rows(table: pa.Table) -> list[Row]:
    values: dict[str, list[Any]] = {
        name: table.column(name).to_pylist() for name in _COLUMNS if name != "embedding"
    }
    values["embedding"] = _embeddings(table.column("embedding").combine_chunks())
    rows = [
        Row(**dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)
    ]
    return [row for row in rows if row.digest is not None]


def _embeddings(column: pa.ListArray) -> list[np.ndarray | None]:
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    present = column.is_valid().to_pylist()
    dim = len(flat) // max(sum(present), 1)
    parts = iter(flat.reshape(-1, dim) if dim else [])
    return [next(parts) if there else None for there in present]
