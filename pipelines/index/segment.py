"""Rows of one file each, memory-mapped: the base of an index or its delta, and both read as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index.rows import Rows

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Rows in ascending image_id: a table of ROWS_SCHEMA, vectors (N, d), poses (N, p)."""

    table: pa.Table
    vectors: NDArray[np.float32]
    poses: NDArray[np.int8]

    @classmethod
    def open(cls, folder: Path, names: tuple[str, str, str]) -> Segment:
        """Map the three files. ArtifactError when one cannot be read."""
        try:
            with pa.memory_map(str(folder / names[0])) as file:
                table = pa.ipc.open_file(file).read_all()
            vectors = np.load(folder / names[1], mmap_mode="r", allow_pickle=False)
            poses = np.load(folder / names[2], mmap_mode="r", allow_pickle=False)
        except (pa.ArrowInvalid, ValueError, EOFError) as error:
            raise ArtifactError(
                f"the rows beside the index cannot be read ({error}); publish again"
            ) from error
        return cls(table, vectors, poses)

    @classmethod
    def of(cls, rows: Rows) -> Segment:
        """Rows that were gathered just now."""
        return cls(rows.table, rows.vectors, rows.poses)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def ids(self) -> Numbers:
        """(N,) int64, ascending."""
        numbers: Numbers = self.table["image_id"].to_numpy()
        return numbers

    @cached_property
    def _pieces(self) -> tuple[list[pa.RecordBatch], Numbers]:
        """The table piece by piece, and the first row of each."""
        pieces = self.table.to_batches()
        sizes = np.array([piece.num_rows for piece in pieces], np.int64)
        return pieces, np.cumsum(sizes) - sizes

    def records(
        self, rows: Numbers, columns: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """Rows (K,) as dictionaries, in the order asked; some columns, or all.

        Only the pieces that hold one of them are looked into: ``Table.take`` would put the strings
        of all pieces together first, 3 ms of a query at 100,000 images.
        """
        pieces, starts = self._pieces
        found: list[dict[str, Any]] = [{}] * len(rows)
        of_piece = np.searchsorted(starts, rows, "right") - 1
        for number in np.unique(of_piece):
            places = np.flatnonzero(of_piece == number)
            piece = pieces[number] if columns is None else pieces[number].select(list(columns))
            taken = piece.take(pa.array(rows[places] - starts[number]))
            for place, record in zip(places.tolist(), taken.to_pylist(), strict=True):
                found[place] = record
        return found

    def emptied(self) -> Segment:
        """The same without a row."""
        return Segment(self.table[:0], self.vectors[:0], self.poses[:0])

    def rows_of(self, ids: Numbers) -> Numbers:
        """Row numbers of image_ids of any shape; -1 where there is no such image."""
        if not len(self):
            return np.full_like(ids, -1)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        found: Numbers = np.where(self.ids[place] == ids, place, -1)
        return found


@dataclass(frozen=True)
class Stacked:
    """An array of the base and one of the delta, read as one by row numbers or in slices."""

    parts: tuple[NDArray[Any], NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, width)."""
        return (len(self), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self.parts[0]) + len(self.parts[1])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        base, delta = self.parts
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1 and stop <= len(base):
                return base[start:stop]
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        if not rows.ndim:
            return self[rows[None]][0]  # type: ignore[no-any-return]
        new = rows >= len(base)
        made: NDArray[Any] = np.empty((len(rows), *base.shape[1:]), base.dtype)
        if len(base):
            made = np.asarray(base)[np.where(new, 0, rows)]
        made[new] = delta[rows[new] - len(base)]
        return made
