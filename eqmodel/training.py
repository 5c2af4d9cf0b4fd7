"""Training without labels: reconstruction beside orbit consistency, then the fitted projection.

``train`` writes a checkpoint, loads the file it wrote, and deletes it when its invariance error on
held-out images is above 1e-5.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel import checkpoint
from eqmodel.auditing import audit
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig, fitting_size, parameters, sides
from eqmodel.embedder import BATCH, POSE_FEATURES, Embedder, describe
from eqmodel.errors import Refused, TrainingError
from eqmodel.losses import OrbitConsistency, entropy, reconstruction
from eqmodel.peers import Peers
from eqmodel.preprocess import PreprocessSpec, channels_of, preprocess
from eqmodel.projection import fit_projection
from eqmodel.readouts import readout
from eqmodel.resume import TrainingState
from eqmodel.views import random_turns, random_views

MAX_INVARIANCE_ERROR = 1e-5
PROJECTION_IMAGES = 6000
Progress = Callable[["EpochReport"], None]


@dataclass(frozen=True)
class TrainConfig:
    """What a training uses. ``image_size`` and ``channels`` None: taken from the images."""

    group: str = "d4"
    readout: str = "gram"
    image_size: int | None = None
    channels: int | None = None
    width: int = 6
    features: int = 32
    dim: int = 128
    fit: str = "resize"
    background: float | str = "border"
    scaling: Any = "dtype"
    epochs: int = 10
    max_minutes: float | None = None
    batch_size: int = 256
    learning_rate: float = 2e-3
    consistency: float = 1.0
    reconstruction: float = 0.5
    patience: int = 3
    held_out: float = 0.02
    power: float = 0.25
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = False
    name: str | None = None
    description: str = ""
    recommended: bool = False


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
    config = agreed(fitted_to(images, config), peers)
    torch.manual_seed(config.seed)
    spec = preprocess_spec(config)
    pixels = as_inputs(images, spec)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(config.seed))
    held = min(max(int(len(pixels) * config.held_out), 8), 2000, len(pixels) // 2)
    held_out, train_on = order[:held], order[held:]
    state = Path(f"{out}.training")
    model, record = fit(pixels, train_on, held_out, config, state, progress, peers)
    count = round(peers.mean(len(train_on)) * peers.size)
    if not peers.leads:
        return {}
    golden = [images[int(i)] for i in held_out[:8]]
    chosen = train_on[torch.randperm(len(train_on))[:PROJECTION_IMAGES]]
    embedder_tensors, document = finish(model, spec, pixels[chosen], config, golden)
    document["card"] = provenance(config, model, record, count, source)
    checkpoint.save(out, embedder_tensors, document)
    card = gate(out, [images[int(i)] for i in held_out[:500]])
    shutil.rmtree(f"{out}.training", ignore_errors=True)
    return card


def fitted_to(images: Sequence[NDArray[Any]], config: TrainConfig) -> TrainConfig:
    """The config with image size and channels from the data where they were left open."""
    if len(images) < 32:
        raise Refused(f"{len(images)} images are too few to train on; at least 32 are needed")
    if config.channels is None:
        counts = [channels_of(image) for image in images[:1000]]
        config = replace(config, channels=max(set(counts), key=counts.count))
    if config.image_size is None:
        median = float(np.median([max(image.shape[:2]) for image in images]))
        config = replace(config, image_size=fitting_size(median))
    if config.channels is None or not 1 <= config.channels <= 8:
        raise Refused(f"the images have {config.channels} channels; 1 to 8 are possible")
    sides(config.image_size or 0)
    return config


def agreed(config: TrainConfig, peers: Peers) -> TrainConfig:
    """The leader's image size and channels, for all."""
    return replace(
        config,
        image_size=int(peers.agreed(config.image_size or 0)),
        channels=int(peers.agreed(config.channels or 0)),
    )


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """The preprocessing that the config asks for."""
    return PreprocessSpec(
        image_size=config.image_size or 28,
        channels=config.channels or 1,
        fit=config.fit,  # type: ignore[arg-type]
        background=config.background,  # type: ignore[arg-type]
        scaling=config.scaling,
    )


def as_inputs(images: Sequence[NDArray[Any]], spec: PreprocessSpec) -> Tensor:
    """All images as one (N, C, S, S) float16 tensor: half the memory, 11 bits of each pixel."""
    shape = (len(images), spec.channels, spec.image_size, spec.image_size)
    room = getattr(images, "room", None)
    out: Tensor = torch.empty(shape, dtype=torch.float16) if room is None else room(shape)
    for start in range(0, len(images), 1024):
        out[start : start + 1024] = preprocess(images[start : start + 1024], spec)
    return out


class Objective(torch.nn.Module):
    """The model with the head of the consistency term: a batch of images -> the loss."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Autoencoder(architecture(config))
        self.readout = readout(config.readout, self.model.group, self.model.attention)
        with torch.no_grad():
            features = self.readout(torch.zeros(1, self.model.group.order, config.features))
        self.consistency = OrbitConsistency(features.shape[1])

    def forward(self, images: Tensor) -> Tensor:
        mirrored = self.model.group.mirrored
        first, second = random_views(images, mirrored), random_views(images, mirrored)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            codes, decoded, weights = self.model(first)
            others = self.model.encoder(second)
        loss = self.config.reconstruction * reconstruction(first, decoded)
        if weights is not None:
            loss = loss + 0.1 * entropy(weights.float())
        if self.config.consistency:
            pair = self.readout(torch.cat([codes, others]).float()).chunk(2)
            loss = loss + self.config.consistency * self.consistency(*pair)
        return loss


def architecture(config: TrainConfig) -> AutoencoderConfig:
    """The network that the config asks for."""
    return AutoencoderConfig(
        group=config.group,
        image_size=config.image_size or 28,
        channels=config.channels or 1,
        width=config.width,
        features=config.features,
        readout=config.readout,
    )


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
    objective = Objective(config).to(config.device)
    joined = peers.joined(objective)
    optimiser = torch.optim.AdamW(
        objective.parameters(), lr=config.learning_rate, weight_decay=1e-3
    )
    state = TrainingState.open(folder, objective, optimiser, asdict(config))
    if not peers.leads:
        torch.manual_seed(config.seed + 1_000_003 * (state.epoch * peers.size + peers.rank))
    size = max(2, config.batch_size // peers.size)
    steps = peers.fewest(count_batches(len(train_on), size))
    while state.epoch < config.epochs and not state.finished:
        began, loss, seen = time.monotonic(), 0.0, 0
        for batch in islice(batches(train_on, size), steps):
            done = state.share(config, seen / len(train_on), time.monotonic() - began)
            share = peers.agreed(done)
            if share >= 1.0:
                break
            for settings in optimiser.param_groups:
                settings["lr"] = config.learning_rate * schedule(share)
            loss += step(joined, optimiser, pixels[batch].float().to(config.device)) * len(batch)
            seen += len(batch)
        elapsed = peers.agreed(time.monotonic() - began)
        error = peers.mean(reconstruction_error(objective.model, pixels[held_out], config))
        loss = peers.mean(loss / max(seen, 1))
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


def step(objective: torch.nn.Module, optimiser: torch.optim.Optimizer, images: Tensor) -> float:
    """One step of gradient descent; returns the loss. Raises TrainingError when it is not
    finite.
    """
    objective.train()
    loss = objective(images)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
    optimiser.step()
    value = float(loss.detach())
    if not np.isfinite(value):
        raise TrainingError("the loss is not a finite number; train with a smaller --learning-rate")
    return value


def schedule(share: float) -> float:
    """Learning rate over the training: 5% of linear warm-up, then a half cosine."""
    return min(share / 0.05 + 0.02, 1.0) * 0.5 * (1.0 + float(np.cos(np.pi * share)))


def batches(indices: Tensor, size: int) -> Iterator[Tensor]:
    """The indices in random order, in batches; a last batch of less than half the size is left
    out.
    """
    for part in indices[torch.randperm(len(indices))].split(size):
        if 2 * len(part) >= min(size, len(indices)):
            yield part


def count_batches(count: int, size: int) -> int:
    """How many batches ``batches`` makes of so many indices."""
    return count // size + (2 * (count % size) >= min(size, count) and count % size > 0)


@torch.no_grad()
def reconstruction_error(model: Autoencoder, pixels: Tensor, config: TrainConfig) -> float:
    """Mean squared error on (N, C, S, S) divided by their variance."""
    model.eval()
    parts = [part.float().to(config.device) for part in pixels.split(BATCH)]
    squared = sum(float((model(x)[1] - x).square().sum()) for x in parts)
    return squared / pixels.numel() / max(float(pixels.float().var()), 1e-6)


def finish(
    model: Autoencoder,
    spec: PreprocessSpec,
    pixels: Tensor,
    config: TrainConfig,
    golden: list[NDArray[Any]],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Round the weights as stored, fit projection and pose map, embed the golden images."""
    model = rounded(model)
    views, codes = free_turns(model, pixels, config)
    projection = fit_projection(views, config.dim, power=config.power)
    pose = pose_map(codes)
    described = {
        "kind": "orbit-discriminant",
        "dim": int(projection.matrix.shape[1]),
        "power": config.power,
    }
    document = describe(model, spec, described)
    embedder = Embedder(model, spec, projection, pose)
    stored = {f"model.{name}": as_stored(name, value) for name, value in model.state_dict().items()}
    stored |= {f"projection.{name}": value for name, value in projection.state_dict().items()}
    stored |= {
        "pose": pose,
        "golden.images": square(golden),
        "golden.embeddings": torch.from_numpy(embedder.embed(golden)),
    }
    return stored, document


def square(golden: list[NDArray[Any]]) -> Tensor:
    """Golden images as one tensor: cut about the centre to the smallest sides among them."""
    height = min(image.shape[0] for image in golden)
    width = min(image.shape[1] for image in golden)
    return torch.from_numpy(np.stack([image[:height, :width] for image in golden]))


def as_stored(name: str, value: Tensor) -> Tensor:
    """Filters are stored in float16, statistics of the norms as they are."""
    return value.half() if name.endswith("weight") and value.ndim > 1 else value


def rounded(model: Autoencoder) -> Autoencoder:
    """The model with the weights that will be stored."""
    model.load_state_dict(
        {name: as_stored(name, value).to(value.dtype) for name, value in model.state_dict().items()}
    )
    return model.eval()


@torch.no_grad()
def free_turns(
    model: Autoencoder, pixels: Tensor, config: TrainConfig, copies: int = 4
) -> tuple[Tensor, Tensor]:
    """Readouts (N, copies, F) and codes (N * copies, order, m) of random free turns of the
    images.
    """
    read = readout(config.readout, model.group, model.attention)
    features, codes = [], []
    for part in pixels.split(BATCH):
        x = part.float()
        turned = torch.stack([random_turns(x, model.group.mirrored) for _ in range(copies)], 1)
        found = model.encoder(turned.flatten(0, 1))
        features.append(read(found).unflatten(0, (len(x), copies)))
        codes.append(found)
    return torch.cat(features), torch.cat(codes)


def pose_map(codes: Tensor) -> Tensor:
    """(m, 8): the principal directions of what varies along the group in codes (N, order, m)."""
    varying = (codes - codes.mean(1, keepdim=True)).flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(varying.T @ varying)
    found = vectors.flip(1)[:, :POSE_FEATURES].float()
    return torch.nn.functional.pad(found, (0, POSE_FEATURES - found.shape[1]))


def provenance(
    config: TrainConfig, model: Autoencoder, record: dict[str, Any], count: int, source: str
) -> dict[str, Any]:
    """What a reader of the checkpoint needs to know of its making."""
    return {
        "name": config.name,
        "description": config.description,
        "recommended": config.recommended,
        "trained_on": source,
        "num_train_images": count,
        "recipe": asdict(config),
        "num_parameters": parameters(model.encoder),
        "versions": {"torch": torch.__version__.split("+")[0], "python": platform.python_version()},
        **record,
    }


def gate(out: Path, held_out: list[NDArray[Any]]) -> dict[str, Any]:
    """Load the file that was written, measure it on held-out images, and delete it if it does not
    hold.

    Raises TrainingError then.
    """
    embedder = Embedder.load(out)
    found = audit(embedder, held_out)
    if not found.invariance_error <= MAX_INVARIANCE_ERROR:
        shutil.rmtree(out)
        raise TrainingError(
            f"the trained model's invariance error is {found.invariance_error:.1e}, at most "
            f"{MAX_INVARIANCE_ERROR:.0e} is allowed; it was deleted: "
            "train longer or with another seed"
        )
    document = checkpoint.read_card(out)
    measured = {
        "invariance_error": found.invariance_error,
        "error_curve": found.curve,
        "free_angle_rank1": found.free_angle_rank1,
        "free_angle_rank1_num": found.free_angle_rank1_num,
    }
    document["card"] |= measured
    checkpoint.write_card(out, document)
    card: dict[str, Any] = document["card"] | {"model_id": document["model_id"]}
    return card


__all__ = ["EpochReport", "TrainConfig", "train"]
