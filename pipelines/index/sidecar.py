"""The rows beside the index: who an image_id is, its embedding and its pose code.

``ids.arrow`` (Arrow IPC, strings dictionary-coded), ``vectors.npy`` and ``poses.npy`` are aligned:
row i of each is the same image, and rows are in ascending image_id. All three are memory-mapped,
none is ever unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
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


def file_sha256(path: Path) -> str:
    """sha256 of a local file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ROWS_SCHEMA) as writer:
            writer.write_table(self.table.combine_chunks(), max_chunksize=CHUNK)


class Sidecar:
    """The rows of a publication, opened from local files without reading them into memory."""

    def __init__(self, folder: Path, num: int, dim: int) -> None:
        """ArtifactError when the files in ``folder`` do not agree with (num, dim)."""
        self._map = pa.memory_map(str(folder / "ids.arrow"))
        try:
            self.table = pa.ipc.open_file(self._map).read_all()
            self.vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
            self.poses = np.load(folder / "poses.npy", mmap_mode="r", allow_pickle=False)
        except (pa.ArrowInvalid, ValueError, EOFError) as error:
            raise ArtifactError(
                f"the rows beside the index cannot be read ({error}); publish again"
            ) from error
        found = (self.table.num_rows, *self.vectors.shape, len(self.poses))
        if found != (num, num, dim, num):
            raise ArtifactError(
                f"the rows beside the index are {found}, ({num}, {num}, {dim}, {num}) was "
                "published; publish again"
            )
        self.ids: NDArray[np.int64] = self.table["image_id"].to_numpy()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of image_ids of any shape; -1 where there is no such image."""
        place = np.minimum(np.searchsorted(self.ids, ids), max(0, len(self) - 1))
        return np.where(self.ids[place] == ids, place, -1) if len(self) else np.full_like(ids, -1)

    def find_key(self, key: str) -> list[int]:
        """Rows of ``key``, or of ``SOURCE/KEY`` where no key is spelled like that."""
        hits = pc.indices_nonzero(pc.equal(self.table["key"], key)).to_pylist()
        for cut in (i for i, letter in enumerate(key) if letter == "/" and not hits):
            same = pc.equal(self.table["key"], key[cut + 1 :])
            rows = pc.indices_nonzero(same).to_pylist()
            hits = [row for row in rows if self.table["source"][row].as_py() == key[:cut]]
            if hits:
                break
        return [int(row) for row in hits]

    def records(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """The rows as dictionaries, in the order asked."""
        taken: list[dict[str, Any]] = self.table.take(pa.array(list(rows), pa.int64())).to_pylist()
        return taken


def collect(
    batches: Iterable[pa.RecordBatch], num: int, dim: int, folder: Path
) -> Rows:
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
    made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if len(order) and width:
        unsorted = np.memmap(raw, dtype=dtype, mode="r", shape=shape)
        for start in range(0, len(order), CHUNK):
            made[start : start + CHUNK] = unsorted[order[start : start + CHUNK]]
        made.flush()
        del unsorted
    raw.unlink()
    del made
    loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded
