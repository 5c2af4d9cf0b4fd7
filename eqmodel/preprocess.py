"""Decoded pixels of any size -> model input, commuting with quarter turns and mirrors.

out = A_h X A_w^T in float32. A is built per (length, side) from antialias weights centred on the
virtual square, with mirrored rows equal bit for bit, so that padding and resizing commute with
turns and mirrors for every size, odd differences included. Outside the image lies the background.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel.actions import border_background
from eqmodel.errors import ChannelError, CheckpointError, Refused

VERSION = 1
AT_ONCE = 1 << 18  # values worked on together, so that they stay in a core's cache
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
Fit = Literal["resize", "crop", "native"]


@dataclass(frozen=True)
class PreprocessSpec:
    """Travels in the checkpoint.

    fit: "resize" scales the square that holds the image, "crop" the largest square inside it,
    "native" keeps the scale and pads or cuts about the centre.
    background: a number on the scale 0..1, or "border", the median of the image's outermost pixels.
    scaling: "dtype" (full range of the integer type; floats as they are), a fixed range (low,
    high), or ("percentiles", low, high) of each image's own values.
    """

    image_size: int = 28
    channels: int = 1
    fit: Fit = "resize"
    background: float | Literal["border"] = "border"
    scaling: str | tuple[float, float] | tuple[str, float, float] = "dtype"
    version: int = VERSION

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessSpec:
        """Raises CheckpointError for a preprocessing that this version does not know."""
        if values.get("version") != VERSION:
            raise CheckpointError(
                f"preprocessing version {values.get('version')} is unknown; "
                f"this program knows {VERSION}"
            )
        scaling = values.get("scaling", "dtype")
        return cls(
            **{**values, "scaling": tuple(scaling) if isinstance(scaling, list) else scaling}
        )


@lru_cache(maxsize=4096)
def resampling_matrix(length: int, virtual: int, side: int) -> Tensor:
    """(side, length) float32 weights from ``length`` pixels, centred on a square of ``virtual``,
    to ``side``.

    A triangle filter, widened to the output pixel when shrinking, normalised over the endless grid
    of pixels of which the image is a part. Row p and row side - 1 - p are mirrors bit for bit.
    """
    scale = virtual / side
    reach = max(scale, 1.0)
    centres = (np.arange(side) + 0.5) * scale - virtual / 2.0  # about the centre of the square
    margin = math.ceil(max(0.0, (virtual - length) / 2.0) + reach) + 1
    pixels = np.arange(-margin, length + margin) + 0.5 - length / 2.0
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - pixels[None, :]) / reach)
    weights /= weights.sum(1, keepdims=True)
    weights = weights[:, margin : margin + length]
    return torch.from_numpy(((weights + weights[::-1, ::-1]) / 2.0).astype(np.float32))


def channels_of(image: NDArray[Any]) -> int:
    """1 for (H, W), C for (H, W, C). Raises Refused for any other shape."""
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise Refused(f"an image of shape {image.shape} was given; (H, W) or (H, W, C) is expected")
    return 1 if image.ndim == 2 else int(image.shape[2])


def check_channels(image: NDArray[Any], channels: int) -> None:
    """Raises ChannelError unless the image has that many channels, or is colour for a grey
    model.
    """
    found = channels_of(image)
    if found != channels and not (channels == 1 and found == 3):
        raise ChannelError(
            f"the image has {found} channel{'s' * (found != 1)}, the model takes {channels}; "
            "use a model trained on such images"
        )


def intensity_range(image: NDArray[Any], scaling: Any) -> tuple[float, float]:
    """The values that become 0 and 1, from a fixed range or the image's percentiles."""
    if scaling[0] == "percentiles":
        low, high = np.percentile(image, scaling[1:])
        return float(low), float(high)
    return float(scaling[0]), float(scaling[1])


def virtual_side(height: int, width: int, spec: PreprocessSpec) -> int:
    """The side, in the image's pixels, of the square that becomes the model input."""
    return {"resize": max(height, width), "crop": min(height, width), "native": spec.image_size}[
        spec.fit
    ]


def preprocess(images: Sequence[NDArray[Any]], spec: PreprocessSpec) -> Tensor:
    """Images of any sizes and types -> (B, channels, S, S) float32.

    Raises ChannelError for an image that does not fit the model.
    """
    out = torch.empty(len(images), spec.channels, spec.image_size, spec.image_size)
    same: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        same[(*image.shape, image.dtype.str)].append(i)
    for indices in same.values():
        first = images[indices[0]]
        check_channels(first, spec.channels)
        few = max(1, AT_ONCE // first.size)
        for part in (indices[i : i + few] for i in range(0, len(indices), few)):
            # Memory that is read-only is copied: torch would warn of it.
            alone = few == 1 and images[part[0]].flags.writeable
            joined = images[part[0]][None] if alone else np.stack([images[i] for i in part])
            out[part] = planes_of(joined, spec)
    return out


def unscaled(images: Sequence[NDArray[Any]], spec: PreprocessSpec) -> Tensor | None:
    """Images that are model input but for their scale -> (B, channels, S, S) uint8, a quarter of
    the bytes. None when one is of another type, size or number of channels, or is scaled otherwise.
    """
    side, channels = spec.image_size, spec.channels
    shape = (side, side) if channels == 1 else (side, side, channels)
    fit = all(image.shape == shape and image.dtype == np.uint8 for image in images)
    if spec.scaling != "dtype" or not images or not fit:
        return None
    pixels = torch.from_numpy(np.stack(images))
    return pixels[:, None] if channels == 1 else pixels.permute(0, 3, 1, 2).contiguous()


def scaled(batch: Tensor) -> Tensor:
    """What ``unscaled`` gave, on any device -> float32 on the scale 0..1; other batches as they
    are.
    """
    return batch.float() / 255.0 if batch.dtype == torch.uint8 else batch


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches of model input as one, uint8 where all are."""
    alike = len({part.dtype for part in parts}) == 1
    return torch.cat(list(parts) if alike else [scaled(part) for part in parts])


def planes_of(joined: NDArray[Any], spec: PreprocessSpec) -> Tensor:
    """Images of one shape and type (n, H, W[, C]) -> (n, channels, S, S) float32."""
    colour = joined.ndim == 4 and joined.shape[3] == 3 and joined.dtype == np.uint8
    height, width = joined.shape[1:3]
    if colour and spec.channels == 1 and spec.scaling == "dtype" and min(height, width) > 2:
        return resampled_luminance(joined, spec)
    return resample(to_planes(joined, spec), spec)


def resampled_luminance(joined: NDArray[Any], spec: PreprocessSpec) -> Tensor:
    """uint8 (n, H, W, 3) -> (n, 1, S, S): ``resample`` of the luminance, in two products.

    The weights of the colours are part of the matrix over the columns; what lies outside the image
    is added after. Measured at 256 x 256: 850 microseconds an image by way of planes, 230 so.
    """
    count, height, width, _ = joined.shape
    virtual = virtual_side(height, width, spec)
    rows, columns, uncovered = luminance_matrices(height, width, virtual, spec.image_size)
    pixels = torch.from_numpy(joined.reshape(count, height, width * 3)).float()
    found = rows @ (pixels @ columns)
    if spec.background == "border":
        edges = [joined[:, 0], joined[:, -1], joined[:, 1:-1, 0], joined[:, 1:-1, -1]]
        ring = np.concatenate(edges, 1) @ (np.array(LUMINANCE, np.float32) / np.float32(255.0))
        middle = (ring.shape[1] - 1) // 2
        outside = torch.from_numpy(np.partition(ring, middle, 1)[:, middle, None, None])
        return (found + outside * uncovered)[:, None]
    return (found + float(spec.background) * uncovered)[:, None]


@lru_cache(maxsize=64)
def luminance_matrices(
    height: int, width: int, virtual: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(S, H) over the rows; (W * 3, S) over columns and colours 0..255; (S, S) the share of each
    output pixel that lies outside the image.
    """
    rows, columns = (resampling_matrix(length, virtual, side) for length in (height, width))
    weights = torch.tensor(LUMINANCE) / 255.0
    coloured = (columns.T[:, None] * weights[:, None]).flatten(0, 1).contiguous()
    return rows, coloured, 1.0 - torch.outer(rows.sum(1), columns.sum(1))


def to_planes(joined: NDArray[Any], spec: PreprocessSpec) -> Tensor:
    """(n, H, W[, C]) uint8, uint16 or float32 -> (n, channels, H, W) float32 on the spec's
    scale.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(joined, dtype=np.float32))
    if spec.scaling != "dtype":
        low, high = torch.tensor([intensity_range(x, spec.scaling) for x in joined]).T.reshape(
            2, -1, *[1] * (joined.ndim - 1)
        )
        pixels = ((pixels - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    elif joined.dtype.kind in "iub":
        pixels = pixels / float(255 if joined.dtype.itemsize == 1 else 65535)
    planes = pixels[:, None] if joined.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if spec.channels == 1 and planes.shape[1] == 3:
        red, green, blue = LUMINANCE
        planes = (red * planes[:, 0] + green * planes[:, 1] + blue * planes[:, 2])[:, None]
    return planes


def resample(planes: Tensor, spec: PreprocessSpec) -> Tensor:
    """(n, C, H, W) -> (n, C, S, S): out = A_h X A_w^T about the background."""
    height, width = planes.shape[-2:]
    side = spec.image_size
    virtual = virtual_side(height, width, spec)
    if height == width == virtual == side:
        return planes
    background: Tensor | float = (
        border_background(planes) if spec.background == "border" else float(spec.background)
    )
    rows = resampling_matrix(height, virtual, side)
    columns = resampling_matrix(width, virtual, side)
    return rows @ (planes - background) @ columns.T + background
