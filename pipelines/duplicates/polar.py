"""Every turn of one picture against another at once: circular correlation on rings.

On a polar grid a turn is a shift along the angle, so all angles of a pair are one product of
Fourier transforms, and a mirrored picture is the complex conjugate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.duplicates.looks import SIDE
from pipelines.duplicates.sampling import CENTRE, bilinear

ANGLES, RADII = 96, 12
STEP = 360 / ANGLES

_RADIUS = (torch.arange(RADII) + 0.5) * (SIDE / 2) / RADII
_ANGLE = 2 * torch.pi * torch.arange(ANGLES) / ANGLES
_DIRECTION = torch.stack([torch.cos(_ANGLE), -torch.sin(_ANGLE)], 1)
_PLACES = (_RADIUS[:, None, None] * _DIRECTION / CENTRE).reshape(1, -1, 2)
_TURNED_HALF = 1.0 - 2.0 * (torch.arange(ANGLES // 2 + 1) % 2)


def place(degrees: float) -> int:
    """Where an angle, a multiple of ``STEP``, stands among all."""
    return round(degrees / STEP) % ANGLES


def correlations(left: Tensor, right: Tensor, reach: Tensor) -> Tensor:
    """Pictures (P, SIDE, SIDE) float32, a bit blurred, and the radius (P,) up to which they are
    compared -> (P, 2, ANGLES) correlations of left with right turned by each angle
    counter-clockwise, as it is and mirrored before."""
    within = reach.clamp_min(float(_RADIUS[0]))[:, None] >= _RADIUS
    weight = torch.where(within, _RADIUS, 0.0)
    weight /= weight.sum(1, keepdim=True)
    one, first = _transformed(left, weight)
    other, second = _transformed(right, weight)
    one *= weight[:, :, None]
    turned = (one * other.conj()).sum(1)
    mirrored = (one * other).sum(1) * _TURNED_HALF
    both = torch.fft.irfft(torch.stack([turned, mirrored], 1), ANGLES) / ANGLES
    found: Tensor = both / (first * second + 1e-6)[:, None, None]
    return found


def _transformed(pictures: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fourier transforms along the angle (P, RADII, k) of pictures less their mean, and their
    lengths (P,)."""
    num = len(pictures)
    rings = bilinear(pictures[:, None], _PLACES.expand(num, -1, -1)).reshape(num, RADII, ANGLES)
    rings -= (weight * rings.mean(2)).sum(1)[:, None, None]
    power = (rings * rings).sum(2)
    return torch.fft.rfft(rings), torch.sqrt((weight * power).sum(1) / ANGLES)
