"""Two pictures laid over each other: turn, scale and shift by Gauss-Newton on their pixels.

Inverse compositional (Baker and Matthews, 2004): the derivatives are those of the picture that
stays, so each pair's 4 x 4 system is made once; grey values count up to brightness and contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.duplicates.looks import SIDE, Plane
from pipelines.duplicates.sampling import CENTRE, bilinear

STEPS, TRIAL = 5, 2
"""Steps in all, and those after which what is still far off is given up."""
MAX_SHIFT, MAX_SCALE = 3.0, 0.15
"""Pixels, and logarithm of the scale: what a slight crop moves, and no more."""
LARGEST = np.array([0.2, 0.08, 1.5, 1.5], np.float32)
"""The longest step: where the pictures have little in common the system asks for absurd ones."""

Warp = NDArray[np.float32]
"""(P, 4): angle counter-clockwise in radians, logarithm of the scale, shift right, shift down."""


@dataclass(frozen=True)
class Points:
    """Some of a picture's pixels: their numbers (n,), and where they lie from the centre."""

    numbers: NDArray[np.int64]
    x: Plane
    y: Plane

    def within(self, reach: Plane) -> Plane:
        """Radii (P,) -> (P, n): 1 within, 0 outside."""
        return (np.hypot(self.x, self.y) <= reach[:, None]).astype(np.float32)

    def of(self, pictures: NDArray[np.float32]) -> Plane:
        """(P, SIDE, SIDE) -> (P, n)."""
        return pictures.reshape(len(pictures), -1)[:, self.numbers]

    def sources(self, warps: Warp) -> tuple[Plane, Plane]:
        """(P, n) each: how far right of and below the centre a warp takes the values from."""
        scale = np.exp(warps[:, 1])
        cos, sin = ((scale * f(warps[:, 0]))[:, None] for f in (np.cos, np.sin))
        x = cos * self.x - sin * self.y + warps[:, 2:3]
        y = sin * self.x + cos * self.y + warps[:, 3:4]
        return x, y

    def warped(self, pictures: Plane, warps: Warp) -> Plane:
        """(P, SIDE, SIDE) -> (P, n): each picture turned, scaled and shifted, bilinear."""
        return bilinear(pictures, *self.sources(warps))


def _disc(every: int) -> Points:
    """The disc that a turn leaves in place: all its pixels, or every second as on a chessboard."""
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.hypot(y - CENTRE, x - CENTRE) <= SIDE / 2
    numbers = np.flatnonzero(inside & ((x + y) % every == 0))
    from_centre = (v.ravel()[numbers].astype(np.float32) - CENTRE for v in (x, y))
    return Points(numbers, *from_centre)


DISC, CHESS = _disc(1), _disc(2)


def aligned(
    left: Plane, right: Plane, reach: Plane, start: Warp, least: Plane
) -> tuple[Warp, Plane]:
    """Blurred pictures (P, SIDE, SIDE), radii (P,) and first warps -> the warps under which right
    becomes left, and the correlations (P,) there. Those that correlate less than ``least`` (P,)
    after ``TRIAL`` steps are left as they are then."""
    best, highest = start.astype(np.float32), np.full(len(left), -2.0, np.float32)
    here, warps, mask = np.arange(len(left)), best.copy(), CHESS.within(reach)
    system = _system(left, mask)
    for step in range(STEPS + 1):
        moved = unit(CHESS.warped(right[here], warps), mask)
        fit = np.einsum("pn,pn->p", moved, system.still)
        better = fit > highest[here]
        best[here[better]], highest[here[better]] = warps[better], fit[better]
        if step == STEPS:
            break
        moved -= system.still * fit[:, None]
        warps = _composed(warps, system.step(moved).clip(-LARGEST, LARGEST))
        if step == TRIAL:
            hopeful = highest[here] >= least[here]
            here, warps, mask = here[hopeful], warps[hopeful], mask[hopeful]
            system = system.of(hopeful)
    return best, highest


def unit(values: Plane, mask: Plane) -> Plane:
    """(P, n) -> mean 0 and length 1 within the mask, 0 outside."""
    found: Plane = values - (np.einsum("pn,pn->p", values, mask) / mask.sum(1))[:, None]
    found *= mask
    found /= (np.sqrt(np.einsum("pn,pn->p", found, found)) + 1e-6)[:, None]
    return found


@dataclass(frozen=True)
class _System:
    """The picture that stays (P, n), its derivatives by the warp (P, n, 4), their (P, 4, 4)."""

    still: Plane
    slopes: Plane
    square: Plane

    def step(self, differ: Plane) -> Warp:
        """The small warp (P, 4) that explains a difference (P, n) best."""
        pull = np.matmul(differ[:, None], self.slopes)[:, 0]
        found: Warp = np.linalg.solve(self.square, pull[..., None])[..., 0]
        return found

    def of(self, some: NDArray[np.bool_]) -> _System:
        """Of some of the pairs."""
        return _System(self.still[some], self.slopes[some], self.square[some])


def _system(left: Plane, mask: Plane) -> _System:
    down, right = (CHESS.of(slope) for slope in np.gradient(left, axis=(1, 2)))
    values = CHESS.of(left)
    still = unit(values, mask)
    length = np.einsum("pn,pn->p", values, still)[:, None] + 1e-6
    right, down = right * mask / length, down * mask / length
    turning, growing = down * CHESS.x - right * CHESS.y, right * CHESS.x + down * CHESS.y
    slopes = np.stack([turning, growing, right, down], 2)
    slopes -= still[:, :, None] * np.matmul(still[:, None], slopes)
    square = np.matmul(slopes.transpose(0, 2, 1), slopes)
    ease = 1e-3 * np.einsum("pii->pi", square) + 1e-9
    return _System(still, slopes, square + ease[:, None] * np.eye(4, dtype=np.float32))


def _composed(warps: Warp, by: Warp) -> Warp:
    """The warps after the inverse of a small one, held within bounds."""
    angle, scale = warps[:, 0] - by[:, 0], warps[:, 1] - by[:, 1]
    cos, sin = (np.exp(scale) * f(angle) for f in (np.cos, np.sin))
    right = warps[:, 2] - (cos * by[:, 2] - sin * by[:, 3])
    down = warps[:, 3] - (sin * by[:, 2] + cos * by[:, 3])
    scale = scale.clip(-MAX_SCALE, MAX_SCALE)
    shifts = (right.clip(-MAX_SHIFT, MAX_SHIFT), down.clip(-MAX_SHIFT, MAX_SHIFT))
    return np.stack([angle, scale, *shifts], 1).astype(np.float32)
