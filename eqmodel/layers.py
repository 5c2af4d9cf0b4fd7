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
        turned = gathered(self.weight.flatten(2), self.table)  # (C', C, G, kk)
        return turned.transpose(1, 2).reshape(c_out * self.group.order, c_in, k, k)

    def forward(self, x: Tensor) -> Tensor:
        out = convolved(x, self.expanded(), self.stride, (self.size - 1) // 2)
        fields: Tensor = out.unflatten(1, (-1, self.group.order))
        return fields


def gathered(weight: Tensor, table: Tensor) -> Tensor:
    """Filters (C', C, K) by a table (G, K) of places -> (C', C, G, K)."""
    found: Tensor = weight.index_select(2, table.flatten()).unflatten(2, tuple(table.shape))
    return found


def convolved(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """The ordinary convolution of (B, C, H, W). On a GPU channels-last, which its matrix units
    want; where the filter is as large as the image it is a matrix product.
    """
    if x.shape[2:] == weight.shape[2:] and not padding:
        return (x.flatten(1) @ weight.flatten(1).T)[..., None, None]
    if x.is_cuda:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, stride=stride, padding=padding)


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
    sums of the indexing's own took a tenth of a training step. On a GPU in one kernel each, on a
    CPU row by row, which is faster there.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tables: Tensor) -> Tensor:
        ctx.save_for_backward(tables)
        if weight.is_cuda:
            return turned_at_once(weight, tables)
        rows = weight.T.contiguous()
        return torch.stack([rows[table].T for table in tables])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (tables,) = ctx.saved_tensors
        back = tables.argsort(1)
        if gradients[0].is_cuda:
            return turned_back_at_once(gradients[0], back), None
        parts = [part.T.contiguous()[table] for part, table in zip(gradients[0], back, strict=True)]
        return torch.stack(parts).sum(0).T, None


def turned_at_once(weight: Tensor, tables: Tensor) -> Tensor:
    """Weights (N, K) -> (G, N, K) by tables (G, K), in one kernel."""
    wide: Tensor = weight[:, tables]
    return wide.transpose(0, 1)


def turned_back_at_once(gradient: Tensor, back: Tensor) -> Tensor:
    """Gradients (G, N, K) -> (N, K): each gathered by its inverse table, and summed."""
    return gradient.gather(2, back[:, None].expand_as(gradient)).sum(0)


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
        out = convolved(x.flatten(1, 2), self.expanded(), self.stride, self.padding)
        fields: Tensor = out.unflatten(1, (-1, self.group.order))
        return fields


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
        turned = gathered(self.weight.flatten(2), self.table)  # (C', C, G, kk)
        weight = turned.reshape(c_out, c_in * self.group.order, k, k)
        image = convolved(x.flatten(1, 2), weight, padding=self.size // 2)
        return image + self.bias[:, None, None]


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
        weight = self.weight.index_select(0, self.relative.flatten())
        weight = weight.unflatten(0, tuple(self.relative.shape))
        return torch.einsum("bhi,ghio->bgo", x, weight) + self.bias


class FieldNorm(nn.Module):
    """Batch normalisation of (B, C, G, H, W) with one mean and variance per feature field C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.is_cuda:
            return spread_norm(x, self.norm)
        out: Tensor = self.norm(x.flatten(2))
        return out.reshape(x.shape)


def spread_norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """What ``norm`` does in training to (B, C, G, H, W), by general sums: a GPU's own batch norm
    gives each channel to one multiprocessor, and of fields there are few.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x.float(), axes, correction=0)
    with torch.no_grad():
        keep, count = 1.0 - float(norm.momentum or 0.1), x.numel() // x.shape[1]
        for running, found in (
            (norm.running_mean, mean),
            (norm.running_var, variance * (count / max(count - 1, 1))),
        ):
            if running is not None:
                running.mul_(keep).add_(found, alpha=1.0 - keep)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - mean * scale
    shape = (-1,) + (1,) * (x.ndim - 2)
    return (x * scale.reshape(shape) + shift.reshape(shape)).to(x.dtype)


def double(x: Tensor) -> Tensor:
    """(B, C, G, H, W) -> (B, C, G, 2H, 2W) by repeating pixels."""
    out: Tensor = F.interpolate(x.flatten(1, 2), scale_factor=2.0).unflatten(1, x.shape[1:3])
    return out
