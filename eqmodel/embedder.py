"""The trained model in use: images in, one embedding per orbit out."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from eqmodel import checkpoint
from eqmodel.actions import best_pose
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.compiled import compiled
from eqmodel.copies import CopiesEncoder
from eqmodel.devices import full_float32
from eqmodel.errors import CheckpointError, Refused
from eqmodel.frozen import frozen, in_precision
from eqmodel.frozen_head import FrozenGram, FrozenHead
from eqmodel.groups import FiniteGroup
from eqmodel.irreps_frozen import IrrepEncoder
from eqmodel.machine import lanes
from eqmodel.preprocess import PreprocessSpec, check_channels, preprocess, scaled, unscaled
from eqmodel.projection import Projection
from eqmodel.readouts import readout
from eqmodel.transfer import parts_on

POSE_FEATURES = 8
MAX_DRIFT = {"float32": 1e-4, "bf16": 2e-2}  # processors sum bfloat16 each in its own way
BATCH = 256  # images encoded at once
GPU_BATCH, GPU_BATCH_OF_COPIES = 4096, 1024
"""The same on a GPU, and there of a group with other turns, which encodes each image in several
copies: d12-28-grey on an H200 did 297,635 images/s by 1,024 and 234,575 by 4,096."""

Images = Sequence[NDArray[Any]]


class Embedder:
    """One checkpoint, ready to embed.

    Rounding stays below 1e-5 of the embedding under every quarter turn and mirror of the group:
    measured, and refused by the gate that ends training (finishing.py).
    """

    def __init__(
        self,
        model: Autoencoder,
        spec: PreprocessSpec,
        projection: Projection,
        pose: Tensor,
        precision: str = "float32",
    ) -> None:
        """``pose`` (features, 8): the map from codes to pose codes. ``precision`` of the encoder:
        float32 or bf16.
        """
        self.model, self.spec, self.projection, self.pose = (
            model.eval(),
            spec,
            projection.eval(),
            pose,
        )
        self.group: FiniteGroup = model.group
        self.frozen = in_precision(frozen(model.encoder), precision)
        self.device, self.compiled = "cpu", False
        self.dim = projection.dim
        self.image_size, self.channels = spec.image_size, spec.channels
        self.readout = model.config.readout
        self.precision = precision
        self.model_id, self.name, self.folder = "", None, Path()
        self.card: dict[str, Any] = {}
        self.head = copy.deepcopy(model.attention).double() if model.attention is not None else None
        part = model.config.correlations
        self._readout = readout(self.readout, self.group, self.head, part)
        gram = self.readout == "gram"
        self.finish = FrozenHead(
            FrozenGram(self.group, part, model.config.features, projection.keep)
            if gram
            else self._readout,
            projection,
        ).eval()

    model_id: str
    name: str | None
    folder: Path

    @classmethod
    def load(
        cls, where: str | os.PathLike[str], *, device: str = "cpu", verify: bool = True
    ) -> Embedder:
        """Load a checkpoint by shipped name or local path.

        The digest is checked before anything is read; shapes against the architecture; and the 8
        golden images are embedded again and must agree to 1e-4. Raises CheckpointError.
        """
        folder = checkpoint.resolve(where)
        document = checkpoint.read_card(folder)
        content = checkpoint.checked_tensors(folder, document)
        try:
            tensors = from_bytes(content)
            embedder = cls(*assemble(document, tensors), document["precision"])
        except (SafetensorError, Refused, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{folder} does not hold the model that it describes: {reason}"
            ) from error
        embedder.model_id, embedder.folder = document["model_id"], folder
        embedder.card = document.get("card", {})
        embedder.name = embedder.card.get("name")
        embedder.to(device)
        if checkpoint.model_id(tensors, document) != embedder.model_id:
            raise CheckpointError(
                f"{folder} has another model_id than its contents; copy the checkpoint again"
            )
        if verify:
            embedder.check_golden(tensors)
        return embedder

    def to(self, device: str) -> Embedder:
        """Move encoder, readout and projection to a torch device."""
        self.device = device
        for module in (self.frozen, self.finish, self.projection, self.head, self.model):
            if module is not None:
                module.to(device)
        self.pose = self.pose.to(device)
        return self

    def compile(self) -> None:
        """Encode through torch.compile from now on, on CPUs. Refused where no compiler is found.

        Nothing changes where the encoder runs by machine code of its own, which is faster.
        """
        if self.device != "cpu":
            raise Refused(f"--compile is for CPUs, the model is on {self.device}; leave it out")
        copies = self.frozen if isinstance(self.frozen, CopiesEncoder) else None
        encoder = self.frozen if copies is None else copies.base
        if lanes() and isinstance(encoder, IrrepEncoder):
            return
        if copies is None:
            self.frozen = compiled(encoder)
        else:
            copies.base = compiled(encoder)
        self.compiled = True

    def check_golden(self, tensors: dict[str, Tensor]) -> None:
        """Raise CheckpointError when the golden images no longer give the embeddings recorded."""
        images = list(tensors["golden.images"].numpy())
        drift = float(np.abs(self.embed(images) - tensors["golden.embeddings"].numpy()).max())
        allowed = MAX_DRIFT[self.precision]
        if not drift <= allowed:
            raise CheckpointError(
                f"the golden images of {self.folder} embed {drift:.1e} away from what was "
                "recorded (at most "
                f"{allowed:.0e}): a library computes otherwise here; install the pinned versions"
            )

    def accepts(self, image: NDArray[Any]) -> None:
        """Raises ChannelError when the image's channels do not fit the model."""
        check_channels(image, self.channels)

    def preprocess(self, images: Images) -> Tensor:
        """Images (H, W) or (H, W, C), uint8, uint16 or float32, any sizes -> (B, C, S, S)
        float32.
        """
        return preprocess(images, self.spec)

    def model_input(self, images: Images) -> Tensor:
        """The same, for ``encode`` alone: to a GPU what needs no resampling goes as uint8."""
        found = unscaled(images, self.spec) if self.device != "cpu" else None
        return self.preprocess(images) if found is None else found

    @torch.inference_mode()
    def encode(self, batch: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """(B, C, S, S), float32 or as ``model_input`` has it -> embeddings (B, d) float32,
        L2-normalised, and pose codes (B, order * 8) int8.
        """
        parts = []
        for part in parts_on(self.device, batch, self.batch_size):
            codes = self.codes_of(part)
            parts.append((self.project(codes).float(), self.quantised_pose(codes)))
        if not parts:
            return np.empty((0, self.dim), np.float32), np.empty(
                (0, self.group.order * POSE_FEATURES), np.int8
            )
        # Fetched when all are under way: a GPU that is waited for after each part idles between.
        embeddings, poses = (
            torch.cat(list(column)).cpu().numpy() for column in zip(*parts, strict=True)
        )
        return embeddings, poses

    @property
    def batch_size(self) -> int:
        """How many images are encoded at once."""
        if self.device == "cpu":
            return BATCH
        return GPU_BATCH if self.group.n <= 4 else GPU_BATCH_OF_COPIES

    def codes_of(self, batch: Tensor) -> Tensor:
        """(B, C, S, S) on any device -> codes (B, order, m) float32 on the embedder's."""
        with full_float32(self.device):
            codes: Tensor = self.frozen(scaled(batch.to(self.device)))
        return codes

    def project(self, codes: Tensor) -> Tensor:
        """Codes (B, order, m) -> embeddings (B, d) float64."""
        out: Tensor = self.finish(codes)
        return out

    @torch.inference_mode()
    def coordinates(self, batch: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, K) float64: the projection's coordinates, before head and norm."""
        return self.finish.coordinates(self.codes_of(batch)).double().cpu()

    def readout_of(self, codes: Tensor) -> Tensor:
        """Codes (B, order, m) -> invariant features (B, F) float64, before the projection."""
        return self._readout(codes.double())

    def quantised_pose(self, codes: Tensor) -> Tensor:
        """(B, order, m) -> (B, order * 8) int8: what varies along the group, in 8 directions."""
        varying = (codes - codes.mean(1, keepdim=True)) @ self.pose
        largest = varying.flatten(1).abs().amax(1).clamp_min(1e-12)
        return torch.round(varying.flatten(1) * (127.0 / largest[:, None])).to(torch.int8)

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Images of any sizes -> (B, d) float32, L2-normalised. Raises ChannelError."""
        return self.encode(self.model_input(images))[0]

    @torch.inference_mode()
    def codes(self, images: Images) -> NDArray[np.float32]:
        """Images -> code matrices (B, order, m) float32."""
        batch = self.preprocess(images)
        parts = parts_on(self.device, batch, self.batch_size)
        return torch.cat([self.codes_of(part).cpu() for part in parts]).numpy()

    def pose_codes(self, images: Images) -> NDArray[np.int8]:
        """Images -> (B, order * 8) int8, enough to align two images without their pixels."""
        return self.encode(self.model_input(images))[1]

    def align(self, query: NDArray[Any], hit: NDArray[Any]) -> tuple[int, int]:
        """The element (m, k) of the group with query = g(hit), as well as the codes can tell."""
        codes = self.pose_codes([query, hit])
        return self.group.elements[int(best_pose(codes[0], codes[1:], self.group)[0])]


def assemble(
    document: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[Autoencoder, PreprocessSpec, Projection, Tensor]:
    """The parts of an Embedder from a checkpoint; ValueError or RuntimeError where a shape does
    not fit.
    """
    config = AutoencoderConfig(**document["architecture"])
    spec = PreprocessSpec.from_dict(document["preprocess"])
    if (spec.image_size, spec.channels) != (config.image_size, config.channels):
        raise CheckpointError("the checkpoint's preprocessing does not fit its architecture")
    model = Autoencoder(config)
    weights = under(tensors, "model.")
    if any(not torch.isfinite(value).all() for value in weights.values()):
        raise CheckpointError("the checkpoint holds weights that are not finite numbers")
    model.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in weights.items()
        }
    )
    fitted = under(tensors, "projection.")
    shape = document["projection"]
    names = ("coordinates", "linear", "kinds", "kinds_dim")
    projection = Projection(len(fitted["keep"]), *(shape[name] for name in names))
    projection.load_state_dict(fitted)
    if tensors["pose"].shape != (config.features, POSE_FEATURES):
        raise CheckpointError("the checkpoint's map to pose codes does not fit its architecture")
    return model, spec, projection, tensors["pose"].float()


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def describe(
    model: Autoencoder, spec: PreprocessSpec, projection: dict[str, Any]
) -> dict[str, Any]:
    """The part of model.json that fixes what an embedding is."""
    return {
        "architecture": asdict(model.config),
        "preprocess": spec.as_dict(),
        "projection": projection,
        "precision": "float32",
    }
