"""Whether two samples of embeddings come from one distribution: energy distance, by permutation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

LEVEL, PERMUTATIONS = 0.01, 499
METHOD = (
    "energy distance (Szekely and Rizzo, J. Stat. Plan. Inference 143, 2013): "
    "2 E|X-Y| - E|X-X'| - E|Y-Y'| of embeddings; threshold: the largest 1% under "
    f"{PERMUTATIONS} permutations"
)


@dataclass(frozen=True)
class TwoSample:
    """``distance`` >= 0, 0 for equal samples; beyond ``threshold`` with probability LEVEL where
    there is no difference. ``share``: the distance as a share of 2 E|X-Y|, 0 (nothing differs) to
    1 (nothing in common). ``num``: the sizes of the two samples."""

    distance: float
    threshold: float
    share: float
    p_value: float
    num: tuple[int, int]

    @property
    def differs(self) -> bool:
        """Whether the distance is beyond what chance explains."""
        return self.distance > self.threshold

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        told = asdict(self) | {"num": list(self.num), "differs": self.differs}
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in told.items()}


def energy_distance(first: Vectors, second: Vectors, seed: int = 0) -> TwoSample:
    """Compare samples (n, d) and (m, d), n and m at least 1. Time and memory follow (n + m)^2.

    The statistic is w' D w with D the pairwise distances of both samples together and w = 1/n on
    the one, -1/m on the other, negated; so all permutations are one matrix product.
    """
    n, m = len(first), len(second)
    both = np.concatenate([first, second]).astype(np.float32)
    apart = _distances(both)
    weights = np.concatenate([np.full(n, 1.0 / n), np.full(m, -1.0 / m)]).astype(np.float32)
    chance = np.random.default_rng(seed)
    shuffled = [chance.permutation(weights) for _ in range(PERMUTATIONS)]
    columns = np.stack([weights, *shuffled], axis=1)
    found = -np.einsum("ip,ip->p", columns, apart @ columns, dtype=np.float64)
    distance, others = max(0.0, float(found[0])), np.sort(found[1:])
    # The smallest value that at most LEVEL of all, the one observed included, exceed.
    rank = int(np.ceil((1 - LEVEL) * (PERMUTATIONS + 1))) - 1
    across = 2.0 * float(apart[:n, n:].mean(dtype=np.float64))
    return TwoSample(
        distance=distance,
        threshold=float(others[min(rank, PERMUTATIONS - 1)]),
        share=min(1.0, distance / across) if across > 1e-9 else 0.0,
        p_value=(1 + int((others >= distance).sum())) / (PERMUTATIONS + 1),
        num=(n, m),
    )


def _distances(vectors: Vectors) -> Vectors:
    """Euclidean distances (n, n); exactly 0 where two rows are equal to float32's rounding."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    apart = squares[:, None] + squares[None, :] - 2.0 * (vectors @ vectors.T)
    apart[apart < 1e-6] = 0.0
    found: Vectors = np.sqrt(apart, out=apart)
    return found
