"""A publication's files on this machine: fetched once, checked, fetched again when damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import ArtifactError
from pipelines.index import file_sha256
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
            self._fetch_one(files[name], place / name)
        os.utime(place)
        self._forget_old(place)
        return place

    def checkpoint_folder(self, model_id: str) -> Path:
        """Where a local copy of the store's checkpoint goes."""
        place = self.folder / "models" / model_id
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _fetch_one(self, file: PublishedFile, local: Path) -> None:
        if local.is_file() and file_sha256(local) == file.sha256:
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

    def _forget_old(self, current: Path) -> None:
        others = [path for path in current.parent.iterdir() if path.is_dir() and path != current]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[KEPT_PUBLICATIONS - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
