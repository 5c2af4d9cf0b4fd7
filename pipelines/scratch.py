"""Temporary folders of this process, and those that killed processes have left behind.

A process makes one folder ``orbit-*`` in the temp directory and locks a file in it for as long as
it lives; all its temporary folders lie inside. The lock goes with the process, however it ends, so
a folder whose lock can be had is nobody's: no process id is compared, which another container may
have as well.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from pathlib import Path

PREFIX = "orbit-"
LOCK = ".lock"
_here: tuple[int, Path] | None = None
_guard = threading.Lock()


def folder() -> tempfile.TemporaryDirectory[str]:
    """A new temporary folder, removed at the end of its ``with``."""
    return tempfile.TemporaryDirectory(dir=_root())


def clean_stale() -> int:
    """Remove what processes that are gone have left in the temp directory; returns how many."""
    found = 0
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found += _remove_if_stale(place)
    return found


def _root() -> Path:
    """This process's own folder; a forked child gets another one."""
    global _here
    with _guard:
        if _here is None or _here[0] != os.getpid() or not _here[1].is_dir():
            _here = os.getpid(), _made()
            atexit.register(_leave, *_here)
        return _here[1]


def _made() -> Path:
    place = Path(tempfile.mkdtemp(prefix=PREFIX))
    # Locked before it has its name: one without a lock file is never taken for stale.
    descriptor = os.open(place / f"{LOCK}-new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(place / f"{LOCK}-new", place / LOCK)
    return place


def _leave(pid: int, place: Path) -> None:
    if pid == os.getpid():
        shutil.rmtree(place, ignore_errors=True)


def _remove_if_stale(place: Path) -> bool:
    if place.stat(follow_symlinks=False).st_uid != os.getuid():
        return False
    descriptor = os.open(place / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(descriptor)
    return not place.exists()
