"""How old the objects of a folder are, by the storage's own clock.

This machine's clock may be a day off; the storage's times are compared with the time that the
storage gives to an object written just now.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import StorageError
from pipelines.listings import listed
from pipelines.storage import Folder

_NAMES = ("LastModified", "last_modified", "updated", "mtime", "timeCreated", "created")


@dataclass(frozen=True)
class Aged:
    """One object: ``path`` relative to its folder, ``changed`` in seconds since 1970."""

    path: str
    size: int
    changed: float


def aged(folder: Folder, prefix: str = "") -> list[Aged]:
    """Every object below ``prefix``, by path; leftovers of interrupted writes as well."""
    if folder.is_local:
        return sorted(_local(Path(folder.url), prefix), key=lambda found: found.path)
    root = folder.url.partition("://")[2]
    start = f"{root}/{prefix}" if prefix else root
    facts_of = listed(folder.fs, start, folder.scheme, folder.url)
    found = [
        Aged(name.removeprefix(f"{root}/"), int(facts.get("size") or 0), _changed(facts, name))
        for name, facts in facts_of.items()
        if name.startswith(f"{root}/")
    ]
    return sorted(found, key=lambda entry: entry.path)


def clock(store: Folder) -> float:
    """What time it is for the storage, in seconds since 1970; leaves nothing behind."""
    probe = f"runs/.clock-{secrets.token_hex(8)}"
    store.write(probe, b"now")
    try:
        found = [entry.changed for entry in aged(store, "runs") if entry.path == probe]
    finally:
        store.delete(probe)
    if not found:
        raise StorageError(f"{store.url}/{probe} was written and is not listed; run again")
    return found[0]


def _local(root: Path, prefix: str) -> Iterator[Aged]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StorageError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, _, names in os.walk(root / prefix if prefix else root, onerror=fail):
        for name in names:
            file = Path(folder, name)
            try:
                facts = file.stat()
            except FileNotFoundError:
                continue  # another process has removed it meanwhile
            yield Aged(file.relative_to(root).as_posix(), facts.st_size, facts.st_mtime)


def _changed(facts: Mapping[str, Any], name: str) -> float:
    for key in _NAMES:
        found = facts.get(key)
        if isinstance(found, datetime):
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(found, str):
            return datetime.fromisoformat(found.replace("Z", "+00:00")).timestamp()
        if isinstance(found, int | float):
            return float(found)
    raise StorageError(
        f"{name}: the storage gives no time of change, so its age cannot be told; "
        "clean up by its own rules"
    )
