"""A checkpoint: a folder with model.safetensors and model.json; nothing in it can run code.

model.json holds architecture, preprocessing, projection and provenance, and the digest of the
tensors, which is checked before they are read. Reading model.json alone needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from eqmodel.errors import CheckpointError

FORMAT_VERSION = 2
TENSORS, CARD = "model.safetensors", "model.json"
MAX_CARD_BYTES = 4 << 20
MAX_TENSOR_BYTES = 2 << 30
MAX_HEADER_BYTES = 8 << 20
SHIPPED = Path(__file__).parent / "checkpoints"
NEEDED = (
    "format_version",
    "model_id",
    "architecture",
    "preprocess",
    "projection",
    "precision",
    "tensors_sha256",
)


def resolve(where: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint given by shipped name or local path.

    Raises CheckpointError when there is none.
    """
    path = Path(where)
    if path.name in (TENSORS, CARD) and path.parent.joinpath(CARD).is_file():
        return path.parent
    if path.joinpath(CARD).is_file():
        return path
    name = str(where)
    named = [entry["folder"] for entry in shipped() if name in (entry["name"], entry["short_name"])]
    if named:
        return Path(named[-1])
    known = ", ".join(sorted({entry["short_name"] for entry in shipped()})) or "none"
    if path.exists():
        raise CheckpointError(
            f"'{where}' is not a checkpoint: a folder with {CARD} and {TENSORS} is expected; "
            f"train one, or use a shipped name ({known})"
        )
    raise CheckpointError(f"no model '{where}': neither a path nor a shipped name ({known})")


def read_card(folder: Path) -> dict[str, Any]:
    """model.json of a checkpoint's folder. Raises CheckpointError unless it is well formed."""
    path = folder / CARD
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise CheckpointError(
                f"{path} is larger than {MAX_CARD_BYTES} bytes: not a checkpoint of Orbit"
            )
        card = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} cannot be read as JSON; use a checkpoint made by 'orbit train'"
        ) from error
    if not isinstance(card, dict) or any(key not in card for key in NEEDED):
        raise CheckpointError(
            f"{path} lacks what a checkpoint needs; use one made by 'orbit train'"
        )
    if card["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {card['format_version']}, this program reads "
            f"{FORMAT_VERSION}; update Orbit"
        )
    return card


def checked_tensors(folder: Path, card: dict[str, Any]) -> bytes:
    """The bytes of model.safetensors, once size, digest and header length are found right."""
    path = folder / TENSORS
    try:
        size = path.stat().st_size
        if not 8 < size <= MAX_TENSOR_BYTES:
            raise CheckpointError(f"{path} has {size} bytes: not the tensors of a checkpoint")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: the checkpoint is incomplete") from error
    if hashlib.sha256(content).hexdigest() != card["tensors_sha256"]:
        raise CheckpointError(
            f"{path} does not have the digest that {CARD} records; copy the checkpoint again"
        )
    if struct.unpack("<Q", content[:8])[0] > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has an oversized header: refused")
    return content


def save(folder: Path, tensors: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint; returns the card with model_id and digest filled in.

    The tensors are written first and the card last, so that a folder with a card is whole.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    content = to_bytes({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    card = {
        "format_version": FORMAT_VERSION,
        **card,
        "model_id": model_id(tensors, card),
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }
    replace(folder / TENSORS, content)
    write_card(folder, card)
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write model.json; the part "card" may change without changing model_id."""
    replace(folder / CARD, (json.dumps(card, indent=1) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def model_id(tensors: dict[str, Any], card: dict[str, Any]) -> str:
    """16 hex digits of sha256 over canonical tensors, architecture, preprocessing, projection,
    precision.
    """
    digest = hashlib.sha256()
    fixed = {key: card[key] for key in ("architecture", "preprocess", "projection", "precision")}
    digest.update(json.dumps(fixed, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        if not name.startswith("golden."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def shipped() -> list[dict[str, Any]]:
    """The checkpoints that come with the program, the recommended one first, newest of a name
    last.
    """
    entries = []
    for folder in sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []:
        if not folder.joinpath(CARD).is_file():
            continue
        card = read_card(folder)
        entries.append(
            {
                "name": folder.name,
                "short_name": folder.name.rpartition("-")[0],
                "group": card["architecture"]["group"],
                "image_size": card["architecture"]["image_size"],
                "channels": card["architecture"]["channels"],
                "readout": card["architecture"]["readout"],
                "dim": card["projection"]["dim"],
                "model_id": card["model_id"],
                "recommended": bool(card["card"].get("recommended", False)),
                "description": card["card"].get("description", ""),
                "folder": str(folder),
            }
        )
    return sorted(entries, key=lambda entry: not entry["recommended"])
