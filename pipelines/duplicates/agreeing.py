"""Whether two pictures are one: laid over each other, how well they agree, and in which pose.

Quarter turns and mirrors are tried first, on the whole frame and without interpolation; what does
not agree so may be a copy at a free angle, of another border or size: turn, scale and shift are
fitted, and what both pictures have in common is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqmodel.groups import FiniteGroup
from pipelines.duplicates import aligning, polar
from pipelines.duplicates.looks import (
    NOISE,
    SIDE,
    Ints,
    Looks,
    Plane,
    picture_and_detail,
    share_of_detail,
)
from pipelines.pictures import Pose, poses_of

BATCH = 256
FAR, HOPELESS = 2.5, 0.8
"""Costs, the shift and scale left aside, of the best turn on rings, and after some steps of the
alignment, that copies do not have: measured, at most 1 in 100 have more than 2 of the first."""
RIVAL = 0.05
"""A turn whose rings correlate so much less than another's is not followed."""
MARGIN = 1.5
"""Pixels at the border that are not aligned by: a crop leaves something else there."""
SCALING, SHIFTING = 0.3, 0.02
"""What a scale (logarithm) and a shift (pixel) cost: with them much is alike that is not one."""
SURE = 0.03
"""A cost of the whole frame at which nothing else is tried."""
PLAINER = 0.02
"""By which a free turn must cost less than an element that is exact."""
TINT, GREY = 12.0, 12.0
"""Levels by which the colours (YCbCr) of rings, and two pictures without contrast, may differ."""
POSE_BONUS = 0.02
"""The cost by which the pose that the pose codes prefer wins over one that fits no better."""
NEAR_ELEMENT = 0.75
"""An angle so many degrees from an element of the group is that element."""
NEVER = np.float32(9.0)
"""The cost of what is not one picture."""


@dataclass(frozen=True)
class Fits:
    """How pairs fit best, arrays (P,): left = g(right), g the mirror, then ``angle`` degrees
    counter-clockwise; ``picture`` the correlation there; ``cost`` what is lost.

    A copy loses fine detail, to interpolation and compression, and little else. So what two
    pictures do not share, 1 - correlation, is measured by the share that fine detail has in them:
    the pictures of a copy differ by a tenth of it, those of look-alikes by more, whether they are
    smooth digits or fine textures.
    """

    cost: Plane
    picture: Plane
    angle: Plane
    mirror: NDArray[np.bool_]


NAMES = ("cost", "picture", "angle", "mirror")


def _nothing(num: int) -> Fits:
    """What fits not at all."""
    zero, none = np.zeros(num, np.float32), np.zeros(num, bool)
    return Fits(np.full(num, NEVER, np.float32), zero, zero.copy(), none)


class Agreeing:
    """Lays looks over each other."""

    def __init__(self, looks: Looks, group: FiniteGroup, threads: int = 1) -> None:
        self.looks, self.group, self.threads = looks, group, max(1, threads)
        self.quarters = [pose for pose in poses_of(group) if pose.angle_degrees % 90 == 0]
        self.mirrors = (False, True) if group.mirrored else (False,)

    def fits(self, places: Ints, told: Sequence[Pose]) -> Fits:
        """Pairs (P, 2) of places in the looks, with the poses that their codes tell."""
        starts = range(0, len(places), BATCH)
        batches = [places[start : start + BATCH] for start in starts]
        with ThreadPoolExecutor(self.threads) as pool:
            fits = pool.map(self._fits, batches, [told[start : start + BATCH] for start in starts])
            parts = list(fits) or [_nothing(0)]
        return Fits(*(np.concatenate([getattr(part, name) for part in parts]) for name in NAMES))

    def _fits(self, places: Ints, told: Sequence[Pose]) -> Fits:
        found = self._exact(places, told)
        rest = np.flatnonzero(found.cost > SURE)
        if len(rest):
            free = self._free(places[rest])
            better = free.cost < found.cost[rest] - PLAINER
            for name in NAMES:
                getattr(found, name)[rest[better]] = getattr(free, name)[better]
        found.cost[~self._alike_in_colour(places)] = NEVER
        return found

    def _alike_in_colour(self, places: Ints) -> NDArray[np.bool_]:
        """(P,): whether the rings have the same colours, and flat pictures the same grey."""
        left, right = places.T
        tints = np.abs(self.looks.tint[left] - self.looks.tint[right]).max((1, 2)) <= TINT
        grey = self.looks.grey.reshape(len(self.looks.grey), -1)
        first, second = (grey[side].astype(np.float32) for side in (left, right))
        flat = np.minimum(first.std(1), second.std(1)) < NOISE
        apart = np.abs(first.mean(1) - second.mean(1)) > GREY
        found: NDArray[np.bool_] = tints & ~(flat & apart)
        return found

    def _exact(self, places: Ints, told: Sequence[Pose]) -> Fits:
        """By quarter turns and mirrors of the whole frame."""
        left, right = (self._layers(side) for side in places.T)
        fits = _frames(left, right, self.quarters)
        cost = (1 - fits) / _fineness(left, right)[:, None]
        preferred = np.array([[pose == p for p in self.quarters] for pose in told], bool)
        best = (cost - POSE_BONUS * preferred.reshape(cost.shape)).argmin(1)
        row = np.arange(len(best))
        angles = np.array([pose.angle_degrees for pose in self.quarters], np.float32)
        mirrors = np.array([pose.mirror for pose in self.quarters])
        return Fits(cost[row, best], fits[row, best], angles[best], mirrors[best])

    def _free(self, places: Ints) -> Fits:
        """By any turn, a little scale and a little shift."""
        found = _nothing(len(places))
        left, right = (self.looks.smooth[side].astype(np.float32) for side in places.T)
        turns = polar.correlations(left, right, self.looks.reach[places].min(1))
        least = 1 - FAR * self.looks.fineness[places].max(1)
        highest = np.maximum(turns.max((1, 2)) - RIVAL, least)
        for mirror in self.mirrors:
            peaks = turns[:, int(mirror)]
            asked = np.flatnonzero(peaks.max(1) >= highest)
            if not len(asked):
                continue
            angles = peaks[asked].argmax(1) * polar.STEP
            warps, picture, cost = self.laid_over(places[asked], mirror, angles)
            better = cost < found.cost[asked]
            place = asked[better]
            found.cost[place], found.picture[place] = cost[better], picture[better]
            found.angle[place] = np.rad2deg(warps[better, 0]) % 360
            found.mirror[place] = mirror
        return found

    def pose(self, angle: float, mirror: bool) -> Pose:
        """As it is told: an angle next to an element of the group is that element."""
        step = 360 / self.group.n
        element = round(angle / step) * step
        near = abs(angle - element) <= NEAR_ELEMENT
        return Pose(element % 360 if near else round(angle, 1) % 360, mirror)

    def laid_over(
        self, places: Ints, mirror: bool, angles: NDArray[np.float64]
    ) -> tuple[aligning.Warp, Plane, Plane]:
        """Pairs (P, 2) and about which turn (P,), in degrees, makes right, mirrored or not, left ->
        the warps, the correlations (P,) there and the costs (P,)."""
        start = np.zeros((len(places), 4), np.float32)
        start[:, 0] = np.deg2rad(angles)
        left, right = (
            [plane[side].astype(np.float32) for plane in (self.looks.grey, self.looks.smooth)]
            for side in places.T
        )
        if mirror:
            right = [np.ascontiguousarray(plane[:, :, ::-1]) for plane in right]
        half = self.looks.half[places]
        reach = half.min((1, 2))
        least = 1 - HOPELESS * self.looks.fineness[places].max(1)
        warps, _ = aligning.aligned(left[1], right[1], reach - MARGIN, start, least)
        x, y = aligning.DISC.sources(warps)
        within = (np.abs(x) <= half[:, 1, :1] - 0.5) & (np.abs(y) <= half[:, 1, 1:] - 0.5)
        mask = within * aligning.DISC.within(reach - 1)
        one = picture_and_detail(*(aligning.DISC.of(plane) for plane in left))
        other = picture_and_detail(*(aligning.DISC.warped(plane, warps) for plane in right))
        fit = _dot(_unit(one[0], mask), _unit(other[0], mask))
        moved = SCALING * np.abs(warps[:, 1]) + SHIFTING * np.hypot(warps[:, 2], warps[:, 3])
        return warps, fit, (1 - fit) / _fineness(one, other, mask) + moved

    def _layers(self, places: Ints) -> tuple[Plane, Plane]:
        """Pictures (P, SIDE**2) and their detail, of the whole frame."""
        planes = (self.looks.grey[places], self.looks.smooth[places])
        flat = (plane.reshape(len(places), -1).astype(np.float32) for plane in planes)
        return picture_and_detail(*flat)

    def _pose(self, radians: float, mirror: bool) -> Pose:
        angle, step = float(np.rad2deg(radians)) % 360, 360 / self.group.n
        element = round(angle / step) * step
        near = abs(angle - element) <= NEAR_ELEMENT
        return Pose(element % 360 if near else round(angle, 1) % 360, mirror)


Length = tuple[Plane, Plane]
"""Values (P, n) of unit length, with one more coordinate (P,), the share that ``NOISE`` has."""


def _unit(values: Plane, mask: Plane | None = None) -> Length:
    """(P, n) -> mean 0 and length 1 within the mask, as if each pixel had ``NOISE`` beside: so two
    pictures without contrast are alike, as they should be, and noise counts for nothing."""
    if mask is None:
        num = np.full(len(values), values.shape[1], np.float32)
        values = values - values.mean(1, keepdims=True)
    else:
        num = np.maximum(mask.sum(1), 1)
        mean = np.einsum("pn,pn->p", values, mask) / num
        values = (values - mean[:, None]) * mask
    noise = NOISE * np.sqrt(num)
    length = np.sqrt(np.einsum("pn,pn->p", values, values) + noise * noise)
    return values / length[:, None], noise / length


def _dot(left: Length, right: Length) -> Plane:
    found: Plane = np.einsum("pn,pn->p", left[0], right[0]) + left[1] * right[1]
    return found


def _frames(left: Sequence[Plane], right: Sequence[Plane], poses: Sequence[Pose]) -> Plane:
    """(P, poses): how well left correlates with right after each quarter turn or mirror."""
    still, (moving, share) = _unit(left[0]), _unit(right[0])
    fits = np.empty((len(moving), len(poses)), np.float32)
    square = moving.reshape(-1, SIDE, SIDE)
    for number, pose in enumerate(poses):
        mirrored = square[:, :, ::-1] if pose.mirror else square
        turned = np.rot90(mirrored, int(pose.angle_degrees // 90), (1, 2))
        fits[:, number] = _dot(still, (turned.reshape(len(moving), -1), share))
    return fits


def _fineness(left: Sequence[Plane], right: Sequence[Plane], mask: Plane | None = None) -> Plane:
    """(P,): the share that detail has in the finer of two pictures; the other may have lost it."""
    shares = [share_of_detail(_variance(p, mask), _variance(d, mask)) for p, d in (left, right)]
    found: Plane = np.maximum(*shares)
    return found


def _variance(values: Plane, mask: Plane | None) -> Plane:
    if mask is None:
        spread: Plane = values.var(1)
        return spread
    num = np.maximum(mask.sum(1), 1)
    mean = np.einsum("pn,pn->p", values, mask) / num
    found: Plane = np.einsum("pn,pn,pn->p", values, values, mask) / num - mean * mean
    return found
