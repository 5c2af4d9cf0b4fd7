"""What the model keeps of the user's images: some of them beside what its decoder draws again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.index import Rows

if TYPE_CHECKING:
    from eqmodel import Embedder

EXAMPLES = 8


@dataclass(frozen=True)
class Redrawn:
    """``section`` is report.json's; ``pairs``: for each of its examples what the model was given
    and what it drew, (S, S) or (S, S, C) uint8."""

    section: Mapping[str, Any]
    pairs: tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...]


def redraw(embedder: Embedder, rows: Rows, found: Mapping[int, NDArray[Any]]) -> Redrawn:
    """Reconstruct decoded images (row number -> pixels, at least one); examples from the best to
    the worst."""
    from eqmodel.reconstruction import reconstruct

    numbers = list(found)
    made = reconstruct(embedder, list(found.values()))
    order = np.argsort(made.errors, kind="stable")
    picks = np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int))
    shown = order[picks].tolist()
    named = rows.records([numbers[i] for i in shown], ["source", "key", "image_id"])
    trained = (embedder.card.get("reconstruction_error") or [None])[-1]
    section = {
        "num_images": len(numbers),
        "error": round(made.error, 6),
        "trained_error": trained,
        "ratio": round(made.error / trained, 4) if trained else None,
        "examples": [
            {**record, "image_id": str(record["image_id"]), "error": round(float(error), 6)}
            for record, error in zip(named, made.errors[shown], strict=True)
        ],
    }
    pairs = tuple(_pixels(made.inputs[i], made.drawn[i]) for i in shown)
    return Redrawn(section, pairs)


def _pixels(
    given: NDArray[np.float32], drawn: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both (C, S, S) as pixels, stretched alike."""
    low, high = float(given.min()), float(given.max())
    scale = 255.0 / max(high - low, 1e-6)
    turned = [np.moveaxis(image, 0, -1) for image in (given, drawn)]
    made = [np.clip((image - low) * scale, 0, 255).round().astype(np.uint8) for image in turned]
    return made[0], made[1]
