"""A group convolution in the irreducible basis as one function of machine code.

For each place of the output: patches are taken to the basis by sums and differences, a few rows at
a time, the blocks are multiplied while these are in the cache, and the products are taken back,
with bias and ReLU. As operators of PyTorch the patches would go to memory and come back between the
steps, which costs as much as the smaller products save (measured for an image of 28 x 28, D4, width
6, one core: 247 microseconds by convolutions, 182 to 200 by operators, 101 so).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from eqmodel.machine import function_of, lanes

VECTORS = 2  # of values side by side, in each step of a product
Signs = tuple[tuple[int, ...], ...]
ARGUMENTS = (
    "x", "inputs", "places", "num_places", "filters", "taps", "weights", "depth", "at_once",
    "bias", "fields", "padded", "patches", "products", "out", "outputs", "targets",
)  # fmt: skip


def block_rows() -> int:
    """Rows of a block that are summed in registers at once, at most."""
    return 12 if lanes() == 16 else 6


@lru_cache(maxsize=32)
def compiled(
    signs: Signs, lines: int, copies: int, block: int, relu: bool, depthwise: bool
) -> Callable[..., None]:
    """The function for one basis (irreps.IrreducibleBasis) and rows of blocks summed at once. It is
    called with ARGUMENTS, all of them addresses or numbers.

    Places are counted in float32 values, in tables of int32: ``inputs`` (depth, order) from a
    place of the input to each row of its patch under each element, ``places`` and ``targets``
    (num_places,) in input and output, ``outputs`` (fields, order) from a place of the output to
    its fields. With ``depthwise``, a row of a patch is a sum of values with weights of its own, the
    same for all elements: ``filters`` (depth, taps), and ``inputs`` (depth, taps, order).

    ``weights`` as ``stages.packed`` has them for ``at_once`` rows of patches and ``padded``
    fields; ``bias`` (fields,). ``patches`` and ``products`` are room for order * at_once and order
    * padded rows of VECTORS vectors. Nothing is checked; other threads go on meanwhile.
    """
    from eqmodel.blocks_code import text_of

    return function_of(text_of(signs, lines, copies, block, relu, depthwise), len(ARGUMENTS))
