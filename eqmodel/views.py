"""Random views of images under which an embedding should not change: free turns, mirrors, mild
changes of shape, stroke and contrast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from eqmodel.actions import border_background, rotation_matrices, warp


@dataclass(frozen=True)
class Jitter:
    """How much a view differs beyond its turn and mirror; standard deviations, cut at two.

    affine: of the entries of a 2 x 2 matrix about the identity (scale, shear). shift: of a shift,
    contrast: of gain and log gamma. elastic: of a smooth field of 4 x 4 random displacements;
    lengths as shares of half the side. stroke: the largest share of a 3 x 3 dilation or erosion.
    still: share of the views that are only turned by quarters, which keeps them as sharp as the
    image: else no view would look as images do that nobody has turned.
    """

    affine: float = 0.10
    shift: float = 0.05
    contrast: float = 0.20
    elastic: float = 0.06
    stroke: float = 0.8
    still: float = 0.25


MILD = Jitter(affine=0.05, shift=0.04, contrast=0.15, elastic=0.0, stroke=0.0)
STRONG = Jitter()
JITTERS = {"mild": MILD, "strong": STRONG}


def random_angles(images: Tensor) -> Tensor:
    """(B,) degrees, uniform over the circle."""
    return torch.rand(len(images), device=images.device) * 360.0


def random_mirrors(images: Tensor, mirrored: bool) -> Tensor:
    """(B,) bool: mirrored with probability 1/2, where the group has mirrors."""
    return torch.rand(len(images), device=images.device) < (0.5 if mirrored else 0.0)


def random_turns(images: Tensor, mirrored: bool) -> Tensor:
    """(B, C, S, S) each turned by its own free angle, and perhaps mirrored; one interpolation."""
    matrices = rotation_matrices(random_angles(images), random_mirrors(images, mirrored))
    return warp(images, matrices, border_background(images))


def random_views(images: Tensor, mirrored: bool, jitter: Jitter = MILD) -> Tensor:
    """(B, C, S, S): free turns, and mirrors, with the jitter; one interpolation."""
    background = border_background(images)
    still = torch.rand(len(images), device=images.device) < jitter.still
    angles = random_angles(images)
    angles = torch.where(still, 90.0 * (angles / 90.0).round(), angles)
    matrices = rotation_matrices(angles, random_mirrors(images, mirrored))
    loose = (~still).float()[:, None, None]
    changed = torch.eye(2, device=images.device) + jitter.affine * loose * noise(images, 2, 2)
    shift = jitter.shift * loose * noise(images, 2, 1)
    matrices = torch.cat([changed @ matrices[..., :2], shift], -1)
    content = restroked(images - background, jitter.stroke)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    if jitter.elastic:
        smooth = smoothing(images.shape[-1], images.device)
        field = smooth @ (jitter.elastic * noise(images, 2, 4, 4)) @ smooth.T
        grid = grid + loose[..., None] * field.permute(0, 2, 3, 1)
    moved = F.grid_sample(content, grid, padding_mode="zeros", align_corners=False)
    gain = 1.0 + jitter.contrast * noise(images, 1, 1, 1)
    gamma = torch.exp(jitter.contrast * noise(images, 1, 1, 1))
    return background + gain * moved.sign() * moved.abs().clamp_min(1e-6) ** gamma


@lru_cache(maxsize=32)
def smoothing(side: int, device: torch.device) -> Tensor:
    """(side, 4): bicubic interpolation of 4 values to ``side`` places."""
    with torch.inference_mode(False):
        basis = torch.eye(4, device=device).reshape(1, 4, 4, 1)
        spread: Tensor = F.interpolate(basis, (side, 1), mode="bicubic")[0, :, :, 0].T
        return spread.contiguous()


def noise(images: Tensor, *shape: int) -> Tensor:
    """(B, *shape): normal, of standard deviation 1, cut at two."""
    return torch.randn(len(images), *shape, device=images.device).clamp(-2.0, 2.0)


def restroked(images: Tensor, most: float) -> Tensor:
    """Images (B, C, S, S) each mixed with its dilation or its erosion over 3 x 3 pixels."""
    if not most:
        return images
    share = most * (2.0 * torch.rand(len(images), 1, 1, 1, device=images.device) - 1.0)
    wider, thinner = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    grown = images + (wider - images) * share
    # Erosion takes thin strokes away altogether, so it goes less far.
    return torch.where(share > 0, grown, images - (thinner - images) * 0.6 * share)
