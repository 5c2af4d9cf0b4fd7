"""The kinds of index, and how one is chosen from count, dimension and a memory budget."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from pipelines.errors import IncompleteError

EXACT_UP_TO = 50_000
"""Up to so many vectors exact search is fast enough (shared rule, measured with FAISS 1.15)."""
FLAT_UP_TO = 200_000
"""Beyond, 8-bit codes with exact re-ranking are faster than the vectors themselves: at 240,000
vectors of 128 values and recall 0.993, 0.06 against 0.13 ms a query on one core."""
FOUR_BIT_FROM = 10_000_000
ID_BYTES = 8


@dataclass(frozen=True)
class Kind:
    """A FAISS factory string without its number of lists, and its cost.

    ``bits`` a value takes, ``extra`` bytes a vector takes beside; ``factors`` of k that may be
    compared again by their stored embeddings, the least first.
    """

    name: str
    codes: str
    bits: float
    extra: int = 0
    factors: tuple[int, ...] = (1,)

    def factory(self, num: int, dim: int) -> str:
        """The FAISS factory string for ``num`` vectors of ``dim`` values."""
        codes = self.codes.format(dim=dim, half=max(1, dim // 2))
        return codes if self.name == "exact" else f"IVF{num_lists(num)},{codes}"

    def num_bytes(self, num: int, dim: int) -> int:
        """Memory that the index takes: codes, ids, centroids."""
        lists = 0 if self.name == "exact" else num_lists(num)
        return round(num * (dim * self.bits / 8 + self.extra + ID_BYTES) + lists * dim * 4)


KINDS = (
    Kind("exact", "IDMap2,Flat", 32),
    Kind("flat", "Flat", 32),
    Kind("sq8", "SQ8", 8, factors=(1, 2, 4, 8)),
    # Four bits for each value; RaBitQ takes one, and two numbers of correction.
    Kind("pq", "PQ{dim}x4fs", 4, factors=(1, 2, 4, 8, 16, 32)),
    Kind("pq-half", "PQ{half}x4fs", 2, factors=(1, 2, 4, 8, 16, 32, 64)),
    Kind("rabitq", "RaBitQ", 1, 8, factors=(1, 2, 4, 8, 16, 32, 64, 128)),
)
"""From the most exact to the smallest."""


def num_lists(num: int) -> int:
    """4 sqrt(N): as much time for the centroids as for the lists probed."""
    return max(1, round(4 * math.sqrt(num)))


def choose_kind(num: int, dim: int, memory: int | None = None) -> str:
    """The FAISS factory string for ``num`` vectors of ``dim`` values in ``memory`` bytes.

    The kind that is best for the count, or the first after it that fits. IncompleteError when none
    does.
    """
    first = bisect.bisect_left((EXACT_UP_TO, FLAT_UP_TO, FOUR_BIT_FROM), num)
    for kind in KINDS[first:]:
        if kind.name == "pq-half" and dim % 2:
            continue
        if memory is None or kind.num_bytes(num, dim) <= memory:
            return kind.factory(num, dim)
    least = KINDS[-1].num_bytes(num, dim)
    raise IncompleteError(
        f"the smallest index of {num:,} embeddings takes {least / 2**20:,.1f} MiB, "
        f"--index-memory allows {memory / 2**20 if memory else 0:,.1f}: nothing was published"
    )


def factors_of(factory: str) -> tuple[int, ...]:
    """How many times k candidates may be compared again by their stored embeddings."""
    codes = factory.rpartition(",")[2]
    named = {"SQ": "sq8", "PQ": "pq-half", "Ra": "rabitq"}.get(codes[:2], "flat")
    return next(kind.factors for kind in KINDS if kind.name == named)
