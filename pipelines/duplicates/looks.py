"""How images look when they are compared: their thumbnails, grey, in one size, centred."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipelines.pictures import Pixels, open_pixels

SIDE, SMOOTH = 40, 1.0
"""Pixels of a side, and of the blur that takes the detail away."""
NOISE = 2.0
"""Grey levels (root mean square) that compression leaves: less contrast than that is none."""
LEAST = 0.01
"""Added to the share of detail: what a picture without any may differ by."""
RINGS = 4
"""Of so many rings about the centre the mean colour is kept: a turn does not move it."""
BATCH = 512

Ints = NDArray[np.int64]
Plane = NDArray[Any]
"""float32."""
Values = TypeVar("Values", bound=Any)
"""Arrays, of numpy or torch."""


class Thumbnails(Protocol):
    """image_ids -> thumbnails of those that have one."""

    def __call__(self, ids: Collection[int], /) -> Mapping[int, bytes]:
        """Read them."""


@dataclass(frozen=True)
class Looks:
    """Images as they are compared, aligned with ``rows`` (M,), which ascend.

    ``grey`` (M, SIDE, SIDE) uint8, the longer side fitted, the border carried on to a square;
    ``smooth`` the same blurred; ``half`` (M, 2) pixels from the centre to the border, right and
    down; ``tint`` (M, RINGS, 2) the mean of blue and red difference (YCbCr) in each ring;
    ``fineness`` (M,) the share that detail, what the blur takes, has in the variance; ``level`` and
    ``contrast`` (M,) the mean and the standard deviation of grey.
    """

    rows: Ints
    grey: NDArray[np.uint8]
    smooth: NDArray[np.uint8]
    half: Plane
    tint: Plane
    fineness: Plane
    level: Plane
    contrast: Plane

    @classmethod
    def of(cls, rows: Ints, ids: Ints, thumbnails: Thumbnails, threads: int = 1) -> Looks:
        """The looks of those of ``rows`` that have a thumbnail; ``ids`` are all rows' image_ids."""
        found, rows = thumbnails({int(number) for number in ids[rows]}), np.sort(rows)
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            made = list(pool.map(lambda part: cls._part(part, ids, found), parts))
        made = made or [cls._part(rows, ids, found)]
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in made]) for name in names))

    @classmethod
    def _part(cls, rows: Ints, ids: Ints, thumbnails: Mapping[int, bytes]) -> Looks:
        grey = np.empty((len(rows), SIDE, SIDE), np.uint8)
        half = np.empty((len(rows), 2), np.float32)
        tint = np.empty((len(rows), RINGS, 2), np.float32)
        seen = np.zeros(len(rows), bool)
        for places, joined in _of_one_shape(
            [open_pixels(thumbnails.get(int(ids[n]))) for n in rows]
        ):
            grey[places], half[places], tint[places] = look_of(joined)
            seen[places] = True
        grey = grey[seen]
        smooth = smoothed(grey)
        return cls(rows[seen], grey, smooth, half[seen], tint[seen], *measures(grey, smooth))

    @property
    def reach(self) -> Plane:
        """(M,): the radius of the disc that a turn leaves within the picture."""
        found: Plane = self.half.min(1)
        return found

    def places(self, rows: Ints) -> Ints:
        """Where rows lie in the arrays; -1 for those that have no look."""
        if not len(self.rows):
            return np.full(rows.shape, -1, np.int64)
        place = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[place] == rows, place, -1)


def _of_one_shape(pictures: Sequence[Pixels | None]) -> list[tuple[Ints, Pixels]]:
    """Pictures (H, W, 3) of one shape together (n, H, W, 3), with their places (n,)."""
    places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        if picture is not None:
            places[picture.shape].append(place)
    return [
        (np.array(same), np.stack([one for n in same if (one := pictures[n]) is not None]))
        for same in places.values()
    ]


BLUR = gaussian_filter(np.eye(SIDE, dtype=np.float32), (SMOOTH, 0))


def smoothed(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(M, SIDE, SIDE) uint8, each blurred, rounded."""
    found: NDArray[np.uint8] = np.rint(BLUR @ grey.astype(np.float32) @ BLUR.T).astype(np.uint8)
    return found


def measures(grey: NDArray[np.uint8], smooth: NDArray[np.uint8]) -> tuple[Plane, Plane, Plane]:
    """(M,) each: the share of detail in the variance of each picture; mean and deviation of
    grey."""
    whole, blurred = (one.reshape(-1, SIDE**2).astype(np.float32) for one in (grey, smooth))
    picture, detail = picture_and_detail(whole, blurred)
    fineness = share_of_detail(picture.var(1), detail.var(1))
    return fineness, whole.mean(1), whole.std(1)


def picture_and_detail(grey: Values, smooth: Values) -> tuple[Values, Values]:
    """What is compared: the picture, slightly blurred, and what a stronger blur takes from it."""
    return (grey + smooth) / 2, grey - smooth


def share_of_detail(picture: Values, detail: Values) -> Values:
    """The share of detail, given both variances; compression leaves ``NOISE`` where there is
    nothing, and a little may always be lost."""
    found: Values = (detail + 1) / (picture + NOISE * NOISE) + LEAST
    return found


LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
DIFFERENCES = np.array(
    [[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)  # of blue and red, as JPEG has them, about 128


def look_of(pixels: Pixels) -> tuple[NDArray[np.uint8], tuple[float, float], Plane]:
    """Pictures of one shape (n, H, W, 3) uint8 -> their grey, half and tint. Their sides are even,
    as the square's are: so they lie in the middle to the pixel, whichever way they are turned."""
    scale = SIDE / max(pixels.shape[1:3])
    height, width = (2 * max(1, round(length * scale / 2)) for length in pixels.shape[1:3])
    half = (width / 2, height / 2)
    values = pixels.astype(np.float32)
    grey = np.rint(_squared(values @ LUMINANCE, height, width)).clip(0, 255).astype(np.uint8)
    rings = _ring_means(min(half))
    tint = np.empty((len(pixels), RINGS, 2), np.float32)
    for number, weights in enumerate(DIFFERENCES):
        if (pixels[..., :1] == pixels).all():
            tint[..., number] = 0  # grey
        else:
            plane = _squared(values @ weights, height, width).reshape(len(pixels), -1)
            tint[..., number] = plane @ rings.T
    return grey, half, tint


def _squared(planes: Plane, height: int, width: int) -> Plane:
    """(n, H, W) -> (n, SIDE, SIDE): resized to so many pixels, in the middle, and the median of the
    border about them."""
    rows, columns = _lanczos(planes.shape[1], height), _lanczos(planes.shape[2], width)
    wide = planes.reshape(-1, planes.shape[2]) @ columns.T
    small = rows @ wide.reshape(len(planes), -1, width)
    rim = np.concatenate([small[:, 0], small[:, -1], small[:, :, 0], small[:, :, -1]], 1)
    middle = rim.shape[1] // 2
    found = np.empty((len(planes), SIDE, SIDE), np.float32)
    found[:] = np.partition(rim, middle, 1)[:, middle, None, None]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    found[:, top : top + height, left : left + width] = small
    return found


@lru_cache(maxsize=1024)
def _lanczos(length: int, side: int) -> Plane:
    """(side, length): Lanczos weights with three lobes, widened when shrinking, as Pillow has them;
    row p and row side - 1 - p are mirrors bit for bit."""
    scale = length / side
    centres = (np.arange(side) + 0.5)[:, None] * scale
    apart = (np.arange(length) + 0.5 - centres) / max(scale, 1.0)
    weights = np.where(np.abs(apart) < 3, np.sinc(apart) * np.sinc(apart / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    found: Plane = ((weights + weights[::-1, ::-1]) / 2).astype(np.float32)
    return found


@lru_cache(maxsize=1024)
def _ring_means(reach: float) -> Plane:
    """(RINGS, SIDE * SIDE): takes the mean over rings of one width, the last up to ``reach``."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    ring = np.minimum(np.hypot(y, x).ravel() / reach * RINGS, RINGS + 0.5).astype(np.int64)
    inside = ring == np.arange(RINGS)[:, None]
    found: Plane = (inside / np.maximum(inside.sum(1, keepdims=True), 1)).astype(np.float32)
    return found
