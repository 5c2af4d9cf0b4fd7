"""Every layer, in float32 and float64, under every element, on odd and even sizes."""

import pytest
import torch

from eqmodel.actions import rotate
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig, fitting_size, fitting_sizes, sides
from eqmodel.copies import interleaved, split
from eqmodel.equivariance import (
    EquivarianceError,
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
from eqmodel.layers import (
    FieldNorm,
    GroupConv2d,
    GroupExpand2d,
    GroupLinear,
    LiftingConv2d,
    ProjectionConv2d,
    Turned,
    double,
)
from eqmodel.readouts import CORRELATIONS, READOUTS, EquivariantAttention, bispectrum, gram, readout

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
GROUPS = ["c1", "c2", "c4", "d1", "d2", "d4"]
DTYPES = [torch.float32, torch.float64]


def features(order: int, side: int, dtype: torch.dtype, fields: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, fields, order, side, side, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("name", GROUPS)
def test_layers(name: str, side: int, dtype: torch.dtype) -> None:
    g = group(name)
    tolerance, x = TOLERANCE[dtype], features(g.order, side, dtype)
    field, image = field_action(g), image_action(g)
    for layer in (GroupConv2d(g, 3, 5, 3), GroupConv2d(g, 3, 2, side, "valid"), double):
        apply = layer.to(dtype) if isinstance(layer, torch.nn.Module) else layer
        assert_equivariant(apply, x, g, field, field, tolerance)
    pixels = x[:, :, 0]
    assert_equivariant(LiftingConv2d(g, 3, 4, 5).to(dtype), pixels, g, image, field, tolerance)
    assert_equivariant(ProjectionConv2d(g, 3, 1, 5).to(dtype), x, g, field, image, tolerance)
    norm = FieldNorm(3).to(dtype)
    norm(features(g.order, side, dtype))
    assert_equivariant(norm.eval(), x, g, field, field, tolerance)
    if side % 2 == 0:
        halving = GroupConv2d(g, 3, 5, 4, stride=2).to(dtype)
        assert_equivariant(halving, x, g, field, field, tolerance)
        lift = LiftingConv2d(g, 3, 4, 6, stride=2).to(dtype)
        assert_equivariant(lift, pixels, g, image, field, tolerance)
    expand = GroupExpand2d(g, 3, 4, side).to(dtype)
    assert_equivariant(expand, features(g.order, 1, dtype), g, field, field, tolerance)


@pytest.mark.parametrize(("size", "stride"), [(4, 1), (3, 2), (6, 3)])
def test_filters_that_break_the_symmetry_are_refused(size: int, stride: int) -> None:
    with pytest.raises(SizeError, match=f"side {size} at stride {stride} breaks the symmetry"):
        GroupConv2d(group("c4"), 1, 1, size, stride=stride)
    with pytest.raises(SizeError, match="breaks the symmetry"):
        LiftingConv2d(group("c4"), 1, 1, size, stride=stride)


def test_the_gradient_of_turned_filters() -> None:
    layer = GroupConv2d(group("d4"), 2, 3, 3).double()
    weight = torch.randn(6, 72, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: Turned.apply(w, layer.tables), (weight,))


@pytest.mark.parametrize("name", [*GROUPS, "c12", "d12"])
def test_group_linear(name: str) -> None:
    g = group(name)
    codes = torch.randn(3, g.order, 5, dtype=torch.float64)
    layer = GroupLinear(g, 5, 4).double()
    actions = [code_action(g)] * 2
    for t in range(g.order):
        assert (
            relative_error(layer(actions[0](codes, t)), actions[1](layer(codes), t)).max() < 1e-12
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [28, 32, 40])
@pytest.mark.parametrize("name", ["c1", "c4", "d4"])
def test_autoencoder_and_readouts(name: str, size: int, dtype: torch.dtype) -> None:
    config = AutoencoderConfig(
        group=name, image_size=size, width=2, features=5, readout="attention", channels=2
    )
    torch.manual_seed(1)
    model = Autoencoder(config).to(dtype).eval()
    g, tolerance = model.group, TOLERANCE[dtype]
    x = torch.rand(3, 2, size, size, dtype=dtype)
    assert_equivariant(model.encoder, x, g, image_action(g), code_action(g), tolerance)
    codes = model.encoder(x)
    assert_equivariant(model.decoder, codes, g, code_action(g), image_action(g), tolerance)
    assert_equivariant(lambda y: model(y)[1], x, g, image_action(g), image_action(g), tolerance)
    for name_of_readout in READOUTS:
        read = readout(name_of_readout, g, model.attention)
        assert invariance_error(lambda y, read=read: read(model.encoder(y)), x, g) < tolerance


@pytest.mark.parametrize("name", ["c8", "c12", "d12"])
def test_turned_copies_are_exact_for_quarter_turns_and_near_for_the_others(name: str) -> None:
    torch.manual_seed(2)
    model = Autoencoder(AutoencoderConfig(group=name, width=2, features=5)).double().eval()
    g, x = model.group, torch.rand(3, 1, 28, 28, dtype=torch.float64)
    assert_equivariant(model.encoder, x, g, image_action(g), code_action(g), 1e-10)
    codes = model.encoder(x)
    assert_equivariant(model.decoder, codes, g, code_action(g), image_action(g), 1e-10)
    assert torch.equal(interleaved(split(codes, g), g), codes)
    smooth = torch.nn.functional.avg_pool2d(x, 7, 1, 3) * disc(28)
    codes = model.encoder(smooth)
    turned = model.encoder(rotate(smooth, torch.full((3,), g.degrees(1))))
    right = relative_error(turned, code_action(g)(codes, 1)).max()
    assert right < 0.1
    assert right < 0.5 * relative_error(turned, code_action(g)(codes, g.n - 1)).max()


def disc(side: int) -> torch.Tensor:
    """(side, side): 1 at the centre, falling smoothly to 0 well inside the frame."""
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    radius = torch.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    return torch.sigmoid((0.6 - radius) * 20)


@pytest.mark.parametrize("name", ["c1", "c4", "d4", "d12"])
def test_frozen_equals_eager(name: str) -> None:
    model = Autoencoder(AutoencoderConfig(group=name, width=3, features=6))
    x = torch.rand(8, 1, 28, 28)
    for _ in range(3):
        model(torch.rand(8, 1, 28, 28))  # moves the running statistics
    model.eval()
    assert relative_error(frozen(model.encoder)(x), model.encoder(x)).max() < 1e-5


def test_gram_has_the_distinct_terms_only_and_separates_what_the_mean_cannot() -> None:
    g = group("d4")
    codes = torch.randn(2, 8, 32, dtype=torch.float64)
    assert gram(codes, g).shape == (2, 4192)
    shuffled = codes[:, torch.randperm(8, generator=torch.Generator().manual_seed(3))]
    assert torch.allclose(codes.mean(1), shuffled.mean(1))
    assert not torch.allclose(gram(codes, g), gram(shuffled, g))


@pytest.mark.parametrize("part", CORRELATIONS)
@pytest.mark.parametrize("name", ["c1", "c4", "d4", "c12", "d12"])
def test_every_part_of_p_is_invariant(name: str, part: str) -> None:
    g = group(name)
    codes = torch.randn(2, g.order, 5, dtype=torch.float64)
    expected = gram(codes, g, part)
    for t in range(g.order):
        assert relative_error(gram(code_action(g)(codes, t), g, part), expected).max() < 1e-12


def test_the_parts_of_p_and_the_diagonals_of_p_prime() -> None:
    g, codes = group("d4"), torch.randn(2, 8, 5, dtype=torch.float64)
    plain, wide = gram(codes, g, "identity"), gram(codes, g, "identity+diagonals")
    product = codes.transpose(1, 2) @ codes
    assert torch.allclose(plain, product[:, *torch.triu_indices(5, 5)])
    assert torch.equal(wide[:, :15], plain)
    assert wide.shape == (2, 15 + 5 * 2)  # turns by 90 and by 180 degrees, five columns each
    for t in (1, 2):
        turned = torch.stack([torch.from_numpy(g.regular(t)) @ c for c in codes])
        diagonal = (codes * turned).sum(1)
        assert torch.allclose(wide[:, 10 + 5 * t : 15 + 5 * t], diagonal)
    d12 = group("d12")
    assert torch.equal(gram(codes, g, "quarter"), gram(codes, g, "all"))
    many = torch.randn(2, 24, 5, dtype=torch.float64)
    copies = split(many, d12).flatten(0, 1)
    summed = gram(copies, g, "all").unflatten(0, (2, 3)).sum(1)
    assert torch.allclose(gram(many, d12, "quarter"), summed)
    with pytest.raises(Refused, match="'some' is no part of P"):
        gram(codes, g, "some")


@pytest.mark.parametrize("name", ["c4", "d4", "c12", "d12"])
def test_the_bispectrum_never_separates_a_code_from_its_permuted_self(name: str) -> None:
    g = group(name)
    codes = torch.randn(2, g.order, 5, dtype=torch.float64)
    expected = bispectrum(codes, g)
    for t in range(g.order):
        assert relative_error(bispectrum(code_action(g)(codes, t), g), expected).max() < 1e-12


@pytest.mark.parametrize("name", ["c4", "d4", "c12", "d12"])
def test_the_bispectrum_separates_codes_that_gram_cannot(name: str) -> None:
    """Multiplying the Fourier coefficients by orthogonal matrices from the left keeps all of Gram.

    Such a map is a right convolution's mirror image: it commutes with every right multiplication.
    """
    g = group(name)
    torch.manual_seed(4)
    codes = torch.randn(1, g.order, 3, dtype=torch.float64)
    # sum_t a_t (left translation by t), made orthogonal: the exponential of an antisymmetric one.
    weights = torch.randn(g.order, dtype=torch.float64)
    weights = weights - weights[torch.from_numpy(g.inverse)]
    generator = sum(float(weights[t]) * torch.from_numpy(g.regular(t)) for t in range(g.order))
    other = torch.linalg.matrix_exp(generator) @ codes[0]
    assert relative_error(gram(other[None], g), gram(codes, g)).max() < 1e-12
    permuted = torch.stack([code_action(g)(codes, t)[0] for t in range(g.order)])
    assert (permuted - other).flatten(1).norm(dim=1).min() > 0.1  # not the same up to the group
    assert relative_error(bispectrum(other[None], g), bispectrum(codes, g)).max() > 1e-3


def test_attention_with_one_hot_weights_gives_the_code_back() -> None:
    g = group("d4")
    attention = EquivariantAttention(g, 4, 6).double()
    codes = torch.randn(1, 8, 4, dtype=torch.float64)
    for t in range(g.order):
        canonical = codes[:, torch.from_numpy(g.cayley[t])]
        attention.restore = torch.nn.Sequential(torch.nn.Identity())
        weights = torch.nn.functional.one_hot(torch.tensor([t]), 8).double()
        assert torch.equal(attention.expand(canonical.flatten(1), weights), codes)


def test_a_layer_that_breaks_the_symmetry_is_caught() -> None:
    g = group("c4")
    with pytest.raises(EquivarianceError, match="not equivariant"):
        assert_equivariant(
            torch.nn.Conv2d(1, 1, 3, padding=1),
            torch.randn(1, 1, 8, 8),
            g,
            image_action(g),
            image_action(g),
            1e-5,
        )


def test_sizes() -> None:
    assert sides(28) == [28, 14, 7]
    assert sides(256) == [256, 128, 64, 32, 16, 8]
    assert fitting_size(27) == 28
    assert fitting_size(29) == 32
    assert fitting_size(1000) == 256
    assert all(4 <= sides(size)[-1] <= 8 for size in fitting_sizes())
    with pytest.raises(SizeError, match=r"image size 30 cannot be halved evenly.*28, 32"):
        sides(30)


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(GroupError, match="d3 has no quarter turns"):
        Autoencoder(AutoencoderConfig(group="d3"))
    with pytest.raises(Refused, match="needs a head"):
        readout("attention", group("d4"))
    with pytest.raises(Refused, match="not a readout"):
        readout("median", group("d4"))
