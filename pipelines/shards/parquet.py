"""Parquet shards: a column of image bytes, with key and label columns by name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shards.types import Damage, ReadOptions, Sample, Shard, UniqueKeys
from pipelines.storage import Folder

BATCH_ROWS = 256


def read_parquet(folder: Folder, shard: Shard, options: ReadOptions) -> Iterator[Sample | Damage]:
    """Samples of a Parquet object, row group by row group; Damage gives the row at which it ends.

    The image column holds bytes, or a struct with a field ``bytes`` as Hugging Face datasets write
    it. Without a key column the key is ``row-<number>``.
    """
    if shard.size == 0:
        yield Damage(0, "empty object")
        return
    with tempfile.TemporaryDirectory(prefix="orbit-") as place:
        local = Path(place, "shard.parquet")
        with folder.stream(shard.source, shard.etag) as stream, local.open("wb") as copy:
            while block := stream.read(8 << 20):
                copy.write(block)
        yield from _read_local(local, options)


def _read_local(local: Path, options: ReadOptions) -> Iterator[Sample | Damage]:
    unique, row = UniqueKeys(), 0
    try:
        with pq.ParquetFile(local) as file:
            problem = _columns_problem(file.schema_arrow, options)
            if problem:
                yield Damage(0, problem)
                return
            names = [options.image_column, options.key_column, options.label_column]
            wanted = list(dict.fromkeys(name for name in names if name))
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                for record in batch.to_pylist():
                    data = _bytes_of(record[options.image_column])
                    if len(data) > options.max_member_bytes:
                        yield Damage(row, f"image of {len(data)} bytes is over the cap")
                        return
                    key = _text(record.get(options.key_column or "")) or f"row-{row}"
                    label = _text(record.get(options.label_column or ""))
                    yield Sample(unique(key), data, label)
                    row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Damage(row, f"not a whole Parquet file: {' '.join(str(error).split())[:160]}")


def _columns_problem(schema: pa.Schema, options: ReadOptions) -> str | None:
    for name in (options.image_column, options.key_column, options.label_column):
        if name is not None and name not in schema.names:
            return f"no column '{name}'; it has {', '.join(schema.names)[:120]}"
    kind = schema.field(options.image_column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    ):
        return f"column '{options.image_column}' holds {kind}, bytes are expected"
    return None


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value or b""


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
