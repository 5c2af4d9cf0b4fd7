"""The rows beside the index, opened from a publication's files without reading them into memory.

A base segment, and since its last fold a delta segment and tombstones (rows of the base that are
no more). Row numbers count the rows of the base, then those of the delta; an image_id that both
segments know is the delta's. All files are memory-mapped, none is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index.rows import ROWS_SCHEMA, Rows, plain, with_etags, write_array
from pipelines.index.segment import Numbers, Segment, Stacked
from pipelines.index.spec import CLUSTERS, TOMBSTONES, IndexSpec


@dataclass(frozen=True)
class Sidecar:
    """The rows of one publication; ``dead`` are sorted rows of the base, ``clusters`` of all."""

    base: Segment
    delta: Segment | None = None
    dead: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    clusters: NDArray[np.int32] | None = None

    @classmethod
    def open(cls, folder: Path, spec: IndexSpec) -> Sidecar:
        """ArtifactError when the files in ``folder`` do not agree with ``spec``."""
        base = Segment.open(folder, ("ids.arrow", "vectors.npy", "poses.npy"))
        delta, dead = None, np.empty(0, np.int64)
        if spec.has_delta:
            names = ("delta.arrow", "delta-vectors.npy", "delta-poses.npy")
            delta = Segment.open(folder, names)
            dead = np.load(folder / TOMBSTONES, allow_pickle=False)
        clusters = None
        if (folder / CLUSTERS).exists():
            clusters = np.load(folder / CLUSTERS, mmap_mode="r", allow_pickle=False)
        made = cls(base, delta, dead, clusters)
        made._check(spec)
        return made

    def _check(self, spec: IndexSpec) -> None:
        wanted = [("base", self.base, spec.base_num)]
        if self.delta is not None:
            wanted.append(("delta", self.delta, spec.delta_num))
        for name, segment, num in wanted:
            found = (len(segment), *segment.vectors.shape, len(segment.poses))
            if found != (num, num, spec.dim, num):
                raise ArtifactError(
                    f"the {name} rows beside the index are {found}, "
                    f"({num}, {num}, {spec.dim}, {num}) was published; publish again"
                )
        total = spec.base_num + spec.delta_num
        found = (len(self), 0 if self.clusters is None else len(self.clusters) - total)
        if found != (spec.num, 0):
            raise ArtifactError(
                f"{len(self)} rows beside the index, {spec.num} were published; publish again"
            )

    def __len__(self) -> int:
        return self.num_rows - len(self.dead)

    @property
    def num_rows(self) -> int:
        """Row numbers go up to this; those of tombstones among them."""
        return len(self.base) + (0 if self.delta is None else len(self.delta))

    @property
    def segments(self) -> list[Segment]:
        """The base, and the delta if there is one."""
        return [self.base] if self.delta is None else [self.base, self.delta]

    @cached_property
    def vectors(self) -> Any:
        """Embeddings (N, d) float32 by row number."""
        if self.delta is None:
            return self.base.vectors
        return Stacked((self.base.vectors, self.delta.vectors))

    @cached_property
    def poses(self) -> Any:
        """Pose codes (N, p) int8 by row number."""
        if self.delta is None:
            return self.base.poses
        return Stacked((self.base.poses, self.delta.poses))

    def alive(self) -> NDArray[np.bool_]:
        """(N,): whether a row number is that of an image."""
        made = np.ones(self.num_rows, bool)
        made[self.dead] = False
        return made

    def is_dead(self, rows: Numbers) -> NDArray[np.bool_]:
        """Rows of any shape -> whether each is a tombstone."""
        if not len(self.dead):
            return np.zeros(np.shape(rows), bool)
        place = np.minimum(np.searchsorted(self.dead, rows), len(self.dead) - 1)
        found: NDArray[np.bool_] = self.dead[place] == rows
        return found

    def ids_of(self, rows: Numbers) -> Numbers:
        """image_ids of row numbers (K,)."""
        found = np.empty(len(rows), np.int64)
        old = rows < len(self.base)
        found[old] = self.base.ids[rows[old]]
        if self.delta is not None:
            found[~old] = self.delta.ids[rows[~old] - len(self.base)]
        return found

    def rows_of(self, ids: Numbers) -> Numbers:
        """Row numbers of image_ids of any shape; -1 where there is no such image."""
        rows = self.base.rows_of(ids)
        rows = np.where(self.is_dead(rows), -1, rows)
        if self.delta is not None:
            fresh = self.delta.rows_of(ids)
            rows = np.where(fresh >= 0, fresh + len(self.base), rows)
        return rows

    def find_key(self, key: str) -> list[int]:
        """Rows of ``key``, or of ``SOURCE/KEY`` where no key is spelled like that."""
        hits = self._where("key", key)
        for cut in (i for i, letter in enumerate(key) if letter == "/" and not hits):
            rows = self._where("key", key[cut + 1 :])
            records = zip(rows, self.records(rows, ["source"]), strict=True)
            hits = [row for row, record in records if record["source"] == key[:cut]]
            if hits:
                break
        return hits

    def _where(self, column: str, value: str) -> list[int]:
        found = list[int]()
        for start, segment in self._placed():
            rows = pc.indices_nonzero(pc.equal(segment.table[column], value)).to_numpy()
            found += (rows.astype(np.int64) + start).tolist()
        return [row for row in found if not self.is_dead(np.array(row))]

    def _placed(self) -> list[tuple[int, Segment]]:
        return list(zip((0, len(self.base)), self.segments, strict=False))

    def passing(
        self,
        label: str | None = None,
        source: str | None = None,
        cluster: int | None = None,
    ) -> Numbers:
        """Rows that pass every filter that is given."""
        kept = self.alive()
        for column, value in (("label", label), ("source", source)):
            if value is not None:
                same = [
                    pc.fill_null(pc.equal(segment.table[column], value), False).to_numpy()
                    for segment in self.segments
                ]
                kept &= np.concatenate(same)
        if cluster is not None:
            kept &= self.cluster_of(np.arange(self.num_rows)) == cluster
        return np.flatnonzero(kept)

    def cluster_of(self, rows: Numbers) -> NDArray[np.int32]:
        """The clusters of rows (K,), -1 where an image has none."""
        if self.clusters is not None:
            return np.asarray(self.clusters[rows])
        columns = [segment.table["cluster"].to_numpy() for segment in self.segments]
        found: NDArray[np.int32] = Stacked((columns[0], columns[-1]))[rows]
        return found

    def records(
        self, rows: Iterable[int], columns: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """Rows as dictionaries, in the order asked; some columns, or all."""
        wanted = np.asarray(list(rows), np.int64)
        found: list[dict[str, Any]] = [{}] * len(wanted)
        for start, segment in self._placed():
            mine = np.flatnonzero((wanted >= start) & (wanted < start + len(segment)))
            for place, record in zip(
                mine.tolist(), segment.records(wanted[mine] - start, columns), strict=True
            ):
                found[place] = record
        if self.clusters is not None and (columns is None or "cluster" in columns):
            for record, cluster in zip(found, self.clusters[wanted].tolist(), strict=True):
                record["cluster"] = cluster
        return found

    def columns(self, rows: Numbers, names: Collection[str]) -> pa.Table:
        """Columns of rows (K,) in the order asked, strings as such."""
        old = rows < len(self.base)
        parts = [plain(self.base.table.select(list(names)).take(pa.array(rows[old])))]
        if self.delta is not None:
            mine = pa.array(rows[~old] - len(self.base))
            parts.append(plain(self.delta.table.select(list(names)).take(mine)))
        placed = np.argsort(np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)]))
        return pa.concat_tables(parts).take(pa.array(placed)).combine_chunks()

    def gather(self, folder: Path, etags: Mapping[str, str] | None = None) -> Rows:
        """The live rows of both segments as one, in files of ``folder``; ``etags`` by source
        replace the content identity of sources that changed while the row did not."""
        rows = np.flatnonzero(self.alive())
        ids = self.ids_of(rows)
        order = rows[np.argsort(ids, kind="stable")]
        parts = [segment.table for segment in self.segments]
        table = pa.concat_tables(parts).unify_dictionaries().take(pa.array(order))
        if etags is not None:
            table = with_etags(table, etags)
        if self.clusters is not None:
            place = ROWS_SCHEMA.get_field_index("cluster")
            table = table.set_column(place, ROWS_SCHEMA.field(place), [self.clusters[order]])
        return Rows(
            table.combine_chunks(),
            write_array(folder / "vectors.npy", self.vectors, order),
            write_array(folder / "poses.npy", self.poses, order),
        )
