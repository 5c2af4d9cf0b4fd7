"""Hash buckets of a folder's images: each image is its own object."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipelines.shards.types import Item, ReadOptions, Sample, Shard, UniqueKeys, over_the_cap
from pipelines.storage import Folder

PARALLEL_READS = 16  # over a network; each is a request of its own
AHEAD_BYTES = 64 << 20


def read_folder(
    folder: Folder, shard: Shard, options: ReadOptions, only: frozenset[str] | None
) -> Iterator[Sample]:
    """The bucket's images (those of ``only``), in order; label = the folder an image lies in.

    Raises ObjectChanged or ObjectMissing when one is no longer what was listed.
    """
    unique = UniqueKeys()
    named = [(unique(item.key), item) for item in shard.items]
    chosen = [pair for pair in named if only is None or pair[0] in only or pair[1].key in only]
    items = [item for _, item in chosen]
    for (key, item), data in zip(chosen, _contents(folder, items, options), strict=True):
        label = item.key.rpartition("/")[0].rpartition("/")[2] or None
        error = over_the_cap(item.size, options)
        if error is None:
            yield Sample(key, data, label, 0, len(data), item.etag)
        else:
            yield Sample(key, b"", label, item_etag=item.etag, error=error)


def _contents(folder: Folder, items: Sequence[Item], options: ReadOptions) -> Iterator[bytes]:
    """Each item's bytes, b"" for one over the cap; over a network several are fetched at once."""

    def fetch(item: Item) -> bytes:
        if over_the_cap(item.size, options) is not None:
            return b""
        return folder.read(item.key, etag=item.etag)

    if folder.is_local:
        yield from map(fetch, items)
        return
    threads = ThreadPoolExecutor(PARALLEL_READS)
    coming: deque[tuple[Item, Future[bytes]]] = deque()
    ahead = 0
    try:
        for item in items:
            while coming and (ahead + item.size > AHEAD_BYTES or len(coming) > 2 * PARALLEL_READS):
                first, future = coming.popleft()
                ahead -= first.size
                yield future.result()
            coming.append((item, threads.submit(fetch, item)))
            ahead += item.size
        for _, future in coming:
            yield future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
