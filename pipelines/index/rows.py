"""Rows gathered from the table: who an image_id is, its embedding and its pose code.

``ids.arrow`` (Arrow IPC, strings dictionary-coded), ``vectors.npy`` and ``poses.npy`` are aligned:
row i of each is the same image, and rows are in ascending image_id. Embeddings go through the
disk, so that memory holds the names alone: at its peak, while they are sorted, about 700 bytes an
image (keys of 20 and digests of 64 characters).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import ArtifactError

CHUNK = 65_536
_NAME = pa.dictionary(pa.int32(), pa.string())
_CARRIED = ("source", "source_etag", "item_etag", "offset", "length", "digest", "width", "height")
COLUMNS = ("image_id", "key", "label", *_CARRIED)
ROWS_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("salt", pa.int8()),
        ("key", pa.string()),
        ("source", _NAME),
        ("label", _NAME),
        ("cluster", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.string()),
        ("source_etag", _NAME),
        ("item_etag", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


def collected_columns() -> list[str]:
    """The columns of the embeddings table that ``collect`` reads."""
    return [*COLUMNS, "embedding", "pose_code"]


@dataclass(frozen=True)
class Rows:
    """Every embedded image in ascending image_id.

    table (N rows of ROWS_SCHEMA), vectors (N, d) float32 and poses (N, p) int8, memory-mapped.
    """

    table: pa.Table
    vectors: NDArray[np.float32]
    poses: NDArray[np.int8]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64, ascending."""
        numbers: NDArray[np.int64] = self.table["image_id"].to_numpy()
        return numbers

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of image_ids of any shape; -1 where there is no such image."""
        if not len(self):
            return np.full_like(ids, -1)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        found: NDArray[np.int64] = np.where(self.ids[place] == ids, place, -1)
        return found

    def records(
        self, rows: Iterable[int] | NDArray[np.int64], columns: list[str]
    ) -> list[dict[str, Any]]:
        """Some columns of some rows as dictionaries, in the order asked."""
        wanted = pa.array(np.asarray(list(rows), np.int64))
        taken: list[dict[str, Any]] = self.table.select(columns).take(wanted).to_pylist()
        return taken

    def with_clusters(self, clusters: NDArray[np.int32]) -> Rows:
        """The same rows, each with the id of its cluster."""
        place = self.table.schema.get_field_index("cluster")
        column = pa.array(clusters, pa.int32())
        return Rows(self.table.set_column(place, "cluster", column), self.vectors, self.poses)

    def write_ids(self, path: Path) -> None:
        """Write ``ids.arrow``."""
        write_table(path, self.table)


def collect(batches: Iterable[pa.RecordBatch], num: int, dim: int, folder: Path) -> Rows:
    """Gather embedded rows into ``folder``: writes ``vectors.npy`` and ``poses.npy``.

    ``batches`` carry COLUMNS, ``embedding`` and ``pose_code``; rejected rows are passed over.
    ``num`` is how many rows will be found. Bounded memory: embeddings go through the disk.
    """
    parts: list[pa.Table] = []
    raw, raw_poses = folder / "unsorted.vectors", folder / "unsorted.poses"
    width = 0
    with raw.open("wb") as vectors_out, raw_poses.open("wb") as poses_out:
        for batch in batches:
            kept = pa.table(batch).filter(pc.field("embedding").is_valid())
            if not kept.num_rows:
                continue
            vectors_out.write(_embeddings(kept, dim).tobytes())
            poses = _poses(kept, width)
            width = width or poses.shape[1]
            poses_out.write(poses.tobytes())
            parts.append(_described(kept))
    table = pa.concat_tables(parts).unify_dictionaries() if parts else ROWS_SCHEMA.empty_table()
    if table.num_rows != num:
        raise ArtifactError(
            f"the table holds {table.num_rows} embedded rows, its log says {num}; "
            "run 'orbit run' again"
        )
    table, order = _distinct(table)
    vectors = _reordered(raw, folder / "vectors.npy", np.float32, dim, order)
    poses = _reordered(raw_poses, folder / "poses.npy", np.int8, width, order)
    return Rows(table, vectors, poses)


def _embeddings(table: pa.Table, dim: int) -> NDArray[np.float32]:
    column = table["embedding"].combine_chunks()
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if lengths != [dim]:
        raise ArtifactError(
            f"embeddings of lengths {lengths} in the table, {dim} expected; embed into a new STORE"
        )
    values: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float32, copy=False).reshape(-1, dim)


def _poses(table: pa.Table, width: int) -> NDArray[np.int8]:
    codes = [code or b"" for code in table["pose_code"].to_pylist()]
    width = width or max(len(code) for code in codes)
    joined = b"".join(code.ljust(width, b"\0")[:width] for code in codes)
    return np.frombuffer(joined, np.int8).reshape(len(codes), width)


def _described(table: pa.Table) -> pa.Table:
    length = table.num_rows
    made = {
        "salt": pa.array(np.zeros(length, np.int8)),
        "cluster": pa.array(np.full(length, -1, np.int32)),
    }
    columns = [made[f.name] if f.name in made else table[f.name].cast(f.type) for f in ROWS_SCHEMA]
    return pa.table(columns, schema=ROWS_SCHEMA)


def _distinct(table: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The table in ascending, distinct image_id, and the order that makes it so.

    Two images with the same 63 bits of hash are told apart by a salt: the first by (source, key)
    keeps its id, the others are hashed again.
    """
    ids = table["image_id"].to_numpy().copy()
    salts = np.zeros(len(ids), np.int8)
    values, counts = np.unique(ids, return_counts=True)
    taken = set(values.tolist()) if (counts > 1).any() else set()
    for value in values[counts > 1]:
        clashing = np.flatnonzero(ids == value).tolist()
        names = {i: (table["source"][i].as_py(), table["key"][i].as_py()) for i in clashing}
        for row in sorted(clashing, key=names.__getitem__)[1:]:
            ids[row], salts[row] = _salted(int(value), *names[row], taken)
    order = np.argsort(ids, kind="stable").astype(np.int64)
    for name, column in (("image_id", ids), ("salt", salts)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, ROWS_SCHEMA.field(name), pa.array(column))
    return table.take(pa.array(order)).combine_chunks(), order


def _salted(image_id: int, source: str, key: str, taken: set[int]) -> tuple[int, int]:
    for salt in range(1, 128):
        words = f"{image_id}\0{source}\0{key}\0{salt}".encode()
        number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 1
        if number not in taken:
            taken.add(number)
            return number, salt
    raise ArtifactError(f"over 127 rows of {source} share image_id {image_id}; check the table")


def _reordered(
    raw: Path, path: Path, dtype: type[np.generic], width: int, order: NDArray[np.int64]
) -> NDArray[Any]:
    shape = (len(order), width)
    held = np.memmap(raw, dtype=dtype, mode="r", shape=shape) if all(shape) else np.empty(shape)
    made = write_array(path, held.astype(dtype, copy=False), order)
    del held
    raw.unlink()
    return made


def write_array(path: Path, stored: Any, order: NDArray[np.int64]) -> NDArray[Any]:
    """Write rows ``order`` of an array (N, w) to a ``.npy`` file, piece by piece, and map it."""
    shape = (len(order), *stored.shape[1:])
    descr = np.lib.format.dtype_to_descr(stored[:0].dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:  # a map of the file would fault on each of its pages
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(order) if shape[1] else 0, CHUNK):
            file.write(np.ascontiguousarray(stored[order[start : start + CHUNK]]).data)
    loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded


def write_table(path: Path, table: pa.Table) -> None:
    """Write rows of ROWS_SCHEMA as an Arrow file; strings share one dictionary for each column."""
    whole = table.unify_dictionaries().combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
        writer.write_table(whole, max_chunksize=CHUNK)


def plain(table: pa.Table) -> pa.Table:
    """The table with strings in place of dictionaries."""
    fields = [
        pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type)
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))


def with_etags(table: pa.Table, etags: Mapping[str, str]) -> pa.Table:
    """The table with ``source_etag`` of every row taken from ``etags`` by its source."""
    sources = table["source"].combine_chunks()
    if isinstance(sources, pa.ChunkedArray):
        sources = sources.chunk(0) if sources.num_chunks else pa.array([], ROWS_SCHEMA[3].type)
    names = [etags.get(name) for name in sources.dictionary.to_pylist()]
    told = pa.array(names, pa.string()).take(sources.indices)
    place = ROWS_SCHEMA.get_field_index("source_etag")
    return table.set_column(place, ROWS_SCHEMA.field(place), told.dictionary_encode())
