"""From a query to its neighbours: decode, preprocess, encode in a batch, search."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.decode import Caps, decode
from pipelines.errors import Rejected
from pipelines.pictures import from_pixels
from pipelines.search import ANY, Hit, Only
from pipelines.server.batcher import Batcher, Encoded
from pipelines.server.bodies import Declined, Query
from pipelines.server.live import View
from pipelines.server.metrics import Metrics
from pipelines.server.settings import Limits
from pipelines.turning import Look, look_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Wish:
    """How to answer: how many neighbours, with their turn or not, and which pass."""

    k: int = 10
    align: bool = False
    only: Only = ANY
    min_score: float | None = None


class Asking:
    """Answers queries, so many at once; one more is told to come back."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.num_asked = limits, 0
        self.batcher = Batcher()
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "query")

    async def neighbours(self, view: View, query: Query, wish: Wish) -> list[Hit]:
        """The neighbours of one query, all from one publication.

        Declined: 413, 415 or 400 for what is no image, 429 when the queue is full.
        KeyNotFoundError, ChannelError.
        """
        async with self._place():
            start = time.perf_counter()
            loop = asyncio.get_running_loop()
            (vector, code), look = await self._encoded(view, query, wish.align)
            hits = await loop.run_in_executor(
                self._threads,
                view.neighbours,
                vector,
                code if wish.align else None,
                wish.k,
                wish.only,
                wish.min_score,
                look if wish.align else None,
            )
            self._metrics.search(time.perf_counter() - start)
            return hits

    def close(self) -> None:
        """Let the threads go."""
        self.batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _encoded(self, view: View, query: Query, align: bool) -> tuple[Encoded, Look | None]:
        loop = asyncio.get_running_loop()
        if query.image is None:
            return await loop.run_in_executor(self._threads, _stored, view, query, align)
        prepared, look = await loop.run_in_executor(
            self._threads, self._prepare, view, query.image, align
        )
        return await self.batcher.encode(view.searcher.embedder, prepared), look

    def _prepare(self, view: View, image: bytes, align: bool) -> tuple[torch.Tensor, Look | None]:
        """Encoded bytes -> (1, C, S, S) and how they look; the pixels are let go at once."""
        try:
            pixels = decode(image, Caps(max_pixels=self.limits.pixels))
        except Rejected as error:
            raise Declined(_status(str(error)), f"the image cannot be read: {error}") from error
        embedder = view.searcher.embedder
        embedder.accepts(pixels)
        look = look_of(from_pixels(pixels)) if align else None
        return embedder.preprocess([pixels]), look

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self.num_asked >= self.limits.queue:
            raise Declined(429, f"{self.num_asked} searches are waiting; try again in a second")
        self.num_asked += 1
        try:
            yield
        finally:
            self.num_asked -= 1


def _stored(view: View, query: Query, align: bool) -> tuple[Encoded, Look | None]:
    if query.key is not None:
        row = view.searcher.row_of_key(query.key)
    else:
        row = view.row_of_id(query.image_id or "")
    return view.stored(row), view.look(row) if align else None


def _status(reason: str) -> int:
    if "over the cap" in reason:
        return 413
    return 415 if reason.startswith("not an image") else 400
