"""Bytes -> pixels, by one documented conversion, and never more pixels than the cap.

| stored as | becomes |
|---|---|
| grey 8 bit, 1 bit (0 / 255) | uint8 (H, W) |
| grey 16 bit (PNG, TIFF, PGM) | uint16 (H, W) |
| 32-bit integer or float TIFF | float32 (H, W) |
| RGB, palette, CMYK, YCbCr, Lab | uint8 (H, W, 3); a palette image that shows greys alone (H, W) |
| alpha, also in palettes | composited over black, then as above |
| TIFF of other channel counts or 16-bit colour | as stored, (H, W, C), by tifffile |
| EXIF orientation | applied |
| animation, multi-page | first frame |

Formats come from an allow-list, so that a script or a vector file in disguise reaches no parser.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import Rejected

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Caps:
    """The most an image may have before it is decoded, in pixels and in bytes once decoded."""

    max_pixels: int = 64_000_000
    max_bytes: int = 512 << 20


def decode(data: bytes, caps: Caps = Caps()) -> Pixels:
    """Encoded bytes -> contiguous uint8, uint16 or float32 (H, W) or (H, W, C).

    Raises Rejected with the reason.
    """
    if not data:
        raise Rejected("empty: 0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data, caps)
        except Rejected:
            raise
        except MemoryError as error:
            raise Rejected("too large for memory") from error
        except (
            Exception
        ) as error:  # decoders raise what they like; the image is rejected with their word
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise Rejected(f"damaged: {reason}") from error


def _decode(data: bytes, caps: Caps) -> Pixels:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[:4] in TIFF_MAGIC:
            return _scientific_tiff(data, caps)
        raise Rejected(
            "not an image of a known format (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM)"
        ) from error
    except Image.DecompressionBombError as error:
        raise Rejected(f"over the cap of {caps.max_pixels} pixels") from error
    with image:
        _check_size(*image.size, caps)
        if image.format == "TIFF" and _is_scientific(image):
            return _scientific_tiff(data, caps)
        image.load()
        turned = ImageOps.exif_transpose(image)
        return np.ascontiguousarray(_pixels(turned))


def _check_size(width: int, height: int, caps: Caps) -> None:
    if width < 1 or height < 1:
        raise Rejected(f"no pixels: {width}x{height}")
    if width * height > caps.max_pixels:
        raise Rejected(f"{width}x{height} is over the cap of {caps.max_pixels} pixels")


def _pixels(image: Image.Image) -> Pixels:
    mode = image.mode
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode in ("L", "RGB"):
        return np.asarray(image)
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if mode == "I":
        return _integers(np.asarray(image))
    if mode == "F":
        return np.asarray(image, np.float32)
    if mode in ("LA", "La"):
        return _over_black(np.asarray(image.convert("LA")))[..., 0]
    if mode in ("RGBA", "RGBa", "PA") or (mode == "P" and "transparency" in image.info):
        return _grey_if_grey(_over_black(np.asarray(image.convert("RGBA"))), palette=mode[0] == "P")
    if mode == "P":
        return _grey_if_grey(np.asarray(image.convert("RGB")), palette=True)
    return np.asarray(image.convert("RGB"))


def _integers(values: Pixels) -> Pixels:
    """Pillow reads 16-bit greys of some formats as 32-bit integers."""
    if values.min() >= 0 and values.max() <= 65535:
        return values.astype(np.uint16)
    return values.astype(np.float32)


def _over_black(pixels: Pixels) -> Pixels:
    """(H, W, C + 1) uint8 with alpha last -> (H, W, C), rounded to nearest."""
    alpha = pixels[..., -1:].astype(np.uint16)
    return ((pixels[..., :-1] * alpha + 127) // 255).astype(np.uint8)


def _grey_if_grey(pixels: Pixels, *, palette: bool) -> Pixels:
    grey = (
        palette
        and (pixels[..., 0] == pixels[..., 1]).all()
        and (pixels[..., 0] == pixels[..., 2]).all()
    )
    return pixels[..., 0] if grey else pixels


def _is_scientific(image: Image.Image) -> bool:
    """TIFFs that Pillow would squeeze into 8 bits, or cannot hold: 16-bit colour, float, odd
    channels.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    bits, samples = tags.get(258, (1,)), tags.get(277, 1)
    photometric = tags.get(262, 1)
    plain = max(bits) <= 8 and samples in (1, 3, 4) and photometric in (0, 1, 2, 3, 5, 6, 8)
    return not plain and tags.get(274, 1) == 1


def _scientific_tiff(data: bytes, caps: Caps) -> Pixels:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        _check_size(page.imagewidth, page.imagelength, caps)
        if page.nbytes > caps.max_bytes:
            raise Rejected(f"{page.nbytes} bytes decoded are over the cap of {caps.max_bytes}")
        values: Pixels = page.asarray()
        if page.planarconfig == 2 and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        if page.photometric == 0:  # white is zero
            values = np.iinfo(values.dtype).max - values if values.dtype.kind == "u" else -values
    if values.ndim not in (2, 3):
        raise Rejected(f"a TIFF page of shape {values.shape}; (H, W) or (H, W, C) is expected")
    if values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.float32)
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise Rejected("holds values that are not finite numbers")
    return np.ascontiguousarray(values)


def encode_thumbnail(pixels: Pixels, side: int = 48, max_bytes: int = 1536) -> bytes:
    """(H, W[, C]) -> WebP of at most ``side`` pixels a side and ``max_bytes`` bytes.

    Other types than uint8 are stretched to their own range; more than 3 channels show their first.
    """
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail(
        (side, side),
        Image.Resampling.BOX if max(image.size) > 8 * side else Image.Resampling.BICUBIC,
    )
    for quality in (80, 60, 40, 20, 5):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=2)
        if buffer.tell() <= max_bytes:
            return buffer.getvalue()
    return encode_thumbnail(np.asarray(image), side // 2, max_bytes)
