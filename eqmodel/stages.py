"""The stages of a frozen encoder in the irreducible basis: weights in blocks, and where all lies.

A group convolution is a linear map, at every place, from a patch of all fields under all elements
to the fields there. Let the patch be read along the group: value (d, f, g) is field f under g at
the place that g takes d to. An element then moves the patch by g alone, as it moves a field, so
that the whole patch is d f regular representations, and in their irreducible basis (irreps.py) the
map falls apart into blocks, as a pointwise one does: 12 multiply-adds in place of 64 for D4, 6 in
place of 16 for C4. The octic encoder is made so (octic.py). Each stage is one function of machine
code (blocks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel.actions import filter_table
from eqmodel.blocks import VECTORS, block_rows, compiled
from eqmodel.groups import FiniteGroup
from eqmodel.irreps import blocks_of, irreducible_basis
from eqmodel.machine import lanes

PATCH_ROWS = 24  # taken to the basis at once: so that they stay in the first cache of a core
Floats = NDArray[np.float32]


class Stage:
    """One convolution with bias, and ReLU or none.

    Input [y][x][element][field][image] with a border of ``pad`` zeros, output likewise, with the
    border of the stage that follows. For the group c1, an ordinary convolution.
    """

    def __init__(
        self,
        of: FiniteGroup,
        blocks: tuple[Floats, Floats],
        bias: Tensor,
        shape: Sequence[int],
        filters: Tensor | None = None,
        *,
        relu: bool = True,
    ) -> None:
        """blocks: as ``in_blocks`` has them; bias (C',). shape: the sides of filter and input, the
        stride, the padding. filters (C, k * k): each field is filtered by itself first, under every
        element by the turned filter, and ``blocks`` mix what comes of it.
        """
        size, side, stride, self.pad = shape
        self.order, self.images = of.order, VECTORS * lanes()
        _, self.out_fields, self.depth = blocks[0].shape
        self.fields = self.depth if filters is not None else self.depth // size**2
        self.framed = side + 2 * self.pad
        self.side = (self.framed - size) // stride + 1
        basis = irreducible_basis(of)
        block = fitting_block(self.out_fields)
        signs = tuple(tuple(int(sign) for sign in row) for row in basis.matrix)
        depthwise = filters is not None
        self.function = compiled(signs, basis.lines, basis.copies, block, relu, depthwise)
        self.bias, self.weights = bias.numpy().copy(), packed(blocks, block)
        self.padded = -(-self.out_fields // block) * block
        moved = filter_table(of, size).argsort(1).numpy()  # [g, d]: the place that g takes d to
        f, g = np.ix_(*map(np.arange, (self.fields, self.order)))
        down, along = np.divmod(moved.T[:, None], size)  # [d, 1, g]
        inputs = ((down * self.framed + along) * self.order + g) * self.fields + f
        self.inputs = self.table(inputs.transpose(1, 0, 2) if depthwise else inputs)
        self.filters = np.zeros((0, 0), np.float32)
        if filters is not None:
            self.filters = np.ascontiguousarray(filters.numpy())
        y, x = np.ix_(*[np.arange(self.side)] * 2)
        self.places = self.table((y * self.framed + x) * stride * self.order * self.fields)

    @property
    def values_in(self) -> int:
        return int(self.order * self.fields * self.framed**2 * self.images)

    def table(self, places: NDArray[Any]) -> NDArray[np.int32]:
        """Places counted in images, as places in memory."""
        return np.ascontiguousarray(places.ravel() * self.images, np.int32)

    def leads_to(self, framed: int, pad: int) -> None:
        """Where the output goes: to a frame of ``framed`` pixels a side, ``pad`` of them border."""
        f, g = np.ix_(*map(np.arange, (self.out_fields, self.order)))
        self.outputs = self.table(g * self.out_fields + f)
        y, x = np.ix_(*[np.arange(self.side) + pad] * 2)
        self.targets = self.table((y * framed + x) * self.order * self.out_fields)

    def run(self, x: Tensor, patches: Tensor, products: Tensor, out: Tensor) -> None:
        """The stage on ``x``, into ``out``; the others are room to work in."""
        self.function(
            x.data_ptr(), self.inputs.ctypes.data, self.places.ctypes.data, len(self.places),
            self.filters.ctypes.data, self.filters.shape[1], self.weights.ctypes.data, self.depth,
            PATCH_ROWS, self.bias.ctypes.data, self.out_fields, self.padded, patches.data_ptr(),
            products.data_ptr(), out.data_ptr(), self.outputs.ctypes.data,
            self.targets.ctypes.data,
        )  # fmt: skip


def fitting_block(fields: int) -> int:
    """The number of rows to sum at once that leaves the fewest idle."""
    sizes = range(block_rows(), block_rows() // 2, -1)
    return min(sizes, key=lambda size: -(-fields // size) * size)


def in_blocks(of: FiniteGroup, weight: Tensor) -> tuple[Floats, Floats]:
    """Weights (C' * G, C * G, k, k) of a group convolution as blocks: on lines (lines, C', k k C),
    and on the plane, from component b to component o, (o, C', b, k k C); (0, C', 0, k k C) where
    there is no plane.
    """
    order, size = of.order, weight.shape[-1]
    first = weight[::order].double().unflatten(1, (-1, order)).flatten(3)  # [f', f, g, place]
    moved = filter_table(of, size).argsort(1)  # [g, d]: the place that g takes d to
    along = torch.stack([first[:, :, g, moved[g]] for g in range(order)])  # [g, f', f, d]
    patch = along.transpose(2, 3).flatten(2)  # [g, f', (d, f)]
    to_lines, to_planes = (torch.from_numpy(part) for part in blocks_of(of))
    lines = torch.einsum("kp,kij->pij", to_lines, patch)
    planes = torch.einsum("kbo,kij->oibj", to_planes, patch)
    return lines.float().numpy(), planes.float().numpy()


def packed(blocks: tuple[Floats, Floats], block: int) -> Floats:
    """Blocks in the order in which they are read: for each PATCH_ROWS rows of patches, those on
    lines (lines, C' / block, rows, block), then those on the plane (2 C' / block, b, rows, block),
    C' filled up with zeros.
    """
    parts = []
    lines, planes = blocks
    for first in range(0, lines.shape[-1], PATCH_ROWS):
        rows = slice(first, first + PATCH_ROWS)
        parts.append(in_rows(lines[:, :, None, rows], block))
        parts.append(in_rows(planes[..., rows], block))
    return np.concatenate([part.ravel() for part in parts])


def in_rows(weights: Floats, block: int) -> Floats:
    """(p, C', b, rows) -> (p, C' / block, b, rows, block), C' filled up with zeros."""
    missing = -weights.shape[1] % block
    full = np.pad(weights, ((0, 0), (0, missing), (0, 0), (0, 0)))
    apart = full.reshape(len(full), full.shape[1] // block, block, *full.shape[2:])
    return apart.transpose(0, 1, 3, 4, 2)


@torch.inference_mode()
def dense_stages(base: Any, of: FiniteGroup, side: int) -> list[Stage]:
    """The convolutions of a FrozenEncoder for images of ``side``."""
    lift, *convs = base.convs
    stages = [lifting(of, lift.weight, lift.bias, (side, lift.stride[0], lift.padding[0]))]
    for conv in convs:
        shape = (conv.weight.shape[-1], stages[-1].side, conv.stride[0], conv.padding[0])
        stages.append(Stage(of, in_blocks(of, conv.weight), conv.bias[:: of.order], shape))
    side = stages[-1].side
    last = base.last.T.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
    blocks, bias = in_blocks(of, last), base.centre[:: of.order]
    return [*stages, Stage(of, blocks, bias, (side, side, 1, 0), relu=False)]


@torch.inference_mode()
def octic_stages(base: Any, of: FiniteGroup, side: int) -> list[Stage]:
    """The stages of a FrozenOctic for images of ``side``."""
    stages = [lifting(of, base.lift, base.shift, (side, 2, base.padding))]
    for stage in base.stages:
        filters = stage.filters[:: of.order, 0]
        lines, planes = stage.lines.transpose(1, 2), stage.planes.permute(1, 3, 0, 2)
        shape = (filters.shape[-1], stages[-1].side, stage.stride, stage.padding)
        blocks = (lines.numpy(), planes.numpy())
        stages.append(Stage(of, blocks, stage.shift, shape, filters.flatten(1), relu=stage.relu))
    return stages


def lifting(of: FiniteGroup, weight: Tensor, bias: Tensor, place: Sequence[int]) -> Stage:
    """The first convolution, weight (C' * G, C, k, k), bias (C' * G,); ``place``: side of the
    image, stride, padding. It knows no elements in its input: an ordinary one, to all fields under
    all.
    """
    by_element = weight.unflatten(0, (-1, of.order)).transpose(0, 1).flatten(0, 1)
    none = FiniteGroup(1, False)
    shape = (weight.shape[-1], *place)
    return Stage(
        none, in_blocks(none, by_element), bias.unflatten(0, (-1, of.order)).T.flatten(), shape
    )
