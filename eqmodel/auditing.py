"""What the promise is worth on given images: errors per element, the curve over all angles,
rank-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel.actions import border_background, pose_dict, rotate, turn
from eqmodel.embedder import Embedder

CURVE_STEP, CURVE_IMAGES = 10, 64  # degrees between points of the curve, images behind each


@dataclass(frozen=True)
class Audit:
    """invariance_error: relative, largest over images and elements of the group that are exact on
    pixels.

    curve: [degrees, median relative error] of free turns of the model input. free_angle_rank1:
    share of images whose copy at a uniform random angle finds the original first. worst: images
    that move most.
    """

    group: str
    num_images: int
    invariance_error: float
    per_element: list[dict[str, Any]]
    curve: list[list[float]]
    free_angle_rank1: float
    free_angle_rank1_num: int
    worst: list[int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(embedder: Embedder, images: Sequence[NDArray[Any]], seed: int = 0) -> Audit:
    """Measure on decoded images of any sizes, exact elements on pixels, free angles on the model
    input.
    """
    group, original = embedder.group, embedder.embed(images)
    inputs = embedder.preprocess(images)
    per_element, largest = [], np.zeros(len(images))
    for g, element in enumerate(group.elements):
        exact = g in group.exact
        if exact:
            turned = embedder.embed([turn(image, element, group.n) for image in images])
        else:
            mirrored = inputs.flip(-1) if element[0] else inputs
            turned = turned_inputs(embedder, mirrored, torch.full((len(inputs),), group.degrees(g)))
        errors = np.linalg.norm(turned.astype(np.float64) - original, axis=1)
        if exact:
            largest = np.maximum(largest, errors)
        error = float(errors.max(initial=0.0))
        per_element.append(pose_dict(g, group) | {"error": error, "exact": exact})
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(len(images), generator=generator) * 360.0
    copies = turned_inputs(embedder, inputs, angles)
    scores = copies @ original.T
    own = scores[np.arange(len(images)), np.arange(len(images))]
    # Byte-equal originals tie; a tie with oneself is found.
    first = own >= scores.max(1, initial=-1.0) - 1e-5
    free = np.linalg.norm(copies - original, axis=1)
    return Audit(
        group=group.name,
        num_images=len(images),
        invariance_error=float(largest.max(initial=0.0)),
        per_element=per_element,
        curve=error_curve(embedder, inputs[:CURVE_IMAGES], original[:CURVE_IMAGES]),
        free_angle_rank1=float(first.mean()) if len(first) else 0.0,
        free_angle_rank1_num=len(images),
        worst=[int(i) for i in np.argsort(-free)[:8]],
    )


def turned_inputs(embedder: Embedder, inputs: Tensor, degrees: Tensor) -> NDArray[np.float32]:
    """Embeddings (B, d) of model inputs (B, C, S, S) turned by free angles (B,) in degrees."""
    parts = [
        embedder.encode(rotate(x, angle, border_background(x)))[0]
        for x, angle in zip(inputs.split(256), degrees.split(256), strict=True)
    ]
    return np.concatenate(parts) if parts else np.empty((0, embedder.dim), np.float32)


def error_curve(
    embedder: Embedder, inputs: Tensor, original: NDArray[np.float32]
) -> list[list[float]]:
    """[degrees, median relative error] every 10 degrees from 0 to 360."""
    curve = []
    for degrees in range(0, 361, CURVE_STEP):
        turned = turned_inputs(embedder, inputs, torch.full((len(inputs),), float(degrees)))
        error = np.linalg.norm(turned - original, axis=1)
        curve.append([float(degrees), round(float(np.median(error)), 6) if len(error) else 0.0])
    return curve
