"""Queries that arrive while the encoder is at work go through it together, next."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from eqmodel import Embedder

Encoded = tuple[NDArray[np.float32], NDArray[np.int8]]


@dataclass(frozen=True)
class _Waiting:
    embedder: Embedder
    prepared: torch.Tensor
    answer: asyncio.Future[Encoded]


class Batcher:
    """One encoder at work at a time. Nobody waits for a batch to fill: a lone query goes at once,
    and what comes meanwhile is the next batch."""

    def __init__(self, max_batch: int = 32) -> None:
        self.max_batch = max_batch
        self.num_batches = self.num_images = 0
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "encode")
        self._task: asyncio.Task[None] | None = None

    async def encode(self, embedder: Embedder, prepared: torch.Tensor) -> Encoded:
        """Preprocessed (1, C, S, S) -> embedding (d,) float32 and pose code (p,) int8."""
        future: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(embedder, prepared, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            try:
                vectors, codes = await loop.run_in_executor(self._thread, _encode, batch)
            except Exception as error:  # told to everyone who waits for this batch
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            self.num_batches, self.num_images = self.num_batches + 1, self.num_images + len(batch)
            for one, vector, code in zip(batch, vectors, codes, strict=True):
                if not one.answer.done():
                    one.answer.set_result((vector, code))

    def _next_batch(self) -> list[_Waiting]:
        """The first that wait for the same model; those who hung up are dropped."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self.max_batch:
            one = self._waiting[0]
            if batch and one.embedder is not batch[0].embedder:
                break
            self._waiting.popleft()
            if not one.answer.done() or not batch:
                batch.append(one)
        return batch


def _encode(batch: list[_Waiting]) -> tuple[NDArray[Any], NDArray[Any]]:
    import torch

    return batch[0].embedder.encode(torch.cat([one.prepared for one in batch]))
