"""The map of the collection: PCA and t-SNE of a bounded sample, and thumbnails as one sprite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pipelines.index import Rows

POINTS, MAX_POINTS, PCA_SAMPLE = 5_000, 20_000, 20_000
TSNE_DIMENSIONS, TSNE_LEAST = 32, 8
GRID = 4095
"""Coordinates travel as whole numbers from 0 to GRID: finer than any screen."""


@dataclass(frozen=True)
class CollectionMap:
    """``shown`` (P,) row numbers; ``layouts`` name -> (P, 2) whole numbers in 0..GRID;
    ``variance``: share of the variance explained by the first 1, 2, ... components."""

    shown: NDArray[np.int64]
    layouts: dict[str, NDArray[np.int64]]
    variance: tuple[float, ...]

    def as_dict(self, ids: NDArray[np.int64]) -> dict[str, Any]:
        """The ``map`` part of report.json's clusters section; ``ids`` are those of all rows."""
        reached = np.asarray(self.variance) >= 0.9
        return {
            "num_points": len(self.shown),
            "layouts": sorted(self.layouts),
            "explained_variance": [round(share, 5) for share in self.variance],
            "components_for_90_percent": int(reached.argmax()) + 1 if reached.any() else None,
            "points": {
                "image_id": [str(image_id) for image_id in ids[self.shown].tolist()],
                **{name: points.tolist() for name, points in sorted(self.layouts.items())},
            },
        }


def draw_map(rows: Rows, points: int = POINTS, seed: int = 0, threads: int = 0) -> CollectionMap:
    """Lay out at most ``points`` rows, chosen at random; fewer than 3 have no map."""
    num = len(rows)
    chance = np.random.default_rng(seed)
    shown = np.sort(chance.choice(num, min(num, points), replace=False)).astype(np.int64)
    if len(shown) < 3:
        return CollectionMap(shown[:0], {}, ())
    fitted = rows.vectors[np.sort(chance.choice(num, min(num, PCA_SAMPLE), replace=False))]
    spread = float(np.var(fitted, axis=0).sum())
    if spread < 1e-10:
        # All images identical: every layout would be a division by zero.
        return CollectionMap(shown, {"pca": np.full((len(shown), 2), GRID // 2)}, (1.0,))
    components = min(len(fitted) - 1, fitted.shape[1], 64)
    pca = PCA(components, svd_solver="full", random_state=seed).fit(fitted)
    flat = pca.transform(rows.vectors[shown])
    layouts = {"pca": _on_grid(_two(flat))}
    if len(shown) >= TSNE_LEAST:
        layouts["tsne"] = _on_grid(_tsne(flat[:, :TSNE_DIMENSIONS], seed, threads))
    variance = np.cumsum(pca.explained_variance_ratio_)
    return CollectionMap(shown, layouts, tuple(float(share) for share in variance))


def _tsne(flat: NDArray[np.float32], seed: int, threads: int) -> NDArray[np.float32]:
    perplexity = min(30.0, (len(flat) - 1) / 3)
    start = _two(flat)
    start = (start / max(float(start[:, 0].std()), 1e-12) * 1e-4).astype(np.float32)
    tsne = TSNE(
        perplexity=perplexity,
        init=start,
        learning_rate="auto",
        max_iter=500,
        random_state=seed,
        n_jobs=threads or None,
    )
    found: NDArray[np.float32] = tsne.fit_transform(np.ascontiguousarray(flat, np.float32))
    return found


def _two(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    return flat[:, :2] if flat.shape[1] > 1 else np.hstack([flat, np.zeros_like(flat)])


def _on_grid(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Into 0..GRID, y upwards on the page; the shorter direction stretched by 1.6 at most."""
    centred = points - points.mean(0)
    # The longest direction lies flat: pages are wider than high.
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    turned = centred @ axes.T if len(axes) == 2 else centred
    low, high = turned.min(0), turned.max(0)
    scale = GRID / np.maximum(high - low, float((high - low).max()) / 1.6 + 1e-12)
    placed = (turned - (low + high) / 2) * scale + GRID / 2
    placed[:, 1] = GRID - placed[:, 1]
    found: NDArray[np.int64] = np.clip(np.round(placed), 0, GRID).astype(np.int64)
    return found
