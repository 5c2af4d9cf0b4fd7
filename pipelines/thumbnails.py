"""Thumbnails: WebP or JPEG of at most 48 pixels a side and 1.5 KB.

A small grey image is stored as it is, in WebP's lossless form without compression: libwebp takes
260 microseconds for 28 x 28 pixels, most of what a worker spends beside its model, this takes 5.
All others are JPEG: of 48 x 48 colour pixels libwebp makes 950 bytes in 322 microseconds, libjpeg
1,240 in 23, and the pixels of a 256 x 256 JPEG are decoded in about 400.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eqmodel.machine import function_of, lanes

try:
    import simplejpeg
except ImportError:  # the extra "fast" is not installed
    simplejpeg = None

LONG_ROW = 1 << 14  # values
LARGEST = 1 << 31  # bytes: places in an image are told in 32 bits
QUALITIES = (75, 60, 45, 30, 15)
Pixels = NDArray[Any]


def encode_thumbnail(pixels: Pixels, side: int = 48, max_bytes: int = 1536) -> bytes:
    """(H, W[, C]) -> WebP or JPEG of at most ``side`` pixels a side and ``max_bytes`` bytes.

    Other types than uint8 are stretched to their own range; of other channel counts than 3 the
    first is shown. Quality falls, and then the side, until it fits.
    """
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        pixels = pixels[..., 0]
    if _storable(pixels, side, max_bytes):
        return stored_webp(pixels)
    if pixels.dtype != np.uint8:
        step = max(1, max(pixels.shape[:2]) // (8 * side))
        pixels = _stretched(pixels[::step, ::step])
    pixels = _shrunk(pixels, side)
    for quality in QUALITIES:
        data = _jpeg(pixels, quality)
        if len(data) <= max_bytes:
            return data
    if side < 2:
        raise ValueError(f"no thumbnail fits {max_bytes} bytes; allow 700 at least")
    return encode_thumbnail(pixels, side // 2, max_bytes)


def _shrunk(pixels: Pixels, side: int) -> Pixels:
    """uint8 (H, W[, 3]) -> the same of ``side`` pixels at most.

    Below half the size each pixel is the mean of some points of the area that it stands for, 2 x 2
    and from an eighth on 3 x 3: Pillow looks at all of them and takes 2.4 times as long for 256 x
    256 in colour.
    """
    height, width = pixels.shape[:2]
    factor = max(height, width) / side
    if factor < 2:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image)
    points = 2 if factor < 8 else 3
    small = [max(1, round(length / factor)) for length in (height, width)]
    shape = (pixels.shape, *small, points)
    found: Pixels = np.empty((*small, *pixels.shape[2:]), np.uint8)
    run = _function(points) if pixels.size < LARGEST else None
    if run is not None:
        pixels, rows, values = np.ascontiguousarray(pixels), *_starts_and_values(*shape)
        width = values.shape[1]
        tables = (rows.ctypes.data, values.ctypes.data)
        run(pixels.ctypes.data, *tables, small[0], width, found.ctypes.data)
        return found
    total = _summed(pixels.reshape(height, -1), *_rows_and_values(*shape))
    total += points * points // 2
    total //= points * points
    found[:] = total.reshape(found.shape)
    return found


@lru_cache(maxsize=4)
def _function(points: int) -> Callable[..., None] | None:
    """The same by machine code: 60 microseconds for 256 x 256 in colour in place of 104."""
    if not lanes():
        return None
    from pipelines.thumbnails_code import ARGUMENTS, text_of

    return function_of(text_of(points), len(ARGUMENTS))


@lru_cache(maxsize=64)
def _starts_and_values(
    shape: tuple[int, ...], height: int, width: int, points: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """As ``_rows_and_values``, of rows the byte at which each begins."""
    rows, values = _rows_and_values(shape, height, width, points)
    starts = rows * math.prod(shape[1:])
    return np.ascontiguousarray(starts, np.int32), np.ascontiguousarray(values, np.int32)


def _summed(lines: Pixels, rows: NDArray[np.intp], values: NDArray[np.intp]) -> NDArray[np.uint16]:
    """uint8 (H, W) -> (height, width): the sums over all the given rows and values of a row.

    Whole rows are copied first, which is the faster way, unless they are so long that this would
    take memory.
    """
    found = np.zeros((rows.shape[1], values.shape[1]), np.uint16)
    if lines.shape[1] > LONG_ROW:
        for row, value in itertools.product(rows, values):
            found += lines[np.ix_(row, value)]
        return found
    summed = lines.take(rows[0], 0).astype(np.uint16)
    for row in rows[1:]:
        summed += lines.take(row, 0)
    for value in values:
        found += summed.take(value, 1)
    return found


@lru_cache(maxsize=64)
def _rows_and_values(
    shape: tuple[int, ...], height: int, width: int, points: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(points, height) rows of an array of ``shape`` that each row of the thumbnail is the mean of,
    and (points, width * bands) values of a row that each of its values is.
    """
    rows, columns = (_places(*sizes, points) for sizes in zip(shape, (height, width), strict=False))
    bands = np.arange(shape[2] if len(shape) == 3 else 1)
    return rows, (columns[..., None] * len(bands) + bands).reshape(points, -1)


def _places(length: int, size: int, points: int) -> NDArray[np.intp]:
    """(points, size): which of ``length`` pixels each of ``size`` is made of; a mirrored picture
    is made of the mirrored ones.
    """
    centres = (np.arange(size * points) + 0.5) * (length / (size * points))
    found = np.minimum(centres.astype(np.intp), length - 1)
    half = len(found) // 2
    found[len(found) - half :] = length - 1 - found[:half][::-1]
    return found.reshape(size, points).T


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    if simplejpeg is None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()
    pixels = np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        return bytes(simplejpeg.encode_jpeg(pixels[..., None], quality, "GRAY", "Gray"))
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))


def _stretched(pixels: Pixels) -> Pixels:
    values = pixels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


HEAD_BYTES = 70
"""At most what a stored WebP has beside one byte for each pixel."""


def _storable(pixels: Pixels, side: int, max_bytes: int) -> bool:
    return (
        pixels.ndim == 2
        and pixels.dtype == np.uint8
        and max(pixels.shape) <= side
        and pixels.size + HEAD_BYTES <= max_bytes
    )


def stored_webp(pixels: Pixels) -> bytes:
    """Grey uint8 (H, W) -> a lossless WebP with one byte for each pixel.

    After the WebP lossless bitstream specification: with green subtracted, nothing is left of red
    and blue; the prefix code of green has 8 bits for each value, the others have one value each.
    """
    body = _head(pixels.shape[1], pixels.shape[0]) + pixels.tobytes().translate(_REVERSED)
    padding = b"\0" * (len(body) % 2)
    size = len(body).to_bytes(4, "little")
    whole = (len(body) + len(padding) + 12).to_bytes(4, "little")
    return b"".join((b"RIFF", whole, b"WEBPVP8L", size, body, padding))


# The bits of a prefix code come highest first, into bytes that fill from their lowest bit.
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@lru_cache(maxsize=1024)
def _head(width: int, height: int) -> bytes:
    """All that comes before the pixels: (value, number of bits), to a whole byte."""
    only_0 = [(1, 1), (0, 1), (0, 1), (0, 1)]  # a simple code: one symbol, of one bit
    only_255 = [(1, 1), (0, 1), (1, 1), (255, 8)]
    fields = [
        *[(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3)],  # no alpha; version 0
        *[(1, 1), (2, 2), (0, 1)],  # one transform: subtract green
        *[(0, 1), (0, 1)],  # no colour cache, one group of prefix codes
        *_code_of_green(),
        *[*only_0, *only_0, *only_255, *only_0],  # red, blue, alpha, distance
    ]
    value = at = 0
    for field, bits in fields:
        value |= field << at
        at += bits
    return value.to_bytes(at // 8, "little")


def _code_of_green() -> list[tuple[int, int]]:
    """256 lengths of 8 and 24 of 0, in a code of two symbols: 8, and 18 for a run of zeros."""
    order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11)  # so many make a whole byte of all
    lengths = [(int(symbol in (8, 18)), 3) for symbol in order]
    return [(0, 1), (len(order) - 4, 4), *lengths, (0, 1), (0, 256), (1, 1), (24 - 11, 7)]
