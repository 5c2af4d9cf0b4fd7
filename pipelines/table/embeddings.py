"""The embeddings table of one model: what is known, what is to do, and the commit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ConflictError, FormatError, TableError
from pipelines.shards import Shard
from pipelines.storage import Folder
from pipelines.table.belief import is_there
from pipelines.table.data_files import RowGroups, dataset, told_in_one_line
from pipelines.table.log import Change, DeltaLog, NewFile
from pipelines.table.publications import PublicationLog
from pipelines.table.records import (
    FORMAT_VERSION,
    INPUTS,
    SCHEMA,
    Committed,
    Counts,
    KnownFile,
    Plan,
    Receipt,
    TableIdentity,
)

if TYPE_CHECKING:
    import pyarrow.dataset as pads

_NO_MARKERS = pc.field("digest").is_valid()


class EmbeddingTable:
    """The table at ``STORE/embeddings/<model_id>``, with the files known at one version.

    ``plan`` and ``commit`` belong together: whatever another writer touched after this handle
    read the table is never overwritten by it.
    """

    def __init__(self, log: DeltaLog) -> None:
        self._log = log
        self.folder = log.folder
        self.identity = _identity(log)
        self._known: Mapping[str, KnownFile] = _known_files(log)
        self._foreign: set[str] = set()

    @classmethod
    def open(
        cls, store: Folder, model_id: str, version: int | None = None
    ) -> EmbeddingTable | None:
        """The table of ``model_id`` (newest, or as of ``version``), None when there is none.

        FormatError when a newer Orbit wrote it, TableError when it cannot be read.
        """
        log = DeltaLog.open(_folder(store, model_id), version)
        return None if log is None else cls(log)

    @classmethod
    def create(cls, store: Folder, identity: TableIdentity) -> EmbeddingTable:
        """A new, empty table; the existing one when another writer was faster."""
        folder = _folder(store, identity.model_id)
        return cls(DeltaLog.create(folder, SCHEMA, identity.configuration()))

    @property
    def version(self) -> int:
        """The Delta version this handle knows."""
        return self._log.version

    @property
    def configuration(self) -> dict[str, str | None]:
        """The properties of the Delta table, ours (``orbit.*``) and Delta's own."""
        return self._log.configuration

    def known(self, name: str | None = None) -> Mapping[str, KnownFile]:
        """Every shard version in the table by source, from the log alone; or those of one input."""
        if name is None or not (name or self.identity.inputs):
            return self._known
        owner = self.identity.owner
        return {source: file for source, file in self._known.items() if owner(source) == name}

    def add_input(self, name: str, url: str) -> None:
        """Take one more input, whose sources begin with ``name`` and a slash."""
        identity = replace(self.identity, inputs=(*self.identity.inputs, (name, url)))
        self._log.set_property(INPUTS, identity.configuration()[INPUTS])
        before, self.identity = self._known, _identity(self._log)
        self._notice(before)

    def counts(self) -> Counts:
        """Counts of the whole table, from the log alone."""
        files = self._known.values()
        return Counts(
            num_seen=sum(f.num_seen for f in files),
            num_embedded=sum(f.num_embedded for f in files),
            num_rejected=sum(f.num_rejected for f in files),
            num_damaged_shards=sum(f.damaged for f in files),
            num_shards=len(files),
        )

    def plan(self, shards: Sequence[Shard], name: str | None = None) -> Plan:
        """Compare a listing with the table, or with its part of the input ``name``: by source, then
        by content identity."""
        known, listed = self.known(name), {shard.source for shard in shards}
        return Plan(
            added=tuple(s for s in shards if s.source not in known),
            changed=tuple(
                s for s in shards if s.source in known and known[s.source].etag != s.etag
            ),
            vanished=tuple(f for source, f in known.items() if source not in listed),
            unchanged=tuple(
                known[s.source]
                for s in shards
                if s.source in known and known[s.source].etag == s.etag
            ),
        )

    def holds(self, receipt: Receipt) -> bool:
        """Whether the file that a receipt names is there, with the recorded size and digest."""
        return is_there(self.folder, receipt)

    def foreign(self) -> frozenset[str]:
        """Sources that another writer has touched since this handle read the table."""
        return frozenset(self._foreign)

    def commit(self, receipts: Sequence[Receipt], vanished: Collection[str] = ()) -> Committed:
        """Name the receipts' files and drop the old files of their sources and of ``vanished``.

        One atomic commit. Of a source that another writer touched since this handle read the
        table, our result is dropped, whatever its etag. ConflictError after five commits in a
        row lost, or when the table's INPUT or format changed meanwhile.
        """
        before = self._known
        first = True

        def propose() -> Change | None:
            nonlocal first
            if not first:
                self._notice(before)
            first = False
            return self._change(receipts, vanished)

        base = self.version
        wrote = self._log.commit(SCHEMA, propose)
        landed = tuple(r for r in receipts if wrote and r.source not in self._foreign)
        removed = self._removals(receipts, vanished) if wrote else ()
        expected = dict(self._known)
        for file in removed:
            del expected[file.source]
        expected.update((r.source, _known_file(r)) for r in landed)
        self._notice(expected, alone=wrote and self.version == base + 1)
        dropped = {r.source for r in receipts} - {r.source for r in landed}
        return Committed(self.version, landed, removed, tuple(sorted(dropped)))

    def read(
        self,
        columns: Sequence[str] | None = None,
        sources: Collection[str] | None = None,
        include_markers: bool = False,
    ) -> pa.Table:
        """The rows as one Arrow table, by source; marker rows (``!``) only when asked for."""
        chosen = None if include_markers else _NO_MARKERS
        with told_in_one_line(self.folder):
            return self._dataset(sources).to_table(columns=_listed(columns), filter=chosen)

    def batches(
        self,
        columns: Sequence[str] | None = None,
        sources: Collection[str] | None = None,
        include_markers: bool = False,
        batch_size: int = 16384,
    ) -> Iterator[pa.RecordBatch]:
        """The rows piece by piece, in bounded memory."""
        chosen = None if include_markers else _NO_MARKERS
        with told_in_one_line(self.folder):
            scan = self._dataset(sources).to_batches(
                columns=_listed(columns), filter=chosen, batch_size=batch_size
            )
            yield from (batch for batch in scan if batch.num_rows)

    def row_groups(self, source: str) -> RowGroups | None:
        """The file of a shard, for who wants a few of its rows; None for an unknown source."""
        file = self._known.get(source)
        return None if file is None else RowGroups(self.folder, file.path, SCHEMA)

    def _dataset(self, sources: Collection[str] | None) -> pads.Dataset:
        wanted = sorted(self._known if sources is None else self._known.keys() & set(sources))
        return dataset(self.folder, [self._known[source].path for source in wanted], SCHEMA)

    def _change(self, receipts: Sequence[Receipt], vanished: Collection[str]) -> Change | None:
        added = [
            NewFile(r.path, r.size, r.stats) for r in receipts if r.source not in self._foreign
        ]
        removed = [f.path for f in self._removals(receipts, vanished)]
        return Change(added, removed) if added or removed else None

    def _removals(
        self, receipts: Sequence[Receipt], vanished: Collection[str]
    ) -> tuple[KnownFile, ...]:
        sources = dict.fromkeys([*(r.source for r in receipts), *vanished])
        return tuple(self._known[s] for s in sources if s in self._known and s not in self._foreign)

    def _notice(self, expected: Mapping[str, KnownFile], alone: bool = False) -> None:
        """Take the log's word, and remember every source that is not as expected. ``alone``: ours
        is the only commit since, so that the log says nothing else, and is not read."""
        identity = _identity(self._log)
        if identity != self.identity:
            raise ConflictError(
                f"{self.folder.url}: the table's INPUT or format changed during the run "
                f"({identity.input_url}); run again"
            )
        found = expected if alone else _known_files(self._log)
        if not alone:
            self._foreign |= {
                source
                for source in expected.keys() | found.keys()
                if _path(expected, source) != _path(found, source)
            }
        self._known = found


def models(store: Folder) -> list[str]:
    """The model ids with a copy of their checkpoint in the store, oldest table first."""
    found = {entry.path.split("/")[1] for entry in store.entries("models") if "/" in entry.path}
    logs = {model_id: DeltaLog.open(_folder(store, model_id)) for model_id in found}
    dated = [(log.created_ms, model_id) for model_id, log in logs.items() if log is not None]
    return [model_id for _, model_id in sorted(dated)]


def live_model(store: Folder) -> str | None:
    """The live publication's model, before the first publication the newest table's."""
    log = PublicationLog.open(store)
    row = None if log is None else log.live()
    if row is not None:
        return row.model_id
    known = models(store)
    return known[-1] if known else None


def _folder(store: Folder, model_id: str) -> Folder:
    return store.child(f"embeddings/{model_id}")


def _identity(log: DeltaLog) -> TableIdentity:
    try:
        identity = TableIdentity.from_configuration(log.configuration)
    except (KeyError, ValueError) as error:
        raise TableError(
            f"{log.folder.url}: a Delta table that is not Orbit's ({error}); choose another STORE"
        ) from error
    if identity.format_version > FORMAT_VERSION:
        raise FormatError(
            f"{log.folder.url}: format {identity.format_version}, this Orbit knows up to "
            f"{FORMAT_VERSION}; use a newer Orbit"
        )
    return identity


def _known_files(log: DeltaLog) -> dict[str, KnownFile]:
    files = log.files()
    if not files.num_rows:
        return {}
    wanted = ["path", "size_bytes", "num_records", "min.source", "min.source_etag"]
    wanted += [f"null_count.{name}" for name in ("digest", "embedding", "error")]
    rows = zip(*(files.column(name).to_pylist() for name in wanted), strict=True)
    known: dict[str, KnownFile] = {}
    for path, size, num_rows, source, etag, no_digest, no_embedding, no_error in rows:
        if source is None or source in known:
            what = "has no statistics" if source is None else f"is a second file of {source}"
            raise TableError(
                f"{log.folder.url}: {path} {what}; Orbit did not write it: restore the table"
            )
        num_rejected = no_embedding - no_digest
        known[source] = KnownFile(
            source=source,
            etag=etag,
            path=path,
            size=size,
            num_rows=num_rows,
            num_embedded=num_rows - no_embedding,
            num_rejected=num_rejected,
            damaged=num_rows - no_error > num_rejected,
        )
    return known


def _known_file(receipt: Receipt) -> KnownFile:
    names = KnownFile.__dataclass_fields__
    return KnownFile(**{name: getattr(receipt, name) for name in names})


def _path(files: Mapping[str, KnownFile], source: str) -> str | None:
    known = files.get(source)
    return None if known is None else known.path


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
