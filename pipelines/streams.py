"""One object of a folder as a file that is read from front to end, and is what was listed."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipelines import local_files, scratch
from pipelines.errors import StorageError
from pipelines.etags import ALTERED, Proof
from pipelines.read_ahead import SequentialReader

if TYPE_CHECKING:
    from pipelines.storage import Entry, Folder


@contextlib.contextmanager
def open_stream(folder: Folder, path: str, etag: str | None) -> Iterator[BinaryIO]:
    """See ``Folder.stream``."""
    entry = folder.checked(path, etag)
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_sequential(folder, entry, stack))
        buffered = stack.enter_context(io.BufferedReader(raw, 1 << 18))
        try:
            yield buffered
        except StorageError:
            folder.checked(path, entry.etag)
            raise
        folder.checked(path, entry.etag)
        _prove(folder, entry, raw)


def _prove(folder: Folder, entry: Entry, reader: SequentialReader) -> None:
    """StorageError unless the bytes that were read are the ones that the ETag promises."""
    proof = Proof(folder.address(entry.path))
    if not proof.wanted(entry.etag) or proof.holds(entry.etag, reader.finished_md5()):
        return
    with contextlib.ExitStack() as stack:
        again = stack.enter_context(_sequential(folder, entry, stack))
        if not proof.holds(entry.etag, again.finished_md5()):
            raise StorageError(f"{folder.address(entry.path)}: {ALTERED}; run again")


def _sequential(folder: Folder, entry: Entry, stack: contextlib.ExitStack) -> SequentialReader:
    url = folder.address(entry.path)
    file = local_files.native(folder.url, entry.path)
    if folder.is_http:  # not every server knows ranges
        place = stack.enter_context(scratch.folder())
        file = Path(place, "object")
        folder.download(entry.path, file)
    if folder.is_local or folder.is_http:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise local_files.refused(error, file) from error
        stack.callback(os.close, descriptor)
        return SequentialReader(
            lambda at, want: local_files.read_at(descriptor, at, want),
            entry.size,
            url,
            noticed=folder.on_read,
        )

    def fetch(at: int, want: int) -> bytes:
        data: bytes = folder.fs.cat_file(folder.full(entry.path), start=at, end=at + want)
        return data

    return SequentialReader(fetch, entry.size, url, ahead=True, noticed=folder.on_read)
