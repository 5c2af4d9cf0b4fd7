"""A fingerprint that a turn about the centre does not move: the spectrum of rings.

Along a ring a turn is a shift, so the magnitudes of its Fourier coefficients stay, at any angle and
mirrored. The embedding sees the whole frame; the corners that a free turn cuts, and what it fills
them with, move it, and pictures that fill their frame (textures, photographs) most. Rings see the
disc inside alone. What they propose is confirmed on pixels like all else.
"""

from __future__ import annotations

import numpy as np

from pipelines.duplicates.looks import SIDE, Looks, Plane

RINGS, ORDERS, ANGLES, BATCH = 8, 9, 64, 512

_ANGLE = 2 * np.pi * np.arange(ANGLES) / ANGLES
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
    centre, num = (SIDE - 1) / 2, len(pictures)
    radius = (0.97 * reach[:, None] * _SHARE)[:, :, None]
    x = (centre + radius * np.cos(_ANGLE)).reshape(num, -1).astype(np.float32)
    y = (centre - radius * np.sin(_ANGLE)).reshape(num, -1).astype(np.float32)
    x, y = x.clip(0, SIDE - 1.001), y.clip(0, SIDE - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x, y = x - left.astype(np.float32), y - top.astype(np.float32)
    place = top * SIDE + left + (np.arange(num, dtype=np.int32) * SIDE**2)[:, None]
    flat = pictures.reshape(-1)
    upper = flat[place] * (1 - x) + flat[place + 1] * x
    lower = flat[place + SIDE] * (1 - x) + flat[place + SIDE + 1] * x
    return (upper * (1 - y) + lower * y).reshape(num, RINGS, ANGLES)
