"""The fitted linear map from invariant features to the final embedding. No label is used.

A linear map of invariants is invariant, but rounding grows on the way: so the root is smooth at 0,
dead coordinates are dropped and eigenvalues have a floor. Here everything runs in float64;
embedders run the form of frozen_head.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.kinds import KindsHead

# Added to the scatter within orbits, as a share of the largest eigenvalue of all scatter. Measured
# on a d4 model trained for 4 minutes, power 0.25, 2,000 test images each of Fashion-MNIST and
# MNIST: free-angle rank-1 0.76 and 0.73 at 1e-3, 0.95 and 0.96 at 1e-5; invariance error 1.1e-6 at
# either, because all runs in float64.
FLOOR = 1e-5
DEAD = 1e-4  # coordinates with a smaller share of the largest standard deviation are dropped


class Projection(nn.Module):
    """Features (B, F) -> embeddings (B, d), L2-normalised.

    root x / sqrt(|x| + eps_j), standardise, linear map to coordinates. The first of them,
    normalised, tell images apart; a head on all of them gathers kinds (kinds.py). Of the squared
    norm the head has about the share ``kinds``; 0: there is none.
    """

    keep: Tensor  # (F',) int32: coordinates that are alive
    eps: Tensor  # (F',)
    mean: Tensor  # (F',)
    scale: Tensor  # (F',)
    matrix: Tensor  # (F', K) float16, evaluated as stored

    def __init__(
        self, kept: int, coordinates: int, linear: int, kinds: float = 0.0, kinds_dim: int = 0
    ) -> None:
        """Zeros for ``kept`` of the features; d = ``linear`` + ``kinds_dim``."""
        super().__init__()
        self.kinds, self.linear = kinds, linear
        self.head = KindsHead(coordinates, kinds_dim) if kinds else None
        self.register_buffer("keep", torch.zeros(kept, dtype=torch.int32))
        for name in ("eps", "mean", "scale"):
            self.register_buffer(name, torch.zeros(kept))
        self.register_buffer("matrix", torch.zeros(kept, coordinates, dtype=torch.float16))

    @property
    def dim(self) -> int:
        """Length d of an embedding."""
        return self.linear + (self.head.dim if self.head is not None else 0)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) any float type -> (B, d) float64."""
        return assembled(self.coordinates(features), self.linear, self.kinds, self.head)

    def first(self, dim: int) -> Projection:
        """The projection with its first ``dim`` coordinates alone."""
        columns = self.matrix[:, :dim]
        cut = Projection(len(columns), columns.shape[1], columns.shape[1])
        kept = {name: value for name, value in self.state_dict().items() if "head" not in name}
        cut.load_state_dict(kept | {"matrix": columns.contiguous()})
        return cut

    def coordinates(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, K) float64: what lies between the readout and the embedding."""
        kept = features.double()[:, self.keep.long()]
        standard = (root(kept, self.eps.double()) - self.mean.double()) / self.scale.double()
        found: Tensor = standard @ self.matrix.double()
        return found


def assembled(found: Tensor, linear: int, kinds: float, head: KindsHead | None) -> Tensor:
    """Coordinates (B, K) -> embeddings (B, d), L2-normalised: the first ``linear`` of them, and
    what ``head`` makes of all, with the share ``kinds`` of the squared norm.
    """
    apart: Tensor = F.normalize(found[:, :linear], dim=1, eps=1e-30)
    if head is None:
        return apart
    both = torch.cat([(1.0 - kinds) ** 0.5 * apart, kinds**0.5 * head(found)], 1)
    return F.normalize(both, dim=1)


def with_kinds(linear: Projection, head: KindsHead, dim: int, kinds: float) -> Projection:
    """A fitted projection with a head beside it, at most ``dim`` values in all."""
    kept, coordinates = linear.matrix.shape
    whole = Projection(kept, coordinates, min(dim - head.dim, coordinates), kinds, head.dim)
    whole.load_state_dict(linear.state_dict(), strict=False)
    whole.head = head
    return whole


def root(x: Tensor, eps: Tensor) -> Tensor:
    """x / sqrt(|x| + eps): the signed square root, with a finite slope at 0."""
    return x / torch.sqrt(x.abs() + eps)


def fit_projection(
    views: Tensor,
    coordinates: int,
    *,
    power: float = 0.25,
    floor: float = FLOOR,
    products: bool = True,
    intermediate: int = 512,
) -> Projection:
    """Fit on features (N, views, F) of ``views`` free turns of each of N images.

    Principal components first (randomised SVD, Halko 2011). In their space, directions are
    weighted by how much an image's own turned copies scatter (within) against how much images
    differ (between): the linear discriminant of Fisher with orbits as classes, which needs no
    label. Component j, with ratio r_j of between to within, is scaled to standard deviation r_j **
    ((1 - power) / 2): power 1 whitens fully. The projection has ``coordinates`` of them, in that
    order, and no head. ``products``: the features are sums of products, whose root is taken;
    others pass nearly as they are, for the root is steep where a sign changes.
    """
    count, copies, _ = views.shape
    flat = views.flatten(0, 1)
    spread = flat.std(0)
    keep = torch.nonzero(spread > DEAD * spread.max())[:, 0]
    flat = flat[:, keep]
    eps = (0.1 if products else 10.0) * flat.abs().mean(0).clamp_min(1e-12)
    flat = root(flat, eps)
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-12)
    flat = (flat - mean) / scale
    components = min(intermediate, flat.shape[1], count * copies - 1)
    _, _, basis = torch.svd_lowrank(flat, q=components, niter=3)
    orbits = (flat @ basis).unflatten(0, (count, copies)).double()
    within, between = scatter(orbits, floor)
    matrix = discriminant(within, between, min(coordinates, components), power)
    fitted = Projection(len(keep), matrix.shape[1], matrix.shape[1])
    fitted.keep.copy_(keep)
    fitted.eps.copy_(eps)
    fitted.mean.copy_(mean)
    fitted.scale.copy_(scale)
    full = basis.double() @ matrix
    fitted.matrix.copy_(full / full.abs().max())
    return fitted


def scatter(orbits: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(N, views, K) float64 -> covariances (K, K) within orbits, floored, and between their
    means.
    """
    centres = orbits.mean(1, keepdim=True)
    inside = (orbits - centres).flatten(0, 1)
    outside = (centres - centres.mean(0, keepdim=True))[:, 0]
    within = inside.T @ inside / max(len(inside) - len(orbits), 1)
    between = outside.T @ outside / max(len(outside) - 1, 1)
    floor = share * float(torch.linalg.eigvalsh(within + between)[-1])
    return within + floor * torch.eye(len(within)).to(within), between


def discriminant(within: Tensor, between: Tensor, dim: int, power: float) -> Tensor:
    """(K, dim): the leading generalised eigenvectors of (between, within), scaled as said above."""
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors / values.sqrt()
    ratios, directions = torch.linalg.eigh(whiten.T @ between @ whiten)
    ratios, directions = ratios.flip(0)[:dim], directions.flip(1)[:, :dim]
    spread = ratios.clamp_min(FLOOR * float(ratios[0])).pow(-power / 2.0)
    matrix: Tensor = whiten @ directions * spread
    return matrix
