"""The inference form of the encoder: ordinary convolutions, batch-norm folded, channels-last.

A group convolution is an ordinary convolution with an expanded filter, so nothing of the group is
left to do at inference. Equal to the eager encoder in evaluation mode, by test.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.autoencoder import Encoder
from eqmodel.copies import CopiesEncoder
from eqmodel.layers import FieldNorm
from eqmodel.octic import OcticEncoder
from eqmodel.octic_frozen import FrozenOctic


def folded(weight: Tensor, norm: FieldNorm, order: int) -> tuple[Tensor, Tensor]:
    """Filter (C * order, C', k, k) and bias (C * order,) of convolution followed by batch-norm."""
    running = norm.norm
    mean, var = running.running_mean, running.running_var
    if mean is None or var is None:
        raise ValueError("a batch-norm without running statistics cannot be folded")
    gain = running.weight.double() / torch.sqrt(var.double() + running.eps)
    shift = running.bias.double() - mean.double() * gain
    wide = gain.repeat_interleave(order)
    return (weight.double() * wide[:, None, None, None]).float(), shift.repeat_interleave(
        order
    ).float()


class FrozenEncoder(nn.Module):
    """Images (B, C, S, S) float32 -> codes (B, order, features) float32."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.order = encoder.lift.group.order
        convs = [encoder.lift, *encoder.stages]
        self.steps = [(conv.stride, (conv.weight.shape[-1] - 1) // 2) for conv in convs]
        with torch.no_grad():
            for i, (conv, norm) in enumerate(zip(convs, encoder.norms, strict=True)):
                weight, bias = folded(conv.expanded(), norm, self.order)  # type: ignore[arg-type]
                self.register_buffer(f"weight{i}", channels_last(weight))
                self.register_buffer(f"bias{i}", bias)
            last, bias = folded(encoder.last.expanded(), encoder.centre, self.order)
            self.register_buffer("last", last.permute(0, 2, 3, 1).flatten(1).T.contiguous())
            self.register_buffer("centre", bias)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        for i, (stride, padding) in enumerate(self.steps):
            weight, bias = self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")
            x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
        flat = x.permute(0, 2, 3, 1).flatten(1)
        codes = torch.addmm(self.get_buffer("centre"), flat, self.get_buffer("last"))
        out: Tensor = codes.unflatten(1, (-1, self.order)).transpose(1, 2)
        return out


def frozen(encoder: nn.Module) -> nn.Module:
    """The inference form of an encoder of either kind; the original is left as it is."""
    if isinstance(encoder, CopiesEncoder):
        inference = copy.deepcopy(encoder)
        inference.base = frozen(inference.base)
        return inference.eval()
    if isinstance(encoder, OcticEncoder):
        return FrozenOctic(encoder).eval()
    if not isinstance(encoder, Encoder):
        raise TypeError(f"{type(encoder).__name__} is not an encoder")
    return FrozenEncoder(encoder).eval()


def channels_last(x: Tensor) -> Tensor:
    """The same values laid out as (B, H, W, C) in memory, which convolutions on CPUs prefer."""
    return x.contiguous(memory_format=torch.channels_last)
