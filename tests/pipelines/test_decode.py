"""One documented conversion per kind of picture, with golden values; everything else is
rejected.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.decode import Caps, decode, encode_thumbnail
from pipelines.errors import Rejected

GREY = np.array([[0, 100], [200, 255], [7, 8]], np.uint8)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], -1)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_and_colour_without_loss(kind: str) -> None:
    grey = decode(encoded(Image.fromarray(GREY), kind))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey, GREY)
    if kind != "GIF":
        assert np.array_equal(decode(encoded(Image.fromarray(COLOUR), kind)), COLOUR)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_kept(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 257 - (GREY > 0).astype(np.uint16)
    found = decode(encoded(Image.fromarray(deep), kind))
    assert found.dtype == np.uint16
    assert np.array_equal(found, deep)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def test_what_instruments_write() -> None:
    real = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(decode(tiff(real)), real)
    many = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    assert np.array_equal(decode(tiff(many, photometric="minisblack", planarconfig="contig")), many)
    planes = np.moveaxis(many, -1, 0)
    assert np.array_equal(
        decode(tiff(planes, photometric="minisblack", planarconfig="separate")), many
    )
    deep = np.arange(36, dtype=np.uint16).reshape(3, 4, 3) * 1000
    assert np.array_equal(decode(tiff(deep, photometric="rgb")), deep)
    stack = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(decode(tiff(stack, photometric="minisblack")), stack[0])
    real[0, 0] = np.nan
    with pytest.raises(Rejected, match="not finite"):
        decode(tiff(real))


def test_conversions() -> None:
    bits = Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)
    assert decode(encoded(bits, "PNG")).tolist() == [[0, 0], [255, 255], [0, 0]]
    half = np.dstack([GREY, np.full_like(GREY, 128)])
    assert decode(encoded(Image.fromarray(half), "PNG")).tolist() == [[0, 50], [100, 128], [4, 4]]
    rgba = np.dstack([COLOUR, np.full_like(GREY, 0)])
    assert decode(encoded(Image.fromarray(rgba), "PNG")).max() == 0
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 40, 40])
    assert decode(encoded(palette, "PNG")).tolist() == [[[10, 20, 30], [40, 40, 40]]]
    assert decode(encoded(palette, "PNG", transparency=0)).tolist() == [[0, 40]]  # greys alone
    cmyk = Image.new("CMYK", (2, 1), (0, 0, 0, 255))
    assert decode(encoded(cmyk, "TIFF")).tolist() == [[[0, 0, 0]] * 2]
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown turned clockwise
    turned = decode(encoded(Image.fromarray(GREY), "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(GREY, -1))
    assert turned.flags["C_CONTIGUOUS"]
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert np.array_equal(
        decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])), GREY
    )


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"this is text, not a picture", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (png_header(50_000, 50_000), "over the cap"),
        (png_header(13_000, 13_000), "over the cap"),
        (png_header(11_000, 8_000), "over the cap"),
        (png_header(0, 0), ""),
        (encoded(Image.fromarray(np.zeros((90, 90), np.uint8)), "JPEG")[:-200], ""),
        (
            encoded(
                Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)),
                "PNG",
            )[:900],
            "",
        ),
    ],
)
def test_rejections_have_a_reason_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        decode(data)
    assert reason in str(raised.value)
    assert str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_cap_is_an_argument() -> None:
    with pytest.raises(Rejected, match="2x3 is over the cap of 5 pixels"):
        decode(encoded(Image.fromarray(GREY), "PNG"), Caps(max_pixels=5))


@pytest.mark.parametrize("shape", [(28, 28), (500, 300, 3), (3, 900), (40, 40, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_thumbnails_are_small(shape: tuple[int, ...], dtype: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    thumbnail = encode_thumbnail(noise)
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert max(image.size) <= 48
        assert image.format == "WEBP"
    assert len(thumbnail) <= 1536
