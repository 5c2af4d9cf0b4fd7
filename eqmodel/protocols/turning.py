"""How far an embedding moves when the image is turned, and what its model can draw again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from eqmodel.actions import border_background, rotate
from eqmodel.embedder import Embedder
from eqmodel.protocols.probes import explained_variance

Embed = Callable[[NDArray[np.generic]], NDArray[np.float32]]
IMAGES, CURVE_IMAGES = 500, 2000


def relative(moved: NDArray[np.float32], original: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,): |moved - original| / |original| of embeddings (N, d)."""
    norm = np.linalg.norm(original.astype(np.float64), axis=1).clip(1e-12)
    return np.asarray(np.linalg.norm(moved.astype(np.float64) - original, axis=1) / norm)


def turning_errors(embed: Embed, upright: NDArray[np.uint8]) -> dict[str, float]:
    """Relative errors of embeddings of images (N, H, W) uint8 that are turned or mirrored.

    turn_90_error: largest over images and quarter turns. mirror_error: largest over images.
    turn_30_error: mean over images turned by 30 degrees with one bilinear interpolation, whatever
    lies outside being the border's median; turn_30_median their median.
    """
    images = upright[:IMAGES]
    pixels = torch.from_numpy(images.astype(np.float32) / 255.0)[:, None]
    angles = torch.full((len(images),), 30.0)
    turned = rotate(pixels, angles, border_background(pixels))[:, 0].numpy()
    original = embed(images)
    quarters = [relative(embed(np.rot90(images, k, (1, 2))), original).max() for k in (1, 2, 3)]
    thirty = relative(embed(turned), original)
    return {
        "turn_90_error": float(max(quarters)),
        "mirror_error": float(relative(embed(images[:, :, ::-1]), original).max()),
        "turn_30_error": float(thirty.mean()),
        "turn_30_median": float(np.median(thirty)),
    }


@torch.inference_mode()
def reconstruction_error(embedder: Embedder, images: NDArray[np.uint8]) -> float:
    """Mean squared error of the decoded images divided by their variance: 1 = their mean."""
    inputs = embedder.preprocess(list(images[:CURVE_IMAGES]))
    squared = 0.0
    for part in inputs.split(256):
        decoded = embedder.model(part.to(embedder.device))[1].cpu()
        squared += float((decoded - part).double().square().sum())
    return squared / inputs.numel() / max(float(inputs.var()), 1e-9)


@torch.inference_mode()
def readout_curve(embedder: Embedder, images: NDArray[np.uint8]) -> list[float]:
    """Explained variance of the principal components of the invariant readout, before the
    projection, on at most 2,000 images: what figure 8 of the paper shows.
    """
    inputs = embedder.preprocess(list(images[:CURVE_IMAGES]))
    parts = []
    for part in inputs.split(256):
        codes = embedder.codes_of(part).double()
        parts.append(embedder.readout_of(codes).float().cpu().numpy())
    return explained_variance(np.concatenate(parts))
