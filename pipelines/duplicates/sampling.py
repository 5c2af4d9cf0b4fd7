"""Values between the pixels of looks."""

from __future__ import annotations

import numpy as np

from pipelines.duplicates.looks import SIDE, Plane

CENTRE = np.float32((SIDE - 1) / 2)


def bilinear(pictures: Plane, x: Plane, y: Plane) -> Plane:
    """Pictures (P, SIDE, SIDE), and how far right of and below the centre (P, n) to look -> (P, n);
    past the border its own values."""
    x, y = (x + CENTRE).clip(0, SIDE - 1.001), (y + CENTRE).clip(0, SIDE - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x -= left.astype(np.float32)
    y -= top.astype(np.float32)
    place = top * SIDE + left + (np.arange(len(pictures), dtype=np.int32) * SIDE**2)[:, None]
    flat = pictures.reshape(-1)
    upper: Plane = flat[place]
    lower: Plane = flat[place + SIDE]
    upper += x * (flat[place + 1] - upper)
    lower += x * (flat[place + SIDE + 1] - lower)
    upper += y * (lower - upper)
    return upper
