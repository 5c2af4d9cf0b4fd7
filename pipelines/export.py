"""A store's embeddings as one file for other programs: npy, CSV or Parquet, in bounded memory."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import scratch
from pipelines.errors import NotPublishedError, SettingsError
from pipelines.export_files import WRITERS
from pipelines.storage import Folder
from pipelines.store import Store
from pipelines.table import SCHEMA, EmbeddingTable

if TYPE_CHECKING:
    from pipelines.batch import Progress

FORMATS = {".npy": "npy", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
CLUSTER = "cluster"
USUAL = ("image_id", "key", "source", "label", CLUSTER, "embedding")
REJECTED = ("image_id", "key", "source", "label", "error")
BINARY = frozenset(["pose_code", "thumbnail"])


@dataclass(frozen=True)
class Selection:
    """Which rows: globs of sources and keys, labels, clusters; or the rejected ones instead."""

    sources: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    clusters: tuple[int, ...] = ()
    rejected: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written: files by URL, rows, and of which table version."""

    files: tuple[str, ...]
    format: str
    num_rows: int
    dim: int
    size: int
    model_id: str
    table_version: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "files": list(self.files),
            "format": self.format,
            "num_rows": self.num_rows,
            "dim": self.dim,
            "bytes": self.size,
            "model_id": self.model_id,
            "table_version": self.table_version,
        }


def export(
    store: Store,
    target: str,
    chosen: Selection,
    progress: Progress,
    *,
    columns: Sequence[str] | None = None,
    format: str | None = None,
) -> Exported:
    """Write the rows of the live publication's table version (before the first: of the newest).

    ``target`` is a path or URL; npy has the keys beside it, in NAME.keys.csv. Whole files appear
    at the end, or none. SettingsError for a format, column or place that does not fit.
    """
    kind = _format(target, format, chosen)
    folder, name = _place(store, target)
    table = _table(store)
    wanted = _columns(columns, chosen, kind, published=bool(store.publications()))
    clusters = _Clusters.of(store) if CLUSTER in wanted or chosen.clusters else None
    sources = _sources(table, chosen)
    with scratch.folder() as place:
        writer = WRITERS[kind](Path(place), Path(name), table.identity.dim)
        with writer:
            for rows in _rows(table, sources, wanted, chosen, clusters):
                writer.write(rows)
                progress("exporting", writer.num_rows, None, "rows")
            if not writer.num_rows:
                writer.write(_nothing(wanted))
        entries = [folder.upload(path, path.name) for path in writer.files]
    return Exported(
        files=tuple(f"{folder.url}/{entry.path}" for entry in entries),
        format=kind,
        num_rows=writer.num_rows,
        dim=table.identity.dim,
        size=sum(entry.size for entry in entries),
        model_id=table.identity.model_id,
        table_version=table.version,
    )


def _format(target: str, format: str | None, chosen: Selection) -> str:
    kind = format or FORMATS.get(Path(target).suffix.lower())
    if kind not in WRITERS:
        raise SettingsError(
            f"--out {target}: expected a name that ends in .npy, .csv or .parquet, or --format"
        )
    if kind == "npy" and chosen.rejected:
        raise SettingsError("rejected images have no embedding; export them as .csv or .parquet")
    return kind


def _place(store: Store, target: str) -> tuple[Folder, str]:
    """The folder and the name of the file; never inside the store."""
    whole = Folder(target)
    parent, _, name = whole.url.rpartition("/")
    if not name or (whole.is_local and Path(whole.url).is_dir()):
        raise SettingsError(f"--out {target}: a folder was found, a file's name is expected")
    if f"{whole.url}/".startswith(f"{store.url}/"):
        raise SettingsError(f"--out {target} lies inside the store; choose a place outside")
    if whole.is_local and not Path(parent or "/").is_dir():
        raise SettingsError(f"--out {target}: there is no folder {parent}; make it first")
    return Folder(parent or "/"), name


def _table(store: Store) -> EmbeddingTable:
    rows = store.publications()
    if not rows:
        return store.table
    live = rows[-1]
    found = EmbeddingTable.open(store.folder, live.model_id, live.table_version)
    if found is None:
        raise NotPublishedError(f"{store.url}: the embeddings of {live.id} are gone; run again")
    return found


def _columns(
    columns: Sequence[str] | None, chosen: Selection, kind: str, published: bool
) -> tuple[str, ...]:
    if columns is None:
        usual = REJECTED if chosen.rejected else USUAL
        return tuple(name for name in usual if name != CLUSTER or published)
    known = [*SCHEMA.names, CLUSTER]
    for name in columns:
        if name not in known:
            raise SettingsError(f"--column {name}: expected one of {', '.join(known)}")
        if kind == "csv" and name in BINARY:
            raise SettingsError(f"--column {name} holds bytes, which a CSV cannot; use .parquet")
    needed = ["embedding"] if kind == "npy" else []
    return tuple(dict.fromkeys([*columns, *needed]))


def _sources(table: EmbeddingTable, chosen: Selection) -> list[str] | None:
    if not chosen.sources:
        return None
    return [
        source
        for source in table.known()
        if any(fnmatch.fnmatchcase(source, pattern) for pattern in chosen.sources)
    ]


def _rows(
    table: EmbeddingTable,
    sources: Sequence[str] | None,
    wanted: Sequence[str],
    chosen: Selection,
    clusters: _Clusters | None,
) -> Iterator[pa.Table]:
    """The chosen rows with the wanted columns, piece by piece, in the order of the table."""
    needed = {"image_id", "key", "label", "embedding", *wanted} - {CLUSTER}
    if chosen.rejected and "embedding" not in wanted:
        needed = needed - {"embedding"} | {"error"}
    read = [name for name in SCHEMA.names if name in needed]
    for batch in table.batches(columns=read, sources=sources):
        rows = pa.table(batch)
        if clusters is not None:
            rows = rows.append_column(CLUSTER, clusters.of_ids(rows["image_id"].to_numpy()))
        rows = rows.filter(_mask(rows, chosen))
        if rows.num_rows:
            yield rows.select(list(wanted))


def _nothing(wanted: Sequence[str]) -> pa.Table:
    """No rows, with the wanted columns: an empty file that still says what it is."""
    kinds = {field.name: field.type for field in SCHEMA} | {CLUSTER: pa.int64()}
    return pa.schema([(name, kinds[name]) for name in wanted]).empty_table()


def _mask(rows: pa.Table, chosen: Selection) -> pa.Array:
    mask = rows["error" if chosen.rejected else "embedding"].is_valid()
    if chosen.keys:
        patterns = [fnmatch.translate(pattern) for pattern in chosen.keys]
        hits = [pc.match_substring_regex(rows["key"], _re2(pattern)) for pattern in patterns]
        mask = pc.and_(mask, _any(hits))
    if chosen.labels:
        mask = pc.and_(mask, pc.is_in(rows["label"], pa.array(chosen.labels)))
    if chosen.clusters:
        mask = pc.and_(mask, pc.is_in(rows[CLUSTER], pa.array(chosen.clusters, pa.int64())))
    return mask


def _any(masks: Sequence[Any]) -> Any:
    found = masks[0]
    for mask in masks[1:]:
        found = pc.or_(found, mask)
    return found


def _re2(pattern: str) -> str:
    r"""A pattern of fnmatch in RE2's words: anchored at both ends, without \Z and atomic groups."""
    return "^" + pattern.replace(r"\Z", r"\z").replace("(?>", "(?:")


class _Clusters:
    """The live publication's cluster of every image."""

    def __init__(self, ids: NDArray[np.int64], clusters: NDArray[np.int64]) -> None:
        order = np.argsort(ids)
        self._ids, self._clusters = ids[order], clusters[order]

    @classmethod
    def of(cls, store: Store) -> _Clusters:
        """NotPublishedError when nothing was published."""
        found = store.clusters()
        return cls(found["image_id"].to_numpy(), found["cluster"].to_numpy().astype(np.int64))

    def of_ids(self, ids: NDArray[np.int64]) -> pa.Array:
        """Each image's cluster; null for one that the publication does not hold."""
        if not len(self._ids):
            return pa.nulls(len(ids), pa.int64())
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        found = self._clusters[places]
        return pa.array(found, mask=(self._ids[places] != ids) | (found < 0))
