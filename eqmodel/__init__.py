"""Equivariant autoencoders and the one embedding per orbit that they give.

Public names: Embedder, train, evaluate, audit. They are loaded when first used, so that reading a
model's card does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqmodel.auditing import audit
    from eqmodel.embedder import Embedder
    from eqmodel.evaluation import evaluate
    from eqmodel.training import train

_HOME = {"Embedder": "embedder", "train": "training", "evaluate": "evaluation", "audit": "auditing"}

__all__ = ["Embedder", "audit", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eqmodel' has no attribute '{name}'")
    return getattr(import_module(f"eqmodel.{_HOME[name]}"), name)
