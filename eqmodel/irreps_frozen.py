"""Frozen encoders in the irreducible basis: a fifth of the multiplications for D4 (stages.py).

Images are the innermost axis, so that every step is on whole vectors. Equal to the convolutions but
for rounding, by test. CPU and float32 only; what is none, or too few images, takes the
convolutions.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from eqmodel.groups import FiniteGroup
from eqmodel.machine import lanes
from eqmodel.stages import PATCH_ROWS, Stage

LEAST_IMAGES = 16  # fewer take the convolutions: the stages always do as many as fit into vectors
MAX_DIFFERENCE = 1e-4  # of the largest code, between the two forms
_LOGGER = logging.getLogger(__name__)


class Room:
    """What one thread works in: images and inputs of all stages with their borders, the codes, and
    the rows at hand.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        first, last = stages[0], stages[-1]
        with torch.inference_mode(False):
            self.inputs = [torch.zeros(stage.values_in) for stage in stages]
            self.codes = torch.empty(last.order, last.out_fields, first.images)
            rows = max(stage.order for stage in stages) * PATCH_ROWS
            self.patches = torch.empty(rows, first.images)
            rows = max(stage.order * stage.padded for stage in stages)
            self.products = torch.empty(rows, first.images)
        frame = self.inputs[0].view(first.framed, first.framed, first.fields, first.images)
        inside = slice(first.pad, first.framed - first.pad)
        self.images = frame[inside, inside]


class InBlocks:
    """An encoder as stages that lead from one to the next: (B, C, S, S) -> (B, order, features).

    Safe from several threads; torch's number of threads share a batch.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        for stage, after in itertools.pairwise(stages):
            stage.leads_to(after.framed, after.pad)
        stages[-1].leads_to(1, 0)
        self._stages, self._rooms = stages, list[Room]()

    def __call__(self, x: Tensor) -> Tensor:
        parts, threads = x.split(self._stages[0].images), torch.get_num_threads()
        if threads == 1 or len(parts) == 1:
            return self._codes(parts)
        each = -(-len(parts) // threads)
        dealt = [parts[i : i + each] for i in range(0, len(parts), each)]
        return torch.cat(list(pool(threads, os.getpid()).map(self._codes, dealt)))

    def _codes(self, parts: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode(), self._room() as room:
            return torch.cat([self._codes_of(part, room) for part in parts])

    def _codes_of(self, x: Tensor, room: Room) -> Tensor:
        room.images[..., : len(x)].copy_(x.permute(2, 3, 1, 0))
        targets = [*room.inputs[1:], room.codes]
        for stage, source, target in zip(self._stages, room.inputs, targets, strict=True):
            stage.run(source, room.patches, room.products, target)
        return room.codes[..., : len(x)].permute(2, 0, 1).contiguous()

    @contextmanager
    def _room(self) -> Iterator[Room]:
        """Room for one thread, kept for the next that wants it."""
        try:
            room = self._rooms.pop()
        except IndexError:
            room = Room(self._stages)
        yield room
        self._rooms.append(room)


StagesOf = Callable[[Any, FiniteGroup, int], Sequence[Stage]]


class IrrepEncoder(nn.Module):
    """Images (B, C, S, S) float32 -> codes (B, order, features) float32, as ``base`` gives them but
    for rounding.

    ``base``: the frozen encoder of convolutions, which does what is not on a CPU, not float32, or
    fewer than LEAST_IMAGES, and everything where there is no machine code or it does not agree.
    """

    def __init__(self, base: nn.Module, of: FiniteGroup, stages_of: StagesOf) -> None:
        super().__init__()
        self.base, self.of, self.stages_of = base, of, stages_of
        self.in_blocks: InBlocks | None = None
        self._tried = False

    def forward(self, x: Tensor) -> Tensor:
        suits = x.device.type == "cpu" and x.dtype == torch.float32 and len(x) >= LEAST_IMAGES
        if suits and not torch.compiler.is_compiling():
            if not self._tried:
                self.in_blocks, self._tried = self._made(x), True
            if self.in_blocks is not None:
                return self.in_blocks(x)
        return self.base(x)  # type: ignore[no-any-return]

    def _made(self, x: Tensor) -> InBlocks | None:
        """The form in blocks, held against the convolutions on the first images that come."""
        if not lanes():
            return None
        made = InBlocks(self.stages_of(self.base, self.of, x.shape[-1]))
        first = x[:LEAST_IMAGES].nan_to_num(0.0, 0.0, 0.0)
        found, expected = made(first), self.base(first)
        if (found - expected).abs().max() <= MAX_DIFFERENCE * expected.abs().max():
            return made
        _LOGGER.warning("convolutions are used: the faster form differs on this processor")
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> IrrepEncoder:
        self.in_blocks, self._tried = None, False  # of another device or precision
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "in_blocks": None, "_tried": False}


def pays(of: FiniteGroup) -> bool:
    """Whether the group is large enough for the blocks to save more than the sums cost."""
    return of.n in (1, 2, 4) and of.order >= 4


@lru_cache(maxsize=4)
def pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of a process on which torch uses one core each; a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, "irreps", lambda: torch.set_num_threads(1))
