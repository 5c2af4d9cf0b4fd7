"""The encoder through torch.compile: an option, for CPUs that have no machine code (machine.py).

Measured (tests/bench/RESULTS.md): it never pays beside machine code, which is twice as fast and
needs no seconds to start. Without that the octic encoder gains a half by it, the dense one, whose
time lies in convolutions that are packed anyway, nothing. What was compiled stays in torch's cache
on the machine, and the next start is shorter.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from eqmodel.errors import Refused
from eqmodel.frozen import FrozenConv

AT_ONCE = 128
"""Images of the one shape that is compiled; other batches are taken in pieces, the last one filled
up."""


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call on a CPU, None where none is found."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++"])), None)


class CompiledEncoder(nn.Module):
    """Images (B, C, S, S) float32 on a CPU -> codes (B, order, m), as the frozen encoder gives them
    but for rounding."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        for layer in frozen.modules():
            if isinstance(layer, FrozenConv):
                layer.packs = False  # the compiler packs filters itself
        self._encode: Any = torch.compile(frozen, dynamic=False, options={"freezing": True})

    def forward(self, x: Tensor) -> Tensor:
        parts = [self._piece(part) for part in x.split(AT_ONCE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _piece(self, part: Tensor) -> Tensor:
        missing = AT_ONCE - len(part)
        if missing:
            part = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
        found: Tensor = self._encode(part.contiguous())
        return found[: AT_ONCE - missing]


def compiled(frozen: nn.Module) -> nn.Module:
    """A frozen encoder, to be compiled at its first batch. Refused where no compiler is found."""
    if compiler() is None:
        raise Refused(
            "--compile needs a C++ compiler: g++ or clang++ on the path, or CXX; leave the flag out"
        )
    return CompiledEncoder(frozen)
