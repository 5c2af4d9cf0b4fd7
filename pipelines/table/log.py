"""One Delta log: open, create, read its files, and commit to it against other writers."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import ConflictError, TableError
from pipelines.faults import faultpoint
from pipelines.storage import Folder

MAX_LOST_COMMITS = 5
TRIES = 3
PROBE = "_delta_log/_last_checkpoint"
"""An object that is asked for to hear how the storage is; it need not be there."""
_TEN_YEARS = "interval 3650 days"
_TRANSACTION = "orbit"
# One constant application id for every writer: Delta then refuses the second of two commits that
# start from the same version, even when their files have nothing to do with each other.
T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewFile:
    """A file to name in a commit; ``stats`` is Delta's statistics JSON, never left out."""

    path: str
    size: int
    stats: str


@dataclass(frozen=True)
class Change:
    """What one commit does: files named, and paths of files no longer named."""

    added: Sequence[NewFile] = ()
    removed: Sequence[str] = ()

    def actions(self) -> list[AddAction | RemoveAction]:
        """As Delta actions."""
        now = int(time.time() * 1000)
        adds = [AddAction(f.path, f.size, {}, now, True, f.stats) for f in self.added]
        return [*adds, *(RemoveAction(path, True, now) for path in self.removed)]


class DeltaLog:
    """A handle on one Delta table at one version; ``reload`` moves it to the newest."""

    def __init__(self, folder: Folder, table: DeltaTable) -> None:
        self.folder = folder
        self._table = table

    @classmethod
    def open(cls, folder: Folder, version: int | None = None) -> DeltaLog | None:
        """The table in ``folder``, or None when there is none; TableError when unreadable."""
        uri, options = folder.delta()

        def look() -> DeltaTable | None:
            try:
                return DeltaTable(uri, version=version, storage_options=options)
            except TableNotFoundError:
                return None

        table = patiently(look, folder, lambda error: _unreadable(folder, error, version))
        return None if table is None else cls(folder, table)

    @classmethod
    def create(
        cls, folder: Folder, schema: pa.Schema, configuration: Mapping[str, str]
    ) -> DeltaLog:
        """A new table, or the one that another writer made in the meantime.

        Log and deleted-file retention are ten years and nothing is cleaned up by itself, so that
        clean-up is ours alone and every published version stays readable.
        """
        uri, options = folder.delta()
        kept = {
            "delta.logRetentionDuration": _TEN_YEARS,
            "delta.deletedFileRetentionDuration": _TEN_YEARS,
            "delta.enableExpiredLogCleanup": "false",
        }

        def make() -> DeltaLog | None:
            try:
                DeltaTable.create(
                    uri,
                    schema,
                    configuration={**kept, **configuration},
                    storage_options=options,
                    raise_if_key_not_exists=False,
                )
            except (DeltaError, OSError):
                made = cls.open(folder)  # by another writer, or by us: the reply may be lost
                if made is None:
                    raise
                return made
            return cls.open(folder)

        made = patiently(make, folder, lambda error: _not_created(folder, error))
        if made is None:
            raise TableError(f"{folder.url}: the table just created cannot be found; run again")
        return made

    @property
    def version(self) -> int:
        """The version this handle reads."""
        return int(self._table.version())

    @property
    def configuration(self) -> dict[str, str | None]:
        """The table's properties."""
        return dict(self._table.metadata().configuration)

    def set_property(self, name: str, value: str) -> None:
        """Set one property of the table, in a commit of its own. ConflictError when another writer
        committed meanwhile, TableError when the log cannot be written."""
        properties = CommitProperties(
            app_transactions=[Transaction(_TRANSACTION, self.version + 1)], max_commit_retries=0
        )
        try:
            self._table.alter.set_table_properties(
                {name: value}, raise_if_not_exists=False, commit_properties=properties
            )
        except (DeltaError, OSError) as error:
            raise _lost(self.folder, error) from error
        self.reload()

    @property
    def created_ms(self) -> int:
        """When the table was created, in milliseconds since 1970."""
        return int(self._table.metadata().created_time)

    def reload(self) -> None:
        """Move to the newest version."""
        patiently(
            self._table.update_incremental,
            self.folder,
            lambda error: _unreadable(self.folder, error, None),
        )

    def files(self) -> pa.Table:
        """One row per file at this version, statistics flattened; no data file is opened."""
        return pa.table(self._table.get_add_actions(flatten=True))

    def commit(self, schema: pa.Schema, propose: Callable[[], Change | None]) -> bool:
        """Commit what ``propose`` says at the handle's version; False when it says None.

        After a lost commit the handle is reloaded and ``propose`` is asked again, so it sees what
        the other writer did. A commit whose reply was lost is found by its own id in the log.
        ConflictError after five lost in a row, TableError when the log cannot be written.
        """
        base, tried = self.version, set[str]()
        for attempt in range(MAX_LOST_COMMITS):
            change = propose()
            if change is None:
                return False
            name = uuid.uuid4().hex
            tried.add(name)
            failure = self._write(change, schema, name)
            self.reload()
            if failure is None or self._landed(tried, base):
                return True
            _LOGGER.info("commit on version %d failed: %s", base, failure)
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
        raise _lost(self.folder, failure)

    def _write(self, change: Change, schema: pa.Schema, name: str) -> Exception | None:
        properties = CommitProperties(
            custom_metadata={"orbit_commit": name},
            app_transactions=[Transaction(_TRANSACTION, self.version + 1)],
            max_commit_retries=0,
        )
        try:
            self._table.create_write_transaction(
                change.actions(), "append", schema, commit_properties=properties
            )
        except (DeltaError, OSError) as error:
            return error
        faultpoint("log.written")
        return None

    def _landed(self, tried: set[str], base: int) -> bool:
        """Whether one of our commits is in the log after all. Read by ourselves: deltalake's
        ``history`` holds the interpreter's lock while it waits for the network."""
        for version in range(base + 1, self.version + 1):
            entry = self.folder.read(f"_delta_log/{version:020d}.json")
            if any(name.encode() in entry for name in tried):
                return True
        return False


def patiently(call: Callable[[], T], folder: Folder, told: Callable[[BaseException], str]) -> T:
    """Call deltalake, again where that may help; TableError with what ``told`` says of the last
    error, AccessDenied or StorageError where the storage itself says so.

    deltalake's errors are words only. So the storage is asked a question of our own: it refuses
    us, or it is waited for until it answers again.
    """
    tried = 0
    while True:
        try:
            return call()
        except (DeltaError, OSError, ValueError) as error:
            tried += 1
            folder.stat(PROBE)
            if tried == TRIES:
                raise TableError(told(error)) from error
            _LOGGER.info("%s: %s", folder.url, error)
        time.sleep(random.uniform(0.05, 0.2) * 2**tried)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, short enough for a terminal."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _unreadable(folder: Folder, error: BaseException, version: int | None) -> str:
    what = "the table" if version is None else f"version {version} of the table"
    return f"{folder.url}: {what} cannot be read ({one_line(error)}); check access and the URL"


def _not_created(folder: Folder, error: BaseException) -> str:
    return (
        f"{folder.url}: no table could be created here ({one_line(error)}); "
        "check that the folder can be written to"
    )


def _lost(folder: Folder, error: Exception | None) -> Exception:
    if isinstance(error, CommitFailedError):
        return ConflictError(
            f"{folder.url}: {MAX_LOST_COMMITS} commits in a row were lost to other writers; "
            "run again when they are done"
        )
    reason = one_line(error) if error else "no reason given"
    return TableError(f"{folder.url}: the log cannot be written ({reason}); check access")
