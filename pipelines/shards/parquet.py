"""Parquet shards: a column of image bytes, with key and label columns by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from pipelines import scratch
from pipelines.shards.types import (
    Damage,
    ReadOptions,
    Sample,
    Shard,
    UniqueKeys,
    clean_text,
    over_the_cap,
)
from pipelines.storage import Folder

BATCH_ROWS, BATCH_BYTES = 256, 32 << 20
MAX_KEY_CHARACTERS = 4096


def read_parquet(folder: Folder, shard: Shard, options: ReadOptions) -> Iterator[Sample | Damage]:
    """Samples of a Parquet object, batch by batch; Damage gives the row at which it ends.

    The image column holds bytes, or a struct with a field ``bytes`` as Hugging Face datasets write
    it. Without a key column the key is ``row-<number>``. Checksums of pages are verified where the
    writer left some.
    """
    if shard.size == 0:
        yield Damage(0, "empty object")
        return
    with scratch.folder() as place:
        local = Path(place, "shard.parquet")
        with folder.stream(shard.source, shard.etag) as stream, local.open("wb") as copy:
            while block := stream.read(8 << 20):
                copy.write(block)
        yield from _read_local(local, options)


def _read_local(local: Path, options: ReadOptions) -> Iterator[Sample | Damage]:
    unique, row = UniqueKeys(), 0
    try:
        with pq.ParquetFile(local, page_checksum_verification=True) as file:
            problem = _problem(file, options)
            if problem is not None:
                yield Damage(0, problem)
                return
            for record in _records(file, options, local):
                yield _sample(record, row, unique, options)
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Damage(row, f"not a whole Parquet file: {' '.join(str(error).split())[:160]}")


def _records(file: pq.ParquetFile, options: ReadOptions, local: Path) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; few at a time where they are large."""
    names = [options.image_column, options.key_column, options.label_column]
    wanted = list(dict.fromkeys(name for name in names if name))
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    heaviest = max((_heaviest_row(group, local) for group in groups), default=0)
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(heaviest, 1)))
    for batch in file.iter_batches(rows, columns=wanted):
        yield from batch.to_pylist()


def _heaviest_row(group: Any, local: Path) -> int:
    """Bytes that a row may unpack to, in memory: the mean, or a value of a dictionary.

    A dictionary holds a value once, however many rows name it: 2 kB of file may be 100 GB of rows.
    """
    heaviest = int(group.total_byte_size // max(group.num_rows, 1))
    for number in range(group.num_columns):
        column = group.column(number)
        if column.has_dictionary_page:
            unpacked = _unpacked(local, column.dictionary_page_offset)
            heaviest = max(heaviest, column.total_uncompressed_size if unpacked < 0 else unpacked)
    return heaviest


def _unpacked(local: Path, offset: int) -> int:
    """The unpacked size of the page at ``offset``, by its header, -1 where that is no header.

    In Thrift's compact form: field 1 is the page's type, field 2 this size, each a byte 0x15 and a
    zigzag varint.
    """
    with local.open("rb") as file:
        file.seek(offset)
        header = file.read(16)
    at, numbers = 0, list[int]()
    for _ in range(2):
        if header[at : at + 1] != b"\x15":
            return -1
        value = shift = 0
        while (at := at + 1) < len(header):
            value |= (header[at] & 0x7F) << shift
            shift += 7
            if header[at] < 0x80:
                break
        at += 1
        numbers.append(value >> 1)
    return numbers[1]


def _sample(record: dict[str, Any], row: int, unique: UniqueKeys, options: ReadOptions) -> Sample:
    value = record[options.image_column]
    data = (value.get("bytes") if isinstance(value, dict) else value) or b""
    key = _text(record.get(options.key_column or ""), MAX_KEY_CHARACTERS) or f"row-{row}"
    label = _text(record.get(options.label_column or ""))
    error = over_the_cap(len(data), options)
    return Sample(unique(key), b"" if error else data, label, error=error)


def _problem(file: pq.ParquetFile, options: ReadOptions) -> str | None:
    """Why the file does not hold what is asked of it."""
    schema = file.schema_arrow
    for name in (options.image_column, options.key_column, options.label_column):
        if name is not None and name not in schema.names:
            return f"no column '{name}'; it has {', '.join(schema.names)[:120]}"
    kind = schema.field(options.image_column).type
    if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not _is_bytes(kind):
        return f"column '{options.image_column}' holds {kind}, bytes are expected"
    for name in (options.key_column, options.label_column):
        if name is not None and kinds.is_nested(schema.field(name).type):
            found = schema.field(name).type
            return f"column '{name}' holds {found}, text or numbers are expected"
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    if size > options.max_shard_bytes:
        return f"{size} bytes after decompression are over the cap of {options.max_shard_bytes}"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            kinds.is_binary,
            kinds.is_large_binary,
            kinds.is_binary_view,
            kinds.is_fixed_size_binary,
        )
    )


def _text(value: Any, most: int = 1000) -> str | None:
    if value is None:
        return None
    return clean_text(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value), most
    )
