"""C_n and D_n beyond quarter turns: turned copies of the image through one p4 or p4m network.

Section 3 of Kuzminykh et al. (ACML 2018), with a p4m network where the group has mirrors. For r_j,
the turn by j 360/n degrees with j below n/4, and h a quarter turn or mirror: V(x)[r_j h] =
V_H(r_j^-1 x)[h]. Quarter turns and mirrors stay exact to rounding; other turns are as exact as the
one interpolation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.actions import border_background
from eqmodel.autoencoder import AutoencoderConfig, fitting_size, network_of
from eqmodel.groups import FiniteGroup
from eqmodel.layers import GroupLinear


def frame_of(config: AutoencoderConfig) -> int:
    """The side of the frame in which the copies are turned.

    Padded, it holds the whole image at every angle; unpadded, all within the image's inner circle.
    """
    return fitting_size(config.image_size * math.sqrt(2.0)) if config.padded else config.image_size


def quarter_group(of: FiniteGroup) -> FiniteGroup:
    """The subgroup of quarter turns, with the mirrors where the group has them."""
    return FiniteGroup(4, of.mirrored)


def interleaved(codes: Tensor, of: FiniteGroup) -> Tensor:
    """Codes (B, n/4, |H|, m) of the copies -> (B, order, m): copy j, element h becomes row r_j
    h.
    """
    quarters = codes.unflatten(2, (-1, 4))  # (B, j, mirror, k, m)
    out: Tensor = quarters.permute(0, 2, 3, 1, 4).reshape(len(codes), of.order, -1)
    return out


def split(codes: Tensor, of: FiniteGroup) -> Tensor:
    """Codes (B, order, m) -> (B, n/4, |H|, m): undoes ``interleaved``."""
    copies = of.n // 4
    out: Tensor = codes.unflatten(1, (-1, 4, copies)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return out


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 (IEEE Trans. ASSP 29, 1981)."""
    d = distance.abs()
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return torch.where(d < 1.0, near, torch.where(d < 2.0, far, torch.zeros_like(d)))


@lru_cache(maxsize=64)
def turning_matrix(side: int, degrees: float) -> Tensor:
    """Sparse (side^2, side^2) float64: an image turned counter-clockwise, by cubic interpolation.

    Built in float64 about the centre, so that it commutes with quarter turns and mirrors to
    rounding. Outside lies 0.
    """
    angle = math.radians(degrees)
    axis = torch.arange(side, dtype=torch.float64) - (side - 1) / 2.0
    v, u = torch.meshgrid(axis, axis, indexing="ij")  # output positions, y down
    x = u * math.cos(angle) - v * math.sin(angle) + (side - 1) / 2.0
    y = u * math.sin(angle) + v * math.cos(angle) + (side - 1) / 2.0
    rows, columns, values = [], [], []
    output = torch.arange(side * side).reshape(side, side)
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            column, row = x.floor() + dx, y.floor() + dy
            weight = cubic(x - column) * cubic(y - row)
            inside = (column >= 0) & (column < side) & (row >= 0) & (row < side) & (weight != 0)
            rows.append(output[inside])
            columns.append((row * side + column)[inside].long())
            values.append(weight[inside])
    indices = torch.stack([torch.cat(rows), torch.cat(columns)])
    size = (side * side, side * side)
    return torch.sparse_coo_tensor(
        indices, torch.cat(values), size, check_invariants=True
    ).coalesce()


@lru_cache(maxsize=64)
def turning_matrix_on(
    side: int, degrees: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """``turning_matrix`` where it is used: sparse on CPUs, dense on GPUs, which are faster so and
    whose graphs cannot hold sparse products.
    """
    with torch.inference_mode(False):
        matrix = turning_matrix(side, degrees).to(dtype)
        return matrix if device.type == "cpu" else matrix.to_dense().to(device)


class TurnedCopies(nn.Module):
    """Images (B, C, S, S) -> their copies turned back by r_j, in the frame: (B, n/4, C, F, F)."""

    def __init__(self, config: AutoencoderConfig, of: FiniteGroup) -> None:
        super().__init__()
        self.side, self.frame, self.group = config.image_size, frame_of(config), of

    def framed(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in the middle of their frame (B, C, F, F), over their background."""
        background = border_background(images)
        margin = (self.frame - self.side) // 2
        return F.pad(images - background, [margin] * 4) + background

    def cut(self, framed: Tensor) -> Tensor:
        """The middle (..., S, S) of frames (..., F, F)."""
        margin = (self.frame - self.side) // 2
        kept = slice(margin, margin + self.side)
        return framed[..., kept, kept]

    def turned(self, images: Tensor, degrees: float) -> Tensor:
        """(..., F, F) turned counter-clockwise by degrees; 0 leaves them as they are."""
        if degrees == 0.0:
            return images
        exact = images if images.dtype == torch.float64 else images.float()  # sparse: no bfloat16
        matrix = turning_matrix_on(self.frame, degrees, images.device, exact.dtype)
        with torch.autocast(images.device.type, enabled=False):
            flat = exact.flatten(-2).flatten(0, -2)
            turned: Tensor = (matrix @ flat.T).T.reshape(images.shape)
        return turned

    def forward(self, images: Tensor) -> Tensor:
        background = border_background(images)
        framed = self.framed(images) - background
        step = 360.0 / self.group.n
        copies = [self.turned(framed, -j * step) for j in range(self.group.n // 4)]
        return torch.stack(copies, 1) + background[:, None]

    def inverse(self, copies: Tensor) -> Tensor:
        """(B, n/4, C, F, F) -> (B, C, S, S): each copy turned forward by r_j, their mean, cut."""
        step = 360.0 / self.group.n
        forward = [self.turned(copies[:, j], j * step) for j in range(self.group.n // 4)]
        return self.cut(torch.stack(forward).mean(0))


class CodeMixing(nn.Module):
    """Codes (B, order, m) -> the same: what they were plus two convolutions over the group axis."""

    def __init__(self, of: FiniteGroup, features: int) -> None:
        super().__init__()
        self.first = GroupLinear(of, features, features)
        self.second = GroupLinear(of, features, features)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = codes + self.second(F.relu(self.first(codes)))
        return out


class CopiesEncoder(nn.Module):
    """Images (B, C, S, S) -> codes (B, order, features) for n a multiple of 4 beyond 4.

    ``base`` is the encoder of one copy; a frozen one may take its place. Without mixing, each copy
    is encoded for itself, and any one of them serves to train it.
    """

    def __init__(self, config: AutoencoderConfig, of: FiniteGroup) -> None:
        super().__init__()
        self.group, self.copies = of, TurnedCopies(config, of)
        self.base: nn.Module = network_of(in_frame(config), quarter_group(of))[0]
        self.mixing = CodeMixing(of, config.features) if config.mixing else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        codes = self.base(self.copies(x).flatten(0, 1)).unflatten(0, (len(x), -1))
        out: Tensor = self.mixing(interleaved(codes, self.group))
        return out


class CopiesDecoder(nn.Module):
    """Codes (B, order, features) -> images (B, C, S, S); the encoder's mirror image."""

    def __init__(self, config: AutoencoderConfig, of: FiniteGroup) -> None:
        super().__init__()
        self.group, self.copies = of, TurnedCopies(config, of)
        self.base = network_of(in_frame(config), quarter_group(of))[1]
        self.mixing = CodeMixing(of, config.features) if config.mixing else nn.Identity()

    def forward(self, codes: Tensor) -> Tensor:
        parts = split(self.mixing(codes), self.group)
        images = self.base(parts.flatten(0, 1))
        return self.copies.inverse(images.unflatten(0, (len(codes), -1)))


def in_frame(config: AutoencoderConfig) -> AutoencoderConfig:
    """The config of the network that sees one copy."""
    return replace(config, image_size=frame_of(config))
