"""Batches reach the device whole and in order, and are as large as the device takes them."""

import numpy as np
import pytest
import torch

from eqmodel import Embedder
from eqmodel.preprocess import PreprocessSpec, joined, preprocess, scaled, unscaled
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


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_bytes_on_the_way_become_the_input_bit_for_bit(channels: int) -> None:
    shape = (8, 8) if channels == 1 else (8, 8, channels)
    images = list(np.random.default_rng(1).integers(0, 256, (6, *shape), dtype=np.uint8))
    spec = PreprocessSpec(image_size=8, channels=channels)
    found = unscaled(images, spec)
    assert found is not None
    assert found.dtype == torch.uint8
    assert torch.equal(scaled(found), preprocess(images, spec))


@pytest.mark.parametrize(
    ("other", "spec"),
    [
        (np.zeros((8, 9), np.uint8), PreprocessSpec(image_size=8)),
        (np.zeros((8, 8), np.uint16), PreprocessSpec(image_size=8)),
        (np.zeros((8, 8, 3), np.uint8), PreprocessSpec(image_size=8)),
        (np.zeros((8, 8), np.uint8), PreprocessSpec(image_size=8, scaling=(0.0, 9.0))),
        (np.zeros((8, 8), np.uint8), PreprocessSpec(image_size=12)),
    ],
)
def test_what_is_resampled_or_scaled_otherwise_goes_as_floats(
    other: np.ndarray, spec: PreprocessSpec
) -> None:
    assert unscaled([np.zeros((8, 8), np.uint8), other], spec) is None
    assert unscaled([], spec) is None


def test_a_batch_of_both_kinds_is_scaled_once() -> None:
    images = list(np.random.default_rng(2).integers(0, 256, (4, 8, 8), dtype=np.uint8))
    spec = PreprocessSpec(image_size=8)
    whole, part = preprocess(images, spec), unscaled(images[2:], spec)
    assert part is not None
    assert torch.equal(joined([whole[:2], part]), whole)
    assert joined([part, part]).dtype == torch.uint8


def test_bytes_give_the_embeddings_of_floats() -> None:
    embedder = Embedder.load("d4-28-grey", verify=False)
    images = list(np.random.default_rng(3).integers(0, 256, (20, 28, 28), dtype=np.uint8))
    assert embedder.model_input(images).dtype == torch.float32  # nothing is gained on a CPU
    found, poses = embedder.encode(embedder.preprocess(images))
    raw = unscaled(images, embedder.spec)
    assert raw is not None
    embeddings, codes = embedder.encode(raw)
    assert np.array_equal(embeddings, found)
    assert np.array_equal(codes, poses)
    embedder.device = "cuda"  # told, not moved
    assert embedder.model_input(images).dtype == torch.uint8
    assert embedder.model_input([*images, images[0][1:]]).dtype == torch.float32
