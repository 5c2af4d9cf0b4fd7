"""The log of publications: one row makes one index, its clusters and its report visible."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import scratch
from pipelines.errors import ConflictError, FormatError, KeyNotFoundError, TableError
from pipelines.storage import Folder
from pipelines.table.data_files import dataset, told_in_one_line
from pipelines.table.log import Change, DeltaLog, NewFile
from pipelines.table.records import FORMAT_VERSION

_FILE = pa.struct([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
_SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("table_version", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("files", pa.list_(pa.field("element", _FILE))),
        pa.field("recall_at_10", pa.float64()),
        pa.field("facts", pa.string()),
        pa.field("created", pa.timestamp("us", tz="UTC")),
    ]
)

CANDIDATE = "candidate"


@dataclass(frozen=True)
class PublishedFile:
    """One artifact: its path relative to STORE, its size in bytes and its digest."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PublicationRow:
    """One publication. ``seq`` is given by ``PublicationLog.append``; the highest is live.

    One that was published without going live (state "candidate") has a ``seq`` of 0 or less.

    ``facts`` is any JSON object (counts, kind of index, throughput) for people and for status.
    """

    id: str
    model_id: str
    table_version: int
    files: tuple[PublishedFile, ...] = ()
    recall_at_10: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    state: str = "published"
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    seq: int = 0


class PublicationLog:
    """The Delta table at ``STORE/publications``."""

    def __init__(self, log: DeltaLog) -> None:
        self._log = log
        _check_format(log)

    @classmethod
    def open(cls, store: Folder) -> PublicationLog | None:
        """The log, None when nothing was ever published here."""
        log = DeltaLog.open(store.child("publications"))
        return None if log is None else cls(log)

    @classmethod
    def open_or_create(cls, store: Folder) -> PublicationLog:
        """The log, made when it is not there yet."""
        made = {"orbit.format_version": str(FORMAT_VERSION)}
        return cls.open(store) or cls(DeltaLog.create(store.child("publications"), _SCHEMA, made))

    @property
    def version(self) -> int:
        """The Delta version this handle knows."""
        return self._log.version

    def reload(self) -> None:
        """See what other writers appended."""
        self._log.reload()

    def rows(self) -> list[PublicationRow]:
        """Every publication, oldest first."""
        return self._read([path for _, path in sorted(self._files())])

    def paths(self) -> dict[int, str]:
        """The file of each row by its ``seq``, relative to STORE/publications."""
        return dict(self._files())

    def live(self) -> PublicationRow | None:
        """The publication that queries use: the highest ``seq``."""
        files = self._files()
        return self._read([max(files)[1]])[0] if files else None

    def candidate(self, model_id: str, table_version: int) -> PublicationRow | None:
        """The newest publication of that version which was never live."""
        found = [
            row
            for row in self.rows()
            if (row.state, row.model_id, row.table_version) == (CANDIDATE, model_id, table_version)
        ]
        return found[0] if found else None

    def append(
        self, row: PublicationRow, shared: Collection[str] = (), live: bool = True
    ) -> PublicationRow:
        """Make ``row`` live in one atomic commit; the row with its ``seq`` comes back.

        With ``live`` false it is a candidate: there, and never the highest ``seq``.

        Its artifacts must lie in the store already. ConflictError after five lost commits, or when
        no publication of the log names a ``shared`` artifact any more: clean-up, which commits to
        this log before it deletes, was faster.
        """
        numbered = row

        def propose() -> Change:
            nonlocal numbered
            seqs = [seq for seq, _ in self._files()]
            named = {file.path for known in self.rows() for file in known.files} if shared else ()
            lost = sorted(set(shared) - set(named))
            if lost:
                raise ConflictError(
                    f"{self._log.folder.url}: {lost[0]} was cleaned up meanwhile; run again"
                )
            if live:
                numbered = dataclasses.replace(row, seq=max([0, *seqs]) + 1)
            else:
                numbered = dataclasses.replace(row, seq=min([1, *seqs]) - 1, state=CANDIDATE)
            return Change(added=(self._write(numbered),))

        self._log.commit(_SCHEMA, propose)
        return numbered

    def restore(self, publication_id: str) -> PublicationRow:
        """Make an older publication live again: its row is appended once more.

        The newest row of that id is taken; KeyNotFoundError when clean-up has forgotten it, also
        when that happens at this moment: both commit to this log, and one of them comes second.
        """
        restored: PublicationRow | None = None

        def propose() -> Change:
            nonlocal restored
            rows = self.rows()
            found = [row for row in rows if row.id == publication_id]
            if not found:
                known = ", ".join(dict.fromkeys(row.id for row in rows[-5:])) or "none"
                raise KeyNotFoundError(
                    f"{self._log.folder.url}: no publication {publication_id}; the newest are "
                    f"{known} ('orbit status' tells the live one)"
                )
            restored = dataclasses.replace(
                found[-1], seq=rows[-1].seq + 1, state="restored", created=datetime.now(UTC)
            )
            return Change(added=(self._write(restored),))

        self._log.commit(_SCHEMA, propose)
        if restored is None:
            raise TableError(f"{self._log.folder.url}: nothing was committed; run again")
        return restored

    def forget(self, seqs: Collection[int], live_too: bool = False) -> list[PublicationRow]:
        """Drop rows from the log in one commit; the live one only with ``live_too``."""
        dropped: list[PublicationRow] = []

        def propose() -> Change | None:
            nonlocal dropped
            files = sorted(self._files())
            paths = [path for seq, path in files[: None if live_too else -1] if seq in seqs]
            dropped = self._read(paths)
            return Change(removed=paths) if paths else None

        self._log.commit(_SCHEMA, propose)
        return dropped

    def _write(self, row: PublicationRow) -> NewFile:
        stored = dataclasses.asdict(row) | {"facts": json.dumps(dict(row.facts))}
        table = pa.Table.from_pylist([stored], schema=_SCHEMA)
        with scratch.folder() as place:
            local = Path(place, "row.parquet")
            pq.write_table(table, local, compression="zstd", write_page_checksum=True)
            entry = self._log.folder.upload(local, f"{row.seq:08d}-{row.id}.parquet")
        bound = {"seq": row.seq}
        stats = {"numRecords": 1, "minValues": bound, "maxValues": bound, "nullCount": {"seq": 0}}
        return NewFile(entry.path, entry.size, json.dumps(stats))

    def _files(self) -> list[tuple[int, str]]:
        """(seq, path) of every row's file, from the log alone."""
        files = self._log.files()
        if not files.num_rows:
            return []
        return list(
            zip(files.column("min.seq").to_pylist(), files.column("path").to_pylist(), strict=True)
        )

    def _read(self, paths: list[str]) -> list[PublicationRow]:
        with told_in_one_line(self._log.folder):
            stored = dataset(self._log.folder, paths, _SCHEMA).to_table().to_pylist()
        return [_row(row) for row in stored]


def _row(stored: dict[str, Any]) -> PublicationRow:
    files = tuple(PublishedFile(**file) for file in stored["files"] or ())
    return PublicationRow(**stored | {"files": files, "facts": json.loads(stored["facts"])})


def _check_format(log: DeltaLog) -> None:
    try:
        found = int(log.configuration["orbit.format_version"] or "")
    except (KeyError, ValueError) as error:
        raise TableError(
            f"{log.folder.url}: a Delta table that Orbit did not make; choose another STORE"
        ) from error
    if found > FORMAT_VERSION:
        raise FormatError(
            f"{log.folder.url}: format {found}, this Orbit knows up to {FORMAT_VERSION}; "
            "use a newer Orbit"
        )
