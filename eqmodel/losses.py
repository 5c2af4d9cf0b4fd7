"""What training minimises: reconstruction, the entropy of attention, and orbit consistency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reconstruction(images: Tensor, decoded: Tensor) -> Tensor:
    """Mean squared error divided by the variance of the batch's images: 0 perfect, 1 like their
    mean.
    """
    return F.mse_loss(decoded.float(), images) / images.var().clamp_min(1e-6)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy in nats of attention weights (B, order); 0 when each is one-hot."""
    return -(weights * weights.clamp_min(1e-12).log()).sum(1).mean()


class OrbitConsistency(nn.Module):
    """Pulls the readouts of two views of one image together, without letting them collapse.

    Invariance, variance and covariance terms of Bardes, Ponce, LeCun, "VICReg", ICLR 2022, with its
    weights 25, 25, 1 divided by 25, on a two-layer projection of the signed root of the readout.
    """

    def __init__(self, features: int, width: int = 512, covariance: float = 0.04) -> None:
        super().__init__()
        self.covariance = covariance
        self.scale = nn.BatchNorm1d(features, affine=False)
        self.expand = nn.Sequential(
            nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Readouts (B, F) of two views of the same images -> a scalar."""
        both = torch.cat([first, second])
        rooted = self.scale(both / torch.sqrt(both.abs() + 1e-3))
        expanded = self.expand(rooted)
        with torch.autocast(both.device.type, enabled=False):
            a, b = expanded.float().chunk(2)
            spread = variance_term(a) + variance_term(b)
            overlap = covariance_term(a) + covariance_term(b)
            return F.mse_loss(a, b) + 0.5 * spread + self.covariance * overlap


def variance_term(z: Tensor) -> Tensor:
    """Mean shortfall of the standard deviation of each coordinate of (B, D) below 1."""
    return F.relu(1.0 - torch.sqrt(z.var(0) + 1e-4)).mean()


def covariance_term(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances of (B, D), divided by D."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
