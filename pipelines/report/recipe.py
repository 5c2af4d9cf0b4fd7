"""The model that a report is of: what it is, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eqmodel.checkpoint import shipped

if TYPE_CHECKING:
    from eqmodel import Embedder

_CARD = ("description", "trained_on", "num_train_images", "num_parameters", "epochs", "train_s")


def described(embedder: Embedder) -> dict[str, Any]:
    """Name, group, sizes and training of a loaded model; None where its card does not tell."""
    names = [entry["name"] for entry in shipped() if entry["model_id"] == embedder.model_id]
    return {
        "name": embedder.name or (names[0] if names else None),
        "group": embedder.group.name,
        "readout": embedder.readout,
        "dim": embedder.dim,
        "image_size": embedder.image_size,
        "channels": embedder.channels,
        "precision": embedder.precision,
        **{name: embedder.card.get(name) for name in _CARD},
        "recipe": _plain(embedder.card.get("recipe") or {}),
    }


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are single values, as JSON has them; what is told elsewhere left out."""
    kinds, told = (str, int, float, bool), ("name", "description", "recommended")
    return {k: v for k, v in recipe.items() if isinstance(v, kinds) and k not in told}
