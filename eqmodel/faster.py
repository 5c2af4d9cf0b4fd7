"""Modules that have a faster form by machine code (machine.py), where it is of use and agrees."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eqmodel.machine import lanes

LEAST_IMAGES = 16  # fewer take the slower form: the faster one does as many as fit into vectors
MAX_DIFFERENCE = 1e-4  # of the largest value, between the two forms
Form = Callable[[Tensor], Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")
_LOGGER = logging.getLogger(__name__)


class Faster(nn.Module):
    """What ``base`` gives but for rounding, for a batch of at least LEAST_IMAGES in float32 on a
    CPU by a form of its own, which is made when the first comes.

    ``base`` does what is not such a batch, and everything where there is no machine code or it
    does not agree.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.form: Form | None = None
        self._tried = False

    def made(self, x: Tensor) -> Form:
        """The faster form for inputs like x."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        suits = x.device.type == "cpu" and x.dtype == torch.float32 and len(x) >= LEAST_IMAGES
        if suits and not torch.compiler.is_compiling():
            if not self._tried:
                self.form, self._tried = self._agreeing(x), True
            if self.form is not None:
                return self.form(x)
        return self.base(x)  # type: ignore[no-any-return]

    def _agreeing(self, x: Tensor) -> Form | None:
        """The form made, held against ``base`` on the first images that come."""
        if not lanes():
            return None
        made = self.made(x)
        first = x[:LEAST_IMAGES].nan_to_num(0.0, 0.0, 0.0)
        found, expected = made(first), self.base(first)
        if (found - expected).abs().max() <= MAX_DIFFERENCE * expected.abs().max():
            return made
        _LOGGER.warning(
            "%s runs in its slower form: the faster one differs on this processor",
            type(self.base).__name__,
        )
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> Faster:
        self.form, self._tried = None, False  # of another device or precision
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "form": None, "_tried": False}


def shared_out(run: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
    """What ``run`` gives for the items, in order, in as many runs as torch has threads."""
    threads = torch.get_num_threads()
    if threads == 1 or len(items) == 1:
        return [run(items)]
    each = -(-len(items) // threads)
    dealt = [items[i : i + each] for i in range(0, len(items), each)]
    return list(_pool(threads, os.getpid()).map(run, dealt))


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of a process on which torch uses one core each; a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, "faster", lambda: torch.set_num_threads(1))
