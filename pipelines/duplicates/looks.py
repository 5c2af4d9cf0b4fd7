"""How images look when they are compared: their thumbnails, grey, in one size, centred."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipelines.pictures import open_picture

SIDE, SMOOTH = 40, 1.0
"""Pixels of a side, and of the blur that takes the detail away."""
NOISE = 2.0
"""Grey levels (root mean square) that compression leaves: less contrast than that is none."""
LEAST = 0.01
"""Added to the share of detail: what a picture without any may differ by."""
RINGS = 4
"""Of so many rings about the centre the mean colour is kept: a turn does not move it."""

Ints = NDArray[np.int64]
Plane = NDArray[Any]
"""float32."""


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
    ``fineness`` (M,) the share that detail, what the blur takes, has in the variance.
    """

    rows: Ints
    grey: NDArray[np.uint8]
    smooth: NDArray[np.uint8]
    half: Plane
    tint: Plane
    fineness: Plane

    @classmethod
    def of(cls, rows: Ints, ids: Ints, thumbnails: Thumbnails) -> Looks:
        """The looks of those of ``rows`` that have a thumbnail; ``ids`` are all rows' image_ids."""
        found = thumbnails({int(number) for number in ids[rows]})
        grey = np.empty((len(rows), SIDE, SIDE), np.uint8)
        half = np.empty((len(rows), 2), np.float32)
        tint = np.empty((len(rows), RINGS, 2), np.float32)
        seen: list[int] = []
        for row in np.sort(rows).tolist():
            picture = open_picture(found.get(int(ids[row])))
            if picture is not None:
                place = len(seen)
                grey[place], half[place], tint[place] = look_of(picture)
                seen.append(row)
        num = len(seen)
        grey = grey[:num]
        smooth = smoothed(grey)
        shares = fineness_of(grey, smooth)
        return cls(np.array(seen, np.int64), grey, smooth, half[:num], tint[:num], shares)

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


def smoothed(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(M, SIDE, SIDE) uint8, each blurred, rounded."""
    found = np.empty_like(grey)
    for start in range(0, len(grey), 1024):
        part = grey[start : start + 1024].astype(np.float32)
        found[start : start + 1024] = np.rint(gaussian_filter(part, (0, SMOOTH, SMOOTH)))
    return found


def fineness_of(grey: NDArray[np.uint8], smooth: NDArray[np.uint8]) -> Plane:
    """(M,): the share of detail in the variance of each picture."""
    found = np.empty(len(grey), np.float32)
    for start in range(0, len(grey), 1024):
        part = slice(start, start + 1024)
        whole, blurred = (
            one[part].reshape(-1, SIDE**2).astype(np.float32) for one in (grey, smooth)
        )
        picture, detail = picture_and_detail(whole, blurred)
        found[part] = share_of_detail(picture.var(1), detail.var(1))
    return found


def picture_and_detail(grey: Plane, smooth: Plane) -> tuple[Plane, Plane]:
    """What is compared: the picture, slightly blurred, and what a stronger blur takes from it."""
    return (grey + smooth) / 2, grey - smooth


def share_of_detail(picture: Plane, detail: Plane) -> Plane:
    """The share of detail, given both variances; compression leaves ``NOISE`` where there is
    nothing, and a little may always be lost."""
    found: Plane = (detail + 1) / (picture + NOISE * NOISE) + LEAST
    return found


def look_of(picture: Image.Image) -> tuple[NDArray[np.uint8], tuple[float, float], Plane]:
    """grey, half and tint of one picture. Its sides are even, as the square's are: so it lies in
    the middle to the pixel, whichever way it is turned."""
    scale = SIDE / max(picture.size)
    width, height = (2 * max(1, round(length * scale / 2)) for length in picture.size)
    small = picture.resize((width, height), Image.Resampling.LANCZOS).convert("YCbCr")
    pixels = np.asarray(small)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((SIDE, SIDE, 3), np.uint8)
    square[:] = np.sort(rim, axis=0)[len(rim) // 2]  # the median
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = pixels
    half = (width / 2, height / 2)
    colour = square[..., 1:].reshape(-1, 2).astype(np.float32)
    return square[..., 0], half, _ring_means(min(half)) @ colour


@cache
def _ring_means(reach: float) -> Plane:
    """(RINGS, SIDE * SIDE): takes the mean over rings of one width, the last up to ``reach``."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    ring = np.minimum(np.hypot(y, x).ravel() / reach * RINGS, RINGS + 0.5).astype(np.int64)
    inside = ring == np.arange(RINGS)[:, None]
    found: Plane = (inside / np.maximum(inside.sum(1, keepdims=True), 1)).astype(np.float32)
    return found
