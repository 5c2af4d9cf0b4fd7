"""A folder anywhere: local, s3, gs, az, http. The only file that imports fsspec.

Objects are read and written whole, under names relative to the folder. Content identity, per
scheme: s3 ETag (+ version), gs generation, az etag, local (modification time in ns, size), http
ETag, else Last-Modified + size, else refused. Nothing is cached: every call asks the storage.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from pipelines.errors import (
    AccessDenied,
    ObjectChanged,
    ObjectMissing,
    SettingsError,
    StorageError,
)

SCHEMES = ("file", "s3", "gs", "az", "abfs", "http", "https", "memory")
ATTEMPTS = 6  # of one request; waits 0.2, 0.4, ... 3.2 s between them
BLOCK_BYTES = 8 << 20
T = TypeVar("T")


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
        self.url = normal_form(str(url))
        self.scheme = urlsplit(self.url).scheme if "://" in self.url else "file"
        self._fs: Any = None

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.url,)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    @property
    def fs(self) -> Any:
        if self._fs is None:
            self._fs = _filesystem(self.scheme, self.url)
        return self._fs

    @property
    def _root(self) -> str:
        return self.url if self.scheme in ("file", "http", "https") else self.url.split("://", 1)[1]

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" if path else self._root

    def child(self, relative: str) -> Folder:
        """The folder of that name inside this one."""
        return Folder(f"{self.url.rstrip('/')}/{relative}")

    def entries(self, prefix: str = "") -> list[Entry]:
        """Every object below ``prefix``, by path; an error is never an empty list."""
        if self.is_local:
            return _local_entries(Path(self.url), prefix)
        root = self._full(prefix)

        def list_all() -> dict[str, Any]:
            self.fs.invalidate_cache()
            try:
                found: dict[str, Any] = self.fs.find(root, detail=True)
            except FileNotFoundError:
                return {}
            return found

        base = self._root.rstrip("/") + "/"
        found = [
            self._entry(name.removeprefix(base), facts)
            for name, facts in _retried(list_all, self.url).items()
            if facts.get("type") == "file" and name.startswith(base)
        ]
        return sorted(found, key=lambda entry: entry.path)

    def exists(self) -> bool:
        """Whether there is anything under this URL (an object store has no empty folders)."""
        if self.is_local:
            return Path(self.url).exists()

        def ask() -> bool:
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self._root))

        return _retried(ask, self.url)

    def stat(self, path: str = "") -> Entry | None:
        """The object of that name, or None. A local folder is not an object."""
        if self.is_local:
            return _local_entry(Path(self.url, path) if path else Path(self.url), path)

        def ask() -> dict[str, Any] | None:
            self.fs.invalidate_cache()
            try:
                facts: dict[str, Any] = self.fs.info(self._full(path))
            except FileNotFoundError:
                return None
            return facts

        facts = _retried(ask, self.url)
        return None if facts is None or facts.get("type") != "file" else self._entry(path, facts)

    def _entry(self, path: str, facts: dict[str, Any]) -> Entry:
        size = int(facts.get("size") or 0)
        return Entry(path, size, content_identity(self.scheme, facts, f"{self.url}/{path}"))

    def read(
        self,
        path: str,
        offset: int | None = None,
        length: int | None = None,
        etag: str | None = None,
    ) -> bytes:
        """The object's bytes, or ``length`` of them from ``offset``; ObjectChanged unless it has
        ``etag``.
        """
        start = offset or 0
        end = None if length is None else start + length

        def get() -> bytes:
            data: bytes = self.fs.cat_file(self._full(path), start=start or None, end=end)
            if length is not None and len(data) > length:
                data = data[start : start + length]  # a server that ignores ranges
            if etag is not None:  # once, afterwards: one request reads one content
                self._check(path, etag)
            return data

        return _retried(get, f"{self.url}/{path}")

    @contextlib.contextmanager
    def stream(self, path: str, etag: str | None = None) -> Iterator[BinaryIO]:
        """The object as a file read from front to end, pinned to ``etag``.

        A read that meets another content raises ObjectChanged, one that ends early StorageError.
        """
        entry = self._check(path, etag)
        raw: Any
        if self.is_local:
            raw = open(Path(self.url, path), "rb", buffering=0)  # noqa: SIM115
        else:
            raw = _RangedReader(self, entry)
        with io.BufferedReader(raw, BLOCK_BYTES if not self.is_local else 1 << 20) as stream:
            yield stream
            self._check(path, etag)

    def _check(self, path: str, etag: str | None) -> Entry:
        entry = self.stat(path)
        if entry is None:
            raise ObjectMissing(f"{self.url}/{path} is gone since it was listed; run again")
        if etag is not None and entry.etag != etag:
            raise ObjectChanged(f"{self.url}/{path} has changed since it was listed; run again")
        return entry

    def upload(self, local: Path, path: str) -> Entry:
        """Upload a closed local file whole; it is there completely or not at all."""
        size = local.stat().st_size
        if self.is_local:
            _place_locally(local, Path(self.url, path))
        else:
            _retried(lambda: self.fs.put_file(str(local), self._full(path)), f"{self.url}/{path}")
        entry = self.stat(path)
        if entry is None or entry.size != size:
            found = "nothing" if entry is None else f"{entry.size} bytes"
            raise StorageError(
                f"{self.url}/{path}: {size} bytes were written and {found} read back; run again"
            )
        return entry

    def write(self, path: str, data: bytes) -> Entry:
        """Write an object whole."""
        with tempfile.TemporaryDirectory(prefix="orbit-") as place:
            local = Path(place, "object")
            local.write_bytes(data)
            return self.upload(local, path)

    def download(self, path: str, local: Path) -> None:
        """Copy an object to a local file."""
        _retried(lambda: self.fs.get_file(self._full(path), str(local)), f"{self.url}/{path}")

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is no error."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self._full(path))

        _retried(remove, f"{self.url}/{path}")

    def delta(self) -> tuple[str, dict[str, str]]:
        """(uri, storage options) by which a Delta table in this folder is opened."""
        options: dict[str, str] = {}
        endpoint = _s3_endpoint()
        if self.scheme == "s3" and endpoint:
            options["AWS_ENDPOINT_URL"] = endpoint
            if endpoint.startswith("http://"):
                options["AWS_ALLOW_HTTP"] = "true"
        uri = self.url.replace("az://", "abfs://") if self.scheme == "az" else self.url
        return uri, options


class _RangedReader(io.RawIOBase):
    """Sequential reads of one object by ranges, each pinned to the listed content."""

    def __init__(self, folder: Folder, entry: Entry) -> None:
        self._folder, self._entry, self._at = folder, entry, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        want = min(len(buffer), self._entry.size - self._at)
        if want <= 0:
            return 0
        data = _retried(lambda: self._get(want), f"{self._folder.url}/{self._entry.path}")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _get(self, want: int) -> bytes:
        path = self._folder._full(self._entry.path)
        data: bytes = self._folder.fs.cat_file(path, start=self._at, end=self._at + want)
        if len(data) != want:
            raise OSError(f"{len(data)} of {want} bytes came")
        return data


def normal_form(url: str) -> str:
    """A URL without trailing slash; a local path becomes absolute. Raises SettingsError."""
    if not url:
        raise SettingsError(
            "an empty path was given; a local path or a URL such as s3://bucket/folder is expected"
        )
    scheme = urlsplit(url).scheme if "://" in url else "file"
    if scheme not in SCHEMES:
        raise SettingsError(
            f"'{url}' has the unknown scheme {scheme}://; use a local path or one of "
            f"{', '.join(f'{s}://' for s in SCHEMES[1:-1])}"
        )
    if scheme == "file":
        return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
    return url.rstrip("/")


def content_identity(scheme: str, facts: dict[str, Any], url: str) -> str:
    """What tells one content of an object from another; StorageError where the storage says
    nothing.
    """
    size = facts.get("size")
    for name in ("ETag", "etag", "generation"):
        if facts.get(name):
            version = facts.get("VersionId")
            tag = str(facts[name]).strip('"')
            return f"{tag}:{version}" if version and version != "null" else tag
    for name in ("LastModified", "last-modified", "Last-Modified", "created", "mtime"):
        if facts.get(name) is not None and size is not None:
            return f"{facts[name]}-{size}"
    raise StorageError(
        f"{url}: the server gives neither an ETag nor a time of change, so a change could not be "
        "seen; put the images where it does"
    )


def _filesystem(scheme: str, url: str) -> Any:
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        options |= {
            "default_block_size": BLOCK_BYTES,
            "config_kwargs": {
                "retries": {"max_attempts": 8, "mode": "standard"},
                "connect_timeout": 10,
                "read_timeout": 60,
            },
        }
        if endpoint := _s3_endpoint():
            options["endpoint_url"] = endpoint
    if scheme == "file":
        options = {"auto_mkdir": True}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise SettingsError(
            f"{url} needs a package that is not installed: {_one_line(error)}"
        ) from error


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _local_entry(full: Path, path: str) -> Entry | None:
    try:
        facts = full.stat()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except PermissionError as error:
        raise AccessDenied(f"{full}: permission denied; check who may read it") from error
    if not full.is_file():
        return None
    return Entry(path, facts.st_size, f"{facts.st_mtime_ns:x}-{facts.st_size:x}")


def _local_entries(root: Path, prefix: str) -> list[Entry]:
    start = root / prefix if prefix else root
    found: list[Entry] = []

    def fail(error: OSError) -> None:
        if isinstance(error, NotADirectoryError) or not start.exists():
            return  # one object, or nothing: no folder to list
        raise StorageError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, folders, files in os.walk(start, onerror=fail):
        folders.sort()
        for name in files:
            full = Path(folder, name)
            entry = _local_entry(full, full.relative_to(root).as_posix())
            if entry is not None and not name.startswith(".orbit-"):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.path)


def _place_locally(local: Path, target: Path) -> None:
    import shutil

    temporary = target.with_name(f".orbit-{os.getpid()}-{time.monotonic_ns()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local, temporary)
        os.replace(temporary, target)
    except PermissionError as error:
        raise AccessDenied(f"{target}: permission denied; check who may write there") from error
    except NotADirectoryError as error:
        raise StorageError(f"{target} cannot be written: a part of its path is a file") from error
    finally:
        temporary.unlink(missing_ok=True)


def _retried(call: Callable[[], T], url: str) -> T:
    """Call, again with growing waits where the failure may pass, else raise one of our errors."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (StorageError, SettingsError):
            raise
        except (
            Exception
        ) as error:  # the process boundary of storage clients: they raise what they like
            known = _known(error, url)
            if known is not None:
                raise known from error
            if attempt == ATTEMPTS - 1:
                raise StorageError(
                    f"{url}: {_one_line(error)} (after {ATTEMPTS} tries); run again later"
                ) from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("not reached")


def _known(error: Exception, url: str) -> StorageError | OSError | None:
    """What gets no better by trying again, as one of our errors; None for what may."""
    text = f"{type(error).__name__} {error}"
    if (
        isinstance(error, PermissionError)
        or "NoCredentials" in text
        or "ExpiredToken" in text
        or "403" in text[:80]
    ):
        return AccessDenied(f"{url}: access denied ({_one_line(error)}); check the credentials")
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
        return ObjectMissing(f"{url} is not there; check the name")
    if isinstance(error, OSError) and error.errno in (28, 30, 122):
        return error
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
