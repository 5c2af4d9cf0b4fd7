"""``orbit publish``: an older publication becomes live again, by one more row in the log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import scratch
from pipelines.errors import ArtifactError, NotPublishedError
from pipelines.index import file_sha256
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationLog, PublicationRow

if TYPE_CHECKING:
    from pipelines.batch import Progress


def restore(store: Folder, publication_id: str, progress: Progress) -> PublicationRow:
    """Make the publication live; the live row comes back when it is that one already.

    NotPublishedError in a store without publications, KeyNotFoundError for an unknown one,
    ArtifactError when an artifact or a file of its table version is gone or altered.
    """
    log = PublicationLog.open(store)
    rows = [] if log is None else log.rows()
    if log is None or not rows:
        raise NotPublishedError(
            f"{store.url} holds no publication; make one with 'orbit index {store.url}'"
        )
    found = [row for row in rows if row.id == publication_id]
    if rows[-1].id == publication_id:
        return rows[-1]
    if found:
        check_artifacts(store, found[-1], progress)
        check_table(store, found[-1])
    row = log.restore(publication_id)  # KeyNotFoundError when there is none
    pages = [file.path for file in row.files if file.path.endswith("/report.html")]
    for page in pages[:1]:
        store.write("report.html", store.read(page))
    return row


def check_artifacts(store: Folder, row: PublicationRow, progress: Progress) -> None:
    """ArtifactError unless every artifact is there with the size and digest published."""
    with scratch.folder() as place:
        local = Path(place, "artifact")
        for number, file in enumerate(row.files, 1):
            progress("checking", number, len(row.files), "artifacts")
            entry = store.stat(file.path)
            if entry is None or entry.size != file.size:
                state = "gone" if entry is None else f"{entry.size} bytes, {file.size} published"
                raise _refusal(store, file.path, state)
            store.download(file.path, local)
            if file_sha256(local) != file.sha256:
                raise _refusal(store, file.path, "altered: not the digest that was published")


def check_table(store: Folder, row: PublicationRow) -> None:
    """ArtifactError unless every file of the publication's table version is there."""
    table = EmbeddingTable.open(store, row.model_id, row.table_version)
    if table is None:
        raise _refusal(store, f"embeddings/{row.model_id}", "gone")
    there = {entry.path: entry.size for entry in table.folder.entries()}
    for file in table.known().values():
        if there.get(file.path) != file.size:
            raise _refusal(store, f"embeddings/{row.model_id}/{file.path}", "gone or altered")


def _refusal(store: Folder, path: str, state: str) -> ArtifactError:
    return ArtifactError(
        f"{store.url}/{path} is {state}; the live publication stays: choose another one, or "
        "publish again with 'orbit index --force'"
    )
