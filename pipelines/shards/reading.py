"""One reader for every kind of shard."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.shards.folder import read_folder
from pipelines.shards.parquet import read_parquet
from pipelines.shards.tar import read_tar
from pipelines.shards.types import Damage, ReadOptions, Sample, Shard
from pipelines.storage import Folder


def read_shard(
    folder: Folder,
    shard: Shard,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    *,
    only: frozenset[str] | None = None,
) -> Iterator[Sample | Damage]:
    """Every image of the shard with its key and label; a Damage last, and at most once.

    ``only``: of a folder, these keys alone. Raises ObjectChanged or ObjectMissing when the object
    is no longer the one listed, StorageError when it cannot be read to its end: neither is damage.
    """
    if shard.kind == "folder":
        return read_folder(folder, shard, options, only)
    reader = read_tar if shard.kind == "tar" else read_parquet
    return reader(folder, shard, options)
