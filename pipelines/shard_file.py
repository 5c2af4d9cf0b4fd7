"""One shard's Parquet file: written locally, closed, reopened and checked, never a half one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import ShardFileError
from pipelines.etags import md5
from pipelines.table import SCHEMA

ROWS_PER_GROUP = 4096
_EMBEDDING_LEAF = "embedding.list.element"
_DICTIONARY = ["source", "source_etag", "label", "error"]


@dataclass(slots=True)
class Row:
    """One image on its way into the table; filled in as it is decoded and encoded."""

    key: str
    item_etag: str | None = None
    offset: int | None = None
    length: int | None = None
    digest: str | None = None
    width: int | None = None
    height: int | None = None
    label: str | None = None
    embedding: NDArray[np.float32] | None = None
    pose_code: bytes | None = None
    thumbnail: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class CheckedFile:
    """A closed file that was read back: its size, digests and rows are what the disk says."""

    path: Path
    size: int
    sha256: str
    md5: str
    num_rows: int


def image_id(source: str, key: str) -> int:
    """First 63 bits of blake2b(source NUL key NUL 0): keys are unique within their shard."""
    digest = hashlib.blake2b(f"{source}\0{key}\0".encode() + b"0").digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ShardFile:
    """Collects the rows of one shard and writes them in row groups; a context manager."""

    def __init__(self, path: Path, source: str, etag: str) -> None:
        self.path, self.source, self.etag = path, source, etag
        self.num_rows = self.num_embedded = self.num_rejected = 0
        self.damaged = False
        self._pending: list[Row] = []
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            compression="zstd",
            write_page_checksum=True,
            use_dictionary=_DICTIONARY,
            column_encoding={_EMBEDDING_LEAF: "BYTE_STREAM_SPLIT"},
        )

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows, in order."""
        for row in rows:
            self.num_rows += 1
            if row.digest is not None:
                self.num_embedded += row.embedding is not None
                self.num_rejected += row.embedding is None
        self._pending.extend(rows)
        if len(self._pending) >= ROWS_PER_GROUP:
            self._flush()

    def mark(self, name: str, error: str | None = None) -> None:
        """Append one of our own rows, ``!empty`` or ``!damaged``, which carries no image."""
        self.damaged = self.damaged or name == "!damaged"
        self.add([Row(key=name, error=error)])

    def finish(self) -> CheckedFile:
        """Close, reopen, check the rows and columns, and take size and digest from the disk."""
        self._flush()
        self._writer.close()
        found = pq.ParquetFile(self.path)
        with found:
            num_rows, schema = found.metadata.num_rows, found.schema_arrow
        if num_rows != self.num_rows or not schema.equals(SCHEMA):
            raise ShardFileError(
                f"{self.path}: {num_rows} rows read back, {self.num_rows} written; check the disk"
            )
        sha256, quick = hashlib.sha256(), md5()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                quick.update(block)
        size = self.path.stat().st_size
        return CheckedFile(self.path, size, sha256.hexdigest(), quick.hexdigest(), num_rows)

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(to_table(self._pending, self.source, self.etag))
            self._pending = []


def to_table(rows: Sequence[Row], source: str, etag: str) -> pa.Table:
    """Rows as an Arrow table with the columns of SCHEMA."""

    def column(name: str) -> pa.Array:
        return pa.array([getattr(row, name) for row in rows], SCHEMA.field(name).type)

    made: dict[str, Any] = {
        "image_id": pa.array([image_id(source, row.key) for row in rows], pa.int64()),
        "source": pa.array([source] * len(rows), pa.string()),
        "source_etag": pa.array([etag] * len(rows), pa.string()),
        "embedding": _embeddings(rows),
    }
    return pa.table(
        [made[name] if name in made else column(name) for name in SCHEMA.names], schema=SCHEMA
    )


def _embeddings(rows: Sequence[Row]) -> pa.ListArray:
    lengths = [0 if row.embedding is None else len(row.embedding) for row in rows]
    present = [row.embedding for row in rows if row.embedding is not None]
    values = np.concatenate(present) if present else np.empty(0, np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    missing = pa.array([row.embedding is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values), type=SCHEMA.field("embedding").type, mask=missing
    )
