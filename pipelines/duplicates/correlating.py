"""How well pictures agree that lie over each other, and by what measure that is little."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.duplicates.looks import NOISE, picture_and_detail, share_of_detail

Length = tuple[Tensor, Tensor]
"""Values (P, n) of unit length, with one more coordinate (P,), the share that ``NOISE`` has."""


def unit(values: Tensor, mask: Tensor | None = None) -> Length:
    """(P, n) -> mean 0 and length 1 within the mask, as if each pixel had ``NOISE`` beside: so two
    pictures without contrast are alike, as they should be, and noise counts for nothing."""
    if mask is None:
        num = torch.full((len(values),), float(values.shape[1]))
        values = values - values.mean(1, keepdim=True)
    else:
        num = mask.sum(1).clamp_min(1)
        values = (values - ((values * mask).sum(1) / num)[:, None]).mul_(mask)
    noise = NOISE * num.sqrt()
    length = torch.hypot(values.norm(dim=1), noise)
    return values.div_(length[:, None]), noise / length


def dot(left: Length, right: Length) -> Tensor:
    """(P,): the correlations of two of unit length."""
    return (left[0] * right[0]).sum(1) + left[1] * right[1]


def agreement(left: Tensor, right: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Values (P, 2, n), grey and blurred, of pictures that lie over each other -> (P,) how they
    correlate within the mask (P, n), and the share that detail has in the finer of them; the other
    may have lost it."""
    one, other = (picture_and_detail(both[:, 0], both[:, 1]) for both in (left, right))
    shares = [share_of_detail(*(variance(v, mask) for v in layers)) for layers in (one, other)]
    return dot(unit(one[0], mask), unit(other[0], mask)), torch.maximum(*shares)


def variance(values: Tensor, mask: Tensor) -> Tensor:
    """(P, n) -> (P,): within the mask."""
    num = mask.sum(1).clamp_min(1)
    weighed = values * mask
    mean = weighed.sum(1) / num
    return (weighed * values).sum(1) / num - mean * mean
