"""Made sets for the benchmark of duplicates: real and made images, and copies of known kind.

What is the same as what is known by construction; images that are the same pixel for pixel under a
quarter turn or mirror without our doing (the test sets hold some) count as the same too.
"""

import gzip
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

Pixels = NDArray[np.uint8]
Chance = np.random.Generator
LIKE_OTHERS = ("motorcycle_right.png", "chessboard_GRAY.png", "chessboard_RGB.png", "color.png")
"""Of scikit-image's pictures those whose pieces are like each other or those of another."""
IDX = "t10k-images-idx3-ubyte.gz"


@dataclass(frozen=True)
class Copy:
    """A copy as stored: ``data`` decodes to g(original), g = mirror, then a turn
    counter-clockwise."""

    original: int
    data: bytes
    angle: float = 0.0
    mirror: bool = False


def idx(name: str, num: int) -> list[Pixels]:
    """The first test images (28, 28) of MNIST or Fashion-MNIST, from the folder ORBIT_DATA."""
    where = os.environ.get("ORBIT_DATA")
    if where is None:
        pytest.skip("ORBIT_DATA: name the folder that holds mnist and fashion-mnist")
    raw = gzip.decompress(Path(where, name, IDX).read_bytes())
    return list(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:num])


def odd_size(chance: Chance, low: int = 41, high: int = 180) -> tuple[int, int]:
    """A height, and a width at most 1.4 times that or less by as much."""
    height = int(chance.integers(low, high))
    return height, int(height * chance.uniform(1 / 1.4, 1.4))


def textures(num: int, seed: int = 0) -> list[Pixels]:
    """Grey and colour textures of odd sizes that fill their frame: noise of several scales, cells,
    waves, and blends of them."""
    chance = np.random.default_rng(seed)
    makers = (_cloud, _cells, _waves)
    made = []
    for number in range(num):
        size = odd_size(chance)
        first, second = (makers[int(chance.integers(3))](size, chance) for _ in range(2))
        share = chance.uniform(0, 0.5)
        plane = _stretched((1 - share) * first + share * second, chance)
        made.append(plane if number % 2 else _coloured(plane, _cloud(size, chance), chance))
    return made


def scenes(num: int, things: list[Pixels], seed: int = 0) -> list[Pixels]:
    """A few things, each at its own size and turn, on a softly shaded ground; odd sizes, colour."""
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        height, width = odd_size(chance, 64, 160)
        ground = chance.uniform(20, 90) + 25 * _cloud((height, width), chance, 3.0)
        scene = np.clip(np.repeat(ground[..., None], 3, 2), 0, 255)
        for _ in range(int(chance.integers(2, 6))):
            side = int(chance.uniform(0.3, 0.7) * min(height, width))
            thing = Image.fromarray(things[int(chance.integers(len(things)))])
            thing = thing.resize((side, side), Image.Resampling.BICUBIC)
            mask = np.asarray(thing.rotate(chance.uniform(0, 360)), np.float32)[..., None] / 255
            top, left = (int(chance.integers(0, n - side)) for n in (height, width))
            part = scene[top : top + side, left : left + side]
            part[:] = part * (1 - mask) + mask * chance.uniform(90, 255, 3)
        made.append(scene.astype(np.uint8))
    return made


def patches(folder: str | None, seed: int = 0, at_least: float = 15.0) -> list[Pixels]:
    """Pieces of photographs that do not overlap, of odd sizes, without those of no contrast: of the
    two that come with scikit-learn, and of what lies in ``folder``."""
    chance = np.random.default_rng(seed)
    photographs = [np.asarray(image) for image in load_sample_images().images]
    for path in sorted(Path(folder).iterdir()) if folder else ():
        if path.suffix in (".png", ".jpg") and path.name not in LIKE_OTHERS:
            photographs.append(np.asarray(Image.open(path).convert("RGB")))
    made = []
    for photograph in photographs:
        for _, piece in _pieces(photograph, chance):
            if np.asarray(Image.fromarray(piece).convert("L"), np.float32).std() >= at_least:
                made.append(piece if len(made) % 3 else piece[..., 1])
    return made


def _pieces(photograph: Pixels, chance: Chance) -> Iterator[tuple[int, Pixels]]:
    top = 0
    while True:
        height, left = int(chance.integers(43, 75)), 0
        if top + height > photograph.shape[0]:
            return
        while left + (width := int(height * chance.uniform(0.75, 1.35))) <= photograph.shape[1]:
            yield top, np.ascontiguousarray(photograph[top : top + height, left : left + width])
            left += width
        top += height


def _unit(plane: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = (plane - plane.mean()) / (plane.std() + 1e-9)
    return found


def _cloud(size: tuple[int, int], chance: Chance, steep: float | None = None) -> NDArray[Any]:
    """Noise whose power falls with frequency, as that of photographs does."""
    power = chance.uniform(1.0, 2.2) if steep is None else steep
    y, x = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    frequency = np.hypot(y, x)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(chance.normal(size=size)) / frequency**power
    spectrum[0, 0] = 0
    return _unit(np.fft.irfft2(spectrum, size))


def _cells(size: tuple[int, int], chance: Chance) -> NDArray[Any]:
    num = int(chance.integers(6, 40))
    points = chance.uniform(0, 1, (num, 2)) * size
    grey = chance.normal(size=num)
    y, x = np.mgrid[: size[0], : size[1]]
    apart = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return _unit(gaussian_filter(grey[apart.argmin(-1)], 0.7))


def _waves(size: tuple[int, int], chance: Chance) -> NDArray[Any]:
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    angle, count = chance.uniform(0, np.pi), chance.uniform(3, 14)
    bend = 0.08 * _cloud(size, chance, 2.5)
    return _unit(np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle) + bend)))


def _stretched(plane: NDArray[Any], chance: Chance) -> Pixels:
    grey = chance.uniform(90, 165) + chance.uniform(25, 60) * plane
    found: Pixels = grey.clip(0, 255).astype(np.uint8)
    return found


def _coloured(plane: Pixels, shade: NDArray[Any], chance: Chance) -> Pixels:
    tint = chance.uniform(-25, 25, 3)
    coloured = plane[..., None] + tint + shade[..., None] * chance.uniform(-15, 15, 3)
    found: Pixels = coloured.clip(0, 255).astype(np.uint8)
    return found


# Kinds of copies --------------------------------------------------------------------------------


def quarter(pixels: Pixels, chance: Chance) -> tuple[Pixels, float, bool]:
    """One of the seven elements of D4 that move something."""
    m, k = divmod(int(chance.integers(1, 8)), 4)
    return np.rot90(pixels[:, ::-1] if m else pixels, k), 90.0 * k, bool(m)


def free(pixels: Pixels, chance: Chance) -> tuple[Pixels, float, bool]:
    """Any angle, mirrored or not, on the same canvas; corners as the border, or black."""
    angle, mirror = float(chance.uniform(0, 360)), bool(chance.integers(2))
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if mirror else pixels))
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(rim, axis=0) if chance.integers(2) else np.zeros(pixels.shape[2:])
    colour = tuple(int(v) for v in np.atleast_1d(ground))
    fill = colour if pixels.ndim == 3 else colour[0]
    turned = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)
    return np.asarray(turned), angle, mirror


def as_it_is(pixels: Pixels, chance: Chance) -> tuple[Pixels, float, bool]:
    """Neither turned nor mirrored."""
    return pixels, 0.0, False


def cropped(pixels: Pixels, chance: Chance) -> Pixels:
    """Up to 4% off each side, at least one pixel in all."""
    height, width = pixels.shape[:2]
    off = chance.uniform(0, 0.04, 4) * (height, height, width, width)
    top, bottom, left, right = (round(v) for v in off)
    if top + bottom + left + right == 0:
        top = 1
    return pixels[top : height - bottom, left : width - right]


def resized(pixels: Pixels, chance: Chance) -> Pixels:
    """0.6 to 1.8 times as large."""
    factor = chance.uniform(0.6, 1.8)
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def encoded(pixels: Pixels, quality: int | None = None) -> bytes:
    """As PNG, or as JPEG of a quality."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if quality is None:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


Turning = Callable[[Pixels, Chance], tuple[Pixels, float, bool]]
Change = Callable[[Pixels, Chance], Pixels]
KINDS: dict[str, tuple[Turning, Change | None, int | None]] = {
    "quarter turns and mirrors": (quarter, None, None),
    "free angles": (free, None, None),
    "JPEG 75": (as_it_is, None, 75),
    "resized": (as_it_is, resized, None),
    "cropped": (as_it_is, cropped, None),
    "quarter, JPEG 75": (quarter, None, 75),
    "quarter, resized": (quarter, resized, None),
    "quarter, cropped": (quarter, cropped, None),
    "free, JPEG 75": (free, None, 75),
    "free, resized": (free, resized, None),
}


def copies(images: list[Pixels], kind: str, num: int, seed: int) -> list[Copy]:
    """A copy of a kind of each of ``num`` of the images, drawn without replacement."""
    turning, change, quality = KINDS[kind]
    chance = np.random.default_rng(seed)
    made = []
    for number in chance.permutation(len(images))[:num].tolist():
        pixels, angle, mirror = turning(images[number], chance)
        if change is not None:
            pixels = change(pixels, chance)
        made.append(Copy(number, encoded(pixels, quality), angle, mirror))
    return made


def orbit_names(images: list[Pixels]) -> list[bytes]:
    """For each image a name that those equal under a quarter turn or mirror share."""
    names = []
    for pixels in images:
        turned = [np.rot90(x, k) for x in (pixels, pixels[:, ::-1]) for k in range(4)]
        names.append(min(str(t.shape).encode() + t.tobytes() for t in turned))
    return names
