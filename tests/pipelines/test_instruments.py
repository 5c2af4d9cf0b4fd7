"""What microscopes and telescopes write: compressed deep TIFF, stacks with channels, FITS."""

import builtins
import contextlib
import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tifffile
from astropy.io import fits

from pipelines.decode import Caps, decode
from pipelines.errors import Rejected
from pipelines.tiff import declared_channels

DEEP = np.arange(7 * 5 * 3, dtype=np.uint16).reshape(7, 5, 3) * np.uint16(613)
REAL = np.linspace(-1, 1, 35, dtype=np.float32).reshape(7, 5)


def tiff(values: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [False, True])
def test_compressed_deep_colour_and_floats(compression: str, predictor: bool) -> None:
    if predictor and compression == "packbits":
        pytest.skip("TIFF has no such pair")
    deep = tiff(DEEP, photometric="rgb", compression=compression, predictor=predictor)
    assert decode(deep).dtype == np.uint16
    assert np.array_equal(decode(deep), DEEP)
    tiled = tiff(DEEP, photometric="rgb", compression=compression, tile=(16, 16))
    assert np.array_equal(decode(tiled), DEEP)
    both = np.stack([REAL, 2 * REAL], -1)
    real = tiff(both, photometric="minisblack", planarconfig="contig", compression=compression)
    assert np.array_equal(decode(real), both)


@pytest.mark.parametrize("compression", ["lzw", "packbits", "zstd", "lzma"])
def test_a_cut_or_spoilt_compressed_tiff_is_rejected_or_whole(compression: str) -> None:
    whole = tiff(DEEP, photometric="rgb", compression=compression)
    for cut in range(8, len(whole), 3):
        with contextlib.suppress(Rejected):
            assert np.array_equal(decode(whole[:cut]), DEEP), cut


def test_a_bomb_of_another_compression_is_not_unpacked() -> None:
    """The page is small; what its strip unpacks to is not."""
    import imagecodecs

    for compression, encode in (("zstd", imagecodecs.zstd_encode), ("lzw", imagecodecs.lzw_encode)):
        small = tiff(np.zeros((8, 8, 3), np.uint16), photometric="rgb", compression=compression)
        with tifffile.TiffFile(io.BytesIO(small)) as file:
            tags = file.pages[0].tags  # type: ignore[union-attr]
            places = [tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
        bomb = encode(bytes(64 << 20))
        spoilt = bytearray(small + bomb)
        for place, value in zip(places, (len(small), min(len(bomb), 65535)), strict=True):
            spoilt[place : place + 4] = value.to_bytes(4, "little")
        tracemalloc.start()
        with contextlib.suppress(Rejected):
            assert decode(bytes(spoilt)).shape == (8, 8, 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20


def test_a_stack_gives_its_first_page_unless_it_declares_channels() -> None:
    pages = np.arange(4 * 7 * 5, dtype=np.uint16).reshape(4, 7, 5)
    plain = decode(tiff(pages, photometric="minisblack"))
    assert np.array_equal(plain, pages[0])
    slices = decode(tiff(pages, imagej=True, metadata={"axes": "ZYX"}))
    assert np.array_equal(slices, pages[0])
    channels = decode(tiff(pages, imagej=True, metadata={"axes": "CYX"}))
    assert np.array_equal(channels, np.moveaxis(pages, 0, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_of_the_first_plane_and_time(kind: str, dtype: Any) -> None:
    pages = np.arange(2 * 3 * 2 * 7 * 5).astype(dtype).reshape(2, 3, 2, 7, 5)  # T Z C Y X
    data = tiff(
        pages,
        photometric="minisblack",
        metadata={"axes": "TZCYX"},
        **({"imagej": True} if kind == "imagej" else {"ome": True}),
    )
    assert np.array_equal(decode(data), np.moveaxis(pages[0, 0], 0, -1))
    if kind == "ome":  # another order of the pages: channels outermost
        order = np.ascontiguousarray(np.moveaxis(pages, 2, 0))
        data = tiff(order, photometric="minisblack", ome=True, metadata={"axes": "CTZYX"})
        assert np.array_equal(decode(data), np.moveaxis(order[:, 0, 0], 0, -1))


def test_what_a_description_declares() -> None:
    assert declared_channels("ImageJ=1.53\nimages=6\nchannels=3\nslices=2\n") == (3, 1)
    assert declared_channels("ImageJ=1.53\nimages=6\nslices=6\n") is None
    ome = '<OME><Image><Pixels DimensionOrder="XYZCT" SizeC="3" SizeT="2" SizeX="5" SizeZ="4"/>'
    assert declared_channels(ome) == (3, 4)
    assert declared_channels(ome.replace("XYZCT", "XYZTC")) == (3, 8)
    assert declared_channels(ome.replace('SizeC="3"', 'SizeC="1"')) is None
    assert declared_channels("a photograph of channels=3") is None


def test_a_stack_that_declares_more_than_it_holds_is_rejected() -> None:
    data = tiff(REAL, photometric="minisblack", description="ImageJ=1.5\nchannels=9\n")
    with pytest.raises(Rejected, match="9 channels declared, 1 pages there"):
        decode(data)
    huge = tiff(REAL, photometric="minisblack", description="ImageJ=1.5\nchannels=9999\n")
    with pytest.raises(Rejected, match="9999 channels declared"):
        decode(huge)


def fits_of(*parts: Any) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList(list(parts)).writeto(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[0, 7], [255, 3]], np.uint8), np.uint8),
        (np.array([[0, 7], [65535, 3]], np.uint16), np.uint16),
        (np.array([[-4, 7], [32767, 3]], np.int16), np.float32),
        (np.array([[-4, 7], [1 << 20, 3]], np.int32), np.float32),
        (np.array([[-0.5, 7], [1e9, 3]], np.float32), np.float32),
        (np.array([[-0.5, 7], [1e9, 3]], np.float64), np.float32),
    ],
)
def test_fits_by_type(stored: np.ndarray, expected: Any) -> None:
    """The first row that is stored is the first row; unsigned 16 bits are BZERO = 32768."""
    found = decode(fits_of(fits.PrimaryHDU(stored)))
    assert found.dtype == expected
    assert np.array_equal(found, stored.astype(expected))


def test_fits_scaled_in_extensions_cubes_and_compressed() -> None:
    scaled = fits.PrimaryHDU(np.array([[1, 2], [3, 4]], np.int16))
    scaled.header["BSCALE"], scaled.header["BZERO"] = 0.5, 100.0
    raw = fits_of(scaled)
    assert np.array_equal(decode(raw), np.array([[100.5, 101], [101.5, 102]], np.float32))
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.ones(3))])
    later = fits_of(fits.PrimaryHDU(), table, fits.ImageHDU(cube))
    assert np.array_equal(decode(later), np.moveaxis(cube, 0, -1))
    single = fits_of(fits.PrimaryHDU(cube[:1]))
    assert np.array_equal(decode(single), cube[0])
    deep = np.arange(600, dtype=np.int32).reshape(20, 30)
    packed = fits_of(fits.PrimaryHDU(), fits.CompImageHDU(deep, compression_type="RICE_1"))
    assert np.array_equal(decode(packed), deep.astype(np.float32))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (fits_of(fits.PrimaryHDU()), "without an image of two axes"),
        (fits_of(fits.PrimaryHDU(np.zeros((2, 2, 3, 4)))), "FITS of 4 axes"),
        (fits_of(fits.PrimaryHDU(np.full((2, 2), np.nan))), "not finite"),
        (fits_of(fits.PrimaryHDU(np.zeros((90, 90))))[:-5760], "damaged: truncated"),
        (fits_of(fits.PrimaryHDU(np.zeros((4, 4))))[:100], "damaged"),
        (b"SIMPLE  = nothing of the kind" * 200, "damaged"),
        (
            fits_of(fits.PrimaryHDU(np.zeros((4, 4), np.uint8))).replace(
                b"NAXIS1  =                    4", b"NAXIS1  =            999999999"
            ),
            "over the cap",
        ),
    ],
)
def test_fits_that_is_none(data: bytes, reason: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(Rejected, match=reason) as raised:
        decode(data)
    assert "\n" not in str(raised.value)
    assert list(recwarn) == []


def test_a_compressed_fits_is_capped_before_it_is_unpacked() -> None:
    part = fits.CompImageHDU(np.zeros((400, 400), np.int16), compression_type="GZIP_1")
    with pytest.raises(Rejected, match="400x400 is over the cap of 1000 pixels"):
        decode(fits_of(fits.PrimaryHDU(), part), Caps(max_pixels=1000))


def test_without_astropy_fits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("astropy"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(Rejected, match="the extra 'fits'"):
        decode(b"SIMPLE  =                    T")
