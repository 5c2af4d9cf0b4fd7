"""Two pictures laid over each other: turn, scale and shift by Gauss-Newton on their pixels.

Inverse compositional (Baker and Matthews, 2004): the derivatives are those of the picture that
stays, so each pair's 4 x 4 system is made once; grey values count up to brightness and contrast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipelines.duplicates.looks import SIDE
from pipelines.duplicates.sampling import CENTRE, bilinear

STEPS, TRIAL = 5, 2
"""Steps in all, and those after which what is still far off is given up."""
MAX_SHIFT, MAX_SCALE = 3.0, 0.15
"""Pixels, and logarithm of the scale: what a slight crop moves, and no more."""
LARGEST = torch.tensor([0.2, 0.08, 1.5, 1.5])
"""The longest step: where the pictures have little in common the system asks for absurd ones."""

Warp = Tensor
"""(P, 4) float32: angle counter-clockwise in radians, logarithm of the scale, shift right, down."""


@dataclass(frozen=True)
class Points:
    """Some of a picture's pixels: their numbers (n,), and where they lie from the centre."""

    numbers: Tensor
    x: Tensor
    y: Tensor

    @cached_property
    def radius(self) -> Tensor:
        """(n,): how far from the centre."""
        return torch.hypot(self.x, self.y)

    def within(self, reach: Tensor) -> Tensor:
        """Radii (P,) -> (P, n): 1 within, 0 outside."""
        return (self.radius <= reach[:, None]).float()

    def of(self, pictures: Tensor) -> Tensor:
        """(..., SIDE, SIDE) -> (..., n)."""
        return pictures.flatten(-2).index_select(-1, self.numbers)

    def sources(self, warps: Warp) -> Tensor:
        """(P, n, 2): whence a warp takes the values, right of and below the centre, as shares of
        the way to the border."""
        scale = torch.exp(warps[:, 1:2]) / CENTRE
        cos, sin = scale * torch.cos(warps[:, :1]), scale * torch.sin(warps[:, :1])
        found = torch.empty(len(warps), len(self.x), 2)
        right, down = found.unbind(2)
        shift = warps[:, 2:] / CENTRE
        torch.addcmul(shift[:, :1], cos, self.x, out=right).addcmul_(sin, self.y, value=-1)
        torch.addcmul(shift[:, 1:], sin, self.x, out=down).addcmul_(cos, self.y)
        return found

    def warped(self, pictures: Tensor, warps: Warp) -> Tensor:
        """(P, SIDE, SIDE) -> (P, n): each picture turned, scaled and shifted, bilinear."""
        return bilinear(pictures[:, None], self.sources(warps))[:, 0]


def _disc(every: int) -> Points:
    """The disc that a turn leaves in place: all its pixels, or every fourth on a slanted grid."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    inside = torch.hypot(y - CENTRE, x - CENTRE) <= SIDE / 2
    numbers = torch.nonzero((inside & ((x + 2 * y) % every == 0)).flatten())[:, 0]
    right, down = (v.flatten()[numbers].float() - CENTRE for v in (x, y))
    return Points(numbers, right, down)


DISC, SOME = _disc(1), _disc(4)


def aligned(
    left: Tensor, right: Tensor, reach: Tensor, start: Warp, least: Tensor
) -> tuple[Warp, Tensor]:
    """Blurred pictures (P, SIDE, SIDE), radii (P,) and first warps -> the warps under which right
    becomes left, and the correlations (P,) there. Those that correlate less than ``least`` (P,)
    after ``TRIAL`` steps are left as they are then."""
    best, highest = start.clone(), torch.full((len(left),), -2.0)
    here, warps, mask = torch.arange(len(left)), start, SOME.within(reach)
    system = _system(left, mask)
    for step in range(STEPS + 1):
        moved = unit(SOME.warped(right[here], warps), mask)
        fit = (moved * system.still).sum(1)
        better = fit > highest[here]
        best[here[better]], highest[here[better]] = warps[better], fit[better]
        if step == STEPS:
            break
        moved.addcmul_(system.still, fit[:, None], value=-1)
        warps = _composed(warps, system.step(moved).clamp(-LARGEST, LARGEST))
        if step == TRIAL:
            hopeful = highest[here] >= least[here]
            here, warps, mask = here[hopeful], warps[hopeful], mask[hopeful]
            system = system.of(hopeful)
    return best, highest


def unit(values: Tensor, mask: Tensor) -> Tensor:
    """(P, n) -> mean 0 and length 1 within the mask, 0 outside."""
    found = (values - ((values * mask).sum(1) / mask.sum(1).clamp_min(1))[:, None]).mul_(mask)
    return found.div_((found.norm(dim=1) + 1e-6)[:, None])


@dataclass(frozen=True)
class _System:
    """The picture that stays (P, n), its derivatives by the warp (P, 4, n), and what makes a step
    of them (P, 4, 4)."""

    still: Tensor
    slopes: Tensor
    inverse: Tensor

    def step(self, differ: Tensor) -> Warp:
        """The small warp (P, 4) that explains a difference (P, n) best."""
        pull = torch.bmm(self.slopes, differ[:, :, None])
        return torch.bmm(self.inverse, pull)[:, :, 0]

    def of(self, some: Tensor) -> _System:
        """Of some of the pairs."""
        return _System(self.still[some], self.slopes[some], self.inverse[some])


def _system(left: Tensor, mask: Tensor) -> _System:
    values = SOME.of(left)
    still = unit(values, mask)
    length = (values * still).sum(1)[:, None] + 1e-6
    right, down = (_slope(left, step).mul_(mask).div_(length) for step in (1, SIDE))
    slopes = torch.empty(len(left), 4, still.shape[1])
    torch.mul(down, SOME.x, out=slopes[:, 0]).addcmul_(right, SOME.y, value=-1)
    torch.mul(right, SOME.x, out=slopes[:, 1]).addcmul_(down, SOME.y)
    slopes[:, 2], slopes[:, 3] = right, down
    slopes.baddbmm_(torch.bmm(slopes, still[:, :, None]), still[:, None], alpha=-1)
    square = torch.bmm(slopes, slopes.transpose(1, 2))
    ease = 1e-3 * square.diagonal(dim1=1, dim2=2).sum(1) + 1e-9
    return _System(
        still, slopes, torch.linalg.inv_ex(square + ease[:, None, None] * torch.eye(4))[0]
    )


def _slope(pictures: Tensor, step: int) -> Tensor:
    """(P, SIDE, SIDE) -> (P, n): half the difference of the values ``step`` places after and
    before. At the border it is wrong, and masked: nothing is aligned by that."""
    flat, last = pictures.flatten(1), SIDE * SIDE - 1
    after, before = (
        flat.index_select(1, (SOME.numbers + by).clamp(0, last)) for by in (step, -step)
    )
    return after.sub_(before).div_(2)


def _composed(warps: Warp, by: Warp) -> Warp:
    """The warps after the inverse of a small one, held within bounds."""
    angle, scale = warps[:, 0] - by[:, 0], warps[:, 1] - by[:, 1]
    cos, sin = (torch.exp(scale) * f(angle) for f in (torch.cos, torch.sin))
    right = warps[:, 2] - (cos * by[:, 2] - sin * by[:, 3])
    down = warps[:, 3] - (sin * by[:, 2] + cos * by[:, 3])
    scale = scale.clamp(-MAX_SCALE, MAX_SCALE)
    shifts = (right.clamp(-MAX_SHIFT, MAX_SHIFT), down.clamp(-MAX_SHIFT, MAX_SHIFT))
    return torch.stack([angle, scale, *shifts], 1)
