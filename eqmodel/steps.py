"""Steps of gradient descent, as fast as the device takes them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqmodel.errors import TrainingError

CHECKED_EVERY = 50  # steps: looking at a loss makes the host wait for the GPU
LARGEST_GRADIENT = 5.0  # norm of the gradient, which is cut to it
SHARE_OF_MEMORY = 0.25  # of a GPU's free memory that the images may take


def adamw(module: nn.Module, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW, on a GPU in one kernel."""
    on_gpu = next(module.parameters()).is_cuda
    return torch.optim.AdamW(
        module.parameters(), lr=rate, weight_decay=decay, fused=True if on_gpu else None
    )


class Steps:
    """Steps on a module that maps a batch to its loss, in training mode.

    On a GPU with ``graph``, forward and backward of full batches run as one CUDA graph: a step of
    these small networks is some 500 kernels of a few microseconds each, which the host cannot
    launch that fast.
    """

    def __init__(
        self, objective: nn.Module, optimiser: torch.optim.Optimizer, *, graph: bool = True
    ) -> None:
        self.objective, self.optimiser = objective, optimiser
        self.graph = graph and next(objective.parameters()).is_cuda
        self.graphed: Callable[..., Tensor] | None = None
        self.shapes: list[torch.Size] = []
        self.total: Tensor | None = None
        self.seen = self.taken = 0

    def take(self, rate: float, *batch: Tensor) -> None:
        """One step at a learning rate. Raises TrainingError when a loss is not finite, which may
        be found some steps later.
        """
        for settings in self.optimiser.param_groups:
            settings["lr"] = rate
        loss = self.loss_of(*batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()
        summed = loss.detach().double() * len(batch[0])
        self.total = summed if self.total is None else self.total + summed
        self.seen += len(batch[0])
        self.taken += 1
        if self.taken % CHECKED_EVERY == 0:
            self.checked()

    def loss_of(self, *batch: Tensor) -> Tensor:
        """The loss of a batch."""
        if self.graph and self.graphed is None:
            self.capture(*batch)
        shapes = [tensor.shape for tensor in batch]
        if self.graphed is not None and shapes == self.shapes:
            return self.graphed(*batch)
        loss: Tensor = self.objective(*batch)
        return loss

    def capture(self, *batch: Tensor) -> None:
        """Record forward and backward for batches of these shapes."""
        samples = tuple(tensor.clone() for tensor in batch)
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # as graphs do
        eager = self.objective.forward
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            torch.cuda.make_graphed_callables(self.objective, samples, allow_unused_input=True)
        self.graphed = self.objective.forward
        self.objective.forward = eager
        self.shapes = [tensor.shape for tensor in batch]

    def checked(self) -> float:
        """The sum of all losses since ``mean_loss``. Raises TrainingError when it is not finite."""
        total = 0.0 if self.total is None else float(self.total)
        if not math.isfinite(total):
            raise TrainingError(
                "the loss is not a finite number; train with a smaller --learning-rate"
            )
        return total

    def mean_loss(self) -> float:
        """The mean loss per image since the last call."""
        mean = self.checked() / max(self.seen, 1)
        self.total, self.seen = None, 0
        return mean


def on_device(pixels: Tensor, device: str) -> Tensor:
    """The images where batches are drawn from: on the GPU, when they fit in a quarter of its free
    memory.
    """
    if torch.device(device).type != "cuda":
        return pixels
    room = torch.cuda.mem_get_info(device)[0] * SHARE_OF_MEMORY
    return pixels.to(device) if pixels.numel() * pixels.element_size() <= room else pixels


def batch_of(images: Tensor, indices: Tensor, device: str) -> Tensor:
    """Those of the images, float32, on the device that trains."""
    return images[indices.to(images.device)].to(device).float()
