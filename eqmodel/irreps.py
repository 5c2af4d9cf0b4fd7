"""The regular representation of a group of quarter turns and mirrors, taken apart.

A field has one value per element. In the basis given here a map that commutes with the group keeps
the irreducible parts apart: lines, on which an element acts by a sign, and planes, on whose two
rows it acts by a matrix. D4 has four lines and one plane that comes twice: 4 blocks c x c' and 2
uses of one block 2c x 2c' in place of one block 8c x 8c', 12 c c' multiply-adds for 64. C4 has two
lines and one plane that comes once, 6 for 16. The basis holds nothing but 0, 1 and -1 and is
orthogonal but not normalised: no precision rounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import GroupError
from eqmodel.groups import FiniteGroup

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class IrreducibleBasis:
    """matrix (order, order) of 0, 1, -1: row p gives part p of a field, the trivial one first.

    Rows are orthogonal; their squared lengths are the order for lines, half of it for planes. The
    first ``lines`` rows are lines; the others, if any, are ``copies`` of the first component of
    the plane, then as many of the second.
    """

    matrix: Matrix
    lines: int
    copies: int


def irreducible_basis(group: FiniteGroup) -> IrreducibleBasis:
    """The basis for c1, c2, c4, d1, d2 or d4. Raises GroupError for any other group."""
    if group.n not in (1, 2, 4):
        raise GroupError(
            f"{group.name} has turns that are no quarter turns; its irreducible parts are not "
            "known here: use c1, c2, c4, d1, d2 or d4"
        )
    turn_signs = (1, -1) if group.n % 2 == 0 else (1,)
    mirror_signs = (1, -1) if group.mirrored else (1,)
    rows = [
        np.array([turn**k * mirror**m for m, k in group.elements], np.float64)
        for mirror in mirror_signs
        for turn in turn_signs
    ]
    lines, copies = len(rows), 0
    if group.n == 4:
        matrices = np.array([plane(m, k) for m, k in group.elements])
        copies = 2 if group.mirrored else 1
        rows += [matrices[:, a, b] for b in range(2) for a in range(copies)]
    return IrreducibleBasis(np.array(rows), lines, copies)


def plane(m: int, k: int) -> Matrix:
    """(2, 2): element (m, k) of D4 acting on the plane, a mirror first, then k quarter turns."""
    cos, sin = (1, 0, -1, 0)[k], (0, 1, 0, -1)[k]
    return np.array([[cos, -sin], [sin, cos]], np.float64) * (1.0, -1.0 if m else 1.0)


def blocks_of(group: FiniteGroup) -> tuple[Matrix, Matrix]:
    """How the tied weights psi of a map of fields make its blocks in the basis.

    out[g] = sum_h psi[g^-1 h] f[h] is matrix^T blocks matrix f, with the block sum_k lines[k, p]
    psi[k] on line p, and on the plane, from its component b to its component o, sum_k planes[k, b,
    o] psi[k]. Returns (order, lines) and (order, 2, 2), or (order, 0, 0) where there is no plane.
    """
    basis = irreducible_basis(group)
    translations = np.zeros((group.order,) * 3)  # [k, g, h]: 1 where g^-1 h = k
    for k in range(group.order):
        translations[k, np.arange(group.order), group.cayley[:, k]] = 1.0
    inverse = basis.matrix / np.square(basis.matrix).sum(1, keepdims=True)  # transposed
    moved = inverse @ translations @ inverse.T  # [k, out, in], block-diagonal
    lines = np.diagonal(moved, axis1=1, axis2=2)[:, : basis.lines]
    first = slice(basis.lines, None, basis.copies or 1)  # the first copy's two components
    return lines.copy(), moved[:, first, first].transpose(0, 2, 1).copy()
