"""The frozen encoder in the irreducible basis: what the convolutions give, for any batch."""

import copy
import logging
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from eqmodel import Embedder, blocks, faster, machine, stages
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.frozen import frozen
from eqmodel.groups import group
from eqmodel.irreps import irreducible_basis
from eqmodel.irreps_frozen import IrrepEncoder
from eqmodel.stages import PATCH_ROWS, Stage, fitting_block, in_blocks

pytest.importorskip("llvmlite")
if not machine.lanes():
    pytest.skip("no vectors of this processor are known", allow_module_level=True)

from eqmodel import blocks_code


def encoder_of(name: str = "d4", arch: str = "dense", **config: int) -> IrrepEncoder:
    torch.manual_seed(3)
    sizes = {"width": 3, "features": 5} | config
    model = Autoencoder(AutoencoderConfig(group=name, arch=arch, **sizes))  # type: ignore[arg-type]
    side, channels = model.config.image_size, model.config.channels
    for _ in range(2):
        model(torch.rand(8, channels, side, side))  # moves the running statistics
    found = frozen(model.eval().encoder)
    assert isinstance(found, IrrepEncoder)
    return found


def difference(encoder: IrrepEncoder, x: torch.Tensor) -> float:
    """The largest, as a share of the largest code of the convolutions."""
    expected = encoder.base(x)
    return float((encoder(x) - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=[16, 8])
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The code for processors with 16 values in a vector and with 8, on whichever this is."""
    for module in (blocks, blocks_code, faster, stages):
        monkeypatch.setattr(module, "lanes", lambda: request.param)
    blocks.compiled.cache_clear()
    yield request.param
    blocks.compiled.cache_clear()


@pytest.mark.parametrize("name", ["c4", "d2", "d4"])
@pytest.mark.parametrize("config", [
    {}, {"width": 7, "features": 13}, {"channels": 3}, {"image_size": 40}, {"image_size": 64},
])  # fmt: skip
@pytest.mark.parametrize("arch", ["dense", "octic"])
@torch.no_grad()
def test_codes_of_the_convolutions(
    arch: str, name: str, config: dict[str, int], vectors: int
) -> None:
    encoder = encoder_of(name, arch, **config)
    side, channels = config.get("image_size", 28), config.get("channels", 1)
    x = torch.rand(37, channels, side, side)
    assert difference(encoder, x) < 5e-6
    assert encoder.form is not None
    assert float(encoder(x)[:, 0].std()) > 1e-3  # there is something to be equal


@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 32, 33, 64, 100])
@torch.no_grad()
def test_any_number_of_images(count: int) -> None:
    encoder = encoder_of()
    encoder(torch.rand(40, 1, 28, 28))
    x = torch.rand(count, 1, 28, 28)
    found = encoder(x)
    assert found.shape == (count, 8, 5)
    assert torch.allclose(found, encoder.base(x), atol=1e-4)


@torch.no_grad()
def test_few_images_need_no_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("made for a query")

    encoder = encoder_of()
    monkeypatch.setattr(encoder, "stages_of", never)
    encoder(torch.rand(8, 1, 28, 28))


@torch.no_grad()
def test_an_image_has_the_same_code_in_any_place() -> None:
    encoder, x = encoder_of(), torch.rand(50, 1, 28, 28)
    found = encoder(x)
    moved = torch.randperm(50)
    assert torch.equal(encoder(x[moved]), found[moved])


@torch.no_grad()
def test_several_threads_give_the_same() -> None:
    encoder, x = encoder_of(), torch.rand(200, 1, 28, 28)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = encoder(x)
        torch.set_num_threads(2)
        assert torch.equal(encoder(x), alone)
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(encoder, [x] * 8):
            assert torch.equal(found, alone)


@torch.no_grad()
def test_turned_images_have_turned_codes() -> None:
    encoder, d4 = encoder_of(width=6, features=16), group("d4")
    x = torch.rand(32, 1, 28, 28)
    codes = encoder(x)
    turned = encoder(torch.rot90(x.flip(-1), 1, (-2, -1)))  # a mirror, then a quarter turn
    expected = codes[:, torch.from_numpy(d4.left[d4.elements.index((1, 1))])]
    assert float((turned - expected).abs().max() / codes.abs().max()) < 2e-6
    assert float((turned - codes).abs().max() / codes.abs().max()) > 1e-2


@torch.no_grad()
def test_what_is_not_a_number_stays_with_its_image() -> None:
    x = torch.rand(32, 1, 28, 28)
    expected = encoder_of()(x)
    x[5, 0, 14, 14] = torch.nan
    encoder = encoder_of()  # which meets it in its first batch
    found = encoder(x)
    assert encoder.form is not None
    assert found[5].isnan().any()
    others = torch.arange(32) != 5
    assert torch.equal(found[others], expected[others])


@torch.no_grad()
def test_code_that_computes_otherwise_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = stages.packed
    monkeypatch.setattr(stages, "packed", lambda *args: made(*args) * np.float32(1.01))
    encoder, x = encoder_of(), torch.rand(32, 1, 28, 28)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder(x), encoder.base(x))
    assert "differs on this processor" in caplog.text


@torch.no_grad()
def test_without_llvm_the_convolutions_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster, "lanes", lambda: 0)
    encoder, x = encoder_of(), torch.rand(32, 1, 28, 28)
    assert torch.equal(encoder(x), encoder.base(x))


@torch.no_grad()
def test_copies_and_pickles_make_their_own() -> None:
    encoder, x = encoder_of(), torch.rand(32, 1, 28, 28)
    expected = encoder(x)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(x), expected)
    encoder.base.centre += 1.0  # as when other weights are loaded
    assert torch.allclose(encoder.to("cpu")(x), expected + 1.0, atol=1e-5)


def test_shipped_models_use_it() -> None:
    embedder = Embedder.load("d4-28-grey")
    images = [np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8) for i in range(40)]
    found = embedder.embed(images)
    assert embedder.frozen.form is not None
    alone = np.concatenate([embedder.embed([image]) for image in images])
    assert np.abs(found - alone).max() < 2e-6


@pytest.mark.parametrize("name", ["c1", "c2", "c4", "d1", "d2", "d4"])
def test_shared_sums_are_the_basis(name: str) -> None:
    matrix = irreducible_basis(group(name)).matrix
    for signs in (matrix, matrix.T):
        steps, rows = blocks_code.shared_sums(tuple(tuple(map(int, row)) for row in signs))
        terms = list(np.eye(len(signs)))
        for a, b, sign in steps:
            terms.append(terms[a] + sign * terms[b])
        found = [sum(sign * terms[k] for k, sign in row.items()) for row in rows]
        assert np.array_equal(found, signs)
    assert name != "d4" or len(steps) + sum(len(row) - 1 for row in rows) == 20


def test_rows_of_blocks_leave_few_idle() -> None:
    assert blocks.block_rows() in (6, 12)
    for fields in (1, 5, 12, 24, 25, 32, 48, 64):
        block = fitting_block(fields)
        assert blocks.block_rows() // 2 < block <= blocks.block_rows()
        assert -(-fields // block) * block - fields < block


def test_a_stage_is_a_convolution() -> None:
    """One stage by itself, against torch in float64: stride 2, an odd number of fields."""
    torch.manual_seed(8)
    encoder = encoder_of(width=5)
    conv = encoder.base.convs[1]
    blocks_of_it = in_blocks(group("d4"), conv.weight)
    stage = Stage(group("d4"), blocks_of_it, conv.bias[::8], (4, 14, 2, 1))
    stage.leads_to(stage.side, 0)
    x = torch.rand(stage.images, 40, 14, 14)
    framed = torch.nn.functional.pad(x, (1, 1, 1, 1)).unflatten(1, (5, 8))
    source = framed.permute(3, 4, 2, 1, 0).contiguous()
    rows = 8 * max(PATCH_ROWS, stage.padded)
    out = torch.empty(7, 7, 8, stage.out_fields, stage.images)
    stage.run(source, *torch.empty(2, rows, stage.images), out)
    expected = torch.nn.functional.conv2d(
        x.double(), conv.weight.double(), conv.bias.double(), 2, 1
    ).relu()
    found = out.permute(4, 3, 2, 0, 1).flatten(1, 2)
    assert float((found - expected).abs().max() / expected.max()) < 1e-6
