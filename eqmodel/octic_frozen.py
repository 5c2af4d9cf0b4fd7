"""The inference form of the octic encoder: norms folded, channels-last, transforms as products.

Two forms of one stage. Without a compiler the change of basis is one small matrix product and the
blocks are products into one allocation. Under torch.compile it is written as sums, which fuse with
bias and ReLU. Both equal the eager encoder in evaluation mode, by test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.layers import FieldNorm
from eqmodel.octic import OcticEncoder, PointwiseIrreps, Separable

AT_ONCE = 32  # images: what they fill stays in the cache of a core
KEPT = 30 << 20  # bytes, below the 32 MiB at which glibc stops learning


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed between passes.

    glibc returns larger pieces to the system at once and faults them in again at the next pass,
    page by page, until it has seen one as large freed (mallopt(3), M_MMAP_THRESHOLD). Measured at
    width 6: 48 faults per image and 495 us in place of 270. Nothing happens elsewhere.
    """
    torch.empty(KEPT, dtype=torch.uint8)


def affine(norm: FieldNorm) -> tuple[Tensor, Tensor]:
    """(C,), (C,) float64: the gain and shift that a norm comes to in evaluation mode."""
    running = norm.norm
    mean, variance = running.running_mean, running.running_var
    if mean is None or variance is None:
        raise ValueError("a batch-norm without running statistics cannot be folded")
    gain = running.weight.double() / torch.sqrt(variance.double() + running.eps)
    return gain, running.bias.double() - mean.double() * gain


class FrozenSeparable(nn.Module):
    """Features -> features, channels-last, with the ReLU that may follow.

    (B, C * G, H, W) -> (B, C' * G, H', W'), the element varying fastest; under torch.compile (B, G
    * C, H, W) -> (B, G * C', H', W'), the field varying fastest.
    """

    filters: Tensor
    basis: Tensor
    lines: Tensor
    planes: Tensor
    shift: Tensor

    def __init__(self, stage: Separable, relu: bool) -> None:
        super().__init__()
        depthwise, pointwise = stage.depthwise, stage.pointwise
        self.stride, self.padding, self.relu = depthwise.stride, depthwise.padding, relu
        self.order, self.copies = pointwise.group.order, pointwise.copies
        self.sums: list[list[float]] = pointwise.basis.tolist()
        with torch.no_grad():
            gain, shift = affine(stage.norm)
            lines, planes = blocks_in_float64(pointwise)
            self.register_buffer("filters", depthwise.turned().flatten(0, 1)[:, None].contiguous())
            self.register_buffer("basis", pointwise.basis.clone())
            self.register_buffer("lines", (lines * gain).float())
            self.register_buffer("planes", (planes * gain).float())
            self.register_buffer("shift", shift.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.summed(x) if torch.compiler.is_compiling() else self.multiplied(x)

    def multiplied(self, x: Tensor) -> Tensor:
        """Changes of basis as matrix products."""
        x = self.depthwise(x, self.filters)
        channels, places = x.shape[1] // self.order, (len(x), *x.shape[2:])
        rows = x.permute(0, 2, 3, 1).reshape(-1, self.order)  # (B H W C, G)
        parts = (self.basis @ rows.T).unflatten(1, (-1, channels))  # (G, B H W, C)
        out = parts.new_empty(*parts.shape[:2], self.lines.shape[2])
        count = len(self.lines)
        torch.bmm(parts[:count], self.lines, out=out[:count])
        out[0] += self.shift
        if self.copies:
            first, second = parts[count:].view(2, -1, channels)
            for component, found in enumerate(out[count:].view(2, -1, out.shape[2])):
                torch.mm(first, self.planes[0, component], out=found)
                found.addmm_(second, self.planes[1, component])
        fields: Tensor = out.flatten(1).T @ self.basis  # (B H W C', G)
        if self.relu:
            fields.relu_()
        return fields.view(*places, -1).permute(0, 3, 1, 2)

    def summed(self, x: Tensor) -> Tensor:
        """Changes of basis as sums of long rows."""
        count = len(self.lines)
        y = self.depthwise(x, by_element(self.filters, self.order))
        places = (len(y), *y.shape[2:])
        values = y.permute(0, 2, 3, 1).reshape(-1, self.order, self.lines.shape[1])
        parts = combined(self.sums, values.unbind(1))
        found = list(torch.bmm(torch.stack(parts[:count]), self.lines))
        found[0] = found[0] + self.shift
        if self.copies:
            by_copy = [parts[count + p] for p in swapped(2, self.copies)]
            rows = torch.stack(by_copy, 1).reshape(-1, 2 * values.shape[2])  # (B H W copies, 2 C)
            wide = self.planes.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (2 C, 2 C')
            out = (rows @ wide).reshape(len(values), 2 * self.copies, -1).unbind(1)
            found += [out[p] for p in swapped(self.copies, 2)]
        fields = combined(list(zip(*self.sums, strict=True)), found)
        whole: Tensor = torch.stack(
            [F.relu(f) if self.relu else f for f in fields], 1
        )  # (B H W, G, C')
        return whole.reshape(*places, -1).permute(0, 3, 1, 2)

    def depthwise(self, x: Tensor, filters: Tensor) -> Tensor:
        out: Tensor = F.conv2d(
            x, filters, stride=self.stride, padding=self.padding, groups=len(filters)
        )
        return out


def swapped(outer: int, inner: int) -> list[int]:
    """Where items lie that were numbered outer-first, when they are told inner-first."""
    return [o * inner + i for i in range(inner) for o in range(outer)]


def by_element(parts: Tensor, order: int) -> Tensor:
    """Parts (C * G, ...) -> (G * C, ...)."""
    out: Tensor = parts.unflatten(0, (-1, order)).transpose(0, 1).flatten(0, 1)
    return out


def combined(matrix: Sequence[Sequence[float]], values: Sequence[Tensor]) -> list[Tensor]:
    """Row by row the sums of values under a matrix of 0, 1, -1."""
    found = []
    for row in matrix:
        terms = [(sign > 0, value) for sign, value in zip(row, values, strict=True) if sign]
        total = terms[0][1] if terms[0][0] else -terms[0][1]
        for positive, value in terms[1:]:
            total = total + value if positive else total - value
        found.append(total)
    return found


def blocks_in_float64(pointwise: PointwiseIrreps) -> tuple[Tensor, Tensor]:
    """The blocks of a pointwise map, as PointwiseIrreps.blocks gives them."""
    weight = pointwise.weight.double()
    lines = torch.einsum("kp,kio->pio", pointwise.to_lines.double(), weight)
    return lines, torch.einsum("kbq,kio->bqio", pointwise.to_planes.double(), weight)


class FrozenOctic(nn.Module):
    """Images (B, C, S, S) float32 -> codes (B, order, features) float32."""

    lift: Tensor
    shift: Tensor

    def __init__(self, encoder: OcticEncoder) -> None:
        super().__init__()
        keep_freed_memory()
        self.order = encoder.lift.group.order
        self.padding = (encoder.lift.size - 1) // 2
        with torch.no_grad():
            gain, shift = (part.repeat_interleave(self.order) for part in affine(encoder.norm))
            filters = (encoder.lift.expanded().double() * gain[:, None, None, None]).float()
            self.register_buffer("lift", channels_last(filters))
            self.register_buffer("shift", shift.float())
        stages = [*encoder.stages, encoder.last]
        self.stages = nn.Sequential(
            *(FrozenSeparable(stage, stage is not encoder.last) for stage in stages)
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or len(x) <= AT_ONCE:
            return self.codes(x)
        return torch.cat([self.codes(part) for part in x.split(AT_ONCE)])

    def codes(self, x: Tensor) -> Tensor:
        """The whole batch at once."""
        if torch.compiler.is_compiling():
            return self.fused_codes(x)
        x = F.conv2d(channels_last(x), self.lift, self.shift, stride=2, padding=self.padding)
        out: Tensor = self.stages(x.relu_()).reshape(len(x), -1, self.order)
        return out.transpose(1, 2)

    def fused_codes(self, x: Tensor) -> Tensor:
        """The same for a compiler. The copy tells it the layout, which one channel leaves open."""
        lift, shift = by_element(self.lift, self.order), by_element(self.shift, self.order)
        x = F.relu(F.conv2d(x, lift, shift, stride=2, padding=self.padding))
        rows = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        out: Tensor = self.stages(rows.permute(0, 3, 1, 2)).reshape(len(x), self.order, -1)
        return out


def channels_last(x: Tensor) -> Tensor:
    """The same values laid out as (B, H, W, C) in memory, and told by the strides.

    The strides of one channel are ambiguous, and torch then takes them for (B, C, H, W): the
    convolution's output would lie so too.
    """
    rows = x.permute(0, 2, 3, 1)
    return rows.flatten().view(rows.shape).permute(0, 3, 1, 2)
