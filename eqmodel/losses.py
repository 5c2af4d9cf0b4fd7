"""What training minimises: reconstruction, the entropy of attention, and orbit consistency."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.errors import Refused


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

    Both losses act on a two-layer projection of the signed root of the readout, which is thrown
    away after training. "contrast" is the default: on 12,000 turned digits its embedding was read
    rightly by five nearest neighbours for 97.8% against 96.6% after variance and covariance.
    """

    def __init__(self, features: int, loss: str = "contrast", hidden: int = 512) -> None:
        """Raises Refused for a loss that is not one of CONSISTENCY_LOSSES."""
        super().__init__()
        if loss not in CONSISTENCY_LOSSES:
            known = " or ".join(CONSISTENCY_LOSSES)
            raise Refused(f"'{loss}' is no consistency loss; use {known}")
        self.loss, dim = CONSISTENCY_LOSSES[loss]
        self.scale = nn.BatchNorm1d(features, affine=False)
        self.expand = nn.Sequential(
            nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Readouts (B, F) of two views of the same images -> a scalar."""
        both = torch.cat([first, second])
        expanded = self.expand(self.scale(both / torch.sqrt(both.abs() + 1e-3)))
        with torch.autocast(both.device.type, enabled=False):
            loss: Tensor = self.loss(*expanded.float().chunk(2))
            return loss


def contrast(first: Tensor, second: Tensor, temperature: float = 0.15) -> Tensor:
    """Normalised temperature-scaled cross entropy of (B, D) and (B, D), in nats: each row is to
    find its partner among the 2 B - 1 others (Chen et al., "SimCLR", ICML 2020).
    """
    rows = F.normalize(torch.cat([first, second]), dim=1)
    scores = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    places = torch.arange(len(rows), device=rows.device)
    return F.cross_entropy(scores, places.roll(len(first)))


def variance_covariance(first: Tensor, second: Tensor) -> Tensor:
    """Invariance, variance and covariance terms of (B, D) and (B, D), with the weights 25, 25, 1 of
    Bardes, Ponce, LeCun, "VICReg", ICLR 2022, divided by 25.
    """
    spread = variance_term(first) + variance_term(second)
    overlap = covariance_term(first) + covariance_term(second)
    return F.mse_loss(first, second) + 0.5 * spread + 0.04 * overlap


def variance_term(z: Tensor) -> Tensor:
    """Mean shortfall of the standard deviation of each coordinate of (B, D) below 1."""
    return F.relu(1.0 - torch.sqrt(z.var(0) + 1e-4)).mean()


def covariance_term(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances of (B, D), divided by D."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


CONSISTENCY_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "contrast": (contrast, 128),
    "variance-covariance": (variance_covariance, 512),
}
