"""Outliers: images without company, and why each of them is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5


def outlier_scores(neighbour_scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - the mean score with the 5 nearest others: (N, k) -> (N,); 0 where there are none."""
    near = neighbour_scores[:, :NEIGHBOURS]
    if not near.shape[1]:
        return np.zeros(len(near), np.float32)
    usable = np.where(np.isfinite(near), near, np.nan)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(usable, 1) / np.maximum(1, np.isfinite(usable).sum(1))
    return np.where(np.isfinite(usable).any(1), 1.0 - mean, 0.0).astype(np.float32)
