"""Training without labels: reconstruction beside orbit consistency, then the fitted projection.

``train`` writes a checkpoint, loads the file it wrote, and deletes it when its invariance error on
held-out images is above 1e-5.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel import checkpoint
from eqmodel.actions import border_background
from eqmodel.autoencoder import Autoencoder
from eqmodel.embedder import BATCH
from eqmodel.finishing import FITTED_ON, finish, gate, provenance
from eqmodel.peers import Peers
from eqmodel.preprocess import PreprocessSpec, preprocess
from eqmodel.resume import TrainingState
from eqmodel.settings import (
    TrainConfig,
    as_recorded,
    first_rate,
    fitted_to,
    objective_of,
    preprocess_spec,
)
from eqmodel.steps import Steps, adamw, batch_of, on_device

Progress = Callable[["EpochReport"], None]


@dataclass(frozen=True)
class EpochReport:
    """What one epoch showed; ``held_out`` is the reconstruction error there (1 = the mean
    image).
    """

    epoch: int
    epochs: int
    share: float
    loss: float
    held_out: float
    images_per_s: float
    done: bool


def train(
    images: Sequence[NDArray[Any]],
    out: Path,
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    source: str = "",
    peers: Peers = Peers(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Train on images of any sizes and write a checkpoint to the folder ``out``; returns its card.

    With ``peers``, each process has images of its own; the leader writes, the others return {}.
    Images with a method ``room(shape)`` get their model input there (on disk, say), not in memory.
    Resumes by itself from ``out``.training when it was stopped. Raises Refused for images that do
    not fit, TrainingError when the finished model is not invariant to 1e-5 or not finite.
    """
    config = fitted_to(images, config, peers)
    torch.manual_seed(config.seed)
    spec = preprocess_spec(config)
    pixels = as_inputs(images, spec)
    if config.padded is None:
        config = replace(config, padded=bool(peers.agreed(fills_corners(pixels))))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(config.seed))
    held = min(max(int(len(pixels) * config.held_out), 8), 2000, len(pixels) // 2)
    held_out, train_on = order[:held], order[held:]
    state = Path(f"{out}.training")
    model, record = fit(pixels, train_on, held_out, config, state, progress, peers)
    count = round(peers.mean(len(train_on)) * peers.size)
    if not peers.leads:
        return {}
    unseen = [images[int(i)] for i in held_out[:64]]
    chosen = train_on[torch.randperm(len(train_on))[:FITTED_ON]]
    embedder_tensors, document = finish(model, spec, pixels[chosen], config, unseen)
    document["card"] = provenance(config, model, record, count, source)
    checkpoint.save(out, embedder_tensors, document)
    card = gate(out, [images[int(i)] for i in held_out[:500]], config.device)
    shutil.rmtree(f"{out}.training", ignore_errors=True)
    return card


def as_inputs(images: Sequence[NDArray[Any]], spec: PreprocessSpec) -> Tensor:
    """All images as one (N, C, S, S) float16 tensor: half the memory, 11 bits of each pixel."""
    shape = (len(images), spec.channels, spec.image_size, spec.image_size)
    room = getattr(images, "room", None)
    out: Tensor = torch.empty(shape, dtype=torch.float16) if room is None else room(shape)
    for start in range(0, len(images), 1024):
        out[start : start + 1024] = preprocess(images[start : start + 1024], spec)
    return out


OUTSIDE = 1e-3  # share of the squared contrast that may lie outside the inner circle, unpadded


def fills_corners(pixels: Tensor) -> bool:
    """Whether images (N, C, S, S) show more than their background outside their inner circle."""
    some = pixels[:: max(1, len(pixels) // 2000)].float()
    contrast = (some - border_background(some)).square()
    side = pixels.shape[-1]
    axis = torch.arange(side) - (side - 1) / 2.0
    outside = axis[:, None] ** 2 + axis[None, :] ** 2 > (side / 2.0) ** 2
    return float(contrast[..., outside].sum()) > OUTSIDE * float(contrast.sum())


def fit(
    pixels: Tensor,
    train_on: Tensor,
    held_out: Tensor,
    config: TrainConfig,
    folder: Path,
    progress: Progress | None,
    peers: Peers = Peers(),  # noqa: B008 - frozen
) -> tuple[Autoencoder, dict[str, Any]]:
    """Train until the epochs, the minutes or the patience run out; returns the model and its
    record.

    The state is saved in ``folder`` after every epoch and taken up again from there.
    """
    objective = objective_of(config).to(config.device)
    first = first_rate(config)
    optimiser = adamw(objective, first, 1e-3)
    state = TrainingState.open(folder, objective, optimiser, as_recorded(config))
    if not peers.leads:
        torch.manual_seed(config.seed + 1_000_003 * (state.epoch * peers.size + peers.rank))
    size = max(2, config.batch_size // peers.size)
    count = peers.fewest(count_batches(len(train_on), size))
    steps = Steps(peers.joined(objective), optimiser, graph=peers.size == 1)
    pixels = on_device(pixels, config.device)
    while state.epoch < config.epochs and not state.finished:
        began, seen = time.monotonic(), 0
        objective.train()
        for batch in islice(batches(train_on, size), count):
            done = state.share(config, seen / len(train_on), time.monotonic() - began)
            share = peers.agreed(done)
            if share >= 1.0:
                break
            images = batch_of(pixels, batch, config.device)
            steps.take(first * schedule(share), images)
            seen += len(batch)
        loss = peers.mean(steps.mean_loss())
        elapsed = peers.agreed(time.monotonic() - began)
        error = peers.mean(reconstruction_error(objective.model, pixels[held_out], config))
        state.finish_epoch(error, elapsed, config)
        if progress is not None:
            share = state.share(config, 0.0, 0.0)
            rate = seen * peers.size / max(elapsed, 1e-9)
            progress(
                EpochReport(
                    state.epoch,
                    config.epochs,
                    min(share, 1.0),
                    loss,
                    error,
                    rate,
                    state.finished or share >= 1.0,
                )
            )
        if state.share(config, 0.0, 0.0) >= 1.0:
            break
    record = {
        "epochs": state.epoch,
        "train_s": round(state.elapsed_s, 1),
        "reconstruction_error": state.history,
    }
    return objective.model.to("cpu"), record


def schedule(share: float) -> float:
    """Learning rate over the training: 5% of linear warm-up, then a half cosine."""
    return min(share / 0.05 + 0.02, 1.0) * 0.5 * (1.0 + float(np.cos(np.pi * share)))


def count_batches(count: int, size: int) -> int:
    """How many batches ``batches`` makes of so many indices."""
    return count // size + (2 * (count % size) >= min(size, count) and count % size > 0)


def batches(indices: Tensor, size: int) -> Iterator[Tensor]:
    """The indices in random order, in batches; a last batch of less than half the size is left
    out.
    """
    for part in indices[torch.randperm(len(indices))].split(size):
        if 2 * len(part) >= min(size, len(indices)):
            yield part


@torch.no_grad()
def reconstruction_error(model: Autoencoder, pixels: Tensor, config: TrainConfig) -> float:
    """Mean squared error on (N, C, S, S) divided by their variance."""
    model.eval()
    parts = [part.float().to(config.device) for part in pixels.split(BATCH)]
    squared = sum(float((model(x)[1] - x).square().sum()) for x in parts)
    return squared / pixels.numel() / max(float(pixels.float().var()), 1e-6)


__all__ = ["EpochReport", "TrainConfig", "train"]
