"""sha256 of local files; of one that did not change since it was read, as it was found then.

A server exchanges its publication for one that names most of the same files once more. Read anew,
a hundred thousand images take a second of both cores, and a million ten. A file is the same while
its device, inode, size and time of change are, as git takes it; one that changed less than two
seconds before it was read is not remembered, because the clock may not tell the next change.
`orbit verify` and the nightly job read every byte.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SETTLED_S = 2.0
MOST = 10_000
_Identity = tuple[int, int, int, int]
_known: dict[_Identity, str] = {}


def file_sha256(path: Path) -> str:
    """sha256 of a local file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Sequence[Path]) -> list[str]:
    """sha256 of local files, in their order; they are read side by side, the largest first."""
    largest_first = sorted(set(paths), key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(largest_first, pool.map(file_sha256, largest_first), strict=True))
    return [found[path] for path in paths]


def known_sha256(path: Path) -> str:
    """sha256 of a local file that this process may have read before."""
    before = path.stat()
    identity = (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns)
    if identity in _known:
        return _known[identity]
    found = file_sha256(path)
    if time.time() - before.st_mtime >= SETTLED_S and len(_known) < MOST:
        _known[identity] = found
    return found
