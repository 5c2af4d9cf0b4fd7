"""What a device computes in, and small tables that live on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from eqmodel.groups import FiniteGroup


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether a torch device multiplies bfloat16 itself.

    Where it only emulates that, a training step takes 2.5 times as long as in float32 (AVX-512
    without BF16, D12 at 28 x 28 pixels).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def full_float32(device: str | torch.device) -> Iterator[None]:
    """Convolutions that keep float32's 24 bits: on GPUs cuDNN else takes TensorFloat-32, whose 11
    bits cost the embedding its invariance.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


@lru_cache(maxsize=1024)
def products_by(group: FiniteGroup, h: int, device: torch.device) -> Tensor:
    """(order,) int64 on the device: the elements g h for every g."""
    return as_table(group.cayley[:, h], device)


@lru_cache(maxsize=1024)
def products_of(group: FiniteGroup, t: int, device: torch.device) -> Tensor:
    """(order,) int64 on the device: the elements t g for every g."""
    return as_table(group.cayley[t], device)


@lru_cache(maxsize=64)
def upper_triangle(side: int, device: torch.device) -> Tensor:
    """Places of the entries on and above the diagonal of a flat (side, side) matrix, row by row."""
    rows, columns = np.triu_indices(side)
    return as_table(rows * side + columns, device)


def as_table(indices: object, device: torch.device) -> Tensor:
    """Indices as a tensor that autograd may keep, wherever it is made."""
    with torch.inference_mode(False):
        table: Tensor = torch.as_tensor(indices, device=device).clone()
    return table
