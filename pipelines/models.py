"""Checkpoints on the way: from a URL to this machine, into the store, and out of it again."""

from __future__ import annotations

from pathlib import Path

from eqmodel.checkpoint import CARD, TENSORS, read_card, resolve
from eqmodel.errors import CheckpointError, OrbitError
from pipelines.failures import DISK_FULL
from pipelines.storage import Folder

_FILES = (TENSORS, CARD)
"""The card last: a folder with a card is whole."""


def find_checkpoint(where: str, place: Path) -> Path:
    """The folder of a checkpoint given by shipped name, local path or URL (copied to ``place``).

    CheckpointError when there is none, or it cannot be fetched.
    """
    if "://" not in where:
        return resolve(where)
    url = where
    for name in _FILES:
        url = url.removesuffix(f"/{name}")
    return _copy(Folder(url), place)


def in_precision(folder: Path, precision: str, place: Path, allow_inexact: bool) -> Path:
    """The checkpoint itself, or, where another precision is asked for, one made of it in ``place``.

    Refused (exit 2) where its invariance error is too large.
    """
    if precision == read_card(folder)["precision"] or precision == "float32":
        return folder
    from eqmodel.precision import in_bf16

    made = place / "bf16"
    in_bf16(folder, made, allow_inexact=allow_inexact)
    return made


def model_id_of(folder: Path) -> str:
    """The model_id that a checkpoint's card states, without loading a weight."""
    return str(read_card(folder)["model_id"])


def keep_copy(store: Folder, model_id: str, folder: Path) -> None:
    """Put the checkpoint into the store unless it is there: a store can always embed a query."""
    kept = store.child(f"models/{model_id}")
    for name in _FILES:
        if kept.stat(name) is None:
            kept.upload(folder / name, name)


def checkpoint_of_store(store: Folder, model_id: str, place: Path) -> Path:
    """Copy the store's own checkpoint of ``model_id`` to ``place``."""
    return _copy(store.child(f"models/{model_id}"), place)


def _copy(source: Folder, place: Path) -> Path:
    for name in _FILES:
        try:
            source.download(name, place / name)
        except (OrbitError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # says nothing against the checkpoint
            raise CheckpointError(
                f"{source.url}: {name} cannot be fetched ({error}); a checkpoint is a folder "
                f"with {TENSORS} and {CARD}"
            ) from error
    return place
