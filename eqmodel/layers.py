"""Layers that map (B, C, G, H, W) to (B, C', G, H', W') and commute with the group.

The group axis is always explicit. A filter is turned by an integer gather, never by interpolation.
Lifting and group convolutions: Cohen & Welling, Group Equivariant Convolutional Networks, ICML
2016.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.actions import filter_table
from eqmodel.errors import SizeError
from eqmodel.groups import FiniteGroup


def initial(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """Weights of variance 2 / fan_in (He et al. 2015)."""
    return nn.Parameter(torch.randn(shape) * math.sqrt(2.0 / fan_in))


class LiftingConv2d(nn.Module):
    """Images (B, C, H, W) -> features (B, C', G, H', W'): one filter, turned by every element.

    ``stride`` 1 needs an odd filter, 2 an even filter and even sides: only then do the places of
    the filter lie symmetric about the centre of the image.
    """

    table: Tensor

    def __init__(
        self, group: FiniteGroup, c_in: int, c_out: int, size: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.group, self.size, self.stride = group, symmetric(size, stride), stride
        self.weight = initial((c_out, c_in, size, size), c_in * size * size)
        self.register_buffer("table", filter_table(group, size), persistent=False)

    def expanded(self) -> Tensor:
        """(C' * G, C, k, k): the weights of the equal ordinary convolution."""
        c_out, c_in, k, _ = self.weight.shape
        turned = self.weight.reshape(c_out, c_in, k * k)[:, :, self.table]  # (C', C, G, kk)
        return turned.transpose(1, 2).reshape(c_out * self.group.order, c_in, k, k)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.conv2d(
            x, self.expanded(), stride=self.stride, padding=(self.size - 1) // 2
        ).unflatten(1, (-1, self.group.order))
        return out


def symmetric(size: int, stride: int) -> int:
    """The side of a filter, if it is symmetric at that stride. Raises SizeError otherwise."""
    if stride not in (1, 2) or size % 2 != stride % 2:
        raise SizeError(
            f"a filter of side {size} at stride {stride} breaks the symmetry; use an odd side at "
            "stride 1 or an even one at stride 2"
        )
    return size


class Turned(torch.autograd.Function):
    """Weights (N, K) -> (G, N, K): row g gathers by the permutation ``tables[g]``.

    What indexing does, with a backward that gathers by the inverse permutations: the scattered
    sums of the indexing's own took a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tables: Tensor) -> Tensor:
        ctx.save_for_backward(tables)
        rows = weight.T.contiguous()
        return torch.stack([rows[table].T for table in tables])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (tables,) = ctx.saved_tensors
        back = tables.argsort(1)
        parts = [part.T.contiguous()[table] for part, table in zip(gradients[0], back, strict=True)]
        return torch.stack(parts).sum(0).T, None


class GroupConv2d(nn.Module):
    """(B, C, G, H, W) -> (B, C', G, H', W'): out[g] = sum_h  f[h] * g(psi[g^-1 h]).

    ``padding`` "same" or "valid" (the filter as large as the image); ``stride`` as for lifting.
    """

    tables: Tensor

    def __init__(
        self,
        group: FiniteGroup,
        c_in: int,
        c_out: int,
        size: int,
        padding: str = "same",
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.group, self.stride = group, stride
        self.padding = (symmetric(size, stride) - 1) // 2 if padding == "same" else 0
        self.weight = initial((c_out, c_in, group.order, size, size), c_in * group.order * size**2)
        moved = torch.from_numpy(group.left)[:, :, None] * size**2  # row g: psi[g^-1 h] ...
        turned = filter_table(group, size)[:, None]  # ... turned by g
        self.register_buffer("tables", (moved + turned).flatten(1), persistent=False)

    def expanded(self) -> Tensor:
        """(C' * G, C * G, k, k): the weights of the equal ordinary convolution."""
        c_out, c_in, order, k, _ = self.weight.shape
        rows = Turned.apply(self.weight.reshape(c_out * c_in, -1), self.tables)  # type: ignore[no-untyped-call]
        wide: Tensor = rows.unflatten(1, (c_out, c_in)).transpose(0, 1)
        return wide.reshape(c_out * order, c_in * order, k, k)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.conv2d(
            x.flatten(1, 2), self.expanded(), stride=self.stride, padding=self.padding
        ).unflatten(1, (-1, self.group.order))
        return out


class GroupExpand2d(nn.Module):
    """Codes (B, C, G, 1, 1) -> features (B, C', G, k, k): the transpose of a valid group
    convolution.
    """

    def __init__(self, group: FiniteGroup, c_in: int, c_out: int, size: int) -> None:
        super().__init__()
        self.conv = GroupConv2d(group, c_in, c_out, size, padding="valid")
        with torch.no_grad():
            self.conv.weight.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        order = self.conv.group.order
        weight = self.conv.expanded()
        size = weight.shape[-1]
        out = x.flatten(1) @ weight.reshape(weight.shape[0], weight.shape[1], -1).permute(
            1, 0, 2
        ).flatten(1)
        return out.reshape(len(x), -1, order, size, size)


class ProjectionConv2d(nn.Module):
    """Features (B, C, G, H, W) -> images (B, C', H, W): out = sum_h  f[h] * h(psi)."""

    table: Tensor

    def __init__(self, group: FiniteGroup, c_in: int, c_out: int, size: int) -> None:
        super().__init__()
        self.group, self.size = group, size
        self.weight = initial((c_out, c_in, size, size), c_in * group.order * size**2)
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.register_buffer("table", filter_table(group, size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        c_out, c_in, k, _ = self.weight.shape
        turned = self.weight.reshape(c_out, c_in, k * k)[:, :, self.table]  # (C', C, G, kk)
        weight = turned.reshape(c_out, c_in * self.group.order, k, k)
        return F.conv2d(x.flatten(1, 2), weight, self.bias, padding=self.size // 2)


class GroupLinear(nn.Module):
    """Codes (B, G, C) -> (B, G, C'): a convolution over the group axis alone.

    out[g] = sum_h  psi[g^-1 h] f[h]
    """

    relative: Tensor

    def __init__(self, group: FiniteGroup, c_in: int, c_out: int) -> None:
        super().__init__()
        self.group = group
        self.weight = initial((group.order, c_in, c_out), group.order * c_in)
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.register_buffer("relative", torch.from_numpy(group.left), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bhi,ghio->bgo", x, self.weight[self.relative]) + self.bias


class FieldNorm(nn.Module):
    """Batch normalisation of (B, C, G, H, W) with one mean and variance per feature field C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.flatten(2))
        return out.reshape(x.shape)


def double(x: Tensor) -> Tensor:
    """(B, C, G, H, W) -> (B, C, G, 2H, 2W) by repeating pixels."""
    out: Tensor = F.interpolate(x.flatten(1, 2), scale_factor=2.0).unflatten(1, x.shape[1:3])
    return out
