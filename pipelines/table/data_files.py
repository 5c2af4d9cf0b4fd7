"""The data files of a table as pyarrow reads them: through the storage's one door, with patience.

Not through deltalake's own file system: that one holds the interpreter's lock while it waits for
the network. Nor through fsspec's files: those give up on the first throttled request.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from eqmodel.errors import OrbitError
from pipelines.errors import ObjectMissing, TableError
from pipelines.retries import one_line
from pipelines.storage import Folder

if TYPE_CHECKING:
    import pyarrow.dataset as pads


class RangedFile(io.RawIOBase):
    """An object of a folder, read anywhere; every part is tried again where that may help."""

    def __init__(self, folder: Folder, path: str) -> None:
        entry = folder.stat(path)
        if entry is None:
            raise ObjectMissing(path)
        self._folder, self._entry, self._at = folder, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def size(self) -> int:
        """Bytes in all; pyarrow asks for it."""
        return self._entry.size

    def readinto(self, buffer: Any) -> int:
        want = min(len(buffer), self._entry.size - self._at)
        if want <= 0:
            return 0
        data = self._folder.read_part(self._entry.path, self._at, want)
        buffer[:want] = data
        self._at += want
        return want


class _Files(pafs.FSSpecHandler):  # type: ignore[misc]
    """pyarrow's view of a folder that is not local; paths are relative to it."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.fs)
        self._folder = folder

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(RangedFile(self._folder, path), mode="r")

    open_input_stream = open_input_file


def dataset(folder: Folder, paths: Sequence[str], schema: pa.Schema) -> pads.Dataset:
    """The rows of Parquet files of a folder, in the order given; checksums of pages are verified
    where the writer left some.
    """
    import pyarrow.dataset as pads  # and pandas with it: a third of a second of a worker's start

    options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    if folder.is_local:
        system: Any = pafs.LocalFileSystem()
        names = [f"{folder.url}/{path}" for path in paths]
    else:
        system, names = pafs.PyFileSystem(_Files(folder)), list(paths)
    return pads.dataset(
        names,
        schema=schema,
        format=pads.ParquetFileFormat(default_fragment_scan_options=options),
        filesystem=system,
    )


class RowGroups:
    """One Parquet file of the table, read by row groups: of a group only the columns asked for."""

    def __init__(self, folder: Folder, path: str, schema: pa.Schema) -> None:
        """TableError when the file is gone or cannot be read."""
        self._folder = folder
        with told_in_one_line(folder):
            (whole,) = dataset(folder, [path], schema).get_fragments()
            self._parts = whole.split_by_row_group()
        self._keys: list[pa.ChunkedArray] = []

    def find(self, key: str) -> tuple[int, int] | None:
        """(group, row in it) of a key, None when the file has none; keys that were read stay."""
        for group in range(len(self._parts)):
            if group == len(self._keys):
                self._keys.append(self.read(group, "key"))
            place: int = pc.index(self._keys[group], pa.scalar(key, pa.string())).as_py()
            if place >= 0:
                return group, place
        return None

    def read(self, group: int, column: str) -> pa.ChunkedArray:
        """One column of one row group."""
        with told_in_one_line(self._folder):
            return self._parts[group].to_table(columns=[column])[column]


@contextmanager
def told_in_one_line(folder: Folder) -> Iterator[None]:
    """What goes wrong while rows are read, as TableError."""
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(
            f"{folder.url}: {one_line(error)}: a file is named in the log and gone; "
            "'orbit verify --repair' lets the next run embed it again"
        ) from error
    except OrbitError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"{folder.url}: rows cannot be read ({one_line(error)}); 'orbit verify' tells of "
            "which file, or run again"
        ) from error
