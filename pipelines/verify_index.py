"""The sidecar against the table, the index against the sidecar: one line for each difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.index import Sidecar
from pipelines.table import EmbeddingTable

if TYPE_CHECKING:
    from pipelines.batch import Progress

REPUBLISH = "publish again with 'orbit index --force'"


def compare_sidecar(sidecar: Sidecar, table: EmbeddingTable, progress: Progress) -> Iterator[str]:
    """Rows beside the index against the embedded rows of the table."""
    salted = _salted(sidecar)
    seen = ~sidecar.alive()  # tombstones need not be seen
    missing, differing, done = list[str](), list[str](), 0
    for batch in table.batches(["image_id", "source", "key", "embedding"]):
        done += batch.num_rows
        batch = batch.filter(batch.column("embedding").is_valid())
        rows = sidecar.rows_of(batch.column("image_id").to_numpy())
        for place, name in enumerate(_names(batch) if salted else ()):
            rows[place] = salted.get(name, rows[place])
        known = np.flatnonzero(rows >= 0)
        seen[rows[known]] = True
        flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
        stored = flat.astype(np.float32, copy=False).reshape(len(rows), -1)
        same = (sidecar.vectors[rows[known]] == stored[known]).all(axis=1)
        missing += _told_names(batch, np.flatnonzero(rows < 0))
        differing += _told_names(batch, known[~same])
        progress("comparing", done, None, "rows with the sidecar")
    extra = np.flatnonzero(~seen).tolist()
    names = [f"{r['source']}/{r['key']}" for r in sidecar.records(extra[:3])]
    yield from _told(missing, "embedded images are not in it")
    yield from _told(differing, "images have another embedding in it than in the table")
    yield from _told(names, "of its images are not in the table", len(extra))


def _names(batch: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    return zip(batch.column("source").to_pylist(), batch.column("key").to_pylist(), strict=True)


def _told_names(batch: pa.RecordBatch, rows: Any) -> list[str]:
    return [f"{source}/{key}" for source, key in _names(batch.take(pa.array(rows)))]


def _salted(sidecar: Sidecar) -> dict[tuple[str, str], int]:
    """Rows whose image_id is not that of the table: two images had the same 63 bits."""
    salts = [segment.table["salt"].to_numpy() for segment in sidecar.segments]
    rows = np.flatnonzero(np.concatenate(salts)).tolist()
    records = zip(rows, sidecar.records(rows), strict=True)
    return {(record["source"], record["key"]): row for row, record in records}


def compare_index(sidecar: Sidecar, pieces: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    """What the index holds against the rows beside it."""
    seen = ~sidecar.alive()
    unknown, differing = 0, list[int]()
    for ids, vectors in pieces:
        rows = sidecar.rows_of(ids)
        known = rows >= 0
        unknown += int((~known).sum())
        seen[rows[known]] = True
        if vectors is not None:  # codes are compared by the digest of their file alone
            same = (sidecar.vectors[rows[known]] == vectors[known]).all(axis=1)
            differing += rows[known][~same].tolist()
    names = [f"{r['source']}/{r['key']}" for r in sidecar.records(differing[:3])]
    if unknown:
        yield f"{unknown} of its image_ids are not beside it; {REPUBLISH}"
    yield from _told(names, "images have another vector in it than beside it", len(differing))
    absent = np.flatnonzero(~seen).tolist()
    names = [f"{r['source']}/{r['key']}" for r in sidecar.records(absent[:3])]
    yield from _told(names, "images beside it are not in it", len(absent))


def _told(names: Sequence[str], what: str, num: int | None = None) -> Iterator[str]:
    count = len(names) if num is None else num
    if count:
        yield f"{count} {what} ({', '.join(names[:3])}); {REPUBLISH}"
