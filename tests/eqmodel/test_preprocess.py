"""Padding and resizing commute with quarter turns and mirrors, for every size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqmodel import machine, weighted_rows
from eqmodel.actions import turn, turn_tensor
from eqmodel.errors import ChannelError, CheckpointError
from eqmodel.groups import group
from eqmodel.preprocess import (
    PreprocessSpec,
    preprocess,
    resample,
    resampling_matrix,
    to_planes,
)

D4 = group("d4")


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    side=st.sampled_from([28, 32, 40]),
    fit=st.sampled_from(["resize", "crop", "native"]),
    background=st.sampled_from(["border", 0.0, 1.0]),
    seed=st.integers(0, 1000),
)
def test_commutes(
    height: int, width: int, side: int, fit: str, background: object, seed: int
) -> None:
    spec = PreprocessSpec(image_size=side, fit=fit, background=background)  # type: ignore[arg-type]
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    straight = preprocess([image], spec)
    for g, element in enumerate(D4.elements):
        turned = preprocess([turn(image, element)], spec)
        assert (turned - turn_tensor(straight, D4, g)).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("length", "virtual", "side"),
    [(31, 40, 28), (40, 40, 28), (5, 28, 28), (29, 29, 28), (3, 3, 28)],
)
def test_mirrored_rows_are_equal_bit_for_bit(length: int, virtual: int, side: int) -> None:
    matrix = resampling_matrix(length, virtual, side)
    assert torch.equal(matrix, matrix.flip(0).flip(1))


def test_a_fitting_square_is_left_as_it_is() -> None:
    image = np.arange(784, dtype=np.uint8).reshape(28, 28)
    out = preprocess([image], PreprocessSpec())
    assert torch.equal(out[0, 0], torch.from_numpy(image).float() / 255)


def test_an_even_colour_stays_even_and_the_background_fills_the_rest() -> None:
    grey = np.full((10, 20), 51, np.uint8)
    assert torch.allclose(preprocess([grey], PreprocessSpec()), torch.tensor(0.2))
    black = preprocess([grey], PreprocessSpec(background=0.0))[0, 0]
    assert torch.allclose(black[14, 1:-1], torch.tensor(0.2))
    assert black[0].abs().max() == 0


def test_types_and_scalings() -> None:
    spec = PreprocessSpec(background=0.0)
    byte = np.full((28, 28), 51, np.uint8)
    assert torch.allclose(
        preprocess([byte], spec), preprocess([byte.astype(np.uint16) * 257], spec)
    )
    assert torch.allclose(
        preprocess([byte], spec), preprocess([np.full((28, 28), 0.2, np.float32)], spec)
    )
    fixed = PreprocessSpec(background=0.0, scaling=(100.0, 200.0))
    assert torch.allclose(preprocess([np.full((28, 28), 150, np.uint16)], fixed), torch.tensor(0.5))
    ramp = np.arange(784, dtype=np.float32).reshape(28, 28)
    stretched = preprocess([ramp], PreprocessSpec(scaling=("percentiles", 0.0, 100.0)))
    assert stretched.min() == 0
    assert stretched.max() == 1


def test_colour_into_a_grey_model_is_luminance_and_other_counts_are_refused() -> None:
    red = np.zeros((28, 28, 3), np.uint8)
    red[..., 0] = 255
    assert torch.allclose(preprocess([red], PreprocessSpec()), torch.tensor(0.299))
    with pytest.raises(ChannelError, match="the image has 1 channel, the model takes 3"):
        preprocess([red[..., 0]], PreprocessSpec(channels=3))
    with pytest.raises(ChannelError, match="the image has 2 channels, the model takes 1"):
        preprocess([red[..., :2]], PreprocessSpec())


def test_a_batch_of_mixed_sizes_is_each_image_by_itself(many_sizes: list[np.ndarray]) -> None:
    spec = PreprocessSpec()
    batch = preprocess(many_sizes, spec)
    for i in range(0, 500, 37):
        assert torch.allclose(batch[i], preprocess([many_sizes[i]], spec)[0], atol=1e-6)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="version 2 is unknown"):
        PreprocessSpec.from_dict(PreprocessSpec(version=2).as_dict())


@pytest.mark.parametrize("background", ["border", 0.0, 0.5])
@pytest.mark.parametrize("fit", ["resize", "crop", "native"])
@pytest.mark.parametrize("shape", [(256, 256), (28, 28), (31, 40), (200, 121), (3, 3)])
def test_colour_for_a_grey_model_is_the_luminance_resampled(
    shape: tuple[int, int], fit: str, background: object
) -> None:
    spec = PreprocessSpec(fit=fit, background=background)  # type: ignore[arg-type]
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    expected = resample(to_planes(images, spec), spec)
    found = preprocess(list(images), spec)
    assert float((found - expected).abs().max()) < 1e-6
    assert float(found.std()) > 0.01
    turned = preprocess([np.rot90(image[:, ::-1]) for image in images], spec)
    assert float((turned - torch.rot90(found.flip(-1), 1, (-2, -1))).abs().max()) < 1e-6


SPECS = [
    PreprocessSpec(channels=channels, fit=fit, background=background)
    for channels in (1, 3)
    for fit in ("resize", "crop", "native")
    for background in ("border", 0.3)
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.channels}-{s.fit}-{s.background}")
@pytest.mark.parametrize("shape", [(256, 256, 3), (100, 77, 3), (3, 400, 3), (256, 201), (31, 33)])
@pytest.mark.parametrize("by_code", [True, False])
def test_bytes_are_resampled_as_planes_are(
    spec: PreprocessSpec, shape: tuple[int, ...], by_code: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spec.channels == 3 and len(shape) == 2:
        return
    if not by_code:
        monkeypatch.setattr(weighted_rows, "lanes", lambda: 0)
    weighted_rows._function.cache_clear()
    images = np.random.default_rng(4).integers(0, 256, (15, *shape), np.uint8)
    found = preprocess(list(images), spec)
    long = int(np.prod(shape[1:])) >= weighted_rows.VECTORS * machine.lanes() > 0
    assert (weighted_rows._function.cache_info().currsize > 0) == (by_code and long)
    weighted_rows._function.cache_clear()
    expected = resample(to_planes(images, spec), spec)
    assert float((found - expected).abs().max()) < 3e-6
    assert float(found.std()) > 0.0


def test_a_view_of_other_memory_is_resampled_as_its_copy() -> None:
    image = np.random.default_rng(5).integers(0, 256, (120, 90, 3), np.uint8)
    spec = PreprocessSpec()
    for view in (image[::-1], image[:, ::-1], image.transpose(1, 0, 2), image[10:90:2]):
        assert torch.equal(preprocess([view], spec), preprocess([view.copy()], spec))


def test_rows_of_other_arrays_are_refused() -> None:
    rows = weighted_rows.RowWeights(resampling_matrix(120, 120, 28))
    image = np.zeros((120, 100), np.uint8)
    assert rows.of([image, image]).shape == (2, 28, 100)
    for wrong in (image[:-1], image[:, :-1], image.astype(np.float32)):
        with pytest.raises(ValueError, match="images of bytes of shape"):
            rows.of([image, wrong])
