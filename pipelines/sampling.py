"""Samples that stay: which images are drawn follows from their ids, not from what else is there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def steady_sample(ids: Ints, size: int, seed: int = 0) -> Ints:
    """Rows, ascending, of at most ``size`` image_ids (N,), drawn uniformly by a hash of the id.

    Two collections that share an image and are of one size draw it in both or in neither, so that
    what is computed on samples changes from night to night only as far as the images do. The hash
    is splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    if len(ids) <= size:
        return np.arange(len(ids), dtype=np.int64)
    mixed = ids.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    drawn: Ints = np.sort(np.argpartition(mixed, size - 1)[:size]).astype(np.int64)
    return drawn
