"""The turn between two pictures, found on their pixels: what a pose code, which knows the elements
of its group alone, leaves open.

Both are read along rings around the centre, where a turn is a shift: the query is compared with the
hit and its mirror image at every degree by one product of Fourier transforms. (Turning the query by
each degree and comparing pixels finds the same, in 30 ms a query where this takes one.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.pictures import Pose

SIDE, STEP = 48, 1
ANGLES = np.arange(0, 360, STEP)
RADII = np.arange(0.5, SIDE / 2)
SLACK = 15.0
"""Degrees past half a step of the group, to either side of its element, that are looked at."""
FAR_BETTER, BETTER = 0.05, 0.003
"""By which a turn that the pose code would not expect, or any free angle, must fit better."""
NEAR_ELEMENT = 1.5
"""A peak so many degrees from an element of the group is that element."""
FLAT = 2.0
"""Grey levels of contrast (root mean square) below which a picture has no orientation."""

Look = NDArray[np.uint8]
"""(48, 48): a picture as it is compared: grey, its longer side fitted, its border carried on."""
Plane = NDArray[np.float32]


def look_of(picture: Image.Image) -> Look:
    """A picture made comparable."""
    grey = picture.convert("L")
    scale = SIDE / max(grey.size)
    width, height = (max(1, round(length * scale)) for length in grey.size)
    pixels = np.asarray(grey.resize((width, height), Image.Resampling.LANCZOS))
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    made = np.full((SIDE, SIDE), np.median(edge), np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    made[top : top + height, left : left + width] = pixels
    return made


def refined(
    query: Look, hits: Sequence[Look | None], poses: Sequence[Pose], step: float, mirrored: bool
) -> list[Pose]:
    """For each hit the pose with query = pose(hit), as pixels tell it.

    ``poses`` are those that the pose codes found, elements of a group that turns by multiples of
    ``step`` degrees and mirrors if ``mirrored``. A hit without a look, or a picture without
    contrast, keeps its pose.
    """
    seen = [(place, hit) for place, hit in enumerate(hits) if hit is not None]
    found = list(poses)
    if not seen:
        return found
    rings = _rings(np.stack([query, *(hit for _, hit in seen)]).astype(np.float32))
    fits = _compare(rings[0], rings[1:])
    if not mirrored:
        fits[1] = -2.0
    for number, (place, _) in enumerate(seen):
        if np.isfinite(fits[0, 0, number]):
            found[place] = _chosen(fits[:, :, number], poses[place], step)
    return found


@cache
def _where() -> tuple[NDArray[np.int64], Plane]:
    """Pixels (4, R * A) between which each point of the rings lies, and what each counts."""
    radii, turns = np.meshgrid(RADII, np.radians(ANGLES), indexing="ij")
    centre = (SIDE - 1) / 2
    x, y = centre + radii * np.cos(turns), centre - radii * np.sin(turns)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    places, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            column = np.clip(left + right, 0, SIDE - 1)
            row = np.clip(top + down, 0, SIDE - 1)
            places.append((row * SIDE + column).ravel())
            weights.append(((1 - abs(x - left - right)) * (1 - abs(y - top - down))).ravel())
    return np.stack(places), np.stack(weights).astype(np.float32)


def _rings(planes: Plane) -> Plane:
    """(K, S, S) -> (K, R, A), read counter-clockwise, mean 0 and length 1 over the disc; nan for a
    plane without contrast."""
    places, weights = _where()
    flat = planes.reshape(len(planes), -1)
    rings = sum(flat[:, place] * weight for place, weight in zip(places, weights, strict=True))
    rings = np.reshape(rings, (len(planes), len(RADII), len(ANGLES)))
    share = (RADII / RADII.sum() / len(ANGLES)).astype(np.float32)[:, None]  # of the disc's area
    rings = rings - (rings * share).sum((1, 2), keepdims=True)
    contrast = np.sqrt((rings * rings * share).sum((1, 2), keepdims=True))
    contrast[contrast < FLAT] = np.nan
    unit: Plane = rings * np.sqrt(share) / contrast
    return unit


def _compare(query: Plane, hits: Plane) -> Plane:
    """(R, A) and (K, R, A) -> (2, A, K): correlations with each hit turned by each angle, and with
    its mirror image; nan where one of them has no contrast."""
    asked, found = np.fft.rfft(query), np.fft.rfft(hits)
    sign = (-1.0) ** np.arange(found.shape[2])
    straight = np.einsum("rf,krf->kf", asked, found.conj())
    # The mirror image at an angle is the image at 180 degrees less it: conjugate, signs in turn.
    mirrored = np.einsum("rf,krf->kf", asked, found) * sign
    fits = np.fft.irfft(np.stack([straight, mirrored]), len(ANGLES))
    return np.moveaxis(fits, 2, 1).astype(np.float32)


def _chosen(fits: Plane, pose: Pose, step: float) -> Pose:
    """fits (2, 360) by mirror and angle -> the pose."""
    apart = np.abs((ANGLES - pose.angle_degrees + 180) % 360 - 180)
    near = np.where(apart <= step / 2 + SLACK, fits[int(pose.mirror)], -2.0)
    mirror, place = int(pose.mirror), int(near.argmax())
    other = np.unravel_index(int(fits.argmax()), fits.shape)
    if fits[other] > near[place] + FAR_BETTER:
        mirror, place = int(other[0]), int(other[1])
    same = bool(mirror) == pose.mirror
    element = fits[int(pose.mirror), round(pose.angle_degrees / STEP) % len(ANGLES)]
    if same and (apart[place] <= NEAR_ELEMENT or element >= fits[mirror, place] - BETTER):
        return pose
    angle = _nearest_multiple(_peak(fits[mirror], place), step)
    return Pose(angle, bool(mirror))


def _peak(fits: Plane, place: int) -> float:
    """The angle of a peak, between the degrees: a parabola through it and its neighbours."""
    before, here, after = (float(fits[(place + d) % len(fits)]) for d in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return round((float(ANGLES[place]) + shift * STEP) % 360, 1)


def _nearest_multiple(angle: float, step: float) -> float:
    """An angle next to an element of the group is that element."""
    element = round(angle / step) * step
    return element % 360 if abs(angle - element) <= NEAR_ELEMENT else angle
