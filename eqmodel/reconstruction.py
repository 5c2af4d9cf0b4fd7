"""What the decoder draws from the codes of given images: how much of them the model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqmodel.embedder import BATCH, Embedder


@dataclass(frozen=True)
class Reconstruction:
    """``inputs`` and ``drawn`` (B, C, S, S) float32; ``errors`` (B,): each image's mean squared
    error, in units of the variance over all of them; ``error``: their mean, as in training."""

    inputs: NDArray[np.float32]
    drawn: NDArray[np.float32]
    errors: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Mean squared error divided by the variance of the pixels."""
        return float(self.errors.mean()) if len(self.errors) else 0.0


@torch.inference_mode()
def reconstruct(embedder: Embedder, images: Sequence[NDArray[Any]]) -> Reconstruction:
    """Encode decoded images of any sizes and draw them again. Raises ChannelError."""
    inputs = embedder.preprocess(images)
    parts = [embedder.model(part.to(embedder.device))[1].cpu() for part in inputs.split(BATCH)]
    drawn = torch.cat(parts) if parts else torch.empty_like(inputs)
    squared = (drawn - inputs).double().square().flatten(1).mean(1)
    # One flat image has no variance of its own; the floor is training's.
    variance = max(float(inputs.double().var()) if inputs.numel() > 1 else 0.0, 1e-6)
    return Reconstruction(inputs.numpy(), drawn.numpy(), squared.numpy() / variance)
