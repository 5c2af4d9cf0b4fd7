"""INPUT -> shards. Tar and Parquet objects are shards; single images go to hash buckets."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from pipelines.errors import InputMissing
from pipelines.shards.types import Item, Shard, is_image
from pipelines.storage import Entry, Folder

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the last three: damaged
PARQUET = (".parquet", ".pq")
FOREIGN = frozenset(["__MACOSX", "_delta_log", "_temporary", "_spark_metadata", "@eaDir"])


def list_shards(folder: Folder, *, buckets: int = 1024) -> list[Shard]:
    """Every shard under INPUT, by source. [] when it is there and holds none.

    INPUT may also be one object. Names with a part that begins with a dot, and what other programs
    keep for themselves (``_delta_log``, ``__MACOSX`` and the like), are left out. Raises
    InputMissing when there is nothing at that URL, StorageError when it cannot be listed.
    """
    entries = folder.entries()
    if not entries:
        single = folder.stat()
        if single is not None:
            return _shards(
                [Entry(folder.url.rpartition("/")[2], single.size, single.etag)], buckets
            )
        if not folder.exists():
            raise InputMissing(
                f"INPUT {folder.url} is not there; check the path or the bucket's name"
            )
    return _shards(entries, buckets)


def input_folder(url: str) -> Folder:
    """The folder to which sources are relative: INPUT itself, or the parent of a single object."""
    folder = Folder(url)
    name = folder.url.rpartition("/")[2]
    single = name.endswith((*TAR, *PARQUET)) or is_image(name)
    if single and folder.stat() is not None:
        return Folder(folder.url.rpartition("/")[0])
    return folder


def _shards(entries: list[Entry], buckets: int) -> list[Shard]:
    shards, images = [], []
    for entry in entries:
        name = entry.path.lower()
        if any(part.startswith(".") or part in FOREIGN for part in entry.path.split("/")):
            continue
        if name.endswith(TAR):
            shards.append(Shard(entry.path, entry.etag, entry.size, "tar"))
        elif name.endswith(PARQUET):
            shards.append(Shard(entry.path, entry.etag, entry.size, "parquet"))
        elif is_image(name):
            images.append(entry)
    return sorted([*shards, *_buckets(images, buckets)], key=lambda shard: shard.source)


def _buckets(images: list[Entry], buckets: int) -> list[Shard]:
    members: defaultdict[int, list[Item]] = defaultdict(list)
    for entry in images:
        members[bucket_of(entry.path, buckets)].append(Item(entry.path, entry.etag, entry.size))
    shards = []
    for number, items in sorted(members.items()):
        digest = hashlib.blake2b(digest_size=16)
        for item in items:
            digest.update(f"{item.key}\0{item.etag}\0".encode())
        size = sum(item.size for item in items)
        source = f"folder/{number:05d}-of-{buckets:05d}"
        shards.append(Shard(source, digest.hexdigest(), size, "folder", tuple(items)))
    return shards


def bucket_of(key: str, buckets: int) -> int:
    """The hash bucket of an image by its path; the same for ever."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % buckets
