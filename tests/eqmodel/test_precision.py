"""bfloat16 is another model: its own identity, its error measured, and refused when too large."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eqmodel import Embedder, checkpoint, precision
from eqmodel.actions import turn
from eqmodel.errors import CheckpointError, Refused
from eqmodel.precision import in_bf16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bf16")
    in_bf16(checkpoint.resolve("d4-28-grey"), out, allow_inexact=True)
    return out


def test_it_loads_with_an_identity_of_its_own(made: Path, clothes: list[np.ndarray]) -> None:
    exact, rough = Embedder.load("d4-28-grey"), Embedder.load(made)
    assert (exact.precision, rough.precision) == ("float32", "bf16")
    assert rough.model_id != exact.model_id
    again = in_bf16(exact.folder, made.with_name("again"), allow_inexact=True)
    assert again["model_id"] == rough.model_id
    assert any(b.dtype == torch.bfloat16 for b in rough.frozen.buffers())
    far = np.linalg.norm(rough.embed(clothes[:64]) - exact.embed(clothes[:64]), axis=1)
    assert 1e-4 < far.max() < 0.3  # rounded, and not another image's


def test_its_error_is_measured_and_stands_in_the_card(
    made: Path, clothes: list[np.ndarray]
) -> None:
    embedder = Embedder.load(made)
    told = embedder.card["invariance_error"]
    images = clothes[:32]
    original = embedder.embed(images)
    found = max(
        float(np.linalg.norm(embedder.embed([turn(x, g) for x in images]) - original, axis=1).max())
        for g in embedder.group.elements
    )
    print(f"told {told:.1e}, found {found:.1e}")
    assert 0 < told < 0.05
    assert found < 20 * told


def test_it_is_refused_when_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "MAX_INVARIANCE_ERROR", 1e-9)
    with pytest.raises(Refused, match=r"in bfloat16 has an invariance error of .*--allow-inexact"):
        in_bf16(checkpoint.resolve("d4-28-grey"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_copies_run_in_bfloat16_too(
    clothes: list[np.ndarray], train_small: Callable[..., Path], tmp_path: Path
) -> None:
    folder = train_small(clothes[:64], tmp_path / "model", group="c8")
    in_bf16(folder, tmp_path / "half", allow_inexact=True)
    assert Embedder.load(tmp_path / "half").embed(clothes[:3]).shape[0] == 3


def test_an_unknown_precision_is_refused(made: Path) -> None:
    card = checkpoint.read_card(made)
    checkpoint.write_card(made, {**card, "precision": "int4"})
    try:
        with pytest.raises(CheckpointError, match="precision int4 is unknown"):
            Embedder.load(made)
    finally:
        checkpoint.write_card(made, card)
