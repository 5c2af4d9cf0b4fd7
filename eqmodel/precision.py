"""The encoder in bfloat16: another model, with an identity of its own, for processors that have it.

Codes are turned back to float32 for readout and projection. Rounding is then 2^-9 in every layer,
so the promise weakens; by how much is measured when such a checkpoint is made, and stands in its
card. Faster only where the processor or GPU multiplies bfloat16 (avx512_bf16, amx, CUDA).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as from_bytes
from torch import Tensor

from eqmodel import checkpoint
from eqmodel.actions import border_background, rotate, turn_tensor
from eqmodel.embedder import Embedder, assemble
from eqmodel.errors import Refused

MAX_INVARIANCE_ERROR = 1e-3
ANGLES = 16  # free turns of each golden image, on which the error is measured too


def in_bf16(folder: Path, out: Path, *, allow_inexact: bool = False) -> dict[str, Any]:
    """Write the checkpoint in ``folder`` to ``out`` with a bfloat16 encoder; returns its document.

    Its invariance error after projection, on the golden images and free turns of them, is measured
    and put into the card. Raises Refused above 1e-3 unless ``allow_inexact``.
    """
    document = checkpoint.read_card(folder)
    tensors = from_bytes(checkpoint.checked_tensors(folder, document))
    embedder = Embedder(*assemble(document, tensors), precision="bf16")
    golden = list(tensors["golden.images"].numpy())
    error = invariance_error(embedder, embedder.preprocess(golden))
    if error > MAX_INVARIANCE_ERROR and not allow_inexact:
        raise Refused(
            f"{folder} in bfloat16 has an invariance error of {error:.1e}, at most "
            f"{MAX_INVARIANCE_ERROR:.0e} is expected; use --precision float32, or --allow-inexact"
        )
    tensors["golden.embeddings"] = torch.from_numpy(embedder.embed(golden))
    card = {**document["card"], "recommended": False, "invariance_error": error}
    card["name"] = f"{card['name']}-bf16" if card.get("name") else None
    kept = {key: value for key, value in document.items() if key not in WRITTEN_ANEW}
    return checkpoint.save(out, tensors, {**kept, "precision": "bf16", "card": card})


WRITTEN_ANEW = ("format_version", "model_id", "tensors_sha256", "precision", "card")


def invariance_error(embedder: Embedder, inputs: Tensor) -> float:
    """Largest distance of embeddings under the group's quarter turns and mirrors, over the inputs
    (B, C, S, S) and ``ANGLES`` free turns of each.
    """
    angles = torch.arange(ANGLES).repeat_interleave(len(inputs)) * (360.0 / ANGLES)
    many = inputs.repeat(ANGLES, 1, 1, 1)
    turned = rotate(many, angles, border_background(many))
    group, (original, _) = embedder.group, embedder.encode(turned)
    errors = [
        float(np.linalg.norm(embedder.encode(turn_tensor(turned, group, g))[0] - original, axis=1)
              .max(initial=0.0))
        for g in group.exact
    ]  # fmt: skip
    return max(errors)
