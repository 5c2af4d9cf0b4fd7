"""A model trained in seconds, and real images of many sizes."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

SAMPLE = Path(__file__).parents[2] / "jobs" / "sample"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clothes() -> list[NDArray[np.uint8]]:
    """Real 28x28 images from the sample that ships with the project."""
    images = []
    for shard in sorted(SAMPLE.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    data = tar.extractfile(member)
                    assert data is not None
                    images.append(np.asarray(Image.open(io.BytesIO(data.read()))))
    assert len(images) == 2000
    return images


@pytest.fixture(scope="session")
def many_sizes(clothes: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """500 real images of 28x28, 29x29, 31x40, 64x65 and 200x120, all but the first cut from
    mosaics.
    """
    rows = [np.hstack(clothes[i * 40 : (i + 1) * 40]) for i in range(50)]
    mosaic = np.vstack(rows)
    generator, images = np.random.default_rng(7), list(clothes[:100])
    for height, width in [(29, 29), (31, 40), (64, 65), (200, 120)]:
        for _ in range(100):
            top = generator.integers(0, mosaic.shape[0] - height)
            left = generator.integers(0, mosaic.shape[1] - width)
            images.append(np.ascontiguousarray(mosaic[top : top + height, left : left + width]))
    return images


@pytest.fixture(scope="session")
def train_small() -> Callable[..., Path]:
    """Trains a d4 gram checkpoint for a moment on the first 400 images given; settings override."""
    from eqmodel.training import TrainConfig, train

    def trained(images: list[NDArray[Any]], out: Path, **settings: Any) -> Path:
        small: dict[str, Any] = {"width": 2, "features": 6, "dim": 16, "epochs": 1}
        train(images[:400], out, TrainConfig(**(small | settings)))
        return out

    return trained


@pytest.fixture(scope="session")
def small_checkpoint(
    train_small: Callable[..., Path],
    clothes: list[NDArray[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return train_small(clothes, tmp_path_factory.mktemp("models") / "small")
