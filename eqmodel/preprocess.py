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
from eqmodel.weighted_rows import RowWeights

VERSION = 1
AT_ONCE = 1 << 18  # values worked on together, so that they stay in a core's cache
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
LUMINANCE_OF_BYTES = np.array([LUMINANCE], np.float32).T / np.float32(255.0)
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
        of_bytes = is_resampled_bytes(first, spec)
        if of_bytes:
            few = max(1, AT_ONCE // (spec.image_size * first[0].size))
        for part in (indices[i : i + few] for i in range(0, len(indices), few)):
            if of_bytes:
                out[part] = resampled_bytes([images[i] for i in part], spec)
                continue
            # Memory that is read-only is copied: torch would warn of it.
            alone = few == 1 and images[part[0]].flags.writeable
            joined = images[part[0]][None] if alone else np.stack([images[i] for i in part])
            out[part] = resample(to_planes(joined, spec), spec)
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


def is_resampled_bytes(image: NDArray[Any], spec: PreprocessSpec) -> bool:
    """Whether ``resampled_bytes`` takes it; an image of the model's own size is not resampled."""
    height, width = image.shape[:2]
    fits = height == width == virtual_side(height, width, spec) == spec.image_size
    of_bytes = image.dtype == np.uint8 and spec.scaling == "dtype"
    return of_bytes and not fits and min(height, width) > 2


def resampled_bytes(images: Sequence[NDArray[np.uint8]], spec: PreprocessSpec) -> Tensor:
    """uint8 (H, W[, C]) of one shape -> (n, channels, S, S): ``resample`` of ``to_planes``, rows
    first.

    The scale, and the weights of the colours of a grey model, are part of the matrix over the
    columns; what lies outside the image is added after. Measured for 256 x 256 in colour: 453
    microseconds an image by two products, columns first, 144 so; for 1024 x 1024 5,350 and 1,009.
    """
    height, width = images[0].shape[:2]
    bands = channels_of(images[0])
    mixed = spec.channels == 1 and bands == 3
    virtual = virtual_side(height, width, spec)
    rows, columns, uncovered = byte_matrices(height, width, virtual, spec.image_size, mixed)
    images = [image.reshape(height, width, bands) for image in images]
    lines = rows.of([image.reshape(height, -1) for image in images])
    if mixed or bands == 1:
        found = (lines @ columns)[:, None]
    else:
        found = lines.unflatten(2, (width, bands)).permute(0, 3, 1, 2) @ columns
    if spec.background != "border":
        return found + float(spec.background) * uncovered
    ring = rings(images)
    values = ring @ LUMINANCE_OF_BYTES if mixed else ring / np.float32(255.0)
    middle = (values.shape[1] - 1) // 2
    outside = torch.from_numpy(np.partition(values, middle, 1)[:, middle])
    return found + outside[..., None, None] * uncovered


def rings(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(H, W, C) of one shape -> (n, 2 H + 2 W - 4, C): the outermost pixels of each."""
    height, width, bands = images[0].shape
    found = np.empty((len(images), 2 * (height + width - 2), bands), np.uint8)
    ends = 2 * width
    for image, ring in zip(images, found, strict=True):
        ring[:width], ring[width:ends] = image[0], image[-1]
        ring[ends : ends + height - 2], ring[ends + height - 2 :] = image[1:-1, 0], image[1:-1, -1]
    return found


@lru_cache(maxsize=64)
def byte_matrices(
    height: int, width: int, virtual: int, side: int, mixed: bool
) -> tuple[RowWeights, Tensor, Tensor]:
    """(S, H) over the rows; over the columns (W, S), or (W * 3, S) where the colours are mixed, of
    values 0..255; (S, S) the share of each output pixel that lies outside the image.
    """
    rows, columns = (resampling_matrix(length, virtual, side) for length in (height, width))
    weights = torch.tensor(LUMINANCE if mixed else (1.0,)) / 255.0
    scaled = (columns.T[:, None] * weights[:, None]).flatten(0, 1).contiguous()
    return RowWeights(rows), scaled, 1.0 - torch.outer(rows.sum(1), columns.sum(1))


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
