"""A fingerprint that a turn about the centre does not move: the spectrum of rings.

Along a ring a turn is a shift, so the magnitudes of its Fourier coefficients stay, at any angle and
mirrored. The embedding sees the whole frame; the corners that a free turn cuts, and what it fills
them with, move it, and pictures that fill their frame (textures, photographs) most. Rings see the
disc inside alone. What they propose is confirmed on pixels like all else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.duplicates.looks import Looks, Plane
from pipelines.duplicates.sampling import CENTRE, bilinear

RINGS, ORDERS, ANGLES, BATCH = 8, 9, 64, 512

_ANGLE = 2 * torch.pi * torch.arange(ANGLES) / ANGLES
_DIRECTION = torch.stack([torch.cos(_ANGLE), -torch.sin(_ANGLE)], 1)
_SHARE = (torch.arange(RINGS) + 0.5) / RINGS


def ring_spectra(looks: Looks) -> Plane:
    """(M, RINGS * ORDERS) float32 of length 1; 0 for a picture without contrast."""
    found = np.zeros((len(looks.rows), RINGS * ORDERS), np.float32)
    smooth, reach = torch.from_numpy(looks.smooth), torch.from_numpy(looks.reach)
    for start in range(0, len(found), BATCH):
        part = slice(start, start + BATCH)
        values = _rings(smooth[part].float(), reach[part])
        values -= (values.mean(2) @ _SHARE / _SHARE.sum())[:, None, None]
        power = torch.fft.rfft(values).abs()[:, :, 1 : ORDERS + 1] * _SHARE.sqrt()[:, None]
        flat = power.reshape(len(power), -1)
        length = flat.norm(dim=1, keepdim=True)
        found[part] = torch.where(length > ANGLES, flat / length.clamp_min(1e-9), 0.0).numpy()
    return found


def _rings(pictures: Tensor, reach: Tensor) -> Tensor:
    """(P, SIDE, SIDE) -> (P, RINGS, ANGLES), bilinear; rings reach to the nearer border."""
    radius = 0.97 / CENTRE * reach[:, None] * _SHARE
    places = (radius[:, :, None, None] * _DIRECTION).flatten(1, 2)
    return bilinear(pictures[:, None], places).reshape(len(reach), RINGS, ANGLES)
