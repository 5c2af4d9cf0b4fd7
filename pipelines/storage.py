"""A folder anywhere: local, s3, gs, az, http. The only file that imports fsspec.

Objects are read and written whole, under names relative to the folder. Content identity, per
scheme: s3 and az ETag, gs generation, local (modification time in ns, size), http ETag, else
Last-Modified + size, else refused. Nothing is cached: every call asks the storage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pipelines import local_files, scratch
from pipelines.addresses import (
    TABLE_SCHEMES,
    client_options,
    content_identity,
    normal_form,
    table_options,
)
from pipelines.errors import ObjectChanged, ObjectMissing, SettingsError, StorageError
from pipelines.etags import ALTERED, Proof, md5_of
from pipelines.listings import ask, has_bucket, listed
from pipelines.retries import one_line, retried
from pipelines.streams import open_stream


@dataclass(frozen=True)
class Entry:
    """One object: ``path`` relative to its folder, ``size`` in bytes, ``etag`` its content
    identity.
    """

    path: str
    size: int
    etag: str


class Folder:
    """A folder by URL or local path; it need not exist. Only ``url`` is kept when it is pickled.

    Raises SettingsError for an unknown scheme. Every method raises AccessDenied, ObjectMissing,
    ObjectChanged or StorageError, each in one line, and retries what may pass.
    """

    def __init__(self, url: str) -> None:
        self.url = normal_form(str(url), _is_known)
        self.scheme = urlsplit(self.url).scheme if "://" in self.url else "file"
        self.on_read: Callable[[], None] | None = None  # called as a stream's bytes come

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.url,)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    @property
    def is_http(self) -> bool:
        return self.scheme in ("http", "https")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return _filesystem(self.scheme, self.url)

    @property
    def fs(self) -> Any:
        """The fsspec filesystem of a folder that is not local."""
        return self._opened[0]

    def full(self, path: str) -> str:
        """An object's name for ``fs``."""
        root = self._opened[1].rstrip("/")
        return f"{root}/{path}" if path else root

    def address(self, path: str) -> str:
        """An object's URL, or its local path."""
        return f"{self.url}/{path}" if path else self.url

    def child(self, relative: str) -> Folder:
        """The folder of that name inside this one."""
        return Folder(f"{self.url}/{relative}")

    def entries(self, prefix: str = "") -> list[Entry]:
        """Every object below ``prefix``, by path; [] if nothing. An error is never an empty list.

        Local links are followed. Over http: what the pages of the folder link to.
        """
        if self.is_local:
            found = [
                Entry(path, facts.st_size, local_files.identity(facts))
                for path, facts in local_files.walk(self.url, prefix)
            ]
        else:
            base = self.full("") + "/"
            found = [
                self._entry(name.removeprefix(base), facts)
                for name, facts in listed(self.fs, self.full(prefix), self.scheme, self.url).items()
                if name.startswith(base) and not name.endswith("/")
            ]
        return sorted(found, key=lambda entry: entry.path)

    def exists(self) -> bool:
        """Whether there is anything under this URL (an object store has no empty folders)."""
        if self.is_local:
            return Path(self.url).exists()
        if self.is_http:
            return retried(lambda: ask(self.fs, self.full("")), self.url) is not None
        if "/" not in self.full(""):  # a bucket: listing it says why it cannot be used
            return retried(lambda: has_bucket(self.fs, self.full("")), self.url)
        return retried(lambda: ask(self.fs, self.full("")), self.url) is not None

    def stat(self, path: str = "") -> Entry | None:
        """The object of that name, or None. A folder is not an object."""
        if self.is_local:
            facts = local_files.facts_of(local_files.native(self.url, path))
            return facts and Entry(path, facts.st_size, local_files.identity(facts))
        found = retried(lambda: ask(self.fs, self.full(path)), self.address(path))
        return None if found is None or found.get("type") != "file" else self._entry(path, found)

    def _entry(self, path: str, facts: dict[str, Any]) -> Entry:
        size = int(facts.get("size") or 0)
        return Entry(path, size, content_identity(self.scheme, facts, self.address(path)))

    def read(
        self,
        path: str,
        offset: int | None = None,
        length: int | None = None,
        etag: str | None = None,
    ) -> bytes:
        """The object's bytes, or ``length`` of them from ``offset``; ObjectChanged unless it has
        ``etag``, both before and after for local files, after for others.
        """
        if self.is_local:
            file = local_files.native(self.url, path)
            data, found = local_files.read(file, offset or 0, length)
            if etag is not None and found != etag:
                raise _changed(self.address(path))
            return data
        whole = etag is not None and not offset and length is None
        proof = Proof(self.address(path)) if whole else None
        return retried(
            lambda: self._get(path, offset or 0, length, etag, proof), self.address(path)
        )

    def _get(
        self, path: str, start: int, length: int | None, etag: str | None, proof: Proof | None
    ) -> bytes:
        end = None if length is None else start + length
        try:
            data: bytes = self.fs.cat_file(self.full(path), start=start or None, end=end)
        except Exception:
            if etag is not None:  # a range beyond an object that shrank: say that it changed
                self.checked(path, etag)
            raise
        if length is not None and len(data) > length:
            data = data[start : start + length]  # a server that ignores ranges
        if etag is None:
            return data
        size = self.checked(path, etag).size  # once, afterwards: one request reads one content
        want = max(0, size - start) if length is None else min(length, max(0, size - start))
        if len(data) != want:
            raise OSError(f"{len(data)} of {want} bytes came")  # a body cut short: tried again
        if proof is not None and not proof.holds(etag, md5_of([data])):
            raise OSError(ALTERED)
        return data

    def read_part(self, path: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` of an object that never changes: one request."""

        def get() -> bytes:
            data = self._get(path, offset, length, None, None)
            if len(data) != length:
                raise OSError(f"{len(data)} of {length} bytes came")
            return data

        return retried(get, self.address(path))

    @contextlib.contextmanager
    def stream(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        """The object as a file read from front to end, pinned to ``etag`` (to what is there, when
        None).

        It ends only where the object ends: ObjectChanged when another content was met, StorageError
        when bytes are missing, or are not what the ETag promises (see ``etags.py``).
        """
        with open_stream(self, path, etag) as stream:
            yield stream

    def checked(self, path: str, etag: str | None = None) -> Entry:
        """The object, ObjectMissing when it is gone, ObjectChanged unless it has ``etag``."""
        entry = self.stat(path)
        if entry is None:
            raise ObjectMissing(f"{self.address(path)} is gone since it was listed; run again")
        if etag is not None and entry.etag != etag:
            raise _changed(self.address(path))
        return entry

    def upload(self, local: Path, path: str) -> Entry:
        """Upload a closed local file whole; it is there completely or not at all."""
        size = local.stat().st_size
        if self.is_local:
            local_files.place(local, Path(self.url, path))
        elif self.is_http:
            raise SettingsError(f"{self.url} can only be read; choose a local folder or a bucket")
        else:
            retried(lambda: self.fs.put_file(str(local), self.full(path)), self.address(path))
        entry = self.stat(path)
        if entry is None or entry.size != size:
            found = "nothing" if entry is None else f"{entry.size} bytes"
            raise StorageError(
                f"{self.address(path)}: {size} bytes were written and {found} read back; run again"
            )
        return entry

    def write(self, path: str, data: bytes) -> Entry:
        """Write an object whole."""
        with scratch.folder() as place:
            local = Path(place, "object")
            local.write_bytes(data)
            return self.upload(local, path)

    def download(self, path: str, local: Path) -> None:
        """Copy an object to a local file."""
        if self.is_local:
            source = local_files.native(self.url, path)
            if local_files.facts_of(source) is None:
                raise ObjectMissing(f"{self.address(path)} is not there; check the name")
            local_files.place(source, local)
        else:
            proof = Proof(self.address(path))
            retried(lambda: self._fetch(path, local, proof), self.address(path))

    def _fetch(self, path: str, local: Path, proof: Proof) -> None:
        entry = None if self.is_http else self.checked(path, None)
        self.fs.get_file(self.full(path), str(local))
        if entry is None:
            return
        size = local.stat().st_size
        if size != entry.size:
            raise OSError(f"{size} of {entry.size} bytes came")
        if proof.wanted(entry.etag):
            with local.open("rb") as file:
                digest = md5_of(iter(lambda: file.read(1 << 20), b""))
            if not proof.holds(entry.etag, digest):
                raise OSError(ALTERED)

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is no error."""
        if self.is_local:
            return local_files.remove(local_files.native(self.url, path))

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.full(path))

        return retried(remove, self.address(path))

    def delta(self) -> tuple[str, dict[str, str]]:
        """(uri, storage options) by which a Delta table in this folder is opened.

        Credentials come from the environment, as for every other request.
        """
        if self.scheme not in TABLE_SCHEMES:
            raise SettingsError(
                f"{self.url}: a STORE cannot lie on {self.scheme}://; use a local folder, "
                "s3://, gs:// or az://"
            )
        return self.url, table_options(self.scheme)


def _changed(url: str) -> ObjectChanged:
    return ObjectChanged(f"{url} has changed since it was listed; run again")


def _is_known(scheme: str) -> bool:
    import fsspec

    layered = {"dir", "zip", "tar", "libarchive", "reference", "filecache", "blockcache",
               "simplecache", "cached", "data", "memory", "async_wrapper"}  # fmt: skip
    return scheme in set(fsspec.available_protocols()) - layered


def _filesystem(scheme: str, url: str) -> tuple[Any, str]:
    """An fsspec filesystem and the folder's path in it."""
    from fsspec.core import url_to_fs

    try:
        opened: tuple[Any, str] = url_to_fs(url, **client_options(scheme))
    except (ImportError, ValueError, TypeError) as error:
        raise SettingsError(f"{url} cannot be opened: {one_line(error)}") from error
    return opened
