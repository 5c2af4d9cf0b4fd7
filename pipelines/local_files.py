"""Files on this machine as objects: whole writes, pinned reads, listings that fail loudly."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from pipelines.errors import AccessDenied, ObjectMissing, StorageError

TEMPORARY = ".orbit-"
_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def identity(facts: os.stat_result) -> str:
    """Content identity of a file: time of modification in ns, and size."""
    return f"{facts.st_mtime_ns:x}-{facts.st_size:x}"


def native(root: str, path: str) -> Path:
    r"""The file of an object's path. Names that are not UTF-8 have their odd bytes as \xNN."""
    full = Path(root, path) if path else Path(root)
    if "\\x" not in path or os.path.lexists(full):
        return full
    raw = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), path.encode())
    return Path(root, os.fsdecode(raw))


def facts_of(file: Path) -> os.stat_result | None:
    """Of a regular file, or None. AccessDenied where one may not look."""
    try:
        facts = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refused(error, file) from error
    return facts if os.path.isfile(file) else None


def walk(root: str, prefix: str) -> list[tuple[str, os.stat_result]]:
    """Every file below ``root/prefix`` with its path relative to ``root``; links are followed.

    [] when there is nothing or a single file; StorageError when a folder cannot be listed.
    """
    start = Path(root, prefix) if prefix else Path(root)
    if not start.is_dir():
        return []
    found, seen = [], set[tuple[int, int]]()

    def fail(error: OSError) -> None:
        raise refused(error, Path(error.filename or start), "listed") from error

    for folder, folders, files in os.walk(start, onerror=fail, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # a link back into what was walked
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        for name in files:
            file = Path(folder, name)
            facts = None if name.startswith(TEMPORARY) else facts_of(file)
            if facts is not None:
                found.append((_text(file.relative_to(root).as_posix()), facts))
    return found


def _text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(file: Path, offset: int, length: int | None) -> tuple[bytes, str]:
    """Bytes of a file and the content identity of what was open while they were read."""
    try:
        with file.open("rb", buffering=0) as stream:
            before = os.fstat(stream.fileno())
            want = max(0, before.st_size - offset)
            want = want if length is None else min(want, length)
            data = read_at(stream.fileno(), offset, want)
            after = os.fstat(stream.fileno())
    except FileNotFoundError as error:
        raise ObjectMissing(f"{file} is gone since it was listed; run again") from error
    except OSError as error:
        raise refused(error, file) from error
    return data, identity(after) if len(data) == want else f"{identity(before)} cut"


def read_at(descriptor: int, offset: int, want: int) -> bytes:
    """``want`` bytes from ``offset``, fewer only where the file ends."""
    parts = []
    while want > 0 and (part := os.pread(descriptor, want, offset)):
        parts.append(part)
        offset += len(part)
        want -= len(part)
    return b"".join(parts)


def place(local: Path, target: Path) -> None:
    """Copy a closed file to ``target``: there completely, and on the disk, or not at all."""
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with local.open("rb") as source, temporary.open("xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise refused(error, target, "written") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove(file: Path) -> None:
    """Delete a file; one that is not there is no error."""
    try:
        file.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise refused(error, file, "deleted") from error


def refused(error: OSError, file: Path, what: str = "read") -> StorageError:
    """An operating system's error as one of ours, in one line; ``errno`` is kept."""
    reason = error.strerror or str(error)
    kind = AccessDenied if isinstance(error, PermissionError) else StorageError
    sorted_error = kind(f"{_text(str(file))} cannot be {what}: {reason}; check the place")
    sorted_error.errno = error.errno
    return sorted_error
