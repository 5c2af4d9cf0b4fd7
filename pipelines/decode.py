"""Bytes -> pixels, by one documented conversion, and never more pixels than the cap.

| stored as | becomes |
|---|---|
| grey 8 bit, 1 bit (0 / 255) | uint8 (H, W) |
| grey 16 bit (PNG, TIFF, PGM) | uint16 (H, W) |
| 32-bit integer or float TIFF | float32 (H, W) |
| RGB, palette, CMYK, YCbCr | uint8 (H, W, 3); a palette of greys alone (H, W) |
| alpha, also in palettes | composited over black, then as above |
| TIFF of other channel counts or 16-bit colour | as stored, (H, W, C), by tifffile |
| orientation (EXIF, TIFF) | applied |
| animation, multi-page TIFF | first frame, first page |
| TIFF stack that declares channels (ImageJ, OME) | (H, W, C): those of the first plane and time |
| FITS (extra ``fits``) | first image, physical values, a third axis as channels; see ``fits.py`` |

Colour profiles are not applied. Formats come from an allow-list, so that a script or a vector file
in disguise reaches no parser. A rejection gives one reason: ``empty object``, ``not an image``,
``unsupported format``, ``no pixels``, ``over the cap``, ``damaged: truncated`` or ``damaged``.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipelines.errors import Rejected
from pipelines.fast_decode import decode_plain
from pipelines.fits import FITS_MAGIC, read_fits
from pipelines.tiff import TIFF_MAGIC, Caps, finite, is_scientific, oriented, read_tiff

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112
ROWS_AT_ONCE = 256
_EXIF_PLACES = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_OURS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_OTHERS = {
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\1\0": "icon",
    b"\x89HDF\r\n": "HDF5",
    b"DDS ": "DDS",
    b"v/1\1": "OpenEXR",
    b"qoif": "QOI",
    b"<svg": "SVG",
    b"<?xml": "XML or SVG",
}
_PNM = re.compile(rb"P[1-6]\s+\d")
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}

Pixels = NDArray[Any]
__all__ = ["Caps", "decode", "quiet_decoders"]


def decode(data: bytes, caps: Caps = Caps()) -> Pixels:  # noqa: B008 - frozen
    """Encoded bytes -> contiguous uint8, uint16 or float32 (H, W) or (H, W, C).

    Raises Rejected with the reason. Safe to call from several threads.
    """
    if not data:
        raise Rejected("empty object: 0 bytes")
    plain = decode_plain(data, caps)
    if plain is not None:
        return np.ascontiguousarray(plain)
    with quiet_decoders():
        try:
            return _decode(data, caps)
        except Rejected:
            raise
        except MemoryError as error:
            raise Rejected("too large for memory") from error
        except Exception as error:  # decoders raise what they like; their word is the reason
            raise Rejected(f"damaged: {_reason(data, error)}") from error


class _Quiet:
    """Pillow's warnings stay silent while any thread decodes; `warnings` has no such lock."""

    lock = threading.Lock()
    inside = 0
    caught: Any = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Pillow's warnings are silent inside; cheap within another of these."""
    with _Quiet.lock:
        if _Quiet.inside == 0:
            _Quiet.caught = warnings.catch_warnings()
            _Quiet.caught.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|astropy)(\.|$)")
        _Quiet.inside += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.inside -= 1
            if _Quiet.inside == 0:
                _Quiet.caught.__exit__(None, None, None)


def _decode(data: bytes, caps: Caps) -> Pixels:
    if data.startswith(FITS_MAGIC):
        return read_fits(data, caps)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        values = read_tiff(data, caps) if data[:4] in TIFF_MAGIC else None
        if values is None:
            raise Rejected(_unidentified(data)) from error
        return values
    except Image.DecompressionBombError as error:
        raise Rejected(f"over the cap of {caps.max_pixels} pixels") from error
    with image:
        caps.check(*image.size)
        if image.format == "TIFF" and is_scientific(image):
            values = read_tiff(data, caps)
            if values is not None:
                return values
        image.load()
        return np.ascontiguousarray(oriented(_pixels(image), _orientation(image)))


def _unidentified(data: bytes) -> str:
    """Why no decoder took it: one of our formats, spoilt; another format; no image at all."""
    name = _ours(data)
    if name == "PNG" and bytes(4) in (data[16:20], data[20:24]):
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        return f"no pixels: {width}x{height}"
    if name is not None:
        return f"damaged: truncated or spoilt header of a {name}"
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return f"unsupported format: {_BRANDS[data[8:12]]}"
    head = data[:256].lstrip()
    for magic, other in _OTHERS.items():
        if head.startswith(magic):
            return f"unsupported format: {other} (not an image that is read)"
    return "not an image of a known format (PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, FITS)"


def _ours(data: bytes) -> str | None:
    for magic, name in _OURS.items():
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and b"WEBP".startswith(data[8:12]):
        return "WebP"
    if data[:2] == b"BM" and bytes(4).startswith(data[6:10]):
        return "BMP"
    return "PNM" if _PNM.match(data) else None


def _reason(data: bytes, error: Exception) -> str:
    words = " ".join(str(error).split())[:160] or type(error).__name__
    truncated = isinstance(error, EOFError) or "truncated" in words.lower()
    if data[:4] == b"RIFF":
        truncated = len(data) < 8 + int.from_bytes(data[4:8], "little")
    return f"truncated ({words})" if truncated else words


def _orientation(image: Image.Image) -> int:
    if image.format != "TIFF" and not _EXIF_PLACES & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a spoilt EXIF block does not spoil the picture
        return 1


def _pixels(image: Image.Image) -> Pixels:
    mode = image.mode
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode in ("L", "RGB"):
        return np.asarray(image)
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if mode == "I":  # a 16-bit PGM, or 32-bit integers of a TIFF
        whole = np.asarray(image)
        return whole.astype(np.uint16 if image.format == "PPM" else np.float32)
    if mode == "F":
        return finite(np.asarray(image, np.float32))
    if mode in ("LA", "La"):
        return _over_black(np.asarray(image.convert("LA")))[..., 0]
    if mode in ("P", "PA"):
        return _from_palette(image)
    if mode in ("RGBA", "RGBa"):
        return _over_black(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _from_palette(image: Image.Image) -> Pixels:
    colours = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8).reshape(-1, 3)
    if image.mode == "PA" or "transparency" in image.info:
        pixels = _over_black(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image.convert("RGB"))
    # By the palette, not by the pixels: images of one kind get one number of channels.
    return pixels[..., 0] if (colours == colours[:, :1]).all() else pixels


def _over_black(pixels: Pixels) -> Pixels:
    """(H, W, C + 1) uint8 with alpha last -> (H, W, C), rounded to nearest."""
    out = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), np.uint8)
    for start in range(0, len(pixels), ROWS_AT_ONCE):
        part = pixels[start : start + ROWS_AT_ONCE]
        out[start : start + ROWS_AT_ONCE] = (
            part[..., :-1] * part[..., -1:].astype(np.uint16) + 127
        ) // 255
    return out
