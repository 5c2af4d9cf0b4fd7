"""Whether two pictures are one: laid over each other, how well they agree, and in which pose.

Quarter turns and mirrors are tried first, on the whole frame and without interpolation; what does
not agree so may be a copy at a free angle, of another border or size: turn, scale and shift are
fitted, and what both pictures have in common is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel.groups import FiniteGroup
from pipelines.duplicates import aligning, polar
from pipelines.duplicates.correlating import agreement, dot, unit
from pipelines.duplicates.looks import NOISE, SIDE, Ints, Looks, Plane
from pipelines.duplicates.sampling import CENTRE, bilinear
from pipelines.pictures import Pose, poses_of

BATCH = 512
FAR, HOPELESS = 2.5, 0.7
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
NEVER = 9.0
"""The cost of what is not one picture."""
NAMES = ("cost", "picture", "angle", "mirror")


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

    @classmethod
    def none(cls, num: int) -> Fits:
        """What fits not at all."""
        zero, no = np.zeros(num, np.float32), np.zeros(num, bool)
        return cls(np.full(num, NEVER, np.float32), zero, zero.copy(), no)

    def put(self, where: NDArray[Any], other: Fits) -> None:
        """Take the values of others at some places."""
        for name in NAMES:
            getattr(self, name)[where] = getattr(other, name)

    def of(self, some: NDArray[np.bool_]) -> Fits:
        """Of some of the pairs."""
        return Fits(*(getattr(self, name)[some] for name in NAMES))


class Agreeing:
    """Lays looks over each other."""

    def __init__(self, looks: Looks, group: FiniteGroup, threads: int = 1) -> None:
        self.looks, self.group, self.threads = looks, group, max(1, threads)
        self.quarters = {n: p for n, p in enumerate(poses_of(group)) if p.angle_degrees % 90 == 0}
        self.mirrors = (False, True) if group.mirrored else (False,)
        self.grey, self.smooth = torch.from_numpy(looks.grey), torch.from_numpy(looks.smooth)
        self.half, self.fineness = torch.from_numpy(looks.half), torch.from_numpy(looks.fineness)

    def fits(self, places: Ints, told: Ints) -> Fits:
        """Pairs (P, 2) of places in the looks, with the elements (P,) that their codes tell."""
        found = Fits.none(len(places))
        alike = np.flatnonzero(self._alike_in_colour(places))
        parts = [alike[start : start + BATCH] for start in range(0, len(alike), BATCH)]
        with _one_thread_each(), ThreadPoolExecutor(self.threads) as pool:
            work = pool.map(lambda part: self._fits(places[part], told[part]), parts)
            for part, fits in zip(parts, work, strict=True):
                found.put(part, fits)
        return found

    def _fits(self, places: Ints, told: Ints) -> Fits:
        pairs = torch.from_numpy(places)
        turns = polar.correlations(*self._smooth(pairs), self.half[pairs].amin((1, 2)))
        found = self._exact(pairs, torch.from_numpy(told), turns)
        rest = np.flatnonzero(found.cost > SURE)
        free = self._free(pairs[torch.from_numpy(rest)], turns[torch.from_numpy(rest)])
        better = free.cost < found.cost[rest] - PLAINER
        found.put(rest[better], free.of(better))
        return found

    def _alike_in_colour(self, places: Ints) -> NDArray[np.bool_]:
        """(P,): whether the rings have the same colours, and flat pictures the same grey."""
        left, right = places.T
        tint, level, contrast = self.looks.tint, self.looks.level, self.looks.contrast
        tints = np.abs(tint[left] - tint[right]).max((1, 2)) <= TINT
        flat = np.minimum(contrast[left], contrast[right]) < NOISE
        found: NDArray[np.bool_] = tints & ~(flat & (np.abs(level[left] - level[right]) > GREY))
        return found

    def _exact(self, pairs: Tensor, told: Tensor, turns: Tensor) -> Fits:
        """By quarter turns and mirrors of the whole frame, those that the rings allow."""
        greys, smooths = (plane[pairs].float() for plane in (self.grey, self.smooth))
        left, right = ((greys + smooths) / 2).unbind(1)
        poses = list(self.quarters.values())
        rings = torch.stack([turns[:, int(p.mirror), polar.place(p.angle_degrees)] for p in poses])
        fits = frames(left, right, poses, rings >= rings.amax(0) - RIVAL)
        cost = (1 - fits) / self._finest(pairs)[:, None]
        preferred = told[:, None] == torch.tensor(list(self.quarters))
        best = (cost - POSE_BONUS * preferred).argmin(1, keepdim=True)
        angles = np.array([pose.angle_degrees for pose in poses], np.float32)
        mirrors = np.array([pose.mirror for pose in poses], bool)
        least, there = (plane.gather(1, best)[:, 0].numpy() for plane in (cost, fits))
        number = best[:, 0].numpy()
        return Fits(least, there, angles[number], mirrors[number])

    def _free(self, pairs: Tensor, turns: Tensor) -> Fits:
        """By any turn, a little scale and a little shift."""
        found = Fits.none(len(pairs))
        least = 1 - FAR * self._finest(pairs)
        highest = torch.maximum(turns.amax((1, 2)) - RIVAL, least)
        for mirror in self.mirrors:
            peaks, angles = turns[:, int(mirror)].max(1)
            asked = torch.nonzero(peaks >= highest)[:, 0]
            fits = self._laid_over(pairs[asked], mirror, angles[asked] * polar.STEP)
            better = fits.cost < found.cost[asked.numpy()]
            found.put(asked.numpy()[better], fits.of(better))
        return found

    def _laid_over(self, pairs: Tensor, mirror: bool, angles: Tensor) -> Fits:
        """Pairs (P, 2) and about which turn (P,), in degrees, makes right, mirrored or not,
        left."""
        found = Fits.none(len(pairs))
        start = torch.zeros(len(pairs), 4)
        start[:, 0] = torch.deg2rad(angles)
        left, right = self._smooth(pairs)
        right = right.flip(2) if mirror else right
        reach, least = self.half[pairs].amin((1, 2)), 1 - HOPELESS * self._finest(pairs)
        warps, correlations = aligning.aligned(left, right, reach - MARGIN, start, least)
        hopeful = torch.nonzero(correlations >= least)[:, 0]
        warps = warps[hopeful]
        fit, cost = self._compared(pairs[hopeful], mirror, warps)
        angle = torch.rad2deg(warps[:, 0]) % 360
        turned = np.full(len(hopeful), mirror)
        found.put(hopeful.numpy(), Fits(cost.numpy(), fit.numpy(), angle.numpy(), turned))
        return found

    def _compared(self, pairs: Tensor, mirror: bool, warps: Tensor) -> tuple[Tensor, Tensor]:
        """What pairs (P, 2) have in common when a warp is done -> correlations (P,), costs (P,)."""
        left, right = torch.stack([self.grey[pairs], self.smooth[pairs]], 2).float().unbind(1)
        right = right.flip(3) if mirror else right
        half = self.half[pairs]
        places = aligning.DISC.sources(warps)
        within = (places.abs() <= (half[:, 1, None] - 0.5) / CENTRE).all(2)
        mask = within * aligning.DISC.within(half.amin((1, 2)) - 1)
        fit, fineness = agreement(aligning.DISC.of(left), bilinear(right, places), mask)
        moved = SCALING * warps[:, 1].abs() + SHIFTING * torch.hypot(warps[:, 2], warps[:, 3])
        return fit, (1 - fit) / fineness + moved

    def _smooth(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right (P, SIDE, SIDE) of pairs (P, 2), blurred."""
        return self.smooth[pairs[:, 0]].float(), self.smooth[pairs[:, 1]].float()

    def _finest(self, pairs: Tensor) -> Tensor:
        """(P,): the share of detail in the finer of two pictures; the other may have lost it."""
        return self.fineness[pairs].amax(1)

    def pose(self, angle: float, mirror: bool) -> Pose:
        """As it is told: an angle next to an element of the group is that element."""
        step = 360 / self.group.n
        element = round(angle / step) * step
        near = abs(angle - element) <= NEAR_ELEMENT
        return Pose(element % 360 if near else round(angle, 1) % 360, mirror)


def frames(left: Tensor, right: Tensor, poses: list[Pose], asked: Tensor) -> Tensor:
    """Pictures (P, SIDE, SIDE) -> (P, poses): how well left correlates with right after each
    quarter turn or mirror that is asked (poses, P); -1 for the others."""
    (still, one), (moving, other) = unit(left.flatten(1)), unit(right.flatten(1))
    fits = torch.full((len(moving), len(poses)), -1.0)
    square = moving.view(-1, SIDE, SIDE)
    for number, pose in enumerate(poses):
        some = torch.nonzero(asked[number])[:, 0]
        mirrored = square[some].flip(2) if pose.mirror else square[some]
        turned = torch.rot90(mirrored, int(pose.angle_degrees // 90), (1, 2)).flatten(1)
        fits[some, number] = dot((still[some], one[some]), (turned, other[some]))
    return fits


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Batches run beside each other, so each of torch's products runs on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
