"""``orbit gc --erase-keys``: every trace of some images leaves the store.

1. Every Parquet file of every table version is looked into, also those no longer named.
2. Files of the newest versions that hold the images are written again without them: one commit.
3. If the live publication holds them, the table is published anew, and only then
4. rows of the publications that hold them leave the log, their artifacts are deleted, and last
5. the old Parquet files. Killed anywhere, the same command finds the rest and goes on.

Local caches of readers and INPUT itself are beyond its reach: an image that stays in INPUT comes
back when its shard changes.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from eqmodel.errors import OrbitError
from pipelines import scratch
from pipelines.errors import ArtifactError, IncompleteError, SettingsError, StoreError
from pipelines.faults import faultpoint
from pipelines.index import file_sha256
from pipelines.retention import delete
from pipelines.shard_file import Row, to_table
from pipelines.storage import Folder
from pipelines.table import (
    EmbeddingTable,
    KnownFile,
    PublicationLog,
    PublicationRow,
    Receipt,
    file_statistics,
    live_model,
    shard_folder,
)

if TYPE_CHECKING:
    from pipelines.batch import Progress

Image = tuple[str, str]
"""(source, key)."""
ROUNDS = 3
"""How often is looked again whether a job beside has written the images once more."""


@dataclass
class Erased:
    """What went, or (``dry_run``) would go; ``unknown`` keys were found nowhere."""

    store: str
    dry_run: bool
    images: set[Image] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    publications: list[str] = field(default_factory=list)
    published: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "store": self.store,
            "dry_run": self.dry_run,
            "num_erased": len(self.images),
            "num_unknown": len(self.unknown),
            "num_files": len(self.files),
            "forgotten": self.publications,
            "publication": self.published,
            "removed": sorted(self.files),
        }

    def told(self) -> str:
        """For people."""
        word = "would be " if self.dry_run else ""
        lines = sorted(self.files) if self.dry_run else []
        lines += [f"publication {name}: holds them" for name in self.publications]
        lines.append(
            f"{len(self.images):,} images {word}erased: {len(self.files):,} Parquet files written "
            f"again or removed, {len(self.publications)} publications removed"
        )
        if self.published:
            lines.append(f"live     publication {self.published}")
        lines += [f"found nowhere: {key}" for key in self.unknown]
        return "\n".join(lines)


def read_keys(path: Path) -> list[str]:
    """Keys, one a line; empty lines are passed over. SettingsError when there is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: a UTF-8 text file with one key a line is expected ({error})"
        ) from error
    keys = list(dict.fromkeys(line for line in lines if line.strip()))
    if not keys:
        raise SettingsError(f"{path}: no key found, one a line expected; nothing was erased")
    return keys


def erase(store: Folder, keys: Sequence[str], dry_run: bool, progress: Progress) -> Erased:
    """Erase images by key. StoreError when it is no store; SettingsError for a key that several
    sources have; IncompleteError while another job keeps writing them."""
    model_id = live_model(store)
    if model_id is None:
        raise StoreError(f"{store.url} is not a store: no embeddings are there; nothing was erased")
    return _Eraser(store, model_id, progress).run(keys, dry_run)


class _Eraser:
    """One erasure."""

    def __init__(self, store: Folder, model_id: str, progress: Progress) -> None:
        self.store, self.model_id, self.progress = store, model_id, progress
        self._shown: dict[str, set[Image]] = {}
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        self.run_name = f"{stamp}_erase{secrets.token_hex(4)}"

    def run(self, keys: Sequence[str], dry_run: bool) -> Erased:
        """Look, and unless ``dry_run`` erase and look again until nothing is found."""
        erased = Erased(self.store.url, dry_run)
        holders, erased.unknown = self._find(keys)
        erased.images = set().union(*holders.values(), *self._shown.values())
        if dry_run:
            erased.files = set(holders)
            erased.publications = list(dict.fromkeys(row.id for row in self._holding(holders)))
            return erased
        for _ in range(ROUNDS):
            if not holders and not self._shown and not self._orphans(erased.images):
                return erased
            self._erase(holders, erased)
            holders, _ = self._find(keys)
        raise IncompleteError(
            f"{self.store.url}: another job keeps writing the images; stop it, take them out of "
            "INPUT, and run again"
        )

    # -- looking ------------------------------------------------------------------------------

    def _find(self, keys: Sequence[str]) -> tuple[dict[str, set[Image]], list[str]]:
        """Files that hold one of the images, whether named or not, and the keys found nowhere.

        Rows beside an index hold them too, those of tombstones among them: ``_shown``.
        """
        wanted, sources = set(keys), defaultdict[str, set[Image]](set)
        holders: dict[str, set[Image]] = {}
        self._shown = {}
        paths = [e.path for e in self.store.entries("embeddings") if e.path.endswith(".parquet")]
        paths += [e.path for e in self.store.entries("artifacts") if e.path.endswith(".arrow")]
        for number, path in enumerate(paths, 1):
            self.progress("looking", number, len(paths), "files")
            held = {
                image: name
                for image in self._images(path)
                for name in (image[1], f"{image[0]}/{image[1]}")
                if name in wanted
            }
            for image, name in held.items():
                sources[name].add(image)
            if held:
                (self._shown if path.endswith(".arrow") else holders)[path] = set(held)
        several = next((name for name, found in sources.items() if len(found) > 1), None)
        if several is not None:
            known = ", ".join(sorted(source for source, _ in sources[several])[:3])
            raise SettingsError(
                f"'{several}': {len(sources[several])} images have this key (in {known}); give "
                "SOURCE/KEY; nothing was erased"
            )
        return holders, [key for key in keys if key not in sources]

    def _images(self, path: str) -> Iterator[Image]:
        try:
            rows = self._rows(path, ["source", "key", "digest"])
        except pa.ArrowException:
            if path.endswith(".arrow"):
                return  # a damaged artifact: an orphan is deleted, one that is named is refused
            raise
        for source, key, digest in zip(*(c.to_pylist() for c in rows.columns), strict=True):
            if digest is not None:
                yield source, key

    def _rows(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with scratch.folder() as place:
            local = Path(place, "file.parquet")
            self.store.download(path, local)
            if path.endswith(".arrow"):
                table = pa.ipc.open_file(local.read_bytes()).read_all()
                return table if columns is None else table.select(columns)
            return pq.read_table(local, columns=columns)

    def _holding(self, holders: Collection[str]) -> list[PublicationRow]:
        """Publications of table versions that name one of the files, or with such rows of their
        own."""
        log = PublicationLog.open(self.store)
        return [row for row in ([] if log is None else log.rows()) if self._names(row, holders)]

    def _names(self, row: PublicationRow, holders: Collection[str]) -> bool:
        if any(file.path in self._shown for file in row.files):
            return True
        table = EmbeddingTable.open(self.store, row.model_id, row.table_version)
        known = {} if table is None else table.known()
        return any(f"embeddings/{row.model_id}/{f.path}" in holders for f in known.values())

    def _orphans(self, images: Collection[Image]) -> list[str]:
        """Artifacts that no publication names and that hold an image, or cannot be read."""
        log = PublicationLog.open(self.store)
        rows = [] if log is None else log.rows()
        named = {row.id for row in rows}
        shared = {file.path for row in rows for file in row.files}
        folders = defaultdict[str, list[str]](list)
        for entry in self.store.entries("artifacts"):
            name = entry.path.split("/")[1]
            if name not in named and entry.path not in shared:
                folders[name].append(entry.path)
        return [path for paths in folders.values() if self._holds(paths, images) for path in paths]

    def _holds(self, paths: Sequence[str], images: Collection[Image]) -> bool:
        rows = next((path for path in paths if path.endswith("/ids.arrow")), None)
        if rows is None:
            return True
        try:
            table = pa.ipc.open_file(self.store.read(rows)).read_all()
        except (pa.ArrowException, OrbitError):
            return True
        found = zip(table["source"].to_pylist(), table["key"].to_pylist(), strict=True)
        return not set(images).isdisjoint(found)

    # -- erasing ------------------------------------------------------------------------------

    def _erase(self, holders: Mapping[str, set[Image]], erased: Erased) -> None:
        for model_id in sorted({path.split("/")[1] for path in holders}):
            self._rewrite(model_id, holders)
        holding = self._holding(holders)
        log = PublicationLog.open(self.store)
        live = None if log is None else log.live()
        emptied = False
        if live is not None and live.seq in {row.seq for row in holding}:
            emptied = not self._publish(live.model_id, erased)
        if log is not None and holding:
            log.reload()
            log.forget({row.seq for row in holding}, live_too=emptied)
            erased.publications += list(dict.fromkeys(row.id for row in holding))
        delete(self.store, self._orphans(erased.images), self.progress)
        if emptied:
            self.store.delete("report.html")
        delete(self.store, sorted(holders), self.progress)
        erased.files |= set(holders)

    def _publish(self, model_id: str, erased: Erased) -> bool:
        """Publish the table as it is now; False when there is no image left to publish."""
        from pipelines.publication import PublishOptions, publish

        table = EmbeddingTable.open(self.store, model_id)
        if table is None or not table.counts().num_embedded:
            return False
        options = PublishOptions(force=True, allow_low_recall=True)
        erased.published = publish(self.store, model_id, options, self.progress).id
        return True

    def _rewrite(self, model_id: str, holders: Mapping[str, set[Image]]) -> None:
        table = EmbeddingTable.open(self.store, model_id)
        if table is None:
            return
        prefix = f"embeddings/{model_id}/"
        named = [file for file in table.known().values() if prefix + file.path in holders]
        receipts = [
            self._written_again(table.folder, file, holders[prefix + file.path]) for file in named
        ]
        if receipts:
            faultpoint("erase.commit")
            table.commit(receipts)
            faultpoint("erase.committed")

    def _written_again(self, folder: Folder, file: KnownFile, images: set[Image]) -> Receipt:
        """The file without the images, uploaded under a name of its own."""
        rows = self._rows(f"embeddings/{folder.url.rpartition('/')[2]}/{file.path}")
        erased = {key for _, key in images}
        keep = pa.array([key not in erased for key in rows["key"].to_pylist()])
        kept = rows.filter(keep)
        if not kept.num_rows:
            kept = to_table([Row(key="!empty")], file.source, file.etag)
        embedded = kept.num_rows - kept["embedding"].null_count
        rejected = kept["embedding"].null_count - kept["digest"].null_count
        counts = (kept.num_rows, embedded, rejected)
        with scratch.folder() as place:
            local = Path(place, "shard.parquet")
            pq.write_table(kept, local, compression="zstd", write_page_checksum=True)
            if pq.read_metadata(local).num_rows != kept.num_rows:
                raise ArtifactError(f"{local}: the file does not read back; check the disk")
            digest = file_sha256(local)
            name = f"{self.run_name}-1-{kept.num_rows}-{digest}.parquet"
            entry = folder.upload(local, f"{shard_folder(file.source)}/{name}")
        return Receipt(
            source=file.source,
            etag=file.etag,
            path=entry.path,
            size=entry.size,
            sha256=digest,
            num_rows=kept.num_rows,
            num_embedded=embedded,
            num_rejected=rejected,
            num_encoded=0,
            damaged=file.damaged,
            stats=file_statistics(file.source, file.etag, *counts, file.damaged),
            worker="erasure",
            pid=0,
            in_bytes=0,
        )
