"""What frozen embeddings are worth: probes that see labels, clusterings that do not.

The readings of Kuzminykh et al. (ACML 2018) and of later work; see eqmodel/DESIGN.md. No label is
used to train or to select a representation. The protocols with their draws: eqmodel/protocols/.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.protocols import clusterings, probes
from eqmodel.protocols.clusterings import purity

Embeddings = NDArray[np.floating]
Labels = NDArray[Any]


def evaluate(
    train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels, *, seed: int = 0
) -> dict[str, float]:
    """Readings of embeddings (N, d) with labels (N,): shares of 1.

    Embeddings are rounded to float16 first, as they are stored. Multinomial logistic regression, a
    small neural network and 5 nearest neighbours fitted on ``train``; K-means and a Gaussian
    mixture with as many clusters as there are labels on ``test``: purity, Hungarian accuracy, NMI,
    ARI.
    """
    fitted, tested = probes.as_stored(train), probes.as_stored(test)
    arguments = (fitted, train_labels, tested, test_labels)
    return {
        "logistic_regression": probes.logistic_regression(*arguments),
        "neural_network": probes.neural_network(*arguments, seed),
        "nearest_neighbours_5": probes.nearest_neighbours(*arguments),
        **clusterings.clusterings(tested, test_labels, seed),
    }


__all__ = ["evaluate", "purity"]
