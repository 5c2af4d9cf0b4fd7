"""Readings of embeddings whose worth is known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eqmodel.protocols import clusterings, probes, turning
from eqmodel.protocols.results import Result, Row

Blobs = tuple[np.ndarray, np.ndarray]


def blobs(seed: int, count: int = 400) -> Blobs:
    """Five groups that stand well apart on the sphere of 12 dimensions."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, count)
    points = np.eye(5, 12)[labels] * 4 + generator.normal(size=(count, 12)) * 0.4
    return points.astype(np.float32), labels


def test_probes_find_what_is_there_and_not_what_is_not() -> None:
    train, test = blobs(0), blobs(1)
    noise = np.random.default_rng(2).permutation(train[1])
    for probe in (
        probes.logistic_regression,
        probes.nearest_neighbours,
        lambda *arguments: probes.neural_network(*arguments, 0),
    ):
        assert probe(*train, *test) > 0.99
        assert probe(train[0], noise, *test) < 0.5


def test_nearest_neighbours_are_by_cosine_and_by_majority() -> None:
    angles = np.radians([0, 40, 41, 42, 50, 170])  # the nearest is outvoted by three
    known = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    known *= np.array([0.01, 1, 9, 5, 2, 1], np.float32)[:, None]  # lengths count for nothing
    labels = np.array([4, 7, 7, 7, 4, 4])
    asked = np.array([[0.1, 0.0], [-9.0, 0.0]], np.float32)
    assert probes.nearest_neighbours(known, labels, asked, np.array([7, 7])) == 1.0
    one = probes.nearest_neighbours(known[:2], labels[:2], asked[:1], np.array([4]))
    assert one == 1.0  # a draw of one against one goes to the nearer


def test_embeddings_are_read_as_they_are_stored() -> None:
    values = np.array([[0.1, 1e-9, 1.0 + 1e-5]], np.float32)
    assert probes.as_stored(values).tolist() == [[float(np.float16(0.1)), 0.0, 1.0]]
    assert probes.as_stored(values).dtype == np.float32


def test_a_neural_network_leaves_the_random_state_alone() -> None:
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = probes.neural_network(*blobs(0, 60), *blobs(1, 60), 0)
    assert torch.equal(torch.rand(1), expected)
    assert probes.neural_network(*blobs(0, 60), *blobs(1, 60), 0) == first


def test_purity_and_hungarian_accuracy() -> None:
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    labels = np.array(list("aabbabbb"))
    assert clusterings.purity(clusters, labels) == 6 / 8
    assert clusterings.hungarian(clusters, labels) == 5 / 8  # b is given to cluster 2 alone


def test_clusterings_find_separate_groups() -> None:
    found = clusterings.clusterings(*blobs(0), 0)
    assert min(value for name, value in found.items()) > 0.95
    points, labels = blobs(0)
    mixed = clusterings.clusterings(points, np.random.default_rng(0).permutation(labels), 0)
    assert mixed["kmeans_nmi"] < 0.1
    assert mixed["gmm_ari"] < 0.1


def test_explained_variance_of_known_spreads() -> None:
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(4000, 4)) * [3.0, 2.0, 1.0, 0.0]).astype(np.float32) + 5.0
    curve = probes.explained_variance(x)
    assert curve == pytest.approx([9 / 14, 13 / 14, 1.0, 1.0], abs=0.02)
    assert probes.components_for(curve) == 2
    assert probes.components_for(curve, 0.99) == 3
    assert probes.components_for([0.5]) is None
    few = probes.explained_variance(x[:3])
    assert few[1] == pytest.approx(1.0, abs=1e-5)
    assert probes.explained_variance(np.ones((5, 2), np.float32)) == [1.0]


def test_turning_errors_of_maps_that_are_known(clothes: list[np.ndarray]) -> None:
    images = np.stack(clothes[:20])

    def mean(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1).astype(np.float32)
        return flat.mean(1, keepdims=True) / (255.0 if x.dtype == np.uint8 else 1.0)

    def corner(x: np.ndarray) -> np.ndarray:
        return np.stack([x[:, :14].sum((1, 2)), x[:, 14:].sum((1, 2))], 1).astype(np.float32)

    steady = turning.turning_errors(mean, images)
    assert steady["turn_90_error"] < 1e-6
    assert steady["mirror_error"] < 1e-6
    assert 1e-4 < steady["turn_30_error"] < 0.2
    moving = turning.turning_errors(corner, images)
    assert moving["turn_90_error"] > 0.05
    assert moving["mirror_error"] < 1e-6  # left and right changed places, up and down did not


def test_figures_are_pictures(tmp_path: Path) -> None:
    figures = pytest.importorskip("eqmodel.protocols.figures")
    points, labels = blobs(0, 120)
    figures.manifold(points, labels, "abcde", tmp_path / "new" / "manifold.png", "blobs")
    curves = {"readout": [0.5, 0.95, 1.0], "embedding": [0.4, 0.8, 1.0]}
    result = Result(
        "mnist-rot", "mine", "label-free", 0, None, "x", 1, 1, "y", None, None, {}, curves, {}
    )
    figures.explained_variance([Row((result,))], tmp_path / "variance.png", "mnist-rot")
    for path in (tmp_path / "new" / "manifold.png", tmp_path / "variance.png"):
        with Image.open(path) as picture:
            assert picture.size[0] == 1760
            assert len(picture.convert("RGB").getcolors(1 << 22) or []) > 20
    assert len(list(tmp_path.rglob("*.png"))) == 2
