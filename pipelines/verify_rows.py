"""One Parquet file of the table: is it the file that the log means, and are its rows rows?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.index import file_sha256
from pipelines.shard_file import image_id
from pipelines.table import MARKER, SCHEMA, KnownFile

UNIT = 1e-4
"""How far from 1 the length of a stored embedding may be."""


def check_file(local: Path, file: KnownFile, dim: int) -> Iterator[str]:
    """What is wrong with a local copy of one of the table's files; nothing when it is whole."""
    size = local.stat().st_size
    if size != file.size:
        yield f"has {size} bytes, the log says {file.size}"
    digest = file_sha256(local)
    if f"-{digest}." not in file.path:
        yield f"has sha256 {digest[:12]}, not the one in its name: its bytes have changed"
    try:
        rows = pq.read_table(local)
    except (pa.ArrowException, OSError) as error:
        yield f"cannot be read as Parquet: {error}"
        return
    if not rows.schema.equals(SCHEMA):
        yield "has other columns than the table"
        return
    yield from _counts(rows, file)
    yield from _rows(rows, file.source)
    yield from _embeddings(rows, dim)


def _counts(rows: pa.Table, file: KnownFile) -> Iterator[str]:
    embedded = rows.num_rows - rows["embedding"].null_count
    images = rows.num_rows - rows["digest"].null_count
    for what, found, expected in (
        ("rows", rows.num_rows, file.num_rows),
        ("embedded images", embedded, file.num_embedded),
        ("rejected images", images - embedded, file.num_rejected),
    ):
        if found != expected:
            yield f"has {found} {what}, the log says {expected}"
    for name, told in (("source", file.source), ("source_etag", file.etag)):
        values = pc.unique(rows[name]).to_pylist()
        if values not in ([told], []):
            yield f"has {name} {values[:2]}, the log says {told}"


def _rows(rows: pa.Table, source: str) -> Iterator[str]:
    keys = rows["key"].to_pylist()
    if len(set(keys)) != len(keys):
        yield f"has {len(keys) - len(set(keys))} keys twice"
    wrong = sum(
        found != image_id(source, key)
        for found, key in zip(rows["image_id"].to_pylist(), keys, strict=True)
    )
    if wrong:
        yield f"has {wrong} image_ids that are not those of their keys"
    markers = [_is_marker(key) for key in keys]
    if markers != rows["digest"].is_null().to_pylist():
        yield "has images without a digest, or marker rows with one"
    image = pc.is_valid(rows["digest"])
    reasoned = pc.equal(rows["embedding"].is_null(), rows["error"].is_valid())
    if pc.sum(pc.and_(image, pc.invert(reasoned))).as_py():
        yield "has images with neither an embedding nor a reason, or with both"


def _is_marker(key: str) -> bool:
    return key.startswith(MARKER) and not key.startswith(MARKER * 2)


def _embeddings(rows: pa.Table, dim: int) -> Iterator[str]:
    column: Any = rows["embedding"].combine_chunks().drop_null()
    if not len(column):
        return
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if lengths != [dim]:
        yield f"has embeddings of lengths {lengths}, {dim} expected"
        return
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float64)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        yield f"has {int((~finite).sum())} embeddings that are not numbers"
    off = np.abs(np.linalg.norm(values[finite], axis=1) - 1) > UNIT
    if off.any():
        yield f"has {int(off.sum())} embeddings that are not of unit length"
