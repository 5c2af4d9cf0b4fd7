"""``orbit gc``: what may go, and its removal.

Needed, and never touched: the newest ``keep`` publications (the live one always) and those younger
than the grace, with their artifacts and the files of their table versions; the newest version of
every table; files that a commit younger than the grace has dropped, since someone may be reading
them; checkpoints of models that a publication or rows of a table are of. When the last publication
of a model goes, its table is emptied by one commit before, unless that was written to within the
grace or a run with a heartbeat is of that model; a later clean-up takes its files and checkpoint.
 Of the rest goes what is older than the grace, by the storage's own clock, and not of a run
whose heartbeat is younger than that. Whatever is not named as Orbit names things is left alone.

Order: objects are listed, then tables are emptied, rows of old publications dropped in one commit,
then the log is read again, then objects are deleted one by one. An ``orbit publish`` of a dropped
row either came before that commit, and is seen, or fails; so nothing that became live is deleted.
Killed anywhere, the store is whole, and the next clean-up takes the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pipelines.ages import Aged, aged, clock
from pipelines.errors import StoreError
from pipelines.faults import faultpoint
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationLog, PublicationRow, live_model

if TYPE_CHECKING:
    from pipelines.batch import Progress

DAY_S = 86_400.0
_DATA = re.compile(r"^embeddings/([0-9a-f]+)/[0-9a-f]{16}/(?P<run>[^/-]+)-[^/]+\.parquet$")
_ARTIFACT = re.compile(r"^artifacts/(?P<id>[^/]+)/[^/]+$")
_ROW = re.compile(r"^publications/(?P<name>-?\d{7,}-[^/]+\.parquet)$")
_RUN = re.compile(r"^runs/(?P<run>[^/]+)(/|$)")
_MODEL = re.compile(r"^models/(?P<model>[^/]+)/[^/]+$")
_COMMIT = re.compile(r"/_delta_log/\d{20}\.json$")
_LEFTOVER = re.compile(r"(^|/)\.orbit-[^/]+$")


@dataclass(frozen=True)
class RetentionOptions:
    """``keep`` publications, nothing younger than ``grace_s`` seconds goes."""

    keep: int = 30
    grace_s: float = 7 * DAY_S
    dry_run: bool = False


@dataclass(frozen=True)
class Garbage:
    """One object that nothing needs: its path in the store, bytes, and why it may go."""

    path: str
    size: int
    why: str


@dataclass
class Cleaned:
    """What went, or (``dry_run``) would go."""

    store: str
    dry_run: bool
    garbage: list[Garbage] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    num_publications: int = 0
    num_kept: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "store": self.store,
            "dry_run": self.dry_run,
            "num_removed": len(self.garbage),
            "removed_bytes": sum(found.size for found in self.garbage),
            "num_kept": self.num_kept,
            "num_publications": self.num_publications,
            "forgotten": self.forgotten,
            "retired": self.retired,
            "removed": [vars(found) for found in self.garbage],
        }


def collect_garbage(store: Folder, options: RetentionOptions, progress: Progress) -> Cleaned:
    """Remove what nothing needs. StoreError when it is no store; TableError, with nothing
    removed, when a table version that is needed cannot be read."""
    if live_model(store) is None:
        raise StoreError(
            f"{store.url} is not a store: no embeddings are there; nothing was removed"
        )
    return _Collector(store, options, progress).run()


class _Collector:
    """One clean-up."""

    def __init__(self, store: Folder, options: RetentionOptions, progress: Progress) -> None:
        self.store, self.options, self.progress = store, options, progress
        self.listing: list[Aged] = []
        self.oldest_kept = 0.0

    def run(self) -> Cleaned:
        """List, forget, judge, delete: in this order (see above)."""
        self.progress("listing", 0, None, self.store.url)
        self.oldest_kept = clock(self.store) - self.options.grace_s
        self.listing = aged(self.store)
        self.progress("listing", len(self.listing), len(self.listing), "objects")
        log = PublicationLog.open(self.store)
        rows = [] if log is None else log.rows()
        forgotten = self._to_forget(rows)
        retired = self._retire([row for row in rows if row not in forgotten], forgotten)
        if log is not None and forgotten and not self.options.dry_run:
            faultpoint("gc.forget")
            log.forget({row.seq for row in forgotten})
            rows = log.rows()
        else:
            rows = [row for row in rows if row not in forgotten]
        garbage = self._garbage(rows, log)
        cleaned = Cleaned(
            self.store.url,
            self.options.dry_run,
            garbage=garbage,
            forgotten=[row.id for row in forgotten],
            retired=retired,
            num_publications=len(rows),
            num_kept=len(self.listing) - len(garbage),
        )
        if not self.options.dry_run:
            delete(self.store, [found.path for found in garbage], self.progress)
        return cleaned

    def _is_old(self, found: Aged) -> bool:
        return found.changed < self.oldest_kept

    def _to_forget(self, rows: Sequence[PublicationRow]) -> list[PublicationRow]:
        """Rows beyond the newest ``keep`` whose own file is older than the grace."""
        old = {
            found.path.removeprefix("publications/")
            for found in self.listing
            if found.path.startswith("publications/") and self._is_old(found)
        }
        keep = self.options.keep
        waiting = [row for row in rows if row.seq <= 0]  # never live; the newest has the lowest seq
        beyond = [*waiting[keep:], *[row for row in rows if row.seq > 0][:-keep]]
        return [row for row in beyond if f"{row.seq:08d}-{row.id}.parquet" in old]

    def _retire(
        self, kept: Sequence[PublicationRow], forgotten: Sequence[PublicationRow]
    ) -> list[str]:
        """Empty the tables of models whose last publication goes; returns their ids."""
        ended = {row.model_id for row in forgotten} - {row.model_id for row in kept}
        retired = []
        for model_id in sorted(ended - self._models_at_work()):
            table = EmbeddingTable.open(self.store, model_id)
            if table is None or not table.known() or self._written_lately(model_id):
                continue
            retired.append(model_id)
            if not self.options.dry_run:
                faultpoint("gc.retire")
                table.commit([], list(table.known()))
        return retired

    def _models_at_work(self) -> set[str]:
        """Models of the runs that are alive."""
        found = set()
        for run in self._alive():
            beat = f"runs/{run}/heartbeat.json"
            if self.store.stat(beat) is not None:
                found.add(str(json.loads(self.store.read(beat)).get("model_id")))
        return found

    def _written_lately(self, model_id: str) -> bool:
        log = self.store.child(f"embeddings/{model_id}")
        return any(not self._is_old(entry) for entry in aged(log, "_delta_log"))

    def _garbage(self, rows: Sequence[PublicationRow], log: PublicationLog | None) -> list[Garbage]:
        needed = {file.path for row in rows for file in row.files}
        needed |= self._needed_files(rows)
        named = set[str]() if log is None else set(log.paths().values())
        named |= self._dropped_lately(self.store.child("publications"), "publications")
        needed |= {f"publications/{name}" for name in named}
        needed |= self._needed_checkpoints(rows)
        alive = self._alive()
        found: list[Garbage] = []
        for entry in self.listing:
            why = None if entry.path in needed else self._why(entry, alive)
            if why is not None:
                found.append(Garbage(entry.path, entry.size, why))
        return found

    def _why(self, entry: Aged, alive: Collection[str]) -> str | None:
        """Why an object that is not needed may go; None when it may not."""
        if not self._is_old(entry):
            return None
        data, run = _DATA.match(entry.path), _RUN.match(entry.path)
        if data is not None:
            return None if data["run"] in alive else "in no retained version of the table"
        if _ARTIFACT.match(entry.path):
            return "of no retained publication"
        if _ROW.match(entry.path):
            return "row of no publication"
        if _MODEL.match(entry.path):
            return "of a model without publication and rows"
        if run is not None:
            return None if run["run"] in alive else "of a run that has ended"
        return "left by an interrupted write" if _LEFTOVER.search(entry.path) else None

    def _alive(self) -> set[str]:
        """Runs with a sign of life younger than the grace."""
        return {
            match["run"]
            for entry in self.listing
            if not self._is_old(entry) and (match := _RUN.match(entry.path))
        }

    def _needed_files(self, rows: Sequence[PublicationRow]) -> set[str]:
        """Files of the newest and of every retained version of every table, and those that
        were dropped lately."""
        models = {match[1] for entry in self.listing if (match := _DATA.match(entry.path))}
        needed: set[str] = set()
        for model_id in sorted(models | {row.model_id for row in rows}):
            versions: list[int | None] = [None]
            versions += sorted({row.table_version for row in rows if row.model_id == model_id})
            paths = set[str]()
            for version in versions:
                table = EmbeddingTable.open(self.store, model_id, version)
                if table is None:
                    raise StoreError(
                        f"{self.store.url}/embeddings/{model_id}: files without a table; nothing "
                        "was removed: restore its log, or move the folder away"
                    )
                paths |= {file.path for file in table.known().values()}
            name = f"embeddings/{model_id}"
            paths |= self._dropped_lately(self.store.child(name), name)
            needed |= {f"{name}/{path}" for path in paths}
        return needed

    def _needed_checkpoints(self, rows: Sequence[PublicationRow]) -> set[str]:
        """Files of models that a publication, the rows of a table or a running job are of."""
        models = {row.model_id for row in rows} | self._models_at_work()
        found = {e.path: match["model"] for e in self.listing if (match := _MODEL.match(e.path))}
        for model_id in set(found.values()) - models:
            table = EmbeddingTable.open(self.store, model_id)
            if table is not None and table.known():
                models.add(model_id)
        return {path for path, model_id in found.items() if model_id in models}

    def _dropped_lately(self, folder: Folder, name: str) -> set[str]:
        """Paths that commits younger than the grace have dropped from a table."""
        dropped: set[str] = set()
        for entry in aged(folder, "_delta_log"):
            if not self._is_old(entry) and _COMMIT.search(f"/{entry.path}"):
                for line in folder.read(entry.path).splitlines():
                    remove = json.loads(line).get("remove") if line.strip() else None
                    if remove:
                        dropped.add(unquote(remove["path"]))
        return dropped


def delete(store: Folder, paths: Iterable[str], progress: Progress) -> None:
    """Delete objects one by one; the local folders of artifacts and runs go when empty."""
    chosen = list(paths)
    for number, path in enumerate(chosen, 1):
        faultpoint("gc.delete")
        store.delete(path)
        progress("deleting", number, len(chosen), "objects")
        # Their names are never used twice, so nobody is about to write into them.
        if store.is_local and path.startswith(("artifacts/", "runs/")):
            folder = Path(store.url, path).parent
            if folder.parent != Path(store.url) and not any(folder.iterdir()):
                folder.rmdir()
