"""A thousand images made to hurt: none ends the process, none makes it grow past 64 MiB."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF\0\0\1\0WEBP",
          b"II*\0", b"MM\0*", b"II+\0", b"P6\n", b"%!PS-Adobe", b"8BPS", b"<svg", b"\0\0\0\x0cjP  ",
          b"\x76\x2f\x31\x01", b"SIMPLE  =", b"")  # fmt: skip
GROWTH = 64 << 20


def good(chance: random.Random, kind: str) -> bytes:
    shape = (chance.randrange(1, 80), chance.randrange(1, 80), 3)
    pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def flipped(chance: random.Random) -> bytes:
    data = bytearray(good(chance, chance.choice(FORMATS)))
    for _ in range(chance.randrange(1, 40)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def damaged_header(chance: random.Random) -> bytes:
    data = bytearray(good(chance, chance.choice(FORMATS)))
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(min(64, len(data)))] = chance.randrange(256)
    return bytes(data)


def truncated(chance: random.Random) -> bytes:
    data = good(chance, chance.choice(FORMATS))
    return data[: chance.randrange(len(data))]


def noise_with_a_magic(chance: random.Random) -> bytes:
    return chance.choice(MAGICS) + chance.randbytes(chance.randrange(0, 4000))


def two_in_one(chance: random.Random) -> bytes:
    first, second = (good(chance, chance.choice(FORMATS)) for _ in range(2))
    cut = chance.randrange(len(first))
    return first[:cut] + second


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(width: int, height: int, depth: int, colour: int, body: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return MAGICS[0] + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def huge_png(chance: random.Random) -> bytes:
    """Claims more pixels than the cap, with real data for none of them."""
    side = chance.choice([9_000, 13_000, 50_000, 2**31 - 1])
    return png_of(side, side, 8, chance.choice([0, 2, 3, 4, 6]), zlib.compress(bytes(1000)))


def text_bomb(chance: random.Random) -> bytes:
    """A small PNG with a compressed text of many megabytes, or a colour profile of them."""
    packed = zlib.compress(bytes(chance.choice([1, 20, 60]) << 20), 1)
    name = chance.choice([b"zTXt", b"iCCP"])
    plain = good(chance, "PNG")
    return plain[:33] + chunk(name, b"x\0\0" + packed) + plain[33:]


def huge_gif(chance: random.Random) -> bytes:
    side = chance.choice([20_000, 65_535])
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b",\0\0\0\0" + struct.pack(
        "<HHB", side, side, 0
    ) + chance.randbytes(60)  # fmt: skip


def huge_bmp(chance: random.Random) -> bytes:
    side = chance.choice([30_000, 2**31 - 1, -(2**31)])
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0,
                               0, 0, 0) + chance.randbytes(40)  # fmt: skip


def huge_tiff(chance: random.Random) -> bytes:
    """Claims many pixels, channels or bits; strips that lie outside the file."""
    side = chance.choice([1, 100, 20_000, 2**31])
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, chance.choice([1, 8, 16, 32, 64, 255])),
        (259, 3, 1, chance.choice([1, 5, 7, 8, 32773, 50000])), (262, 3, 1, chance.randrange(9)),
        (273, 4, 1, chance.randrange(2**32)), (277, 3, 1, chance.choice([1, 3, 5, 200, 65_535])),
        (278, 4, 1, side), (279, 4, 1, chance.randrange(2**32)),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + bytes(chance.randrange(200))


def many_frames(chance: random.Random) -> bytes:
    frame = Image.new("L", (16, 16))
    buffer = io.BytesIO()
    kind = chance.choice(["GIF", "PNG", "WEBP", "TIFF"])
    others = [Image.new("L", (16, 16), n % 256) for n in range(60)]
    frame.save(buffer, kind, save_all=True, append_images=others)
    return buffer.getvalue()


def strange_exif(chance: random.Random) -> bytes:
    plain = good(chance, "JPEG")
    body = b"Exif\0\0II*\0\x08\0\0\0" + chance.randbytes(chance.randrange(400))
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def fits_card(name: str, value: object) -> bytes:
    return f"{name:<8}= {value!s:>20}".encode().ljust(80)


def huge_fits(chance: random.Random) -> bytes:
    """Claims many pixels or axes, and has few bytes."""
    axes = chance.choice([2, 3, 9, 999])
    cards = [fits_card("SIMPLE", "T"), fits_card("BITPIX", chance.choice([8, 16, 32, -32, -64, 7])),
             fits_card("NAXIS", axes)]  # fmt: skip
    side = chance.choice([1, 3, 40_000, 2**31])
    cards += [fits_card(f"NAXIS{n + 1}", side) for n in range(min(axes, 20))]
    header = b"".join([*cards, b"END".ljust(80)])
    return header.ljust(-(-len(header) // 2880) * 2880) + chance.randbytes(chance.randrange(4000))


def looping_tiff(chance: random.Random) -> bytes:
    """Pages that follow one another in a circle, and a description of thousands of channels."""
    told = b"ImageJ=1.53\nchannels=" + str(chance.choice([2, 9999])).encode() + b"\0"
    tags = [
        (256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (270, 2, len(told), 200), (273, 4, 1, 300), (277, 3, 1, 1), (278, 4, 1, 4), (279, 4, 1, 16),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    following = chance.choice([8, 0, 8, 250])
    page = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + struct.pack("<I", following)
    return page.ljust(200, b"\0") + told.ljust(100, b"\0") + bytes(16)


def packed_tiff(chance: random.Random) -> bytes:
    """A small strip that unpacks to many megabytes, in a page of few pixels."""
    packed = zlib.compress(bytes(chance.choice([1, 30, 90]) << 20), 9)
    tags = [
        (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 16), (259, 3, 1, 8), (262, 3, 1, 1),
        (273, 4, 1, 200), (277, 3, 1, chance.choice([1, 2])), (278, 4, 1, 8),
        (279, 4, 1, len(packed)),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    page = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + bytes(4)
    return page.ljust(200, b"\0") + packed


KINDS: list[Callable[[random.Random], bytes]] = [
    flipped, damaged_header, truncated, noise_with_a_magic, two_in_one, huge_png, text_bomb,
    huge_gif, huge_bmp, huge_tiff, many_frames, strange_exif, huge_fits, looping_tiff, packed_tiff,
]  # fmt: skip


def bomb(side: int) -> bytes:
    """A PNG with real data: side x side grey pixels, all black, a thousandth of that in bytes."""
    packer, parts = zlib.compressobj(1), list[bytes]()
    row = bytes(side + 1)
    for _ in range(side):
        parts.append(packer.compress(row))
    return png_of(side, side, 8, 0, b"".join([*parts, packer.flush()]))


@pytest.mark.parametrize("num", [200, pytest.param(1_000, marks=pytest.mark.faults_slow)])
def test_hostile_images(tmp_path: Path, chance: random.Random, num: int) -> None:
    warm, hostile = tmp_path / "warm", tmp_path / "hostile"
    for folder in (warm, hostile):
        folder.mkdir()
    for kind in FORMATS:
        (warm / kind).write_bytes(good(chance, kind))
    for number in range(num - 2):
        made = KINDS[number % len(KINDS)]
        (hostile / f"{number:04d}-{made.__name__}").write_bytes(made(chance))
    for side in (9_381, 13_000):  # 88 and 169 megapixels
        (hostile / f"bomb-{side}").write_bytes(bomb(side))
    script = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        [sys.executable, str(script), str(warm), str(hostile)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    outcomes = found["outcomes"]
    assert len(outcomes) == num
    assert found["grown"] <= GROWTH, f"{found['grown'] >> 20} MiB"
    assert found["peak"] <= GROWTH, f"{found['peak'] >> 20} MiB at one moment"
    assert found["slowest"] < 10
    huge = [said for name, said in outcomes.items() if "huge_png" in name or "bomb-" in name]
    assert all(said.startswith("rejected") for said in huge)
    rejected = sum(said.startswith("rejected") for said in outcomes.values())
    print(
        f"\n{num} hostile images: {rejected} rejected, no death, +{found['grown'] >> 20} MiB, "
        f"at one moment +{found['peak'] >> 20} MiB, the slowest {found['slowest']:.2f} s"
    )
