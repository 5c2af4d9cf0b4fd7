"""torch.compile as an option: the same codes, and a refusal in one line where it cannot work."""

from pathlib import Path

import pytest
import torch

from eqmodel import Embedder
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.compiled import AT_ONCE, CompiledEncoder, compiled, compiler
from eqmodel.equivariance import relative_error
from eqmodel.errors import Refused
from eqmodel.frozen import frozen


def encoder(group: str, arch: str) -> torch.nn.Module:
    torch.manual_seed(3)
    return frozen(Autoencoder(AutoencoderConfig(group, width=2, features=4, arch=arch)).encoder)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Nothing is compiled; what would be is called with batches of these shapes."""
    seen: list[torch.Size] = []

    def as_it_is(module: torch.nn.Module, **_: object) -> object:
        def call(x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape)
            return module(x)

        return call

    monkeypatch.setattr(torch, "compile", as_it_is)
    return seen


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_a_compiled_encoder_gives_the_codes_of_the_frozen_one() -> None:
    plain = encoder("d4", "octic")
    x = torch.rand(AT_ONCE + 3, 1, 28, 28)
    assert relative_error(CompiledEncoder(plain)(x), plain(x)).max() < 1e-5


@pytest.mark.parametrize("count", [1, AT_ONCE, 2 * AT_ONCE + 1])
@torch.inference_mode()
def test_one_shape_does_for_every_batch(count: int, shapes: list[torch.Size]) -> None:
    plain, x = encoder("c4", "dense"), torch.rand(count, 1, 28, 28)
    expected = plain(x)
    found = CompiledEncoder(plain)(x)
    assert set(shapes) == {torch.Size([AT_ONCE, 1, 28, 28])}
    assert found.shape == expected.shape
    assert relative_error(found, expected).max() < 1e-5


@pytest.mark.parametrize("name", ["d4-28-grey", "d12-28-grey"])
def test_an_embedder_embeds_the_same(
    name: str, shapes: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqmodel.compiled.compiler", lambda: "g++")
    monkeypatch.setattr("eqmodel.embedder.lanes", lambda: 0)
    embedder = Embedder.load(name, verify=False)
    images = list(torch.rand(5, 28, 28).numpy())
    expected = embedder.embed(images)
    embedder.compile()
    assert abs(embedder.embed(images) - expected).max() < 1e-5
    assert shapes


@pytest.mark.parametrize("name", ["d4-28-grey", "d12-28-grey"])
def test_what_is_faster_anyway_is_not_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eqmodel.embedder.lanes", lambda: 16)
    monkeypatch.setattr("eqmodel.embedder.compiled", None)  # would fail if it were called
    embedder = Embedder.load(name, verify=False)
    embedder.compile()
    assert not embedder.compiled


def test_no_compiler_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Refused, match="--compile needs a C\\+\\+ compiler"):
        compiled(encoder("c4", "octic"))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert compiler() is None


def test_a_gpu_is_a_refusal() -> None:
    embedder = Embedder.load("d4-28-grey", verify=False)
    embedder.device = "cuda"  # told, not moved
    with pytest.raises(Refused, match="--compile is for CPUs"):
        embedder.compile()
