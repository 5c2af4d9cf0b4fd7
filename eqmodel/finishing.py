"""From trained weights to a checkpoint: rounding, projection, pose map, provenance, gate."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel import checkpoint
from eqmodel.actions import turn
from eqmodel.auditing import audit
from eqmodel.autoencoder import Autoencoder, parameters
from eqmodel.devices import full_float32
from eqmodel.embedder import BATCH, POSE_FEATURES, Embedder, describe
from eqmodel.errors import Refused, TrainingError
from eqmodel.kinds import FEWEST, fit_kinds
from eqmodel.preprocess import PreprocessSpec
from eqmodel.projection import Projection, fit_projection, with_kinds
from eqmodel.readouts import PRODUCTS, readout
from eqmodel.settings import TrainConfig
from eqmodel.views import JITTERS, Jitter, random_turns, random_views

MAX_INVARIANCE_ERROR = 1e-5
COORDINATES = 256  # of the projection, before it is cut to an embedding
FITTED_ON = 12_000  # images, at most, that the head for kinds is trained on
PROJECTION_IMAGES = 6000  # of them, that the projection is fitted on
ORBITS = ("none", "turned", "jittered")
MAX_FLOOR = 1e-2  # the projection's floor is raised up to here where rounding asks for it


def finish(
    model: Autoencoder,
    spec: PreprocessSpec,
    pixels: Tensor,
    config: TrainConfig,
    held_out: list[NDArray[Any]],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Round the weights as stored, fit projection, head and pose map on pixels (N, C, S, S), at
    most 12,000 in random order; embed the golden images, the first of those held out.
    """
    model, golden = rounded(model).to(config.device), held_out[:8]
    views, codes = free_turns(model, pixels[:PROJECTION_IMAGES], config)
    pose, floor = pose_map(codes), config.floor
    while True:
        projection = fit_projection(
            views,
            COORDINATES,
            power=config.power,
            floor=floor,
            products=config.readout in PRODUCTS,
        )
        projection = with_head(projection, model, spec, pose, pixels, config)
        embedder = Embedder(model, spec, projection, pose).to(config.device)
        if rounding_error(embedder, held_out) <= MAX_INVARIANCE_ERROR / 8 or floor >= MAX_FLOOR:
            break
        floor *= 10.0
    described = {
        "kind": "orbit-discriminant",
        "dim": projection.dim,
        "coordinates": int(projection.matrix.shape[1]),
        "linear": projection.linear,
        "kinds": projection.kinds,
        "kinds_dim": projection.dim - projection.linear,
        "power": config.power,
        "floor": floor,
        "orbits": config.orbits,
    }
    embedder.to("cpu")
    document = describe(model, spec, described)
    stored = {f"model.{name}": as_stored(name, value) for name, value in model.state_dict().items()}
    stored |= {f"projection.{name}": value for name, value in projection.state_dict().items()}
    stored |= {
        "pose": pose.cpu(),
        "golden.images": square(golden),
        "golden.embeddings": torch.from_numpy(embedder.embed(golden)),
    }
    return stored, document


def with_head(
    projection: Projection,
    model: Autoencoder,
    spec: PreprocessSpec,
    pose: Tensor,
    pixels: Tensor,
    config: TrainConfig,
) -> Projection:
    """The projection cut to the dimension asked for, with a head for kinds where it is to have
    one and there are images enough to find neighbours.
    """
    if not config.kinds or len(pixels) < FEWEST:
        return projection.first(config.dim)
    embedder = Embedder(model, spec, projection, pose).to(config.device)
    parts = [embedder.coordinates(part.float()) for part in pixels.split(BATCH)]
    found = torch.cat(parts).float().to(config.device)
    head = fit_kinds(found, max(config.dim // 4, 1))
    return with_kinds(projection, head, config.dim, config.kinds)


def rounding_error(embedder: Embedder, images: list[NDArray[Any]]) -> float:
    """Largest distance between the embeddings of images and of their exact turns and mirrors."""
    original, group = embedder.embed(images), embedder.group
    turned = [
        embedder.embed([turn(image, group.elements[g], group.n) for image in images])
        for g in group.exact
    ]
    return max(float(np.linalg.norm(found - original, axis=1).max()) for found in turned)


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
    """Readouts (N, copies, F) and codes (N * copies, order, m) of the images and random free turns,
    or jittered views, of them; with orbits "none" of the images alone.
    """
    if config.orbits not in ORBITS:
        raise Refused(f"'{config.orbits}' are no orbits; use one of {', '.join(ORBITS)}")
    copies = 1 if config.orbits == "none" else copies
    read = readout(config.readout, model.group, model.attention, config.correlations)
    jitter = JITTERS[config.views] if config.orbits == "jittered" else None
    features, codes = [], []
    for part in pixels.split(BATCH):
        x = part.to(config.device).float()
        others = [moved(x, model.group.mirrored, jitter) for _ in range(copies - 1)]
        turned = torch.stack([x, *others], 1)
        with full_float32(config.device):
            found = model.encoder(turned.flatten(0, 1))
        features.append(read(found).unflatten(0, (len(x), copies)))
        codes.append(found)
    return torch.cat(features), torch.cat(codes)


def moved(images: Tensor, mirrored: bool, jitter: Jitter | None) -> Tensor:
    """Free turns of the images, with the jitter if there is one."""
    if jitter is None:
        return random_turns(images, mirrored)
    return random_views(images, mirrored, jitter)


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


def gate(out: Path, held_out: list[NDArray[Any]], device: str = "cpu") -> dict[str, Any]:
    """Load the file that was written, measure it on held-out images, and delete it if it does not
    hold.

    Raises TrainingError then.
    """
    embedder = Embedder.load(out, device=device)
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
