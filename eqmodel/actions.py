"""A group element acting on images and on code matrices.

On an array, element (m, k) with n = 4 is ``np.rot90(x[:, ::-1] if m else x, k)``: exact. Any other
angle is one bilinear interpolation. On a code matrix V with rows V[g], element t gives V[t^-1 g]:
a permutation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eqmodel.devices import as_table
from eqmodel.errors import GroupError
from eqmodel.groups import FiniteGroup


def quarter_turns(group: FiniteGroup, g: int) -> tuple[int, int]:
    """Element g as (mirror, number of quarter turns); GroupError when it is no quarter turn."""
    m, k = divmod(g, group.n)
    if (4 * k) % group.n:
        raise GroupError(
            f"element {g} of {group.name} turns {group.degrees(g):g} degrees: not a quarter turn"
        )
    return m, 4 * k // group.n


def turn(image: NDArray[Any], element: tuple[int, int], n: int = 4) -> NDArray[Any]:
    """Apply element (m, k) of D_n exactly to an image (H, W) or (H, W, C); any dtype.

    Raises GroupError when the element is not a quarter turn.
    """
    m, k = element
    if (4 * k) % n:
        raise GroupError(f"a turn of {k * 360 / n:g} degrees is not exact on pixels; use rotate")
    return np.rot90(image[:, ::-1] if m else image, 4 * k // n)


def turn_tensor(images: Tensor, group: FiniteGroup, g: int) -> Tensor:
    """Apply the quarter turn or mirror g exactly to the last two axes of ``images``."""
    m, quarters = quarter_turns(group, g)
    return torch.rot90(images.flip(-1) if m else images, quarters, (-2, -1))


@lru_cache(maxsize=256)
def filter_table(group: FiniteGroup, size: int) -> Tensor:
    """(order, size * size) int64: row g gathers a flat square filter into the filter turned by
    g.
    """
    grid = torch.arange(size * size).reshape(size, size)
    turned = [turn_tensor(grid, group, g).reshape(-1) for g in range(group.order)]
    return as_table(torch.stack(turned), grid.device)


def turn_code(codes: Tensor, group: FiniteGroup, t: int) -> Tensor:
    """Apply element t to code matrices (..., order, m): row g of the result is row t^-1 g."""
    return codes[..., torch.from_numpy(group.left[t]), :]


def border_background(images: Tensor) -> Tensor:
    """(B, C, 1, 1): the median of each image's outermost ring of pixels; images (B, C, H, W)."""
    if min(images.shape[-2:]) <= 2:
        return images.flatten(2).median(-1).values[..., None, None]
    ring = torch.cat(
        [images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]], -1
    )
    return ring.median(-1).values[..., None, None]


def warp(images: Tensor, matrices: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """Resample (B, C, H, W) once, bilinearly, with outside = background.

    ``matrices`` (B, 2, 3) map output to input positions in [-1, 1] coordinates (x right, y down).
    """
    grid = F.affine_grid(matrices.to(images.dtype), list(images.shape), align_corners=False)
    moved = F.grid_sample(images - background, grid, padding_mode="zeros", align_corners=False)
    return moved + background


def rotation_matrices(degrees: Tensor, mirror: Tensor | None = None) -> Tensor:
    """(B, 2, 3) matrices for ``warp``: mirror left-right if asked, then turn counter-clockwise."""
    angle = degrees * (math.pi / 180.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    sign = torch.ones_like(cos) if mirror is None else 1.0 - 2.0 * mirror.to(cos.dtype)
    zero = torch.zeros_like(cos)
    # Output -> input is the inverse element. With y down, a counter-clockwise turn by a takes input
    # (u, v) to (u cos a + v sin a, -u sin a + v cos a); its inverse, then the mirror undone:
    rows = [torch.stack([sign * cos, -sign * sin, zero], -1), torch.stack([sin, cos, zero], -1)]
    return torch.stack(rows, -2)


def rotate(images: Tensor, degrees: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """Turn (B, C, H, W) counter-clockwise about the centre by ``degrees`` (B,): one
    interpolation.
    """
    return warp(images, rotation_matrices(degrees), background)


def best_pose(
    query_code: NDArray[np.int8], hit_codes: NDArray[np.int8], group: FiniteGroup
) -> NDArray[np.int64]:
    """The element g for which query = g(hit) fits best, for each hit.

    query_code (order * 8,) int8, hit_codes (K, order * 8) int8, both as stored in ``pose_code``.
    Returns (K,) int64. The fit is the inner product of the query's code with the turned hit's.
    """
    query = query_code.reshape(group.order, -1).astype(np.float32)
    hits = hit_codes.reshape(len(hit_codes), group.order, -1).astype(np.float32)
    turned = hits[:, group.left]  # (K, t, g, 8)
    best: NDArray[np.int64] = np.einsum("gf,ktgf->kt", query, turned).argmax(1)
    return best


def best_poses(
    queries: NDArray[np.int8], hits: NDArray[np.int8], group: FiniteGroup
) -> NDArray[np.int64]:
    """``best_pose`` of pairs: codes (P, order * 8) each -> the element (P,) with query = g(hit)."""
    query, hit = (codes.reshape(len(codes), group.order, -1) for codes in (queries, hits))
    fit = np.empty((len(query), group.order), np.float32)
    for t, rows in enumerate(group.left):
        fit[:, t] = np.einsum("pgf,pgf->p", query, hit[:, rows], dtype=np.float32)
    best: NDArray[np.int64] = fit.argmax(1)
    return best


def pose_dict(g: int, group: FiniteGroup) -> dict[str, Any]:
    """Element g in the words of the JSON interface: mirror first, then the turn."""
    return {"angle_degrees": group.degrees(int(g)), "mirror": bool(int(g) >= group.n)}
