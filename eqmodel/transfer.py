"""Batches on their way to the device that encodes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


def parts_on(device: str, batch: Tensor, count: int) -> Iterator[Tensor]:
    """(B, ...) -> its parts of ``count`` at most, on the device, in order.

    To a GPU each goes by way of one of two pinned buffers and on a stream of its own, and the next
    one is under way while its predecessor is used: the copy costs nothing where it is the
    quicker of the two. Elsewhere they are views of the batch.
    """
    parts = batch.split(count)
    if torch.device(device).type != "cuda" or batch.is_cuda:
        for part in parts:
            yield part.to(device)
        return
    copies = _Copies(device, batch, min(count, len(batch)))
    coming = deque[tuple[Tensor, torch.cuda.Event]]()
    for part in parts:
        coming.append(copies.started(part))
        if len(coming) == 2:
            yield copies.arrived(*coming.popleft())
    yield from (copies.arrived(*copy) for copy in coming)


class _Copies:
    """Two pinned buffers that take turns, and the stream that empties them."""

    def __init__(self, device: str, batch: Tensor, count: int) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)
        shape = (count, *batch.shape[1:])
        self._free = [
            (torch.empty(shape, dtype=batch.dtype, pin_memory=True), torch.cuda.Event())
            for _ in range(2)
        ]

    def started(self, part: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """The part on the device, once the event has come to pass."""
        buffer, emptied = self._free.pop(0)
        emptied.synchronize()  # at once where it was never recorded
        buffer[: len(part)].copy_(part)
        with torch.cuda.stream(self._stream):
            there = buffer[: len(part)].to(self._device, non_blocking=True)
            emptied.record(self._stream)
        self._free.append((buffer, emptied))
        return there, emptied

    def arrived(self, there: Tensor, copied: torch.cuda.Event) -> Tensor:
        """The same, to be used by what is launched from now on."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        there.record_stream(current)
        return there
