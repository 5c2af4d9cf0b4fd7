"""Finite groups of turns and mirrors, as small checked values.

Element (m, k) of D_n has index ``m * n + k`` and means: mirror left-right if ``m`` is 1, *then*
turn ``k * 360 / n`` degrees counter-clockwise. The product ``g h`` means: ``h`` first, then ``g``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import GroupError

IndexTable = NDArray[np.int64]


@dataclass(frozen=True)
class FiniteGroup:
    """The cyclic group C_n of turns by 360/n degrees, or with mirrors the dihedral group D_n.

    The group axioms are checked when it is built.
    """

    n: int
    mirrored: bool
    cayley: IndexTable = field(init=False, repr=False, compare=False)  # (order, order)
    inverse: IndexTable = field(init=False, repr=False, compare=False)  # (order,)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise GroupError(f"a group of {self.n} turns does not exist; n must be at least 1")
        cayley = np.array(
            [[self._product(g, h) for h in range(self.order)] for g in range(self.order)]
        )
        check_axioms(cayley)
        object.__setattr__(self, "cayley", cayley)
        object.__setattr__(self, "inverse", np.argmax(cayley == 0, axis=1))

    @property
    def name(self) -> str:
        return f"{'d' if self.mirrored else 'c'}{self.n}"

    @property
    def order(self) -> int:
        return self.n * (2 if self.mirrored else 1)

    @property
    def elements(self) -> list[tuple[int, int]]:
        """All elements as (m, k), in the order of their index."""
        return [divmod(g, self.n) for g in range(self.order)]

    def _product(self, g: int, h: int) -> int:
        (m1, k1), (m2, k2) = divmod(g, self.n), divmod(h, self.n)
        # A turn pulled through a mirror changes its sense: M R = R^-1 M.
        return ((m1 + m2) % 2) * self.n + (k1 + (-k2 if m1 else k2)) % self.n

    @cached_property
    def left(self) -> IndexTable:
        """(order, order): ``left[t, g] = t^-1 g``; a code turned by t has row g = old row left[t,
        g].
        """
        return self.cayley[self.inverse]

    @cached_property
    def exact(self) -> list[int]:
        """Elements that map a square pixel grid onto itself: quarter turns and mirrors."""
        return [g for g, (_, k) in enumerate(self.elements) if (4 * k) % self.n == 0]

    def regular(self, t: int) -> NDArray[np.float64]:
        """(order, order): the permutation matrix by which t acts on functions on the group."""
        matrix = np.zeros((self.order, self.order))
        matrix[np.arange(self.order), self.left[t]] = 1.0
        return matrix

    def degrees(self, g: int) -> float:
        """The turn of element g, in degrees counter-clockwise."""
        return (g % self.n) * 360.0 / self.n


def check_axioms(cayley: IndexTable) -> None:
    """Check closure, identity (index 0), inverses and associativity of a Cayley table.

    Raises GroupError naming the first axiom that fails.
    """
    order = len(cayley)
    everything = np.arange(order)
    if not (np.sort(cayley, axis=1) == everything).all():
        raise GroupError("a Cayley table whose rows are not permutations is not a group")
    if not ((cayley[0] == everything).all() and (cayley[:, 0] == everything).all()):
        raise GroupError("a Cayley table whose element 0 is not the identity is not a group")
    left = cayley[cayley[:, :, None], everything[None, None, :]]
    right = cayley[everything[:, None, None], cayley[None, :, :]]
    if not (left == right).all():
        raise GroupError("a Cayley table that is not associative is not a group")


@lru_cache(maxsize=32)
def group(name: str) -> FiniteGroup:
    """The group of that name: c1, c4, d4, ...

    Raises GroupError for a name that is not one.
    """
    match = re.fullmatch(r"([cd])([1-9][0-9]?)", name.lower())
    if match is None:
        raise GroupError(f"'{name}' is not a group; use c1, c4, d4, c12 or d12")
    return FiniteGroup(int(match[2]), match[1] == "d")
