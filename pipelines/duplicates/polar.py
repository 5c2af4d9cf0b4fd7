"""Every turn of one picture against another at once: circular correlation on rings.

On a polar grid a turn is a shift along the angle, so all angles of a pair are one product of
Fourier transforms, and a mirrored picture is the complex conjugate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.duplicates.looks import SIDE, Plane

ANGLES, RADII = 96, 12
STEP = 360 / ANGLES

_CENTRE = (SIDE - 1) / 2
_RADIUS = ((np.arange(RADII) + 0.5) * (SIDE / 2) / RADII).astype(np.float32)


def _grid() -> tuple[NDArray[np.int64], Plane]:
    """Bilinear sampling of the polar grid: (4, RADII * ANGLES) places and weights."""
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    x = (_CENTRE + _RADIUS[:, None] * np.cos(angle)).clip(0, SIDE - 1.001).ravel()
    y = (_CENTRE - _RADIUS[:, None] * np.sin(angle)).clip(0, SIDE - 1.001).ravel()
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, down = x - left, y - top
    first = top * SIDE + left
    places = np.stack([first, first + 1, first + SIDE, first + SIDE + 1])
    weights = [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down]
    return places, np.stack(weights).astype(np.float32)


_PLACES, _WEIGHTS = _grid()


def correlations(left: Plane, right: Plane, reach: Plane) -> Plane:
    """Pictures (P, SIDE, SIDE), a bit blurred, and the radius (P,) up to which they are compared ->
    (P, 2, ANGLES) correlations of left with right turned by each angle counter-clockwise, as it is
    and mirrored before."""
    weight = np.where(np.maximum(reach, _RADIUS[0])[:, None] >= _RADIUS, _RADIUS, 0)
    weight /= weight.sum(1, keepdims=True)
    one, first = _transformed(left, weight)
    other, second = _transformed(right, weight)
    one *= weight[:, :, None]
    conjugate = (one * other.conj()).sum(1)
    turned_half = (-1.0) ** np.arange(one.shape[2])
    mirrored = (one * other).sum(1) * turned_half
    both = np.fft.irfft(np.stack([conjugate, mirrored], 1), ANGLES) / ANGLES
    found: Plane = (both / (first * second + 1e-6)[:, None, None]).astype(np.float32)
    return found


def _transformed(pictures: Plane, weight: Plane) -> tuple[NDArray[np.complex64], Plane]:
    """Fourier transforms along the angle (P, RADII, k) of pictures less their mean, and their
    lengths (P,)."""
    flat = pictures.reshape(len(pictures), -1)
    rings = sum(flat[:, place] * share for place, share in zip(_PLACES, _WEIGHTS, strict=True))
    rings = np.asarray(rings, np.float32).reshape(len(pictures), RADII, ANGLES)
    rings -= np.einsum("pr,pr->p", weight, rings.mean(2))[:, None, None]
    power = np.einsum("pra,pra->pr", rings, rings)
    length = np.sqrt(np.einsum("pr,pr->p", weight, power) / ANGLES)
    return np.fft.rfft(rings, axis=2).astype(np.complex64), length
