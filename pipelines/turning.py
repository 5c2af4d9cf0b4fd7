"""The turn between two pictures, found on their pixels: what a pose code, which knows the elements
of its group alone, leaves open.

The query is turned back by every degree and compared with the hit and its mirror image, inside the
disc that a turn leaves in place. All comparisons of a query are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.pictures import Pose

SIDE, STEP = 48, 1
ANGLES = np.arange(0, 360, STEP)
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
    seen = [place for place, hit in enumerate(hits) if hit is not None]
    found = list(poses)
    turned = _turned_back(query)
    if not seen or turned is None:
        return found
    planes = np.stack([hit for hit in hits if hit is not None]).astype(np.float32)
    fits = np.stack([_compare(turned, planes), _compare(turned, planes[:, :, ::-1])])
    if not mirrored:
        fits[1] = -2.0
    for number, place in enumerate(seen):
        if np.isfinite(fits[0, 0, number]):
            found[place] = _chosen(fits[:, :, number], poses[place], step)
    return found


def _turned_back(query: Look) -> Plane | None:
    """(360, S * S): the query turned back by each angle; None where it has no contrast."""
    picture = Image.fromarray(query)
    ground = int(np.median(np.concatenate([query[0], query[-1], query[:, 0], query[:, -1]])))
    bilinear = Image.Resampling.BILINEAR
    stack = [
        np.asarray(picture.rotate(-int(angle), bilinear, fillcolor=ground)) for angle in ANGLES
    ]
    found = _unit(np.stack(stack).astype(np.float32))
    return found if np.isfinite(found[0, 0]) else None


def _compare(turned: Plane, planes: Plane) -> Plane:
    """(A, n) and (K, S, S) -> (A, K) correlations; nan for a plane without contrast."""
    found: Plane = turned @ _unit(planes).T
    return found


def _unit(planes: Plane) -> Plane:
    """(K, S, S) -> (K, n) inside the disc, mean 0 and length 1; nan without contrast."""
    centre = (SIDE - 1) / 2
    y, x = np.ogrid[:SIDE, :SIDE]
    inside = (y - centre) ** 2 + (x - centre) ** 2 <= (SIDE / 2) ** 2
    flat = planes[:, inside]
    flat = flat - flat.mean(1, keepdims=True)
    length = np.sqrt((flat * flat).sum(1, keepdims=True))
    length[length < FLAT * np.sqrt(flat.shape[1])] = np.nan
    unit: Plane = flat / length
    return unit


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
