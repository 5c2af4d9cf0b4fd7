"""Several processes that train one model: torch.distributed, or this process alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Peers:
    """Process ``rank`` of ``size``, each with images of its own; gradients are averaged.

    With a size of 1 every method gives back what it was given. All processes have to call the same
    methods in the same order.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Peers:
        """The processes of torch.distributed's group, which has to be there already."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """True for the one that decides, finishes and writes."""
        return self.rank == 0

    def joined(self, module: nn.Module) -> nn.Module:
        """The module whose gradients, after ``backward``, are the mean over all processes."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, ids, find_unused_parameters=True)

    def agreed(self, value: float) -> float:
        """The leader's value, for all."""
        return self._over(value, lambda held: dist.broadcast(held, 0))

    def mean(self, value: float) -> float:
        """The mean of every process's value."""
        return self._over(value, lambda held: dist.all_reduce(held, dist.ReduceOp.SUM)) / self.size

    def fewest(self, count: int) -> int:
        """The smallest of every process's count."""
        return int(self._over(count, lambda held: dist.all_reduce(held, dist.ReduceOp.MIN)))

    def _over(self, value: float, exchange: Callable[[Tensor], object]) -> float:
        if self.size == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        held: Tensor = torch.tensor(float(value), dtype=torch.float64, device=device)
        exchange(held)
        return float(held)
