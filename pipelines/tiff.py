"""TIFFs that Pillow would squeeze into 8 bits, or cannot hold: read by tifffile as they are."""

from __future__ import annotations

import io
import logging
import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Rejected

Pixels = NDArray[Any]
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 258, 259, 262, 277, 339
DESCRIPTION, ORIENTATION = 270, 274
UNCOMPRESSED, DEFLATE = (1,), (8, 32946)
BOUNDED = (5, 32773, 34925, 50000)
"""LZW, PackBits, LZMA, Zstandard: unpacked by imagecodecs into a buffer of the page's size."""
MAX_DESCRIPTION = 1 << 20
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
    stacked = samples == 1 and declared_channels(str(tags.get(DESCRIPTION, ""))) is not None
    return stacked or not (plain and deepest <= 8)


def declared_channels(description: str) -> tuple[int, int] | None:
    """How many channels the pages of a stack hold, and how many pages lie from one to the next.

    By the description that ImageJ or OME-TIFF writes into the first page; None where it tells of
    one channel, or of nothing. Read by pattern: no XML is parsed, no other file is opened.
    """
    text = description[:MAX_DESCRIPTION]
    if text.startswith("ImageJ="):
        found = re.search(r"^channels=(\d{1,4})$", text, re.M)
        count = int(found[1]) if found else 1
        return (count, 1) if count > 1 else None
    pixels = re.search(r"<(?:\w+:)?Pixels\s[^>]*>", text)
    if pixels is None:
        return None
    facts = dict(re.findall(r'(Size[CZT]|DimensionOrder)="(\w{1,9})"', pixels[0]))
    sizes = {f"Size{axis}": facts.get(f"Size{axis}", "1") for axis in "CZT"}
    if not all(size.isdecimal() for size in sizes.values()) or int(sizes["SizeC"]) < 2:
        return None
    before = facts.get("DimensionOrder", "XYCZT").partition("C")[0].removeprefix("XY")
    apart = math.prod(int(sizes.get(f"Size{axis}", "1")) for axis in before)
    return int(sizes["SizeC"]), apart


def read_tiff(data: bytes, caps: Caps) -> Pixels | None:
    """The first page, (H, W) or (H, W, C), uint8, uint16 or float32, upright; of a stack that
    declares channels, the channels of its first plane and time, (H, W, C).

    None where Pillow reads it as well (one channel, compressed otherwise than by deflate). Rejected
    when neither does, over the cap, or with values that are not finite.
    """
    import tifffile

    _log.addFilter(_silent)
    with tifffile.TiffFile(io.BytesIO(data), is_ome=False) as file:
        pages = _chosen(file)
        first = pages[0]
        caps.check(first.imagewidth, first.imagelength)
        size = sum(page.nbytes for page in pages)
        if size > caps.max_bytes:
            raise Rejected(f"{size} bytes decoded are over the cap of {caps.max_bytes}")
        if len(pages) == 1 and _left_to_pillow(first):
            return None
        for page in pages:
            _check_page(data, page)
        values = [_channels_last(page) for page in pages]
        tag = first.tags.get(ORIENTATION)
        stacked = values[0] if len(values) == 1 else np.stack(values, -1)
        return np.ascontiguousarray(oriented(stacked, tag.value if tag else 1))


def _chosen(file: Any) -> list[Any]:
    """The first page, or the pages of the first plane's channels."""
    first = file.pages[0]
    tag = first.tags.get(DESCRIPTION)
    declared = declared_channels(str(tag.value)) if tag and first.samplesperpixel == 1 else None
    if declared is None:
        return [first]
    count, apart = declared
    last = (count - 1) * apart
    if last >= len(file.pages):
        raise Rejected(f"damaged: {count} channels declared, {len(file.pages)} pages there")
    pages = [file.pages[place] for place in range(0, last + 1, apart)]
    kinds = {(page.shape, str(page.dtype)) for page in pages}
    if len(kinds) > 1:
        raise Rejected("the channels of a stack differ in size or type")
    return pages


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


def _left_to_pillow(page: Any) -> bool:
    compressed = page.compression not in (*UNCOMPRESSED, *DEFLATE)
    return compressed and page.samplesperpixel == 1 and page.bitspersample in (8, 16, 32)


def _check_page(data: bytes, page: Any) -> None:
    """Rejected when its compression is none that is read, or unpacks to more than the page."""
    if page.compression in DEFLATE:
        _check_segments(data, page)
    elif page.compression not in (*UNCOMPRESSED, *BOUNDED):
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
    return as_pixels(values)


def as_pixels(values: Pixels) -> Pixels:
    """Values of any real type as uint8, uint16 or float32; Rejected when not all are finite."""
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
