"""Readings of embeddings whose worth is known."""

import numpy as np

from eqmodel import evaluate
from eqmodel.evaluation import purity


def blobs(seed: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 50)
    centres = np.eye(4, 8) * shift
    return (centres[labels] + generator.normal(size=(200, 8))).astype(np.float32), labels


def test_separate_labels_are_read_and_noise_is_not() -> None:
    apart = evaluate(*blobs(0, 20.0), *blobs(1, 20.0))
    assert min(apart.values()) > 0.99
    mixed = evaluate(*blobs(0, 0.0), *blobs(1, 0.0))
    assert mixed["logistic_regression"] < 0.4
    assert mixed["kmeans_nmi"] < 0.1


def test_purity() -> None:
    assert purity(np.array([0, 0, 0, 1]), np.array(["a", "a", "b", "b"])) == 0.75
