"""Batches reach the device whole and in order, and are as large as the device takes them."""

import numpy as np
import pytest
import torch

from eqmodel import Embedder
from eqmodel.transfer import parts_on

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("images", "sizes"), [(0, [0]), (4, [4]), (5, [4, 1]), (14, [4, 4, 4, 2])])
def test_parts_are_the_batch_in_order(device: str, images: int, sizes: list[int]) -> None:
    batch = torch.arange(images * 6, dtype=torch.float32).reshape(images, 1, 2, 3)
    found = list(parts_on(device, batch, 4))
    assert [len(part) for part in found] == sizes
    assert all(part.device.type == device for part in found)
    assert torch.equal(torch.cat(found).cpu(), batch)


@pytest.mark.parametrize("device", DEVICES)
def test_a_part_is_used_while_others_are_under_way(device: str) -> None:
    batch = torch.rand(50, 1, 8, 8)
    sums = [float(part.double().sum()) for part in parts_on(device, batch, 3)]
    assert sums == pytest.approx([float(p.double().sum()) for p in batch.split(3)])


@pytest.mark.parametrize(("name", "on_gpu"), [("d4-28-grey", 4096), ("d12-28-grey", 1024)])
def test_batches_of_a_gpu(name: str, on_gpu: int) -> None:
    embedder = Embedder.load(name, verify=False)
    assert embedder.batch_size == 256
    embedder.device = "cuda"  # told, not moved
    assert embedder.batch_size == on_gpu


@pytest.mark.parametrize("count", [0, 1, 300])
def test_embeddings_do_not_depend_on_the_parts(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder.load("d4-28-grey", verify=False)
    images = list(np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8))
    whole = embedder.embed(images)
    monkeypatch.setattr("eqmodel.embedder.BATCH", 7)
    assert whole.shape == (count, 128)
    assert np.allclose(whole, embedder.embed(images), atol=1e-5)
