"""The fast decoders give what Pillow gives, or leave it to Pillow; stored thumbnails are WebP."""

import io
import itertools
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eqmodel.machine import lanes
from pipelines.decode import _decode, decode
from pipelines.fast_decode import decode_plain, decode_reduced, decode_webp
from pipelines.pictures import open_picture, open_pixels
from pipelines.thumbnails import _shrunk, encode_thumbnail, stored_webp
from pipelines.tiff import Caps

CAPS = Caps()
SIZES = [(1, 1), (28, 28), (31, 40), (17, 1), (200, 120)]


def picture(mode: str, size: tuple[int, int], smooth: bool = True) -> Image.Image:
    chance = np.random.default_rng(size[0])
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = chance.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    made = Image.fromarray(noise[..., 0] if bands == 1 else noise, mode if bands == 1 else None)
    return made.resize((3, 3)).resize(size, Image.Resampling.BICUBIC) if smooth else made


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 40, "progressive": True}),
        ("JPEG", {"subsampling": 0}),
        ("JPEG", {"subsampling": 1, "restart_marker_rows": 1}),
    ],
)
def test_plain_images_are_decoded_fast_and_as_by_pillow(
    mode: str, size: tuple[int, int], kind: str, options: dict[str, Any]
) -> None:
    for smooth in (True, False):
        data = encoded(picture(mode, size, smooth), kind, **options)
        fast = decode_plain(data, CAPS)
        assert fast is not None
        slow = _decode(data, CAPS)
        assert np.array_equal(fast, slow)
        assert (fast.dtype, fast.shape) == (slow.dtype, slow.shape)
        assert decode(data).flags.c_contiguous


def with_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + name + content
    return data[:33] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[33:]


def test_all_else_is_left_to_pillow() -> None:
    grey = picture("L", (28, 28))
    plain = encoded(grey, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    left = {
        "palette": encoded(grey.convert("P"), "PNG"),
        "alpha": encoded(grey.convert("LA"), "PNG"),
        "16 bit": encoded(Image.fromarray(np.zeros((5, 5), np.uint16)), "PNG"),
        "1 bit": encoded(grey.convert("1"), "PNG"),
        "transparency": with_chunk(plain, b"tRNS", b"\0\7"),
        "text": with_chunk(plain, b"tEXt", b"a\0b"),
        "turned PNG": encoded(grey, "PNG", exif=exif),
        "turned JPEG": encoded(grey, "JPEG", exif=exif),
        "CMYK": encoded(grey.convert("CMYK"), "JPEG"),
        "WebP": encoded(grey, "WEBP"),
        "cut PNG": plain[:-20],
        "cut in a chunk": plain[:60],
        "without its end": plain[:-12],
        "bad checksum": plain[:-17] + bytes([plain[-17] ^ 1]) + plain[-16:],
        "bad data": plain[:50] + bytes([plain[50] ^ 255]) + plain[51:],
        "cut JPEG": encoded(grey, "JPEG")[:-40],
        "marker only": b"\xff\xd8\xff",
        "nothing": b"",
    }
    for what, data in left.items():
        assert decode_plain(data, CAPS) is None, what
    assert decode_plain(plain, Caps(max_pixels=28 * 28 - 1)) is None
    assert decode_plain(plain, Caps(max_pixels=28 * 28)) is not None


@pytest.mark.parametrize(("mode", "size"), [("RGB", (257, 190)), ("L", (1024, 1024))])
def test_a_jpeg_straight_to_a_smaller_size(mode: str, size: tuple[int, int]) -> None:
    image = picture(mode, size)
    data = encoded(image, "JPEG", quality=95)
    found = decode_reduced(data, CAPS, 56)
    assert found is not None
    pixels, its_size = found
    assert its_size == size[::-1]
    assert 56 <= min(pixels.shape[:2]) <= max(2 * 56, min(size) // 8)
    assert pixels.ndim == (3 if mode == "RGB" else 2)
    smaller = np.asarray(image.resize(pixels.shape[1::-1], Image.Resampling.BOX), np.float32)
    assert np.abs(pixels - smaller).mean() < 4
    assert decode_reduced(encoded(image, "PNG"), CAPS, 56) is None
    assert decode_reduced(data[:40], CAPS, 56) is None
    assert decode_reduced(data, Caps(max_pixels=size[0] * size[1] - 1), 56) is None
    small = decode_reduced(encoded(picture(mode, (31, 40)), "JPEG"), CAPS, 56)
    assert small is not None
    assert small[0].shape[:2] == (40, 31)


@pytest.mark.parametrize("shape", [(257, 190, 3), (1000, 1001), (192, 192, 3), (3, 900)])
def test_the_thumbnail_of_a_turned_image_is_the_turned_thumbnail(shape: tuple[int, ...]) -> None:
    pixels = np.asarray(picture("RGB", shape[1::-1]))
    pixels = pixels if len(shape) == 3 else np.ascontiguousarray(pixels[..., 0])
    small = np.asarray(_shrunk(pixels, 48))
    assert max(small.shape[:2]) == 48
    for mirror, turns in itertools.product((False, True), range(4)):
        other = np.rot90(pixels[:, ::-1] if mirror else pixels, turns)
        expected = np.rot90(small[:, ::-1] if mirror else small, turns)
        assert np.array_equal(np.asarray(_shrunk(np.ascontiguousarray(other), 48)), expected)
    smooth = Image.fromarray(pixels).resize(small.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(small - np.asarray(smooth, np.float32)).mean() < 3


@pytest.mark.parametrize("shape", [(257, 190, 3), (1000, 1001), (3, 900, 3)])
def test_long_rows_are_summed_to_the_same(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = _shrunk(pixels, 48)
    monkeypatch.setattr("pipelines.thumbnails._function", lambda points: None)
    assert np.array_equal(_shrunk(pixels, 48), expected)
    monkeypatch.setattr("pipelines.thumbnails.LONG_ROW", 1)
    assert np.array_equal(_shrunk(pixels, 48), expected)


@pytest.mark.skipif(not lanes(), reason="no machine code here")
def test_machine_code_shrinks_views_as_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (400, 301, 3), dtype=np.uint8)
    views = [pixels[::-1], pixels.transpose(1, 0, 2), pixels[3:200, ::2], pixels[..., 1]]
    found = [_shrunk(view, 48) for view in views]
    assert all(small.std() > 1 for small in found)
    monkeypatch.setattr("pipelines.thumbnails._function", lambda points: None)
    for view, small in zip(views, found, strict=True):
        assert np.array_equal(_shrunk(np.ascontiguousarray(view), 48), small)


def test_one_long_row_takes_no_memory_of_its_length() -> None:
    pixels = np.zeros((1, 30_000_000, 3), np.uint8)
    tracemalloc.start()
    assert len(encode_thumbnail(pixels)) <= 1536
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 48), (28, 28), (29, 30), (38, 38), (30, 48)])
def test_small_grey_thumbnails_are_lossless(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.flat[:1] = 255
    data = encode_thumbnail(pixels)
    assert data == stored_webp(pixels)
    assert len(data) <= 1536
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("WEBP", "RGB")
        assert np.array_equal(np.asarray(image), np.stack([pixels] * 3, -1))


def test_every_grey_value_is_stored_as_it_is() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with Image.open(io.BytesIO(stored_webp(pixels))) as image:
        assert np.array_equal(np.asarray(image)[..., 0], pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"lossless": True}])
def test_still_and_opaque_webp_is_decoded_as_by_pillow(
    mode: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    data = encoded(picture(mode, size), "WEBP", **options)
    slow, fast = open_picture(data), decode_webp(data, 256)
    assert slow is not None
    assert np.array_equal(fast, np.asarray(slow))
    assert decode_webp(data, max(size) - 1) is None
    for cut in range(0, len(data), max(1, len(data) // 40)):
        assert decode_webp(data[:cut], 256) is None


def test_other_thumbnails_are_left_to_pillow() -> None:
    alpha = encoded(picture("RGBA", (31, 40)), "WEBP", lossless=True)
    stored = stored_webp(np.asarray(picture("L", (28, 28))))
    png = encoded(picture("RGB", (31, 40)), "PNG")
    assert decode_webp(alpha, 256) is None
    assert decode_webp(png, 256) is None
    assert decode_webp(stored, 256) is not None
    colour = picture("RGB", (31, 40))
    jpegs = [encoded(colour.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    long = encoded(picture("RGB", (300, 2)), "JPEG")
    assert open_pixels(long) is open_picture(long) is None
    for data in (alpha, png, stored, *jpegs):
        picture_ = open_picture(data)
        assert np.array_equal(open_pixels(data), np.asarray(picture_))
    assert open_pixels(None) is None
    assert open_pixels(b"RIFF no picture at all WEBPVP8L") is None
