"""What clusters and neighbours are worth against labels, where there are labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pipelines.clusters.types import Ints

NEIGHBOURS = 5


def agreement(
    assigned: Ints, labels: Sequence[str | None], neighbours: Ints | None
) -> dict[str, float] | None:
    """NMI, ARI, purity and 5-NN accuracy over the labelled rows; None with fewer than two.

    Images in no cluster count as one cluster more, so that leaving them out is no way to shine.
    """
    known = np.array([label is not None for label in labels], bool)
    if known.sum() < 2:
        return None
    names, numbers = np.unique([label or "" for label in labels], return_inverse=True)
    mine, theirs = np.unique(assigned[known], return_inverse=True)[1], numbers[known]
    mix = np.zeros((int(mine.max()) + 1, len(names)), np.int64)
    np.add.at(mix, (mine, theirs), 1)
    found = {
        "num_labelled": int(known.sum()),
        "num_labels": len(np.unique(theirs)),
        "nmi": round(float(normalized_mutual_info_score(theirs, mine)), 4),
        "ari": round(float(adjusted_rand_score(theirs, mine)), 4),
        "purity": round(float(mix.max(1).sum() / known.sum()), 4),
    }
    accuracy = _neighbour_accuracy(numbers, known, neighbours, len(names))
    return found if accuracy is None else found | {"knn5_accuracy": accuracy}


def label_mix(labels: Sequence[str | None]) -> tuple[tuple[str, int], ...]:
    """Labels with their counts, most frequent first."""
    names, counts = np.unique([label for label in labels if label is not None], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple((str(names[i]), int(counts[i])) for i in order)


def _neighbour_accuracy(
    numbers: Ints, known: NDArray[np.bool_], neighbours: Ints | None, num_labels: int
) -> float | None:
    if neighbours is None or neighbours.shape[1] < 1:
        return None
    rows = np.flatnonzero(known)
    near = neighbours[rows, :NEIGHBOURS]
    usable = (near >= 0) & known[np.maximum(near, 0)]
    right = 0
    # In pieces: rows times labels would be gigabytes for a million images with 1,000 labels.
    piece = max(1, 4_000_000 // num_labels)
    for start in range(0, len(rows), piece):
        part = slice(start, start + piece)
        votes = np.zeros((len(rows[part]), num_labels), np.float32)
        # Nearer ones win a tie: each vote weighs a little less than the one before.
        for place in range(near.shape[1]):
            good = np.flatnonzero(usable[part, place])
            votes[good, numbers[near[part][good, place]]] += 1.0 - 0.01 * place
        right += int((votes.argmax(1) == numbers[rows[part]]).sum())
    return round(right / len(rows), 4)
