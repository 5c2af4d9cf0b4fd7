"""Invariant readouts: code matrices (B, order, m) -> features that no element of the group changes.

Kuzminykh, Polykovskiy, Zhebrak, "Extracting Invariant Features From Images Using An Equivariant
Autoencoder", ACML 2018. All run in the precision of the codes given. ``Embedder`` runs
``gram`` in its own form (frozen_head.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.devices import products_by, products_of, upper_triangle
from eqmodel.errors import Refused
from eqmodel.groups import FiniteGroup
from eqmodel.layers import GroupLinear

PRODUCTS = ("gram", "bispectrum")  # sums of products of entries of the code
READOUTS = ("mean", "max", "rms", "gram", "bispectrum", "attention")
CORRELATIONS = ("identity", "identity+diagonals", "quarter", "all")  # parts of P and P' for gram
CAP = 10.0  # bound of attention's logits, whose rounding grows with their size
MIXTURES = 8  # combinations of columns whose triple correlation the bispectrum readout takes


def mean(codes: Tensor, group: FiniteGroup) -> Tensor:
    """(B, order, m) -> (B, m): the average of the rows."""
    return codes.mean(1)


def maximum(codes: Tensor, group: FiniteGroup) -> Tensor:
    """(B, order, m) -> (B, m): the largest of each column."""
    return codes.amax(1)


def root_mean_square(codes: Tensor, group: FiniteGroup) -> Tensor:
    """(B, order, m) -> (B, m): the square root of the diagonal of the Gram matrix over the
    order.
    """
    return codes.square().mean(1).clamp_min(1e-12).sqrt()


def representatives(group: FiniteGroup, part: str = "all") -> list[int]:
    """One element of each pair {h, h^-1}: c_ij(h) = c_ji(h^-1), so the other says nothing new.

    ``part`` as in CORRELATIONS; the quarter turns come with the group's mirrors.
    """
    if part not in CORRELATIONS:
        raise Refused(f"'{part}' is no part of P; use one of {', '.join(CORRELATIONS)}")
    step = max(group.n // 4, 1)
    kept = {
        "identity": range(1),
        "identity+diagonals": range(1),
        "quarter": [h for h in range(group.order) if (h % group.n) % step == 0],
        "all": range(group.order),
    }[part]
    return [h for h in kept if h <= group.inverse[h]]


def gram(codes: Tensor, group: FiniteGroup, part: str = "all") -> Tensor:
    """Gram pooling with a part of P: c_ij(h) = sum_g V[g, i] V[g h, j], distinct terms only.

    (B, order, m) -> (B, F); F = 4,192 for d4 at m = 32 with all of P. P, the permutations that
    commute with the group, is exactly the set of right multiplications g -> g h (section 4.2 of
    the paper, with pi restored). The part "identity" is V^T V alone; "identity+diagonals" adds
    what P' keeps beside it.
    """
    m = codes.shape[-1]
    upper = upper_triangle(m, codes.device)
    parts = []
    for h in representatives(group, part):
        moved = codes.index_select(1, products_by(group, h, codes.device))
        product = (codes.transpose(1, 2) @ moved).flatten(1)
        symmetric = group.inverse[h] == h
        parts.append(product.index_select(1, upper) if symmetric else product)
    if part == "identity+diagonals":
        parts.append(diagonals(codes, group))
    return torch.cat(parts, 1)


def diagonals(codes: Tensor, group: FiniteGroup) -> Tensor:
    """(B, order, m) -> (B, m * n/2): sum_g V[g, i] V[t g, i] for turns t, which P' holds.

    u -> <u, t u> is invariant where t is conjugate to t and t^-1 alone, as turns are; mirrors of
    D_n are not.
    """
    turns = [t for t in range(1, group.n) if t <= group.inverse[t]]
    moved = [codes[:, products_of(group, t, codes.device)] for t in turns]
    if not moved:
        return codes.new_empty(len(codes), 0)
    return torch.cat([(codes * other).sum(1) for other in moved], 1)


def bispectrum(codes: Tensor, group: FiniteGroup) -> Tensor:
    """Gram pooling and the triple correlations of fixed combinations of columns: a complete
    invariant.

    (B, order, m) -> (B, F). For u = V a, T(h1, h2) = sum_g u[g] u[g h1] u[g h2], whose Fourier
    transform over the group is the bispectrum (Kakarala 1992; Mataigne et al. 2024). It fixes u
    but for one element of the group when its Fourier coefficients are invertible, which all but
    special codes have; the cross correlations of ``gram`` then fix every other column against u.
    """
    features = codes.shape[-1]
    mixed = codes @ mixtures(features).to(codes.device, codes.dtype)  # (B, order, r)
    parts = [gram(codes, group)]
    for first, seconds in triples(group):
        pair = mixed * mixed[:, products_by(group, first, codes.device)]
        columns = [products_by(group, second, codes.device) for second in seconds]
        third = mixed[:, torch.stack(columns, 1)]  # (B, g, h2, r)
        parts.append(torch.einsum("bgr,bghr->bhr", pair, third).flatten(1))
    return torch.cat(parts, 1)


def mixtures(features: int) -> Tensor:
    """(m, r) float64: fixed combinations of columns, r = min(m, 8), of unit length."""
    row = torch.arange(1, features + 1, dtype=torch.float64)[:, None]
    column = torch.arange(1, min(features, MIXTURES) + 1, dtype=torch.float64)[None]
    weights = torch.cos(row * column * 2.399963229728653)  # the golden angle, in radians
    unit: Tensor = weights / weights.norm(dim=0)
    return unit


@lru_cache(maxsize=32)
def triples(group: FiniteGroup) -> list[tuple[int, list[int]]]:
    """The distinct T(h1, h2), as h1 with its h2: one for every triple {g, g h1, g h2} up to
    turning.
    """
    seen: set[tuple[int, ...]] = set()
    found: dict[int, list[int]] = {}
    for first in range(group.order):
        for second in range(first, group.order):
            members = (0, first, second)
            moved = (tuple(sorted(int(group.left[k, x]) for x in members)) for k in members)
            canonical = min(moved)
            if canonical not in seen:
                seen.add(canonical)
                found.setdefault(first, []).append(second)
    return list(found.items())


class EquivariantAttention(nn.Module):
    """Splits a code into what it is (Q, invariant) and which pose it has (w, one weight per
    element).

    Q[g] = sum_t w_t V[t g], and for a one-hot w, V[g] = sum_t w_t Q[t^-1 g] gives V back (section
    4.3). A small dense network compresses Q to ``dim`` values; ``expand`` mirrors it.
    """

    products: Tensor  # (order, order) int64
    left: Tensor  # (order, order) int64

    def __init__(self, group: FiniteGroup, features: int, dim: int) -> None:
        super().__init__()
        self.group, self.features = group, features
        self.register_buffer("products", torch.from_numpy(group.cayley), persistent=False)
        self.register_buffer("left", torch.from_numpy(group.left), persistent=False)
        flat = group.order * features
        self.hidden = GroupLinear(group, features, features)
        self.head = GroupLinear(group, features, 1)
        self.compress = nn.Sequential(nn.Linear(flat, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.restore = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, flat))

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, order, m) -> compressed (B, dim), weights (B, order)."""
        logits = self.head(F.relu(self.hidden(codes)))[..., 0]
        weights = torch.softmax(CAP * torch.tanh(logits / CAP), 1)
        turned_back = codes[:, self.products]  # (B, t, g, m): V[t g]
        canonical = torch.einsum("bt,btgm->bgm", weights, turned_back)
        compressed: Tensor = self.compress(canonical.flatten(1))
        return compressed, weights

    def expand(self, compressed: Tensor, weights: Tensor) -> Tensor:
        """Compressed (B, dim) and weights (B, order) -> codes (B, order, m)."""
        canonical = self.restore(compressed).unflatten(1, (self.group.order, self.features))
        turned = canonical[:, self.left]  # (B, t, g, m): Q[t^-1 g]
        return torch.einsum("bt,btgm->bgm", weights, turned)


Readout = Callable[[Tensor], Tensor]


def readout(
    name: str,
    group: FiniteGroup,
    attention: EquivariantAttention | None = None,
    correlations: str = "all",
) -> Readout:
    """The readout of that name as a function codes (B, order, m) -> (B, F).

    ``correlations``: the part of P that gram takes.

    Raises Refused for an unknown name, and for attention without its trained head.
    """
    if name == "attention":
        if attention is None:
            raise Refused(
                "readout attention needs a head trained with it; train with --readout attention"
            )
        return lambda codes: attention(codes)[0]
    representatives(group, correlations)  # refuses an unknown part of P
    functions: dict[str, Callable[[Tensor, FiniteGroup], Tensor]] = {
        "mean": mean,
        "max": maximum,
        "rms": root_mean_square,
        "gram": lambda codes, group: gram(codes, group, correlations),
        "bispectrum": bispectrum,
    }
    if name not in functions:
        raise Refused(f"'{name}' is not a readout; use one of {', '.join(READOUTS)}")
    return lambda codes: functions[name](codes, group)
