"""One object read from front to end, the next blocks on their way while this one is used."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipelines.errors import StorageError
from pipelines.etags import md5
from pipelines.retries import retried

BLOCK_BYTES = 8 << 20
BLOCKS_AHEAD = 8
"""So 64 MiB of an object are held in advance at most, and the block in use; most shards whole."""
Fetch = Callable[[int, int], bytes]


class SequentialReader(io.RawIOBase):
    """Exactly ``size`` bytes through ``fetch(offset, length)``: it ends nowhere else.

    ahead: fetch blocks over a network, eight of them in advance, and again where that may help.
    noticed: called whenever bytes have come. StorageError when bytes are missing in the end.
    """

    def __init__(
        self,
        fetch: Fetch,
        size: int,
        url: str,
        *,
        ahead: bool = False,
        noticed: Callable[[], None] | None = None,
    ) -> None:
        self._fetch, self._size, self._url, self._at = fetch, size, url, 0
        self._noticed = noticed
        self._threads = ThreadPoolExecutor(1) if ahead and size > BLOCK_BYTES else None
        self._networked = ahead
        self._block, self._used = b"", 0
        self._coming, self._asked = deque[Future[bytes]](), 0
        self._md5 = md5()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        want = min(len(buffer), self._size - self._at)
        if want <= 0:
            return 0
        data = self._from_block(want) if self._networked else self._fetch(self._at, want)
        if not data:
            raise StorageError(
                f"{self._url}: {self._size - self._at} of {self._size} bytes are missing; run again"
            )
        buffer[: len(data)] = data
        self._at += len(data)
        if self._noticed is not None:
            self._noticed()
        return len(data)

    def _from_block(self, want: int) -> bytes | memoryview:
        if self._used == len(self._block):
            self._block, self._used = self._next_block(), 0
        part = memoryview(self._block)[self._used : self._used + want]
        self._used += len(part)
        return part

    def _next_block(self) -> bytes:
        at = self._at
        coming = self._coming.popleft() if self._coming else None
        block = retried(lambda: self._taken(coming, at), self._url)
        self._md5.update(block)
        self._asked = max(self._asked, at + len(block))
        while self._threads and self._asked < self._size and len(self._coming) < BLOCKS_AHEAD:
            self._coming.append(self._threads.submit(self._whole, self._asked))
            self._asked += BLOCK_BYTES
        return block

    def _taken(self, coming: Future[bytes] | None, at: int) -> bytes:
        # What was fetched in advance is tried once; if that failed, here again, with patience.
        if coming is not None and coming.exception() is None:
            return coming.result()
        return self._whole(at)

    def _whole(self, at: int) -> bytes:
        want = min(BLOCK_BYTES, self._size - at)
        data = self._fetch(at, want)
        if len(data) != want:
            raise OSError(f"{len(data)} of {want} bytes came")
        return data

    def finished_md5(self) -> str:
        """MD5 of the whole object, fetched over a network; reads what was not read yet."""
        while self.read(BLOCK_BYTES):
            pass
        return str(self._md5.hexdigest())

    def close(self) -> None:
        if not self.closed and self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        super().close()
