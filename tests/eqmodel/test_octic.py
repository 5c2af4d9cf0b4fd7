"""The octic layers: equivariant, equal to the dense maps that they stand for, and frozen equal."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from eqmodel import Embedder, checkpoint
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.embedder import assemble
from eqmodel.equivariance import (
    assert_equivariant,
    code_action,
    field_action,
    image_action,
    invariance_error,
    relative_error,
)
from eqmodel.errors import GroupError, Refused, SizeError
from eqmodel.frozen import frozen
from eqmodel.groups import group
from eqmodel.irreps import blocks_of, irreducible_basis
from eqmodel.layers import GroupLinear
from eqmodel.octic import DepthwiseConv2d, PointwiseIrreps, Separable
from eqmodel.octic_frozen import AT_ONCE, FrozenOctic, FrozenSeparable, by_element
from eqmodel.readouts import READOUTS, readout
from eqmodel.settings import TrainConfig, as_recorded

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
GROUPS = ["c1", "c2", "c4", "d1", "d2", "d4"]
DTYPES = [torch.float32, torch.float64]


def features(order: int, side: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, order, side, side, dtype=dtype)


def moved(layer: torch.nn.Module, runs: int = 3) -> torch.nn.Module:
    """The layer with norms that have seen something, in evaluation mode."""
    torch.manual_seed(1)
    for norm in [m for m in layer.modules() if isinstance(m, torch.nn.BatchNorm1d)]:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return layer.eval()


@pytest.mark.parametrize("name", GROUPS)
def test_the_basis_is_orthogonal_and_takes_every_translation_apart(name: str) -> None:
    g = group(name)
    basis = irreducible_basis(g)
    squared = np.diag(basis.matrix @ basis.matrix.T)
    assert np.array_equal(basis.matrix @ basis.matrix.T, np.diag(squared))
    assert set(np.unique(basis.matrix)) <= {-1.0, 0.0, 1.0}
    assert basis.lines + 2 * basis.copies == g.order
    for t in range(g.order):
        acting = basis.matrix @ g.regular(t) @ basis.matrix.T / squared
        signs = np.diag(acting)[: basis.lines]
        assert np.allclose(np.abs(signs), 1.0)
        assert signs[0] == pytest.approx(1.0)
        outside = acting.copy()
        outside[np.arange(basis.lines), np.arange(basis.lines)] = 0.0
        for component in range(2 if name == "d4" else 0):  # what mixes the copies of a component
            block = slice(4 + 2 * component, 6 + 2 * component)
            assert np.allclose(acting[block, block], acting[4:6, 4:6])
            outside[block, block] = 0.0
        if name != "c4":  # whose one plane turns its own two components
            assert np.allclose(outside, 0.0, atol=1e-14)


def test_the_multiply_adds_of_d4_are_twelve_in_place_of_sixty_four() -> None:
    lines, planes = blocks_of(group("d4"))
    copies = irreducible_basis(group("d4")).copies
    assert lines.shape[1] + copies * planes[0].size == 12
    lines, planes = blocks_of(group("c4"))
    assert lines.shape[1] + irreducible_basis(group("c4")).copies * planes[0].size == 6


@pytest.mark.parametrize("name", ["c3", "d12"])
def test_other_groups_are_refused(name: str) -> None:
    with pytest.raises(GroupError, match=f"{name} has turns that are no quarter turns"):
        irreducible_basis(group(name))


@pytest.mark.parametrize("name", GROUPS)
def test_the_pointwise_map_is_the_dense_one_with_tied_weights(name: str) -> None:
    g, x = group(name), features(group(name).order, 5, torch.float64)
    pointwise, dense = PointwiseIrreps(g, 3, 4).double(), GroupLinear(g, 3, 4).double()
    with torch.no_grad():
        dense.weight.copy_(pointwise.weight)
    rows = x.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B H W, G, C)
    expected = dense(rows).unflatten(0, (2, 5, 5)).permute(0, 4, 3, 1, 2)
    assert relative_error(pointwise(x), expected).max() < 1e-12
    for weight in (pointwise.weight, dense.weight):
        weight.grad = None
    pointwise(x).square().sum().backward()
    dense(rows).square().sum().backward()
    assert relative_error(pointwise.weight.grad, dense.weight.grad).max() < 1e-12


@pytest.mark.parametrize("name", GROUPS)
def test_a_depthwise_convolution_is_one_per_field_and_element(name: str) -> None:
    g, x = group(name), features(group(name).order, 6, torch.float64)
    layer = DepthwiseConv2d(g, 3, 3).double()
    for field in range(3):
        for element in range(g.order):
            m, k = g.elements[element]
            turned = layer.weight[field].flip(-1) if m else layer.weight[field]
            turned = torch.rot90(turned, 4 * k // g.n)
            expected = torch.nn.functional.conv2d(
                x[:, field, element][:, None], turned[None, None], padding=1
            )
            assert torch.allclose(layer(x)[:, field, element], expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("name", GROUPS)
def test_layers(name: str, side: int, dtype: torch.dtype) -> None:
    g = group(name)
    tolerance, x = TOLERANCE[dtype], features(g.order, side, dtype)
    action = field_action(g)
    layers = [
        DepthwiseConv2d(g, 3, 3),
        DepthwiseConv2d(g, 3, side, "valid"),
        PointwiseIrreps(g, 3, 5),
        moved(Separable(g, 3, 4, 3)),
        moved(Separable(g, 3, 4, 4, "valid")),
    ]
    if side % 2 == 0:
        layers += [DepthwiseConv2d(g, 3, 4, stride=2), moved(Separable(g, 3, 4, 4, stride=2))]
    for layer in layers:
        assert_equivariant(layer.to(dtype), x, g, action, action, tolerance)


def test_filters_that_break_the_symmetry_are_refused() -> None:
    with pytest.raises(SizeError, match="side 4 at stride 1 breaks the symmetry"):
        DepthwiseConv2d(group("d4"), 1, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [28, 32, 40, 96])
@pytest.mark.parametrize("name", ["c1", "c4", "d4"])
def test_encoder_decoder_and_readouts(name: str, size: int, dtype: torch.dtype) -> None:
    config = AutoencoderConfig(
        name, size, channels=2, width=2, features=5, readout="attention", arch="octic"
    )
    torch.manual_seed(1)
    model = Autoencoder(config).to(dtype).eval()
    g, tolerance = model.group, TOLERANCE[dtype]
    x = torch.rand(3, 2, size, size, dtype=dtype)
    assert_equivariant(model.encoder, x, g, image_action(g), code_action(g), tolerance)
    codes = model.encoder(x)
    assert codes.shape == (3, g.order, 5)
    assert_equivariant(model.decoder, codes, g, code_action(g), image_action(g), tolerance)
    for name_of_readout in READOUTS:
        read = readout(name_of_readout, g, model.attention)
        assert invariance_error(lambda y, read=read: read(model.encoder(y)), x, g) < tolerance


@pytest.mark.parametrize("name", ["c12", "d12"])
def test_turned_copies(name: str) -> None:
    torch.manual_seed(2)
    config = AutoencoderConfig(name, width=2, features=5, arch="octic")
    model = Autoencoder(config).double().eval()
    g, x = model.group, torch.rand(2, 1, 28, 28, dtype=torch.float64)
    assert_equivariant(model.encoder, x, g, image_action(g), code_action(g), 1e-10)
    codes = model.encoder(x)
    assert_equivariant(model.decoder, codes, g, code_action(g), image_action(g), 1e-10)


@pytest.mark.parametrize("name", [*GROUPS, "c12", "d12"])
def test_frozen_equals_eager(name: str) -> None:
    model = Autoencoder(AutoencoderConfig(name, width=3, features=6, arch="octic"))
    moved(model)
    x = torch.rand(2 * AT_ONCE + 3, 1, 28, 28)
    inference = frozen(model.encoder)
    assert relative_error(inference(x), model.encoder(x)).max() < 1e-5
    assert inference(x).dtype == torch.float32


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("name", GROUPS)
def test_both_forms_of_a_frozen_stage_are_equal(name: str, relu: bool) -> None:
    """The one for a compiler is compared uncompiled: what it computes is the same."""
    g = group(name)
    stage = FrozenSeparable(moved(Separable(g, 3, 4, 3)), relu)
    x = torch.randn(5, 3 * g.order, 7, 7).contiguous(memory_format=torch.channels_last)
    by_field = stage.multiplied(x).unflatten(1, (-1, g.order))
    by_group = stage.summed(by_element(x.transpose(0, 1), g.order).transpose(0, 1))
    assert (
        relative_error(by_group.unflatten(1, (g.order, -1)).transpose(1, 2), by_field).max() < 1e-5
    )
    assert bool((stage.multiplied(x) >= 0).all()) == relu


def test_a_norm_without_statistics_is_refused() -> None:
    model = Autoencoder(AutoencoderConfig("c4", width=2, features=4, arch="octic"))
    model.encoder.get_submodule("norm.norm").running_mean = None
    with pytest.raises(ValueError, match="without running statistics"):
        frozen(model.encoder)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(Refused, match="'sparse' is no architecture; use dense or octic"):
        Autoencoder(AutoencoderConfig(arch="sparse"))


@pytest.mark.parametrize(
    ("name", "of_readout"), [("d4", "gram"), ("c4", "bispectrum"), ("d12", "gram"), ("c12", "rms")]
)
def test_a_checkpoint_of_it_trains_loads_and_holds(
    name: str,
    of_readout: str,
    clothes: list[NDArray[Any]],
    train_small: Callable[..., Path],
    tmp_path: Path,
) -> None:
    settings = {"group": name, "readout": of_readout, "arch": "octic"}
    folder = train_small(clothes, tmp_path / "m", **settings)
    assert checkpoint.read_card(folder)["architecture"]["arch"] == "octic"
    embedder = Embedder.load(folder)
    inner = embedder.frozen if name in ("d4", "c4") else embedder.frozen.base
    assert isinstance(inner.base, FrozenOctic)
    turned = [np.rot90(image) for image in clothes[:50]]
    error = np.abs(embedder.embed(turned) - embedder.embed(clothes[:50])).max()
    assert error < 1e-5


def test_cards_from_before_there_was_a_choice_mean_the_dense_one() -> None:
    folder = checkpoint.resolve("d4-28-grey")
    card = checkpoint.read_card(folder)
    assert card["architecture"].pop("arch") == "dense"
    tensors = load(checkpoint.checked_tensors(folder, card))
    assert assemble(card, tensors)[0].config.arch == "dense"


def test_a_record_from_before_there_was_a_choice_is_found_again() -> None:
    assert "arch" not in as_recorded(TrainConfig())
    assert as_recorded(TrainConfig(arch="octic"))["arch"] == "octic"
    assert set(as_recorded(TrainConfig())) | {"arch"} == set(asdict(TrainConfig()))


FAULTS = """
import resource
import torch
from eqmodel.autoencoder import AutoencoderConfig, network_of
from eqmodel.frozen import frozen
from eqmodel.groups import group

torch.set_num_threads(1)
encoder = network_of(AutoencoderConfig("d4", arch="octic"), group("d4"))[0].eval()
inference, images = frozen(encoder), torch.rand(256, 1, 28, 28)
with torch.inference_mode():
    for _ in range(3):
        inference(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    inference(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_pass_faults_no_memory_in_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 256  # some 7,000 without keep_freed_memory
