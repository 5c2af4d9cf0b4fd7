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
from eqmodel.devices import computes_bfloat16, full_float32
from eqmodel.objective import Trunk
from eqmodel.preprocess import PreprocessSpec, preprocess
from eqmodel.protocols.draws import Labelled
from eqmodel.resume import TrainingState
from eqmodel.settings import (
    TrainConfig,
    architecture,
    as_recorded,
    first_rate,
    fitted_to,
    preprocess_spec,
)
from eqmodel.steps import Steps, adamw, batch_of, on_device
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


class CrossEntropy(nn.Module):
    """Images (B, C, S, S), classes (B,) -> the classifier's loss on a view of each image."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.jitter = model, JITTERS[model.config.views]

    def forward(self, images: Tensor, wanted: Tensor) -> Tensor:
        views = random_views(images, self.model.group.mirrored, self.jitter)
        return F.cross_entropy(self.model.last(self.model(views)), wanted)


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
            parts.append(F.normalize(self.hidden(inputs), dim=1).cpu().numpy())
        return np.concatenate(parts)

    def hidden(self, inputs: Tensor) -> Tensor:
        """Model inputs (B, C, S, S) -> the hidden layer (B, 128)."""
        with full_float32(self.config.device):
            found: Tensor = self.model(inputs.to(self.config.device))
        return found

    @torch.inference_mode()
    def accuracy(self, test: Labelled) -> float:
        """Share of the test images that the classifier itself names rightly."""
        right = 0
        for start in range(0, len(test), 256):
            inputs = preprocess(list(test.images[start : start + 256]), self.spec)
            logits = self.model.last(self.hidden(inputs))
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
    first = first_rate(config)
    optimiser = adamw(model, first, 1e-2)
    state = TrainingState.open(folder, model, optimiser, as_recorded(config) | {"labels": True})
    steps = Steps(CrossEntropy(model), optimiser)
    pixels, target = on_device(pixels, config.device), target.to(config.device)
    while state.share(config, 0.0, 0.0) < 1.0:
        began, seen = time.monotonic(), 0
        steps.objective.train()
        for batch in batches(torch.arange(len(pixels)), config.batch_size):
            share = state.share(config, seen / len(pixels), time.monotonic() - began)
            if share >= 1.0:
                break
            shown = batch_of(pixels, batch, config.device)
            wanted = target[batch.to(config.device)]
            steps.take(first * schedule(share), shown, wanted)
            seen += len(batch)
        loss = steps.mean_loss()
        state.finish_epoch(loss, time.monotonic() - began, config)
        if report is not None:
            share = min(state.share(config, 0.0, 0.0), 1.0)
            report(share, f"with labels, epoch {state.epoch}, loss {loss:.3f}")
    return Ceiling(model, spec, classes, round(state.elapsed_s, 1))
