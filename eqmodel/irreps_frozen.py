"""Frozen encoders in the irreducible basis: a fifth of the multiplications for D4 (stages.py).

Images are the innermost axis, so that every step is on whole vectors. Equal to the convolutions but
for rounding, by test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eqmodel.faster import Faster, shared_out
from eqmodel.groups import FiniteGroup
from eqmodel.stages import PATCH_ROWS, Stage


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
        return torch.cat(shared_out(self._codes, x.split(self._stages[0].images)))

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


class IrrepEncoder(Faster):
    """Images (B, C, S, S) float32 -> codes (B, order, features) float32, as ``base`` gives them but
    for rounding: the frozen encoder of convolutions.
    """

    def __init__(self, base: nn.Module, of: FiniteGroup, stages_of: StagesOf) -> None:
        super().__init__(base)
        self.of, self.stages_of = of, stages_of

    def made(self, x: Tensor) -> InBlocks:
        return InBlocks(self.stages_of(self.base, self.of, x.shape[-1]))


def pays(of: FiniteGroup) -> bool:
    """Whether the group is large enough for the blocks to save more than the sums cost."""
    return of.n in (1, 2, 4) and of.order >= 4
