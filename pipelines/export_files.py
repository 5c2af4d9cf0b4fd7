"""The files of an export: each takes rows and is whole when it is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray


class Writer(Protocol):
    """Takes rows and leaves files."""

    files: list[Path]
    num_rows: int

    def __init__(self, place: Path, name: Path, dim: int) -> None: ...
    def __enter__(self) -> Writer: ...
    def __exit__(self, *exception: object) -> None: ...
    def write(self, rows: pa.Table) -> None: ...


def _matrix(rows: pa.Table, dim: int) -> NDArray[np.float32]:
    """The embeddings of some rows, (N, dim)."""
    flat = pc.list_flatten(rows["embedding"]).to_numpy()
    return np.ascontiguousarray(flat, np.float32).reshape(-1, dim)


class _Npy:
    """Embeddings (N, d) float32, and beside them the other columns as CSV."""

    def __init__(self, place: Path, name: Path, dim: int) -> None:
        self.files = [place / f"{name.stem}.keys.csv", place / name.name]
        self.num_rows, self._dim = 0, dim
        self._keys, self._file = _Csv(place, Path(self.files[0].name), dim), self._open()

    def _open(self) -> BinaryIO:
        return self.files[1].open("wb")

    def __enter__(self) -> _Npy:
        self._keys.__enter__()
        self._header()
        return self

    def __exit__(self, *exception: object) -> None:
        self._keys.__exit__(*exception)
        self._header()
        self._file.close()

    def _header(self) -> None:
        """numpy leaves room for the row count to grow, so that it can be written again."""
        self._file.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.num_rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, rows: pa.Table) -> None:
        self._file.write(_matrix(rows, self._dim).astype("<f4").tobytes())
        self._keys.write(rows.drop_columns(["embedding"]))
        self.num_rows += rows.num_rows


class _Csv:
    """One line per image; an embedding is the columns e0, e1, ..."""

    def __init__(self, place: Path, name: Path, dim: int) -> None:
        self.files, self.num_rows, self._dim = [place / name.name], 0, dim
        self._writer: Any = None

    def __enter__(self) -> _Csv:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: pa.Table) -> None:
        self.num_rows += rows.num_rows
        if "embedding" in rows.column_names:
            matrix, rows = _matrix(rows, self._dim), rows.drop_columns(["embedding"])
            for number in range(self._dim):
                rows = rows.append_column(f"e{number}", pa.array(matrix[:, number]))
        if self._writer is None:
            self._writer = pa_csv.CSVWriter(self.files[0], rows.schema)
        self._writer.write(rows)


class _Parquet:
    """The columns as they are; an embedding is a fixed-size list, which arrays are read from."""

    def __init__(self, place: Path, name: Path, dim: int) -> None:
        self.files, self.num_rows, self._dim = [place / name.name], 0, dim
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: pa.Table) -> None:
        self.num_rows += rows.num_rows
        if "embedding" in rows.column_names and not rows["embedding"].null_count:
            place = rows.column_names.index("embedding")
            values = pa.array(_matrix(rows, self._dim).reshape(-1))
            fixed = pa.FixedSizeListArray.from_arrays(values, self._dim)
            rows = rows.set_column(place, "embedding", fixed)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.files[0], rows.schema, compression="zstd")
        self._writer.write_table(rows)


WRITERS: dict[str, type[Writer]] = {"npy": _Npy, "csv": _Csv, "parquet": _Parquet}
