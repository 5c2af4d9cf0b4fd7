"""One documented conversion per kind of picture, with golden values; everything else is
rejected.
"""

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pipelines.decode import Caps, decode
from pipelines.errors import Rejected
from pipelines.thumbnails import encode_thumbnail

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
    assert decode(encoded(palette, "PNG", transparency=0)).tolist() == [[[0, 0, 0], [40, 40, 40]]]
    palette.putpalette([10, 10, 10, 40, 40, 40])  # of greys alone
    assert decode(encoded(palette, "PNG", transparency=0)).tolist() == [[0, 40]]
    assert decode(encoded(palette, "BMP")).tolist() == [[10, 40]]
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
        (b"", "empty object: 0 bytes"),
        (b"this is text, not a picture", "not an image of a known format"),
        (bytes(1000), "not an image of a known format"),
        (b"8BPS" + bytes(100), "unsupported format: Photoshop"),
        (b"\0\0\0\x1cftypavif" + bytes(100), "unsupported format: AVIF"),
        (b"SIMPLE  =      T", "damaged: Empty or corrupt FITS"),
        (b"\x89PNG\r\n\x1a\n", "damaged: truncated or spoilt header of a PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (png_header(50_000, 50_000), "over the cap"),
        (png_header(13_000, 13_000), "over the cap"),
        (png_header(11_000, 8_000), "over the cap"),
        (png_header(0, 0), "no pixels: 0x0"),
        (png_header(0, 7), "no pixels: 0x7"),
        (b"P5 0 0 255 ", "damaged"),
        (
            encoded(Image.fromarray(np.zeros((90, 90), np.uint8)), "JPEG")[:-200],
            "damaged: truncated",
        ),
        (
            encoded(
                Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)),
                "PNG",
            )[:900],
            "damaged: truncated",
        ),
    ],
)
def test_rejections_have_a_reason_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        decode(data)
    assert reason in str(raised.value)
    assert str(raised.value)
    assert "\n" not in str(raised.value)


SMOOTH = (np.add.outer(np.arange(30) * 5, np.arange(40) * 2)).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("PPM", {}),
    ],
)
def test_a_cut_image_is_rejected_or_whole_never_part_grey(
    kind: str, options: dict[str, Any]
) -> None:
    data = encoded(Image.fromarray(SMOOTH), kind, **options)
    whole = decode(data)
    for cut in range(0, len(data), 3):
        reason = ""
        try:
            found = decode(data[:cut])
        except Rejected as rejected:
            reason = str(rejected)
        else:
            assert np.array_equal(found, whole), cut
        assert reason.startswith("damaged") or not reason or cut < 8, (cut, reason)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "PPM", "BMP"])
def test_noise_in_an_image_raises_nothing_else(kind: str) -> None:
    chance = np.random.default_rng(0)
    data = encoded(Image.fromarray(SMOOTH), kind)
    for _ in range(60):
        spoilt = np.frombuffer(data, np.uint8).copy()
        at = chance.integers(0, len(spoilt), 6)
        spoilt[at] = chance.integers(0, 256, 6)
        with contextlib.suppress(Rejected):
            found = decode(spoilt.tobytes(), Caps(max_pixels=1_000_000))
            assert found.dtype in (np.uint8, np.uint16, np.float32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(GREY), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(data), upright)
    tag = [(274, 3, 1, orientation, True)]
    assert np.array_equal(decode(tiff(GREY, extratags=tag)), upright)
    deep = COLOUR.astype(np.uint16) * 200
    found = decode(tiff(deep, photometric="rgb", extratags=tag))
    assert np.array_equal(found[..., 0], upright.astype(np.uint16) * 200)


def test_a_spoilt_exif_block_does_not_spoil_the_picture() -> None:
    for block in (b"II*\0\xff\xff\xff\xff", b"no TIFF header", b"II"):
        data = encoded(Image.fromarray(GREY), "PNG", exif=b"Exif\0\0" + block)
        assert np.array_equal(decode(data), GREY)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-5, 70_000]], np.int32), np.array([[-5, 70_000]], np.float32)),
        (np.array([[5, 7]], np.int32), np.array([[5, 7]], np.float32)),
        (np.array([[-5, 5]], np.int16), np.array([[-5, 5]], np.float32)),
        (np.array([[0.5, 2]], np.float64), np.array([[0.5, 2]], np.float32)),
        (np.array([[True, False]]), np.array([[255, 0]], np.uint8)),
        (np.array([[1, 65535]], ">u2"), np.array([[1, 65535]], np.uint16)),
    ],
)
def test_types_of_tiffs(values: np.ndarray, expected: np.ndarray) -> None:
    found = decode(tiff(values, photometric="minisblack"))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_tiffs_that_are_compressed(caplog: pytest.LogCaptureFixture) -> None:
    deep = GREY.astype(np.uint16) * 257
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        found = decode(encoded(Image.fromarray(deep), "TIFF", compression=compression))
        assert found.dtype == np.uint16
        assert np.array_equal(found, deep)
    colour = np.stack([deep] * 5, -1)
    zipped = tiff(colour, photometric="minisblack", planarconfig="contig", compression="zlib")
    assert np.array_equal(decode(zipped), colour)
    with tifffile.TiffFile(io.BytesIO(zipped)) as file:
        tag = file.pages[0].tags["Compression"]  # type: ignore[union-attr]
    lzw = bytearray(zipped)
    lzw[tag.valueoffset] = 5
    with pytest.raises(Rejected, match="damaged"):  # deflate's bytes are none of LZW
        decode(bytes(lzw))
    assert caplog.records == []


def test_a_deflate_bomb_in_a_tiff_is_not_unpacked() -> None:
    small = tiff(
        np.zeros((8, 8, 5), np.uint16),
        photometric="minisblack",
        planarconfig="contig",
        compression="zlib",
    )
    with tifffile.TiffFile(io.BytesIO(small)) as file:
        page = file.pages[0]
        offsets, counts = page.tags["StripOffsets"], page.tags["StripByteCounts"]  # type: ignore[union-attr]
    bomb = zlib.compress(bytes(64 << 20))
    spoilt = bytearray(small + bomb)
    for tag, value in ((offsets, len(small)), (counts, len(bomb))):
        size = {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
        if size < 4:
            pytest.skip("the writer chose a short count")
        spoilt[tag.valueoffset : tag.valueoffset + size] = value.to_bytes(size, "little")
    tracemalloc.start()
    with pytest.raises(Rejected, match="unpacks to more bytes"):
        decode(bytes(spoilt))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


MANY = tiff(np.zeros((4, 4, 5), np.uint16), photometric="minisblack", planarconfig="contig")


def test_nothing_leaks_to_warnings_or_logs(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    palette = Image.fromarray(GREY).convert("P")
    hostile = [
        png_header(13_000, 13_000),  # Pillow's bomb warning
        encoded(palette, "PNG", transparency=bytes([1, 2, 3])),
        *(MANY[:cut] for cut in range(8, len(MANY), 5)),
        encoded(Image.fromarray(GREY), "TIFF")[:-8],
        encoded(Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    ]
    before = list(warnings.filters)

    def decode_all(_: int) -> None:
        for data in hostile:
            with contextlib.suppress(Rejected):
                decode(data)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode_all, range(16)))
    assert list(recwarn) == []
    assert caplog.records == []
    assert warnings.filters == before


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
        small_and_grey = shape == (28, 28) and dtype == np.uint8
        assert image.format == ("WEBP" if small_and_grey else "JPEG")
    assert len(thumbnail) <= 1536
