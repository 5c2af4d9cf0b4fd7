"""A million real embeddings: free-angle views of the 70,000 clothes, made once and kept."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.bench.results import BUILD

FILES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
BATCH = 512


def clothes() -> NDArray[np.uint8]:
    """(70000, 28, 28) from ORBIT_DATA, the folder with fashion-mnist/*.gz."""
    where = os.environ.get("ORBIT_DATA")
    if where is None:
        pytest.skip("ORBIT_DATA: name the folder that holds fashion-mnist/*.gz")
    parts = [gzip.decompress(Path(where, "fashion-mnist", name).read_bytes()) for name in FILES]
    return np.concatenate(
        [np.frombuffer(part, np.uint8, offset=16).reshape(-1, 28, 28) for part in parts]
    )


def views(num: int) -> NDArray[np.float32]:
    """(num, d) float32, mapped: image i modulo 70,000 at a uniform random angle, in an order
    drawn once, so that any part of them is like the whole."""
    from eqmodel import Embedder
    from eqmodel.auditing import turned_inputs

    embedder = Embedder.load("d4-28-grey")
    path = BUILD / f"views-{num}-{embedder.model_id}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        images, part = clothes(), path.with_suffix(".part.npy")
        made = np.lib.format.open_memmap(part, "w+", np.float32, (num, embedder.dim))
        chance = np.random.default_rng(0)
        order = chance.permutation(num) % len(images)
        for start in range(0, num, BATCH):
            chosen = order[start : start + BATCH]
            angles = torch.from_numpy(chance.uniform(0, 360, len(chosen))).float()
            inputs = embedder.preprocess(list(images[chosen]))
            made[start : start + BATCH] = turned_inputs(embedder, inputs, angles)
        made.flush()
        part.rename(path)
    found: NDArray[Any] = np.load(path, mmap_mode="r")
    return found


def made(num: int, dim: int = 128, around: int = 2_000) -> NDArray[np.float32]:
    """(num, dim) float32, mapped: made embeddings, directions and noise about them."""
    path = BUILD / f"made-{num}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        chance, part = np.random.default_rng(0), path.with_suffix(".part.npy")
        centres = chance.normal(size=(around, dim)).astype(np.float32)
        vectors = np.lib.format.open_memmap(part, "w+", np.float32, (num, dim))
        for start in range(0, num, 10_000):
            piece = centres[chance.integers(0, around, min(10_000, num - start))]
            piece += 0.6 * chance.normal(size=piece.shape).astype(np.float32)
            vectors[start : start + len(piece)] = piece / np.linalg.norm(
                piece, axis=1, keepdims=True
            )
        vectors.flush()
        part.rename(path)
    found: NDArray[Any] = np.load(path, mmap_mode="r")
    return found
