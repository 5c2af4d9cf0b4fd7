"""A fingerprint that a turn about the centre does not move: the spectrum of rings.

Along a ring a turn is a shift, so the magnitudes of its Fourier coefficients stay, at any angle and
mirrored. The embedding sees the whole frame; the corners that a free turn cuts, and what it fills
them with, move it, and pictures that fill their frame (textures, photographs) most. Rings see the
disc inside alone. What they propose is confirmed on pixels like all else.
"""

from __future__ import annotations

import numpy as np

from pipelines.duplicates.looks import Looks, Plane
from pipelines.duplicates.sampling import bilinear

RINGS, ORDERS, ANGLES, BATCH = 8, 9, 64, 512

_ANGLE = (2 * np.pi * np.arange(ANGLES) / ANGLES).astype(np.float32)
_COS, _SIN = np.cos(_ANGLE), np.sin(_ANGLE)
_SHARE = ((np.arange(RINGS) + 0.5) / RINGS).astype(np.float32)


def ring_spectra(looks: Looks) -> Plane:
    """(M, RINGS * ORDERS) float32 of length 1; 0 for a picture without contrast."""
    found = np.zeros((len(looks.rows), RINGS * ORDERS), np.float32)
    for start in range(0, len(found), BATCH):
        part = slice(start, start + BATCH)
        values = _rings(looks.smooth[part].astype(np.float32), looks.reach[part])
        values -= np.einsum("r,pra->p", _SHARE, values)[:, None, None] / (ANGLES * _SHARE.sum())
        power = np.abs(np.fft.rfft(values, axis=2)[:, :, 1 : ORDERS + 1]) * np.sqrt(_SHARE)[:, None]
        flat = power.reshape(len(power), -1)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        found[part] = np.where(length > ANGLES, flat / np.maximum(length, 1e-9), 0)
    return found


def _rings(pictures: Plane, reach: Plane) -> Plane:
    """(P, SIDE, SIDE) -> (P, RINGS, ANGLES), bilinear; rings reach to the nearer border."""
    radius = (0.97 * reach[:, None] * _SHARE)[:, :, None]
    x, y = (radius * _COS).reshape(len(reach), -1), (-radius * _SIN).reshape(len(reach), -1)
    found: Plane = bilinear(pictures, x, y).reshape(len(reach), RINGS, ANGLES)
    return found
