"""TIFFs that Pillow would squeeze into 8 bits, or cannot hold: read by tifffile as they are."""

from __future__ import annotations

import io
import logging
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Rejected

Pixels = NDArray[Any]
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 258, 259, 262, 277, 339
UNCOMPRESSED, DEFLATE = (1,), (8, 32946)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_log = logging.getLogger("tifffile")


@dataclass(frozen=True)
class Caps:
    """The most an image may have before it is decoded, in pixels and in bytes once decoded."""

    max_pixels: int = 64_000_000
    max_bytes: int = 512 << 20

    def check(self, width: int, height: int) -> None:
        """Rejected unless there are pixels, and no more than the cap."""
        if width < 1 or height < 1:
            raise Rejected(f"no pixels: {width}x{height}")
        if width * height > self.max_pixels:
            raise Rejected(f"{width}x{height} is over the cap of {self.max_pixels} pixels")


def is_scientific(image: Any) -> bool:
    """Whether an opened Pillow image is a TIFF of 16-bit colour, floats or odd channels."""
    tags = image.tag_v2
    bits, samples = tags.get(BITS, (1,)), tags.get(SAMPLES, 1)
    deepest = max(bits if isinstance(bits, tuple) else (bits,))
    plain = tags.get(PHOTOMETRIC, 1) in (0, 1, 2, 3, 5, 6, 8) and samples in (1, 3, 4)
    return not (plain and deepest <= 8)


def read_tiff(data: bytes, caps: Caps) -> Pixels | None:
    """The first page, (H, W) or (H, W, C), uint8, uint16 or float32, upright.

    None where Pillow reads it as well (one channel, compressed otherwise than by deflate). Rejected
    when neither does, over the cap, or with values that are not finite.
    """
    import tifffile

    _log.addFilter(_silent)
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as file:
        page: Any = file.pages[0]
        caps.check(page.imagewidth, page.imagelength)
        if page.nbytes > caps.max_bytes:
            raise Rejected(f"{page.nbytes} bytes decoded are over the cap of {caps.max_bytes}")
        if page.compression not in (*UNCOMPRESSED, *DEFLATE):
            _refuse_unless_pillow_reads(page)
            return None
        if page.compression in DEFLATE:
            _check_segments(data, page)
        values = _channels_last(page)
        tag = page.tags.get(274)
        return np.ascontiguousarray(oriented(values, tag.value if tag else 1))


def oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels (H, W[, C]) upright, from the EXIF or TIFF orientation 1 to 8 they are stored in."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _silent(record: logging.LogRecord) -> bool:
    # Its complaints about damaged files; the reason is in the rejection.
    return record.levelno > logging.ERROR


def _refuse_unless_pillow_reads(page: Any) -> None:
    if page.samplesperpixel == 1 and page.bitspersample in (8, 16, 32):
        return
    raise Rejected(
        f"unsupported format: TIFF of {page.samplesperpixel} x {page.bitspersample} bits, "
        f"compressed by {getattr(page.compression, 'name', page.compression)}"
    )


def _check_segments(data: bytes, page: Any) -> None:
    """No strip or tile may unpack to more than it should: zlib has no cap of its own."""
    row = page.tilewidth * page.samplesperpixel * -(-page.bitspersample // 8)
    expected = max(page.nbytes, (page.tilelength or 1) * row)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        unpacker = zlib.decompressobj()
        unpacker.decompress(data[offset : offset + count], expected + 1)
        if unpacker.unconsumed_tail:
            raise Rejected("damaged: a strip unpacks to more bytes than the page has")


def _channels_last(page: Any) -> Pixels:
    values: Pixels = page.asarray()
    if page.planarconfig == 2 and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3):
        raise Rejected(f"a TIFF page of shape {values.shape}; (H, W) or (H, W, C) is expected")
    if values.dtype.kind not in "buif":
        raise Rejected(f"unsupported format: TIFF of {values.dtype} values")
    if page.photometric == 0:  # white is zero
        values = np.iinfo(values.dtype).max - values if values.dtype.kind == "u" else -values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        values = values.astype(np.float32)
    return finite(values)


def finite(values: Pixels) -> Pixels:
    """Rejected when there is a NaN or an infinity."""
    if not np.isfinite(values).all():
        raise Rejected("holds values that are not finite numbers")
    return values
