"""Random views of images under which an embedding should not change: free turns, mirrors, mild
changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqmodel.actions import border_background, rotation_matrices, warp


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


def random_views(images: Tensor, mirrored: bool) -> Tensor:
    """Free turns with mild shift (4%), scale and shear (10%), contrast and gamma; one
    interpolation.
    """
    count, device = len(images), images.device
    matrices = rotation_matrices(random_angles(images), random_mirrors(images, mirrored))
    jitter = torch.eye(2, device=device) + 0.05 * torch.randn(count, 2, 2, device=device).clamp(
        -2, 2
    )
    shift = 0.04 * torch.randn(count, 2, 1, device=device).clamp(-2, 2)
    matrices = torch.cat([jitter @ matrices[..., :2], shift], -1)
    background = border_background(images)
    moved = warp(images, matrices, background) - background
    contrast = 1.0 + 0.15 * torch.randn(count, 1, 1, 1, device=device).clamp(-2, 2)
    gamma = torch.exp(0.15 * torch.randn(count, 1, 1, 1, device=device).clamp(-2, 2))
    return background + contrast * moved.sign() * moved.abs().clamp_min(1e-6) ** gamma
