"""How far a map is from being equivariant or invariant: relative errors, largest over the group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eqmodel.actions import turn_code, turn_tensor
from eqmodel.errors import OrbitError
from eqmodel.groups import FiniteGroup

Map = Callable[[Tensor], Tensor]
Action = Callable[[Tensor, int], Tensor]


class EquivarianceError(OrbitError, AssertionError):
    """A map does not commute with the group within the tolerance."""


def image_action(group: FiniteGroup) -> Action:
    """The group acting on images (..., H, W)."""
    return lambda x, t: turn_tensor(x, group, t)


def code_action(group: FiniteGroup) -> Action:
    """The group acting on code matrices (B, order, m)."""
    return lambda x, t: turn_code(x, group, t)


def field_action(group: FiniteGroup) -> Action:
    """The group acting on features (B, C, order, H, W): rows permuted and every map turned."""
    return lambda x, t: turn_tensor(x[:, :, torch.from_numpy(group.left[t])], group, t)


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """(B,): |found - expected| / |expected|, norms over all but the first axis, in float64."""
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    norm = expected.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    error: Tensor = (found - expected).norm(dim=1) / norm
    return error


@torch.no_grad()
def equivariance_error(
    f: Map, x: Tensor, group: FiniteGroup, before: Action, after: Action
) -> float:
    """max over t and samples of |f(t x) - t f(x)| / |f(x)|."""
    fx = f(x)
    errors = [relative_error(f(before(x, t)), after(fx, t)).max() for t in group.exact]
    return float(torch.stack(errors).max())


@torch.no_grad()
def invariance_error(f: Map, images: Tensor, group: FiniteGroup) -> float:
    """max over t and samples of |f(t x) - f(x)| / |f(x)|."""
    return equivariance_error(f, images, group, image_action(group), lambda y, _: y)


def assert_equivariant(
    f: Map, x: Tensor, group: FiniteGroup, before: Action, after: Action, tolerance: float
) -> None:
    """Raise EquivarianceError, and print the error in either case."""
    error = equivariance_error(f, x, group, before, after)
    name = getattr(f, "__name__", type(f).__name__)
    print(f"{name} under {group.name}, {x.dtype}: equivariance error {error:.1e}")
    if not error <= tolerance:
        raise EquivarianceError(
            f"{name} is not equivariant under {group.name}: error {error:.1e}, "
            f"at most {tolerance:.0e} expected"
        )
