"""The index of a publication: last night's brought up to date where that will do, else a new one.

An update reads the files of the table that changed, and names the files of the base once more; the
row of a publication lists every file that it needs, wherever it lies, so that clean-up keeps them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import OrbitError
from pipelines.artifacts import fetch_checked
from pipelines.errors import IncompleteError
from pipelines.index import (
    ANSWERS,
    CLUSTERS,
    TRAINED,
    Asked,
    Decision,
    IndexSpec,
    OrbitIndex,
    Parts,
    Previous,
    Rows,
    Sidecar,
    build_index,
    choose_kind,
    collect,
    collected_columns,
    decide,
    find_change,
    fold_index,
    held_out_rows,
    touched_sources,
    update_index,
    with_change,
)
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationRow, PublishedFile

if TYPE_CHECKING:
    from pipelines.publication import Progress

HELD_OUT = 1_000
"""Queries that an index is tuned and measured by, turned copies apart."""


@dataclass(frozen=True)
class IndexOptions:
    """``recall`` asked for at 10; ``memory`` bytes that the index may take; ``kind`` as a FAISS
    factory string, else chosen; ``rebuild`` even where an update would do; ``ray``: where Ray tasks
    fill an inverted file (local, auto, a URL), None: in this process."""

    recall: float = 0.99
    allow_low_recall: bool = False
    memory: int | None = None
    kind: str | None = None
    rebuild: bool = False
    ray: str | None = None
    threads: int = 0
    seed: int = 0


@dataclass
class Indexing:
    """One index being made: first ``rows``, then ``index``, then ``write``, once each.

    Files that are published come to lie in ``out``; ``work`` is for what is not. ``shared`` are
    artifacts of earlier publications that this one needs.
    """

    store: Folder
    table: EmbeddingTable
    options: IndexOptions
    progress: Progress
    out: Path
    work: Path
    shared: tuple[PublishedFile, ...] = ()
    _before: tuple[PublicationRow, Previous] | None = None
    _sidecar: Sidecar | None = None
    _decision: Decision = field(default_factory=lambda: Decision("built", ""))

    def open_previous(self, row: PublicationRow) -> Sidecar | None:
        """The rows of the publication before, which from now on may be built on; None, with a word,
        when it cannot be read."""
        try:
            place = self.work / "before"
            place.mkdir()
            folder = fetch_checked(self.store, row, ["index.json"], place)
            spec = IndexSpec.from_dict(json.loads((folder / "index.json").read_bytes()))
            files = {file.path.rpartition("/")[2]: file for file in row.files}
            names = [*spec.files, *(name for name in (TRAINED, ANSWERS, CLUSTERS) if name in files)]
            folder = fetch_checked(self.store, row, names, place)
            rows = Sidecar.open(folder, spec)
        except (OrbitError, OSError, ValueError) as error:
            note = f"the publication before cannot be read: {error}"
            self.progress("comparing", 0, None, note)
            return None
        digests = {name: file.sha256 for name, file in files.items()}
        self._before = (row, Previous(spec, rows, folder, digests))
        return rows

    # -- rows ---------------------------------------------------------------------------------

    def rows(self) -> Rows:
        """Every embedded image of the table, in files."""
        counts = self.table.counts()
        self.progress("reading", 0, counts.num_embedded, "embeddings")
        rows = None
        if self._before is not None and not self.options.rebuild:
            rows = self._updated(*self._before)
        if rows is None:
            batches = self.table.batches(columns=collected_columns())
            rows = collect(batches, counts.num_embedded, self.table.identity.dim, self.out)
        self.progress("reading", len(rows), len(rows), f"embeddings; {self._decision.how}")
        return rows

    def _updated(self, row: PublicationRow, previous: Previous) -> Rows | None:
        """The rows of the publication before with tonight's change; None when all are read anew."""
        identity = self.table.identity
        old = EmbeddingTable.open(self.store, identity.model_id, row.table_version)
        if old is None or previous.spec.dim != identity.dim or not previous.spec.nlist:
            return None
        now = self.table.known()
        touched = touched_sources(old.known(), now)
        fresh_files = {source: now[source] for source in touched if source in now}
        num = sum(file.num_embedded for file in fresh_files.values())
        place = self.work / "fresh"
        place.mkdir()
        batches = self.table.batches(collected_columns(), sources=set(fresh_files))
        fresh = collect(batches, num, identity.dim, place)
        change = find_change(previous.rows, touched, fresh)
        if change is None:
            return None
        options = self.options
        self._decision = decide(previous, change, options.memory, options.kind)
        updated = self._decision.how == "updated"
        changes = self.out if updated else self.work
        self._sidecar = with_change(previous.rows, change, changes)
        place = self.work / "rows"
        place.mkdir()
        etags = {source: file.etag for source, file in now.items()}
        rows = self._sidecar.gather(place if updated else self.out, etags)
        if len(rows) != self.table.counts().num_embedded:
            self._start_anew()
            return None
        return rows

    def _start_anew(self) -> None:
        self._sidecar, self._decision = None, Decision("built", "")
        for file in self.out.iterdir():
            file.unlink()

    # -- index --------------------------------------------------------------------------------

    def index(self, rows: Rows, turned: NDArray[np.float32] | None) -> tuple[OrbitIndex, IndexSpec]:
        """The index over the rows; ``turned`` (M, d) are copies that are no rows, as queries.

        IncompleteError when it stays under the recall asked for, unless that is allowed.
        """
        identity, options = self.table.identity, self.options
        self.progress("indexing", 0, len(rows))
        spec = IndexSpec(
            kind=options.kind or choose_kind(len(rows), identity.dim, options.memory),
            num=len(rows),
            dim=identity.dim,
            model_id=identity.model_id,
            table_version=self.table.version,
        )
        index, spec = self._made(rows, turned, spec)
        spec = self._save(index, spec)
        recall = float(spec.recall["recall"])
        note = f"{spec.kind} {spec.how}, recall {recall:.4f}"
        self.progress("indexing", len(rows), len(rows), note)
        if recall < options.recall and not options.allow_low_recall:
            raise IncompleteError(
                f"the index reaches recall {recall:.4f} at 10, {options.recall} was asked: "
                "nothing was published; allow low recall, or ask for less"
            )
        return index, spec

    def _made(
        self, rows: Rows, turned: NDArray[np.float32] | None, spec: IndexSpec
    ) -> tuple[OrbitIndex, IndexSpec]:
        how, why = self._decision.how, self._decision.why
        if self._before is not None and self._sidecar is not None and how != "retrained":
            previous, sidecar = self._before[1], self._sidecar
            told = replace(spec, how=how, why=why)
            if how == "folded":
                asked = self._asked(rows.ids, turned)
                answers = self.out / ANSWERS
                index, made, bad = fold_index(previous, sidecar, rows, asked, told, answers)
            else:
                live = np.flatnonzero(sidecar.alive())
                asked = self._asked(sidecar.ids_of(live), turned, live)
                index, made, bad = update_index(previous, sidecar, asked, told)
            if bad is None:
                return index, made
            how, why = "retrained", bad
        self._adopt()
        asked = self._asked(rows.ids, turned)
        trained = self.out / TRAINED
        parts = self._parts(spec, rows)
        return build_index(rows, replace(spec, how=how, why=why), asked, trained, parts)

    def _asked(
        self,
        ids: NDArray[np.int64],
        turned: NDArray[np.float32] | None,
        numbers: NDArray[np.int64] | None = None,
    ) -> Asked:
        options = self.options
        held_out = held_out_rows(ids, HELD_OUT, options.seed)
        if numbers is not None:
            held_out = numbers[held_out]
        return Asked(held_out, turned, options.recall, options.threads, options.seed)

    def _parts(self, spec: IndexSpec, rows: Rows) -> Parts | None:
        if self.options.ray is None or not spec.kind.startswith("IVF"):
            return None
        if (rows.table["salt"].to_numpy() != 0).any():
            return None  # only here is known which of two images was given another id
        from pipelines.pool.partitions import Partitions

        return Partitions(self.options.ray, self.store, self.table, self.progress)

    def _adopt(self) -> None:
        """The rows become the base of a new index."""
        for name in ("vectors.npy", "poses.npy"):
            if (self.work / "rows" / name).exists():
                os.replace(self.work / "rows" / name, self.out / name)
        for file in [*self.out.glob("delta*"), *self.out.glob("tombstones*")]:
            file.unlink()
        self._sidecar = None

    def _save(self, index: OrbitIndex, spec: IndexSpec) -> IndexSpec:
        """Write the index's own files; the spec with their size. Of the publication before are
        named once more: the base of an updated index, the centroids of a folded one."""
        files = {}
        if self._before is not None:
            files = {file.path.rpartition("/")[2]: file for file in self._before[0].files}
        if spec.how == "updated":
            index.save_delta(self.out / "delta.faiss")
            early = {ANSWERS} - files.keys()  # an earlier Orbit made the base
            self.shared = tuple(files[n] for n in spec.base_files if n not in early)
            size = files["index.faiss"].size + (self.out / "delta.faiss").stat().st_size
            return replace(spec, index_bytes=size)
        self._sidecar = None
        index.save(self.out / "index.faiss")
        if spec.how == "folded":
            self.shared = (files[TRAINED],)
        return replace(spec, index_bytes=(self.out / "index.faiss").stat().st_size)

    # -- what is beside it --------------------------------------------------------------------

    def write(self, rows: Rows, clusters: NDArray[np.int32]) -> None:
        """Write who the rows are and the clusters (N,) they belong to, beside the index."""
        if self._sidecar is None:
            rows.with_clusters(clusters).write_ids(self.out / "ids.arrow")
            return
        placed = np.full(self._sidecar.num_rows, -1, np.int32)
        placed[self._sidecar.rows_of(rows.ids)] = clusters
        np.save(self.out / CLUSTERS, placed)
