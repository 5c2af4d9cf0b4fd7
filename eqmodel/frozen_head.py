"""The inference form of readout and projection: codes -> embeddings, in as few passes as it takes.

Gram pooling is one batched product, of which the coordinates that the projection keeps are gathered
by index, or on CPUs one function of machine code (products.py); standardising is folded into the
projection's matrix. All but the last division by the length runs in float32. Measured for
d4-28-grey, microseconds an image on one core: 165 with all in float64, 50 by operators, 38 with
machine code. The invariance error from pixels to embedding is the same but for 5e-8, since it comes
from the encoder's float32: 7.1e-7 to 1.2e-6 over 500 real images in five sizes. Other readouts are
small and stay in float64.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.faster import Faster
from eqmodel.groups import FiniteGroup
from eqmodel.products import RootedProducts
from eqmodel.projection import Projection, assembled
from eqmodel.readouts import Readout, representatives


class FrozenGram(nn.Module):
    """Codes (B, order, m) -> the kept coordinates (B, F') of ``gram``, in the codes' precision."""

    gathered: Tensor  # (order * H,) int64: the rows of the code that each product takes, in turn
    wanted: Tensor  # (F',) int64: places of the kept coordinates in a product of shape (m, H * m)

    def __init__(self, group: FiniteGroup, part: str, features: int, keep: Tensor) -> None:
        super().__init__()
        self.order, self.features = group.order, features
        upper, full = torch.triu_indices(features, features), torch.ones(features, features)
        moves, places = [], []
        for h in representatives(group, part):
            pairs = upper if group.inverse[h] == h else full.nonzero().T
            moves.append(group.cayley[:, h])
            places.append(pairs)
        if part == "identity+diagonals":
            for t in range(1, group.n):
                if t <= group.inverse[t]:
                    moves.append(group.cayley[t])
                    places.append(torch.arange(features).repeat(2, 1))
        self.wide = wide = len(moves) * features
        found = [rows * wide + k * features + cols for k, (rows, cols) in enumerate(places)]
        table = torch.stack([torch.as_tensor(move.copy()) for move in moves], 1)
        self.register_buffer("gathered", table.flatten().long(), persistent=False)
        self.register_buffer("wanted", torch.cat(found)[keep.long()], persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        moved = codes.index_select(1, self.gathered).reshape(len(codes), self.order, self.wide)
        return torch.bmm(codes.transpose(1, 2), moved).flatten(1).index_select(1, self.wanted)


class Rooted(nn.Module):
    """Codes (B, order, m) -> x / sqrt(|x| + eps) (B, F') of the coordinates x that are kept."""

    eps: Tensor  # (F',)
    keep: Tensor | None  # (F',) int64: coordinates that are alive, where ``read`` gives all

    def __init__(self, read: Readout | FrozenGram, eps: Tensor, keep: Tensor | None = None) -> None:
        super().__init__()
        self.read = read
        self.register_buffer("eps", eps)
        self.register_buffer("keep", keep, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.read(codes)
        if self.keep is not None:
            x = x[:, self.keep]
        return x.abs().add_(self.eps).rsqrt_().mul_(x)


class RootedGram(Faster):
    """The same for a FrozenGram, as one function of machine code where it can be."""

    def __init__(self, read: FrozenGram, eps: Tensor) -> None:
        super().__init__(Rooted(read, eps))

    def made(self, x: Tensor) -> RootedProducts:
        read, eps = self.base.read, self.base.get_buffer("eps")
        assert isinstance(read, FrozenGram)
        left, place = np.divmod(read.wanted.numpy(), read.wide)
        moves = read.gathered.view(read.order, -1).numpy()
        coordinates = (place // read.features, left, place % read.features)
        return RootedProducts(moves, read.features, coordinates, eps)


class FrozenHead(nn.Module):
    """Codes (B, order, m) -> embeddings (B, d) float64, as readout and projection give them."""

    weight: Tensor  # (F', K): the projection's matrix over the scale
    bias: Tensor  # (K,): minus the projected mean

    def __init__(self, read: Readout | FrozenGram, projection: Projection) -> None:
        """``read``: a FrozenGram, or any readout, which is then given float64."""
        super().__init__()
        self.linear, self.kinds = projection.linear, projection.kinds
        dtype, eps = torch.float64, projection.eps
        if isinstance(read, FrozenGram):
            dtype = torch.float32
            self.rooted: nn.Module = RootedGram(read, eps.float())
        else:
            self.rooted = Rooted(read, eps.double(), projection.keep.long())
        weight = projection.matrix.double() / projection.scale.double()[:, None]
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", (-projection.mean.double() @ weight).to(dtype))
        self.head = copy.deepcopy(projection.head)
        if self.head is not None:
            self.head.to(dtype)

    def coordinates(self, codes: Tensor) -> Tensor:
        """(B, order, m) -> (B, K): float32 behind a FrozenGram, float64 else."""
        return torch.addmm(self.bias, self.rooted(codes.to(self.weight.dtype)), self.weight)

    def forward(self, codes: Tensor) -> Tensor:
        found = assembled(self.coordinates(codes), self.linear, self.kinds, self.head)
        # A length that is 1e-7 off, as float32 leaves it, would put a copy before the image itself.
        return F.normalize(found.double(), dim=1)
