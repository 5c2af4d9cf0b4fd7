"""Gram products and their roots as one function of machine code.

Images are the innermost axis, so that every step is on whole vectors; the code of 32 images stays
in the first cache of a core, and a product is rooted while it is in a register. Measured for
d4-28-grey, one core: 7 microseconds an image, by PyTorch's operators 22.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqmodel.faster import shared_out
from eqmodel.machine import function_of, lanes

ARGUMENTS = (
    "codes", "lefts", "rights", "starts", "num_runs", "columns", "eps", "out", "num_images",
)  # fmt: skip


def vectors_of(order: int) -> int:
    """Vectors of images side by side: one column of the code stays in registers."""
    return 2 if order <= 8 else 1


@lru_cache(maxsize=8)
def compiled(order: int) -> Callable[..., None]:
    """The function for a group of that order; called with ARGUMENTS, all addresses or numbers.

    ``codes`` (order, m, images) for vectors_of(order) vectors of images. Coordinates come in runs
    that have their left column in common: ``lefts`` and ``rights`` (num_runs, order) are the places
    of left column and first right column, ``starts`` (num_runs + 1,) where each run begins,
    ``columns`` (F',) how far right of the first each right column is; all int32, counted in
    float32 values. ``eps`` (F',). ``out``: (F', num_images) from the first of the images on.
    """
    from eqmodel.products_code import text_of

    return function_of(text_of(order), len(ARGUMENTS))


class RootedProducts:
    """Codes (B, order, m) -> (B, F'): x / sqrt(|x| + eps) of sums of products of two columns.

    Safe from several threads; torch's number of threads share a batch.
    """

    def __init__(
        self,
        moves: NDArray[np.int64],
        features: int,
        coordinates: Sequence[NDArray[np.int64]],
        eps: Tensor,
    ) -> None:
        """moves (order, n): the rows of a code, in turn, by which its own are multiplied.
        coordinates: of each the move, the left column and the right one, (F',) each; those with a
        move and a left column in common stand side by side.
        """
        move, left, right = coordinates
        self.order, self.features = len(moves), features
        self.images = vectors_of(self.order) * lanes()
        self.function, self.eps = compiled(self.order), eps.contiguous()
        another = (move[1:] != move[:-1]) | (left[1:] != left[:-1])
        starts = np.flatnonzero(np.r_[True, another])
        self.starts = np.r_[starts, len(eps)].astype(np.int32)
        self.lefts, self.rights, self.columns = (
            np.ascontiguousarray(places * self.images, np.int32)
            for places in (
                np.arange(self.order) * features + left[starts, None],
                moves.T[move[starts]] * features,
                right,
            )
        )

    def __call__(self, codes: Tensor) -> Tensor:
        out = torch.empty(len(self.eps), -(-len(codes) // self.images) * self.images)

        def some(firsts: Sequence[int]) -> None:
            with torch.inference_mode():
                room = torch.zeros(self.order, self.features, self.images)
                for first in firsts:
                    part = codes[first : first + self.images]
                    room[..., : len(part)].copy_(part.permute(1, 2, 0))
                    self.run(room, out[:, first:])

        shared_out(some, range(0, len(codes), self.images))
        return out[:, : len(codes)].T

    def run(self, codes: Tensor, out: Tensor) -> None:
        """The images side by side in ``codes``, to the first columns of ``out``."""
        self.function(
            codes.data_ptr(), self.lefts.ctypes.data, self.rights.ctypes.data,
            self.starts.ctypes.data, len(self.starts) - 1, self.columns.ctypes.data,
            self.eps.data_ptr(), out.data_ptr(), out.stride(0),
        )  # fmt: skip
