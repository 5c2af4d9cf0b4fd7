"""A publication: index, clusters, duplicates and report of one table version, visible by one row.

Everything is built in a local folder, uploaded whole to ``STORE/artifacts/<publication>/`` under
names that are never used twice, and only then named, with sizes and digests, by one row in the log
of publications. Whatever dies before that row leaves the publication before as it was.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from threadpoolctl import threadpool_limits

from eqmodel.groups import group
from pipelines import clusters, drift, scratch
from pipelines.duplicates import find_duplicates
from pipelines.errors import NotPublishedError
from pipelines.faults import faultpoint
from pipelines.index import (
    IndexSpec,
    Neighbours,
    OrbitIndex,
    Rows,
    file_sha256,
    nearest_others,
)
from pipelines.indexing import Indexing
from pipelines.models import checkpoint_of_store
from pipelines.nights import Before, of_previous, snapshot
from pipelines.pictures import thumbnails
from pipelines.publish_options import PublishOptions
from pipelines.report import (
    SCHEMA,
    Findings,
    Invariance,
    audit_sample,
    build_document,
    described,
    draw_map,
    read_rejects,
    render_page,
    schema,
    write_plots,
)
from pipelines.restore import restore
from pipelines.status_facts import status_facts
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationLog, PublicationRow, PublishedFile

if TYPE_CHECKING:
    from eqmodel import Embedder

__all__ = ["Progress", "PublishOptions", "publish"]

NEAR = 10


class Progress(Protocol):
    """Called with a stage's name, how much is done, of how much (None: not known), and a note."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Show it."""


def _silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


def publish(
    store: Folder,
    model_id: str,
    options: PublishOptions | None = None,
    progress: Progress = _silent,
) -> PublicationRow:
    """Publish the newest version of a model's table; the live row when it is of that version.

    A candidate of that version is made live, or stands, as ``go_live`` says.
    NotPublishedError when there is no such table or no image in it; IncompleteError when the
    index's recall stays under what was asked.
    """
    options = options or PublishOptions()
    table = EmbeddingTable.open(store, model_id)
    if table is None or not table.counts().num_embedded:
        raise NotPublishedError(
            f"{store.url} holds no embedding of model {model_id}; run 'orbit run' first"
        )
    log = PublicationLog.open_or_create(store)
    live = log.live()
    if not options.force and _covers(live, table):
        return _sure(live)
    aside = not options.go_live and live is not None and live.model_id != model_id
    waiting = None if options.force else log.candidate(model_id, table.version)
    if waiting is not None:
        return waiting if aside else restore(store, waiting.id, progress)
    if not options.run and live is not None and _covers(live, table):
        # The same version told again: what the run that embedded it measured still holds.
        options = replace(options, run=live.facts)
    with scratch.folder() as place, _threads(options.threads):
        return _Publishing(
            store, table, log, replace(options, go_live=not aside), progress, Path(place)
        ).run()


def _covers(live: PublicationRow | None, table: EmbeddingTable) -> bool:
    """Whether ``live`` is of this table's version, or a newer one of the same model."""
    if live is None or live.model_id != table.identity.model_id:
        return False
    return live.table_version >= table.version


def _sure(row: PublicationRow | None) -> PublicationRow:
    if row is None:
        raise NotPublishedError("the log of publications is empty; publish again")
    return row


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Bound the threads of FAISS, BLAS and OpenMP; 0 leaves them as they are."""
    with threadpool_limits(threads if threads > 0 else None):
        yield


class _Publishing:
    """One publication being made, stage by stage."""

    def __init__(
        self,
        store: Folder,
        table: EmbeddingTable,
        log: PublicationLog,
        options: PublishOptions,
        progress: Progress,
        place: Path,
    ) -> None:
        self.store, self.table, self.log, self.options = store, table, log, options
        self.progress, self.place = progress, place
        self.out = place / "artifacts"
        self.out.mkdir()
        work = place / "work"
        work.mkdir()
        self.indexing = Indexing(store, table, options.index, progress, self.out, work)
        self.created = datetime.now(UTC)
        stamp = self.created.strftime("%Y%m%dT%H%M%S")
        self.id = f"{stamp}-v{table.version}-{secrets.token_hex(3)}"

    def run(self) -> PublicationRow:
        """Build, upload, and make visible."""
        before = self._before()
        rows = self.indexing.rows()
        embedder = self._embedder()
        invariance = self._audit(embedder, rows)
        index, spec = self.indexing.index(rows, invariance.turned)
        near = self._neighbours(index, rows)
        rows, found = self._findings(rows, spec, near, embedder, invariance, before)
        document = self._write(rows, found)
        return self._make_visible(spec, document)

    def _embedder(self) -> Embedder:
        from eqmodel import Embedder

        place = self.place / "model"
        place.mkdir()
        folder = checkpoint_of_store(self.store, self.table.identity.model_id, place)
        return Embedder.load(folder, device=self.options.device)

    def _audit(self, embedder: Embedder, rows: Rows) -> Invariance:
        wanted = min(self.options.audit_images, len(rows))
        self.progress("auditing", 0, wanted, "images turned")
        options = self.options
        found = audit_sample(
            embedder, rows, self.table.identity, wanted, options.read, options.seed
        )
        self.progress("auditing", wanted, wanted, found.section["skipped"] or "images turned")
        return found

    def _neighbours(self, index: OrbitIndex, rows: Rows) -> Neighbours:
        def show(done: int) -> None:
            self.progress("comparing", done, len(rows))

        return nearest_others(index, rows, NEAR, self.options.threads, show)

    def _findings(
        self,
        rows: Rows,
        spec: IndexSpec,
        near: Neighbours,
        embedder: Embedder,
        invariance: Invariance,
        before: Before | None,
    ) -> tuple[Rows, Findings]:
        options, acting = self.options, group(self.table.identity.group)
        self.progress("clustering", 0, len(rows))
        clustering = clusters.cluster(
            rows.vectors,
            rows.ids,
            rows.table["label"].to_pylist(),
            method=options.clustering,
            k=options.clusters,
            previous=None if before is None else before.clusters,
            neighbours=near.rows,
            seed=options.seed,
            threads=options.threads,
        )
        rows = rows.with_clusters(clustering.assigned)
        note = f"{len(clustering.clusters)} clusters"
        self.progress("clustering", len(rows), len(rows), note)
        duplicates = find_duplicates(
            rows,
            near,
            self._thumbnails,
            acting,
            options.duplicates,
            options.threads or os.cpu_count() or 1,
        )
        self.progress("duplicates", len(rows), len(rows), f"{len(duplicates.groups)} groups")
        rejects, damaged = read_rejects(
            self.table.batches(["source", "key", "error"], include_markers=True)
        )
        self.progress("drawing", 0, 1, "the map")
        found = Findings(
            publication=self.id,
            created=self.created,
            identity=self.table.identity,
            table_version=self.table.version,
            model=described(embedder),
            group=acting,
            counts=self.table.counts(),
            rows=rows,
            spec=spec,
            neighbours=near,
            outlier=clusters.outlier_scores(near.scores),
            clustering=clustering,
            duplicates=duplicates,
            rejects=rejects,
            damaged=damaged,
            drift=self._drift(rows, before, invariance),
            invariance=invariance,
            map=draw_map(rows, options.map_points, options.seed, options.threads),
            thumbnails=self._thumbnails,
            run=options.run,
        )
        self.progress("drawing", 1, 1, "the map")
        return rows, found

    def _drift(
        self, rows: Rows, before: Before | None, invariance: Invariance
    ) -> Mapping[str, Any]:
        now = snapshot(self.id, rows)
        section = drift.compare(None if before is None else before.snapshot, now)
        redrawn = invariance.redrawn
        return drift.judged(section, None if redrawn is None else redrawn.section)

    def _thumbnails(self, ids: Collection[int]) -> Mapping[int, bytes]:
        return thumbnails(self.table.batches(["image_id", "thumbnail"]), ids)

    def _before(self) -> Before | None:
        """The last publication of the same model; None when there is none that can be read."""
        model_id = self.table.identity.model_id
        earlier = [row for row in self.log.rows() if row.model_id == model_id]
        rows = self.indexing.open_previous(earlier[-1]) if earlier else None
        return None if rows is None else of_previous(earlier[-1].id, rows)

    def _write(self, rows: Rows, found: Findings) -> dict[str, Any]:
        self.progress("report", 0, 1)
        self.indexing.write(rows, found.clustering.assigned)
        clusters.write_clusters(
            self.out / "clusters.parquet", rows.ids, found.clustering, found.outlier
        )
        _write_json(self.out / "index.json", found.spec.as_dict())
        document = build_document(found, write_plots(found, self.out))
        _write_json(self.out / "report.json", document)
        _write_json(self.out / SCHEMA, schema())
        (self.out / "report.html").write_text(render_page(document, found), "utf-8")
        self.progress("report", 1, 1)
        return document

    def _make_visible(self, spec: IndexSpec, document: Mapping[str, Any]) -> PublicationRow:
        faultpoint("publish.built")
        files = tuple(self._upload(sorted(self.out.iterdir())))
        shared = self.indexing.shared
        faultpoint("publish.row")
        self.log.reload()
        live = self.log.live()
        if not self.options.force and _covers(live, self.table):
            return _sure(live)  # another publisher was faster: its row stands
        row = self.log.append(
            PublicationRow(
                id=self.id,
                model_id=self.table.identity.model_id,
                table_version=self.table.version,
                files=(*files, *shared),
                recall_at_10=float(spec.recall["recall"]),
                facts=status_facts(document, spec),
                created=self.created,
            ),
            [file.path for file in shared],
            live=self.options.go_live,
        )
        faultpoint("publish.visible")
        if self.options.go_live:
            self.store.upload(self.out / "report.html", "report.html")
        return row

    def _upload(self, paths: Sequence[Path]) -> Iterator[PublishedFile]:
        for number, path in enumerate(paths, 1):
            name = f"artifacts/{self.id}/{path.name}"
            entry = self.store.upload(path, name)
            faultpoint("publish.uploading")
            self.progress("uploading", number, len(paths))
            yield PublishedFile(name, entry.size, file_sha256(path))


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
