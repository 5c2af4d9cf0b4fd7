"""The inference form equals the eager model: for every group and readout, packed or plain."""

import copy

import pytest
import torch

from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.equivariance import relative_error
from eqmodel.faster import LEAST_IMAGES
from eqmodel.frozen import FrozenConv, frozen
from eqmodel.frozen_head import FrozenGram, FrozenHead
from eqmodel.groups import group
from eqmodel.kinds import KindsHead
from eqmodel.projection import Projection, with_kinds
from eqmodel.readouts import CORRELATIONS, READOUTS, gram, readout

GROUPS = ["c1", "c2", "c4", "d1", "d2", "d4", "c8", "d12"]


def fitted(features: torch.Tensor, kinds: float) -> Projection:
    """A projection of the shape that training fits, with random values: every third feature is
    dead.
    """
    generator = torch.Generator().manual_seed(5)
    keep = torch.tensor([i for i in range(features.shape[1]) if features.shape[1] < 9 or i % 3])
    linear = Projection(len(keep), 7, 7)
    linear.keep.copy_(keep)
    linear.eps.copy_(0.1 * features[:, keep].abs().mean(0) + 1e-6)
    linear.mean.copy_(torch.rand(len(keep), generator=generator))
    linear.scale.copy_(0.5 + torch.rand(len(keep), generator=generator))
    linear.matrix.copy_(torch.randn(len(keep), 7, generator=generator))
    if not kinds:
        return linear
    head = KindsHead(7, 3)
    for buffer in head.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return with_kinds(linear, head, 9, kinds)


def trained(name: str, readout_name: str = "gram") -> Autoencoder:
    torch.manual_seed(6)
    model = Autoencoder(AutoencoderConfig(group=name, width=3, features=6, readout=readout_name))
    for _ in range(3):
        model(torch.rand(8, 1, 28, 28))  # moves the running statistics
    return model.eval()


@pytest.mark.parametrize("kinds", [0.0, 0.3])
@pytest.mark.parametrize("readout_name", READOUTS)
@pytest.mark.parametrize("name", GROUPS)
@torch.no_grad()
def test_images_to_embeddings_as_the_eager_model(
    name: str, readout_name: str, kinds: float
) -> None:
    model = trained(name, readout_name)
    x = torch.rand(LEAST_IMAGES + 1, 1, 28, 28)
    read = readout(readout_name, model.group, model.attention)
    projection = fitted(read(model.encoder(x)), kinds)
    double = copy.deepcopy(model).double()
    exact_read = readout(readout_name, model.group, double.attention)
    expected = projection(exact_read(double.encoder(x.double())))
    chosen = (
        FrozenGram(model.group, "all", 6, projection.keep) if readout_name == "gram" else exact_read
    )
    found = FrozenHead(chosen, projection)(frozen(model.encoder)(x))
    assert found.dtype == torch.float64
    assert float((found - expected).norm(dim=1).max()) < 2e-5
    assert float((expected[0] - expected[1]).norm()) > 1e-4  # images differ by more


@pytest.mark.parametrize("part", CORRELATIONS)
@pytest.mark.parametrize("name", GROUPS)
def test_gathered_products_are_gram_pooling(name: str, part: str) -> None:
    g = group(name)
    codes = torch.randn(4, g.order, 5, dtype=torch.float64)
    expected = gram(codes, g, part)
    keep = torch.randperm(expected.shape[1])[: expected.shape[1] // 2 + 1].sort().values
    assert torch.allclose(FrozenGram(g, part, 5, keep)(codes), expected[:, keep], atol=1e-12)


def test_the_rounding_of_the_head_is_far_below_the_promise() -> None:
    """A code whose rows are permuted exactly: what differs is readout and projection alone."""
    g = group("d4")
    codes = torch.randn(64, 8, 32)
    features = gram(codes.double(), g)
    head = FrozenHead(
        FrozenGram(g, "all", 32, torch.arange(features.shape[1])), fitted_wide(features)
    )
    found = head(codes)
    errors = [
        float((head(codes[:, torch.from_numpy(g.left[t].copy())]) - found).norm(dim=1).max())
        for t in range(1, 8)
    ]
    print(f"largest {max(errors):.1e}")
    assert 0 < max(errors) < 1e-6


def fitted_wide(features: torch.Tensor) -> Projection:
    projection = Projection(features.shape[1], 64, 64)
    projection.keep.copy_(torch.arange(features.shape[1]))
    projection.eps.copy_(0.1 * features.abs().mean(0))
    projection.mean.copy_(features.mean(0).sign())
    projection.scale.fill_(1.0)
    projection.matrix.copy_(torch.randn(features.shape[1], 64))
    return projection


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_packed_filters_give_what_plain_ones_give(batch: int) -> None:
    layer = FrozenConv(torch.randn(24, 6, 4, 4), torch.randn(24), 2, 1)
    x = torch.rand(batch, 6, 14, 14).contiguous(memory_format=torch.channels_last)
    packed = layer(x)
    layer.packs = False
    assert relative_error(packed, layer(x)).max() < 1e-5
    assert packed.is_contiguous(memory_format=torch.channels_last)


def test_a_packed_layer_can_be_copied_and_moved_to_another_precision() -> None:
    layer = FrozenConv(torch.randn(8, 3, 3, 3), torch.randn(8), 1, 1)
    x = torch.rand(2, 3, 7, 7).contiguous(memory_format=torch.channels_last)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert relative_error(layer.double()(x.double()), expected.double()).max() < 1e-5
