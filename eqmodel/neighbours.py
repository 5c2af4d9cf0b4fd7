"""Positive pairs beyond an image and itself: its nearest neighbours, found without labels.

Once the embedding is half trained, the nearest neighbours of an image mostly show the same kind of
thing, and pulling them together gathers kinds into clusters: Dwibedi et al., "With a Little Help
from My Friends", ICCV 2021; Van Gansbeke et al., "SCAN", ECCV 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqmodel.objective import Trunk
from eqmodel.projection import Projection, fit_projection
from eqmodel.views import Jitter, random_views

NEIGHBOURS = 5  # per image
FITTED_ON, COPIES = 3000, 4  # images and views of each that the projection is fitted on
BLOCK = 1024


@torch.no_grad()
def nearest_neighbours(
    trunk: Trunk, pixels: Tensor, jitter: Jitter, *, dim: int = 128, bfloat16: bool = False
) -> Tensor:
    """Of images (N, C, S, S), any float type -> (N, 5) int64: the nearest others of each, by
    cosine in a projection fitted for the purpose.
    """
    was_training = trunk.training
    trunk.eval()
    device = next(trunk.parameters()).device
    some = pixels[torch.randperm(len(pixels))[:FITTED_ON]]
    views = torch.stack([features(trunk, some, device, bfloat16, jitter) for _ in range(COPIES)], 1)
    projection = fit_projection(views, dim, power=0.5, floor=1e-3)
    embeddings = torch.cat(
        [
            embedded(projection, features(trunk, part, device, bfloat16))
            for part in pixels.split(BLOCK)
        ]
    )
    trunk.train(was_training)
    count = min(NEIGHBOURS, len(pixels) - 1)
    found = []
    for start in range(0, len(embeddings), BLOCK):
        scores = embeddings[start : start + BLOCK] @ embeddings.T
        own = torch.arange(len(scores))
        scores[own, own + start] = -2.0
        found.append(scores.topk(count, 1).indices)
    return torch.cat(found)


def embedded(projection: Projection, wide: Tensor) -> Tensor:
    """(B, F) -> (B, d) float32, L2-normalised."""
    out: Tensor = projection(wide).float()
    return out


def features(
    trunk: Trunk, pixels: Tensor, device: torch.device, bfloat16: bool, jitter: Jitter | None = None
) -> Tensor:
    """Readouts (N, F) float32 on the CPU of images, or of a random view of each."""
    read, parts = trunk.read(), []
    for part in pixels.split(BLOCK):
        images = part.float().to(device)
        if jitter is not None:
            images = random_views(images, trunk.group.mirrored, jitter)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            codes = trunk.encode(images)
        parts.append(read(codes.float()).cpu())
    return torch.cat(parts)
