"""Probes: what a reader with labels finds in frozen embeddings. Fixed settings, nothing tuned.

A probe is fitted on the embeddings of the training images and tested on those of the test images.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Embeddings = NDArray[np.float32]
Labels = NDArray[Any]
NEIGHBOURS = 5
HIDDEN, EPOCHS, BATCH = 256, 20, 256
MAX_ITERATIONS = 400
CURVE_IMAGES = 20_000


def as_stored(embeddings: NDArray[np.floating]) -> Embeddings:
    """Rounded to float16, in which embeddings are stored, and back to float32."""
    return embeddings.astype(np.float16).astype(np.float32)


def standardised(train: Embeddings, test: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Both with the mean and standard deviation of ``train``; dead coordinates stay 0."""
    mean, scale = train.mean(0), train.std(0)
    scale[scale < 1e-6 * max(float(scale.max()), 1e-12)] = 1.0
    return (train - mean) / scale, (test - mean) / scale


def logistic_regression(
    train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels
) -> float:
    """Accuracy of multinomial logistic regression on standardised embeddings, L2 penalty C = 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, tested = standardised(train, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 400 steps are the setting
        probe = LogisticRegression(max_iter=MAX_ITERATIONS).fit(x, train_labels)
    return float(probe.score(tested, test_labels))


def neural_network(
    train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels, seed: int
) -> float:
    """Accuracy of one hidden layer of 256 rectified units, trained for 20 epochs with AdamW."""
    x, tested = map(torch.from_numpy, standardised(train, test))
    classes, y = np.unique(train_labels, return_inverse=True)
    target = torch.from_numpy(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(classes))
        )
        steps = EPOCHS * -(-len(x) // BATCH)
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(EPOCHS):
            for part in torch.randperm(len(x)).split(BATCH):
                loss = nn.functional.cross_entropy(network(x[part]), target[part])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                rate.step()
    with torch.no_grad():
        found = classes[network(tested).argmax(1).numpy()]
    return float((found == test_labels).mean())


def nearest_neighbours(
    train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels
) -> float:
    """Accuracy of the 5 nearest by cosine; a draw goes to the label with the higher scores."""
    classes, y = np.unique(train_labels, return_inverse=True)
    labels = torch.from_numpy(y)
    known = nn.functional.normalize(torch.from_numpy(train), dim=1)
    right = 0
    for start in range(0, len(test), 1000):
        block = nn.functional.normalize(torch.from_numpy(test[start : start + 1000]), dim=1)
        scores, nearest = (block @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(block), len(classes))
        votes.scatter_add_(1, labels[nearest], 1.0 + 1e-3 * scores)
        found = classes[votes.argmax(1).numpy()]
        right += int((found == test_labels[start : start + 1000]).sum())
    return right / len(test)


def explained_variance(embeddings: Embeddings) -> list[float]:
    """Share of the variance in the first 1, 2, ... principal components, up to 128 of them."""
    x = embeddings[:CURVE_IMAGES].astype(np.float64)
    x -= x.mean(0)
    product = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    values = np.linalg.eigvalsh(product)[::-1].clip(0.0)
    total = float(values.sum())
    if total <= 0.0:
        return [1.0]
    return [round(float(share), 6) for share in np.cumsum(values)[:128] / total]


def components_for(curve: list[float], share: float = 0.9) -> int | None:
    """How many principal components hold that share of the variance; None: more than listed."""
    return next((i for i, value in enumerate(curve, start=1) if value >= share - 1e-9), None)
