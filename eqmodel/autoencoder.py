"""The equivariant autoencoder: image -> code matrix (order x features) -> image.

For C_n and D_n with n a multiple of 4 beyond 4, the image is turned by each r_j = j 360/n degrees
below 90 (one interpolation, in a frame that holds all of it), every copy goes through the same p4
or p4m network, and the codes interleave: V(x)[r_j h] = V_H(r_j^-1 x)[h]. Layers over the group
axis then mix the copies.

Turning the image by t permutes the rows of its code: V(t x)[g] = V(x)[t^-1 g]. With the group c1
this is the plain autoencoder that serves as baseline.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.errors import GroupError, Refused, SizeError
from eqmodel.groups import FiniteGroup, group
from eqmodel.layers import (
    FieldNorm,
    GroupConv2d,
    GroupExpand2d,
    LiftingConv2d,
    ProjectionConv2d,
    double,
)

SMALLEST, LARGEST = 28, 256  # image sides the network is made for, in pixels
ARCHITECTURES = ("dense", "octic")
LAST = range(4, 9)  # sides at which halving ends and one valid convolution reaches 1 x 1


@dataclass(frozen=True)
class AutoencoderConfig:
    """What fixes the network's shape. ``width`` is the number of fields of the first stage.

    correlations: the part of P and P' that Gram pooling takes (readouts.CORRELATIONS). mixing and
    padded concern turned copies alone (copies.py): whether layers over the group axis mix them,
    and whether they are turned in a frame that holds the image's corners at every angle. arch:
    "dense" or "octic" (octic.py).
    """

    group: str = "d4"
    image_size: int = 28
    channels: int = 1
    width: int = 6
    features: int = 32
    readout: str = "gram"
    attention_dim: int = 64
    correlations: str = "all"
    mixing: bool = True
    padded: bool = True
    arch: str = "dense"


def sides(image_size: int) -> list[int]:
    """The sides of the stages, halving from ``image_size`` down to 4..8.

    Raises SizeError, naming sizes that work, for one that cannot be halved evenly.
    """
    works = fitting_sizes()
    if image_size not in works:
        near = sorted(sorted(works, key=lambda s: abs(s - image_size))[:4])
        raise SizeError(
            f"image size {image_size} cannot be halved evenly down to {LAST[0]}..{LAST[-1]} "
            "pixels, "
            f"so the network would not be equivariant; use one of {', '.join(map(str, near))}"
        )
    out = [image_size]
    while out[-1] not in LAST:
        out.append(out[-1] // 2)
    return out


def fitting_sizes() -> list[int]:
    """All image sides from 28 to 256 that halve evenly."""
    found = {last * 2**times for last in LAST for times in range(8)}
    return sorted(size for size in found if SMALLEST <= size <= LARGEST)


def fitting_size(side: float) -> int:
    """The smallest fitting image side that is at least ``side`` (256 at most)."""
    return next((size for size in fitting_sizes() if size >= side), LARGEST)


def widths(config: AutoencoderConfig) -> list[int]:
    """Number of fields after each stage: doubling, at most 4 times the first."""
    return [config.width * min(2**i, 4) for i in range(len(sides(config.image_size)))]


class Encoder(nn.Module):
    """Images (B, C, S, S) -> codes (B, order, features).

    Convolutions of even filters at stride 2 halve the side, one more follows on the last side.
    Measured against 3 x 3 filters between means of 2 x 2: half the time at equal widths. The code
    is centred and scaled, feature by feature: its mean would else drown what the Gram matrix is to
    tell, and cost seven bits of it in float32.
    """

    def __init__(self, config: AutoencoderConfig, of: FiniteGroup) -> None:
        super().__init__()
        w, last = widths(config), sides(config.image_size)[-1]
        self.lift = LiftingConv2d(of, config.channels, w[0], 6, stride=2)
        halving = [GroupConv2d(of, a, b, 4, stride=2) for a, b in itertools.pairwise(w[:-1])]
        self.stages = nn.ModuleList([*halving, GroupConv2d(of, w[-2], w[-1], 3)])
        self.norms = nn.ModuleList(FieldNorm(c) for c in w)
        self.last = GroupConv2d(of, w[-1], config.features, last, padding="valid")
        self.centre = FieldNorm(config.features)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.lift(x.contiguous(memory_format=torch.channels_last))))
        for stage, norm in zip(self.stages, self.norms[1:], strict=True):
            x = F.relu(norm(stage(x)))
        codes: Tensor = self.centre(self.last(x))
        return codes[..., 0, 0].transpose(1, 2)


class Decoder(nn.Module):
    """Codes (B, order, features) -> images (B, C, S, S); the encoder's mirror image."""

    def __init__(self, config: AutoencoderConfig, of: FiniteGroup) -> None:
        super().__init__()
        w, last = widths(config)[::-1], sides(config.image_size)[-1]
        self.first = GroupExpand2d(of, config.features, w[0], last)
        self.stages = nn.ModuleList(GroupConv2d(of, a, b, 3) for a, b in itertools.pairwise(w))
        self.norms = nn.ModuleList(FieldNorm(c) for c in w)
        self.project = ProjectionConv2d(of, w[-1], config.channels, 5)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(codes.transpose(1, 2)[..., None, None])))
        for stage, norm in zip(self.stages, self.norms[1:], strict=True):
            x = double(F.relu(norm(stage(x))))
        image: Tensor = self.project(x)
        return image


class Autoencoder(nn.Module):
    """Encoder, decoder and, where the readout is trained inside, its attention."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        from eqmodel.copies import CopiesDecoder, CopiesEncoder
        from eqmodel.readouts import EquivariantAttention

        self.config, self.group = config, group(config.group)
        self.encoder: nn.Module
        self.decoder: nn.Module
        if self.group.n in (1, 2, 4):
            self.encoder, self.decoder = network_of(config, self.group)
        elif self.group.n % 4 == 0:
            self.encoder = CopiesEncoder(config, self.group)
            self.decoder = CopiesDecoder(config, self.group)
        else:
            raise GroupError(
                f"{config.group} has no quarter turns; use c1, c4, d4, "
                "or n a multiple of 4 such as d12"
            )
        self.attention: EquivariantAttention | None = None
        if config.readout == "attention":
            self.attention = EquivariantAttention(self.group, config.features, config.attention_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images -> (codes, reconstruction, attention weights (B, order) or None)."""
        codes = self.encoder(x)
        if self.attention is None:
            return codes, self.decoder(codes), None
        compressed, weights = self.attention(codes)
        return codes, self.decoder(self.attention.expand(compressed, weights)), weights


def network_of(config: AutoencoderConfig, of: FiniteGroup) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder for quarter turns and mirrors, of the architecture that the config
    names. Raises Refused for one that there is not.
    """
    from eqmodel.octic import OcticDecoder, OcticEncoder

    if config.arch == "dense":
        return Encoder(config, of), Decoder(config, of)
    if config.arch == "octic":
        return OcticEncoder(config, of), OcticDecoder(config, of)
    raise Refused(f"'{config.arch}' is no architecture; use {' or '.join(ARCHITECTURES)}")


def parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in module.parameters())


__all__ = ["Autoencoder", "AutoencoderConfig", "Decoder", "Encoder", "fitting_size", "sides"]
