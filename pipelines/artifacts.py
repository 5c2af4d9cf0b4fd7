"""A publication's files on this machine: fetched once, checked, fetched again when damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.errors import ArtifactError
from pipelines.index import file_sha256, files_sha256, known_sha256
from pipelines.storage import Folder
from pipelines.table import PublicationRow, PublishedFile

KEPT_PUBLICATIONS = 3


def cache_root(cache: str | os.PathLike[str] | None = None) -> Path:
    """``cache``, or ``$XDG_CACHE_HOME/orbit``, or ``~/.cache/orbit``."""
    if cache is not None:
        return Path(cache)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "orbit"


class ArtifactCache:
    """Local copies of one store's artifacts and checkpoints.

    Every file is compared with the digest of its publication before it is used; one that differs
    is fetched again, and ArtifactError is raised when the store's own copy differs too.
    """

    def __init__(self, store: Folder, cache: str | os.PathLike[str] | None = None) -> None:
        name = hashlib.blake2b(store.url.encode(), digest_size=8).hexdigest()
        self.store = store
        self.folder = cache_root(cache) / name

    def fetch(self, row: PublicationRow, names: Iterable[str]) -> Path:
        """The local folder with the named artifacts of a publication, whole and checked."""
        place = self.folder / "publications" / row.id
        place.mkdir(parents=True, exist_ok=True)
        files = {file.path.rpartition("/")[2]: file for file in row.files}
        for name in names:
            if name not in files:
                raise ArtifactError(
                    f"publication {row.id} has no {name}; publish again with 'orbit index'"
                )
            shared = files[name].path.split("/")[-2] != row.id
            self._fetch_one(files[name], place / name, shared)
        os.utime(place)
        self._forget_old(place)
        return place

    def checkpoint_folder(self, model_id: str) -> Path:
        """Where a local copy of the store's checkpoint goes."""
        place = self.folder / "models" / model_id
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _fetch_one(self, file: PublishedFile, local: Path, shared: bool) -> None:
        if local.is_file() and known_sha256(local) == file.sha256:
            return
        if shared and self._link_other(file, local):
            return
        handle, temporary = tempfile.mkstemp(dir=local.parent, prefix=f".{local.name}.")
        os.close(handle)
        try:
            self.store.download(file.path, Path(temporary))
            found = file_sha256(Path(temporary))
            if found != file.sha256:
                raise ArtifactError(
                    f"{self.store.url}/{file.path} has sha256 {found[:12]}, {file.sha256[:12]} "
                    "was published; publish again with 'orbit index'"
                )
            os.replace(temporary, local)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _link_other(self, file: PublishedFile, local: Path) -> bool:
        """Take a file that several publications name from the copy of another one."""
        for other in local.parent.parent.glob(f"*/{local.name}"):
            with contextlib.suppress(OSError):
                if other.stat().st_size == file.size and known_sha256(other) == file.sha256:
                    local.unlink(missing_ok=True)
                    os.link(other, local)
                    return True
        return False

    def _forget_old(self, current: Path) -> None:
        others = [path for path in current.parent.iterdir() if path.is_dir() and path != current]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[KEPT_PUBLICATIONS - 1 :]:
            shutil.rmtree(old, ignore_errors=True)


def fetch_checked(store: Folder, row: PublicationRow, names: Sequence[str], place: Path) -> Path:
    """The named artifacts of a publication for one who builds on them: a folder of whole, checked
    files. Those of a local store are linked into ``place``, others lie in the cache.

    ArtifactError when one is missing or altered.
    """
    if not store.is_local:
        return ArtifactCache(store).fetch(row, names)
    files = {file.path.rpartition("/")[2]: file for file in row.files}
    origins = {name: Path(store.url, files[name].path) for name in names if name in files}
    for name in names:
        if name not in origins or not origins[name].is_file():
            raise ArtifactError(f"{name} of publication {row.id} is gone or altered")
    for (name, origin), found in zip(
        origins.items(), files_sha256(list(origins.values())), strict=True
    ):
        if found != files[name].sha256:
            raise ArtifactError(f"{name} of publication {row.id} is gone or altered")
        if not (place / name).exists():
            (place / name).symlink_to(origin)
    return place
