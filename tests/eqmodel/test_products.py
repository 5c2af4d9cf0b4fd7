"""Gram products and roots by machine code: what the operators give, for any group and batch."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch

from eqmodel import faster, machine, products
from eqmodel.frozen_head import FrozenGram, RootedGram
from eqmodel.groups import group
from eqmodel.projection import root
from eqmodel.readouts import CORRELATIONS, gram

pytest.importorskip("llvmlite")
if not machine.lanes():
    pytest.skip("no vectors of this processor are known", allow_module_level=True)

from eqmodel import products_code


def rooted(name: str, part: str = "all", features: int = 5, share: float = 0.5) -> RootedGram:
    """Of a random share of the coordinates."""
    g = group(name)
    count = gram(torch.zeros(1, g.order, features), g, part).shape[1]
    keep = torch.randperm(count)[: max(int(share * count), 1)].sort().values
    eps = 0.01 + torch.rand(len(keep))
    return RootedGram(FrozenGram(g, part, features, keep), eps)


@pytest.fixture(params=[16, 8])
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The code for processors with 16 values in a vector and with 8, on whichever this is."""
    for module in (faster, products, products_code):
        monkeypatch.setattr(module, "lanes", lambda: request.param)
    products.compiled.cache_clear()
    yield request.param
    products.compiled.cache_clear()


@pytest.mark.parametrize("part", CORRELATIONS)
@pytest.mark.parametrize("name", ["c1", "c4", "d1", "d3", "d4", "c8", "d12"])
@pytest.mark.parametrize(("features", "share"), [(5, 0.5), (1, 1.0), (32, 1.0)])
def test_products_and_roots_of_the_operators(
    name: str, part: str, features: int, share: float, vectors: int
) -> None:
    torch.manual_seed(4)
    fast = rooted(name, part, features, share)
    codes = torch.randn(37, group(name).order, features)
    exact = root(fast.base.read(codes.double()), fast.base.eps.double())
    found = fast(codes)
    assert fast.form is not None
    assert found.shape == exact.shape
    assert float((found - exact).abs().max() / exact.abs().max()) < 2e-6


@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 32, 33, 100])
def test_any_number_of_codes(count: int) -> None:
    fast = rooted("d4")
    fast(torch.randn(40, 8, 5))
    codes = torch.randn(count, 8, 5)
    assert torch.allclose(fast(codes), fast.base(codes), atol=1e-5)


def test_a_code_has_the_same_roots_in_any_place_and_by_any_threads() -> None:
    fast, codes = rooted("d4"), torch.randn(150, 8, 5)
    found, moved = fast(codes), torch.randperm(150)
    assert torch.equal(fast(codes[moved]), found[moved])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fast(codes), found)
    finally:
        torch.set_num_threads(before)


def test_nothing_and_what_is_not_a_number_stay_with_their_code() -> None:
    fast, codes = rooted("d4"), torch.randn(40, 8, 5)
    expected = fast(codes)
    codes[3], codes[7, 2] = 0.0, torch.nan
    found = fast(codes)
    assert torch.equal(found[3], torch.zeros_like(found[3]))
    assert found[7].isnan().any()
    others = [i for i in range(40) if i not in (3, 7)]
    assert torch.equal(found[others], expected[others])


def test_copies_and_pickles_make_their_own() -> None:
    fast, codes = rooted("d4"), torch.randn(40, 8, 5)
    expected = fast(codes)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other(codes), expected)
    fast.base.eps += 1.0
    assert torch.allclose(fast.to("cpu")(codes), fast.base(codes), atol=1e-5)


def test_double_precision_takes_the_operators() -> None:
    fast, codes = rooted("d4").double(), torch.randn(40, 8, 5, dtype=torch.float64)
    assert torch.equal(fast(codes), fast.base(codes))
    assert fast.form is None
