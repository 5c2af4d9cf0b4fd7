"""The supervised ceiling: the same encoder and readout trained WITH labels, for comparison only.

Cross-entropy on the invariant readout under the same random views. What it leaves is a training
state that no Embedder loads: nothing here can become a checkpoint of the product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from eqmodel.autoencoder import Autoencoder
from eqmodel.devices import computes_bfloat16
from eqmodel.objective import Trunk
from eqmodel.preprocess import PreprocessSpec, preprocess
from eqmodel.protocols.draws import Labelled
from eqmodel.resume import TrainingState
from eqmodel.settings import (
    TrainConfig,
    architecture,
    as_recorded,
    fitted_to,
    preprocess_spec,
)
from eqmodel.training import as_inputs, batches, schedule
from eqmodel.views import JITTERS, random_views

HIDDEN = 128
Report = Callable[[float, str], None]


class Classifier(nn.Module):
    """Images (B, C, S, S) -> hidden layer (B, 128), the ceiling's embedding; ``last`` -> logits."""

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        readout = "gram" if config.readout == "attention" else config.readout
        self.trunk = Trunk(Autoencoder(architecture(replace(config, readout=readout))))
        self.group, self.read = self.trunk.group, self.trunk.read()
        with torch.no_grad():
            wide = self.read(torch.zeros(1, self.group.order, config.features)).shape[1]
        self.norm = nn.BatchNorm1d(wide, affine=False)
        self.hidden = nn.Linear(wide, HIDDEN)
        self.last = nn.Linear(HIDDEN, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        reduced = self.config.bfloat16 and self.training and computes_bfloat16(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
            codes = self.trunk.encode(images)
        features = self.read(codes.float())
        return F.relu(self.hidden(self.norm(features / torch.sqrt(features.abs() + 1e-3))))


class Ceiling:
    """A trained classifier in use."""

    def __init__(
        self, model: Classifier, spec: PreprocessSpec, classes: NDArray[np.int64], train_s: float
    ) -> None:
        self.model, self.spec, self.classes, self.train_s = model.eval(), spec, classes, train_s
        self.config = model.config

    @torch.inference_mode()
    def embed(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Images (N, H, W) uint8 or float32 -> (N, 128) float32, L2-normalised."""
        parts = []
        for start in range(0, len(images), 256):
            inputs = preprocess(list(images[start : start + 256]), self.spec)
            hidden = self.model(inputs.to(self.config.device)).float()
            parts.append(F.normalize(hidden, dim=1).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def accuracy(self, test: Labelled) -> float:
        """Share of the test images that the classifier itself names rightly."""
        right = 0
        for start in range(0, len(test), 256):
            inputs = preprocess(list(test.images[start : start + 256]), self.spec)
            logits = self.model.last(self.model(inputs.to(self.config.device)))
            found = self.classes[logits.argmax(1).cpu().numpy()]
            right += int((found == test.labels[start : start + 256]).sum())
        return right / len(test)


def train_with_labels(
    train: Labelled, config: TrainConfig, folder: Path, report: Report | None = None
) -> Ceiling:
    """Train the ceiling; its state is kept in ``folder`` and taken up again from there."""
    images = list(train.images)
    config = replace(fitted_to(images, config), patience=10**6)
    torch.manual_seed(config.seed)
    spec = preprocess_spec(config)
    pixels = as_inputs(images, spec)
    classes, y = np.unique(train.labels, return_inverse=True)
    target = torch.from_numpy(y)
    model = Classifier(config, len(classes)).to(config.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    state = TrainingState.open(folder, model, optimiser, as_recorded(config) | {"labels": True})
    while state.share(config, 0.0, 0.0) < 1.0:
        began, loss, seen = time.monotonic(), 0.0, 0
        model.train()
        for batch in batches(torch.arange(len(pixels)), config.batch_size):
            share = state.share(config, seen / len(pixels), time.monotonic() - began)
            if share >= 1.0:
                break
            for settings in optimiser.param_groups:
                settings["lr"] = config.learning_rate * schedule(share)
            x, wanted = pixels[batch].float().to(config.device), target[batch].to(config.device)
            loss += len(batch) * step(model, optimiser, x, wanted)
            seen += len(batch)
        state.finish_epoch(loss / max(seen, 1), time.monotonic() - began, config)
        if report is not None:
            share = min(state.share(config, 0.0, 0.0), 1.0)
            report(share, f"with labels, epoch {state.epoch}, loss {loss / max(seen, 1):.3f}")
    return Ceiling(model, spec, classes, round(state.elapsed_s, 1))


def step(
    model: Classifier, optimiser: torch.optim.Optimizer, images: Tensor, wanted: Tensor
) -> float:
    """One step of gradient descent on the cross-entropy; returns it."""
    views = random_views(images, model.group.mirrored, JITTERS[model.config.views])
    loss = F.cross_entropy(model.last(model(views)), wanted)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimiser.step()
    return float(loss.detach())
