"""A publication: index, clusters, duplicates and report of one table version, visible by one row.

Everything is built in a local folder, uploaded whole to ``STORE/artifacts/<publication>/`` under
names that are never used twice, and only then named, with sizes and digests, by one row in the log
of publications. Whatever dies before that row leaves the publication before as it was.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from eqmodel.checkpoint import shipped
from eqmodel.errors import OrbitError
from eqmodel.groups import group
from pipelines import clusters, drift
from pipelines.artifacts import ArtifactCache
from pipelines.duplicates import DuplicateOptions, find_duplicates
from pipelines.errors import IncompleteError, NotPublishedError
from pipelines.faults import faultpoint
from pipelines.index import (
    IndexSpec,
    Neighbours,
    OrbitIndex,
    Rows,
    build_index,
    choose_kind,
    collect,
    collected_columns,
    file_sha256,
    held_out_rows,
    nearest_others,
)
from pipelines.models import checkpoint_of_store
from pipelines.pictures import thumbnails
from pipelines.report import (
    THROUGHPUT,
    Findings,
    Invariance,
    audit_sample,
    build_document,
    draw_map,
    read_rejects,
    render_page,
)
from pipelines.shards import ReadOptions
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationLog, PublicationRow, PublishedFile

if TYPE_CHECKING:
    from eqmodel import Embedder

HELD_OUT, NEAR = 1_000, 10


class Progress(Protocol):
    """Called with a stage's name, how much is done, of how much (None: not known), and a note."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Show it."""


def _silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class PublishOptions:
    """How to publish. ``clusters`` None: chosen; ``recall`` asked for at 10; ``threads`` 0: all.

    ``force`` publishes a version that is live already. ``run`` is the summary of the run that
    embedded (``EmbedSummary.as_dict``), for throughput and efficiency; ``read`` how INPUT's
    columns are called, for the audit of ``audit_images`` originals.
    """

    clusters: int | None = None
    recall: float = 0.99
    allow_low_recall: bool = False
    duplicates: DuplicateOptions = field(default_factory=DuplicateOptions)
    audit_images: int = 256
    map_points: int = 5_000
    threads: int = 0
    seed: int = 0
    device: str = "cpu"
    force: bool = False
    read: ReadOptions = field(default_factory=ReadOptions)
    run: Mapping[str, Any] = field(default_factory=dict)


def publish(
    store: Folder,
    model_id: str,
    options: PublishOptions | None = None,
    progress: Progress = _silent,
) -> PublicationRow:
    """Publish the newest version of a model's table; the live row when it is of that version.

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
    if not options.run and live is not None and _covers(live, table):
        # The same version told again: what the run that embedded it measured still holds.
        options = replace(options, run=live.facts)
    with tempfile.TemporaryDirectory(prefix="orbit-publish-") as place, _threads(options.threads):
        return _Publishing(store, table, log, options, progress, Path(place)).run()


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


@dataclass(frozen=True)
class _Before:
    """What tonight's publication takes from the one before."""

    clusters: clusters.Previous
    snapshot: drift.Snapshot


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
        self.created = datetime.now(UTC)
        stamp = self.created.strftime("%Y%m%dT%H%M%S")
        self.id = f"{stamp}-v{table.version}-{secrets.token_hex(3)}"

    def run(self) -> PublicationRow:
        """Build, upload, and make visible."""
        rows = self._rows()
        embedder = self._embedder()
        invariance = self._audit(embedder, rows)
        index, spec = self._index(rows, invariance)
        near = self._neighbours(index, rows)
        rows, found = self._findings(rows, spec, near, embedder, invariance)
        document = self._write(rows, index, found)
        return self._make_visible(spec, document)

    def _rows(self) -> Rows:
        counts = self.table.counts()
        self.progress("reading", 0, counts.num_embedded, "embeddings")
        batches = self.table.batches(columns=collected_columns())
        rows = collect(batches, counts.num_embedded, self.table.identity.dim, self.out)
        self.progress("reading", len(rows), len(rows), "embeddings")
        return rows

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

    def _index(self, rows: Rows, invariance: Invariance) -> tuple[OrbitIndex, IndexSpec]:
        identity, options = self.table.identity, self.options
        self.progress("indexing", 0, len(rows))
        spec = IndexSpec(
            kind=choose_kind(len(rows), identity.dim),
            num=len(rows),
            dim=identity.dim,
            model_id=identity.model_id,
            table_version=self.table.version,
        )
        index, spec = build_index(
            rows.vectors,
            rows.ids,
            spec,
            held_out_rows(len(rows), HELD_OUT, options.seed),
            extra_queries=invariance.turned,
            target=options.recall,
            threads=options.threads,
            seed=options.seed,
        )
        recall = float(spec.recall["recall"])
        self.progress("indexing", len(rows), len(rows), f"{spec.kind}, recall {recall:.4f}")
        if recall < options.recall and not options.allow_low_recall:
            raise IncompleteError(
                f"the index reaches recall {recall:.4f} at 10, {options.recall} was asked: "
                "nothing was published; allow low recall, or ask for less"
            )
        return index, spec

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
    ) -> tuple[Rows, Findings]:
        options, acting = self.options, group(self.table.identity.group)
        before = self._before()
        self.progress("clustering", 0, len(rows))
        clustering = clusters.cluster(
            rows.vectors,
            rows.ids,
            rows.table["label"].to_pylist(),
            k=options.clusters,
            previous=None if before is None else before.clusters,
            neighbours=near.rows,
            seed=options.seed,
            threads=options.threads,
        )
        rows = rows.with_clusters(clustering.assigned)
        note = f"{len(clustering.clusters)} clusters"
        self.progress("clustering", len(rows), len(rows), note)
        duplicates = find_duplicates(rows, near, self._thumbnails, acting, options.duplicates)
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
            model=_described(embedder),
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
            drift=drift.compare(
                None if before is None else before.snapshot, _snapshot(self.id, rows)
            ),
            invariance=invariance,
            map=draw_map(rows, options.map_points, options.seed, options.threads),
            thumbnails=self._thumbnails,
            run=options.run,
        )
        self.progress("drawing", 1, 1, "the map")
        return rows, found

    def _thumbnails(self, ids: Collection[int]) -> Mapping[int, bytes]:
        return thumbnails(self.table.batches(["image_id", "thumbnail"]), ids)

    def _before(self) -> _Before | None:
        """The last publication of the same model; None when there is none that can be read."""
        model_id = self.table.identity.model_id
        earlier = [row for row in self.log.rows() if row.model_id == model_id]
        if not earlier:
            return None
        cache = ArtifactCache(self.store, self.place / "before")
        try:
            folder = cache.fetch(earlier[-1], ["ids.arrow", "vectors.npy"])
            with pa.memory_map(str(folder / "ids.arrow")) as file:
                table = pa.ipc.open_file(file).read_all()
            vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        except (OrbitError, OSError, ValueError) as error:
            self.progress("comparing", 0, None, f"the publication before cannot be read: {error}")
            return None
        rows = Rows(table, vectors, np.empty((len(table), 0), np.int8))
        known = clusters.Previous(rows.ids, table["cluster"].to_numpy().astype(np.int64))
        return _Before(known, _snapshot(earlier[-1].id, rows))

    def _write(self, rows: Rows, index: OrbitIndex, found: Findings) -> dict[str, Any]:
        self.progress("report", 0, 1)
        index.save(self.out / "index.faiss")
        rows.write_ids(self.out / "ids.arrow")
        clusters.write_clusters(
            self.out / "clusters.parquet", rows.ids, found.clustering, found.outlier
        )
        _write_json(self.out / "index.json", found.spec.as_dict())
        document = build_document(found)
        _write_json(self.out / "report.json", document)
        (self.out / "report.html").write_text(render_page(document, found), "utf-8")
        self.progress("report", 1, 1)
        return document

    def _make_visible(self, spec: IndexSpec, document: Mapping[str, Any]) -> PublicationRow:
        faultpoint("publish.built")
        files = tuple(self._upload(sorted(self.out.iterdir())))
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
                files=files,
                recall_at_10=float(spec.recall["recall"]),
                facts=_facts(document, spec),
                created=self.created,
            )
        )
        faultpoint("publish.visible")
        self.store.upload(self.out / "report.html", "report.html")
        return row

    def _upload(self, paths: Sequence[Path]) -> Iterator[PublishedFile]:
        for number, path in enumerate(paths, 1):
            name = f"artifacts/{self.id}/{path.name}"
            entry = self.store.upload(path, name)
            faultpoint("publish.uploading")
            self.progress("uploading", number, len(paths))
            yield PublishedFile(name, entry.size, file_sha256(path))


def _snapshot(name: str, rows: Rows) -> drift.Snapshot:
    total = np.zeros(rows.vectors.shape[1], np.float64)
    for start in range(0, len(rows), 65_536):
        total += rows.vectors[start : start + 65_536].sum(0, dtype=np.float64)
    assigned: NDArray[np.int64] = rows.table["cluster"].to_numpy().astype(np.int64)
    mean = total / max(1, len(rows))
    return drift.Snapshot(name, rows.ids, assigned, rows.table["digest"].combine_chunks(), mean)


def _described(embedder: Embedder) -> dict[str, Any]:
    names = [entry["name"] for entry in shipped() if entry["model_id"] == embedder.model_id]
    return {
        "name": embedder.name or (names[0] if names else None),
        "group": embedder.group.name,
        "readout": embedder.readout,
        "dim": embedder.dim,
        "image_size": embedder.image_size,
        "channels": embedder.channels,
        "precision": embedder.precision,
    }


def _facts(document: Mapping[str, Any], spec: IndexSpec) -> dict[str, Any]:
    """The figures that ``orbit status`` shows without opening an artifact."""
    collection, invariance = document["collection"], document["invariance"]
    counted = ("num_seen", "num_embedded", "num_rejected", "num_damaged_shards", "num_shards")
    moved = ("num_added", "num_removed", "num_changed")
    return {
        **{name: collection[name] for name in counted},
        "num_clusters": document["clusters"]["num_clusters"],
        "num_duplicate_groups": document["duplicates"]["num_groups"],
        "index_kind": spec.kind,
        "invariance_error": invariance.get("invariance_error"),
        "free_angle_rank1": invariance.get("free_angle_rank1"),
        **{name: document["efficiency"][name] for name in THROUGHPUT},
        **{name: document["drift"].get(name) for name in moved},
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
