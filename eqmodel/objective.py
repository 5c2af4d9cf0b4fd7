"""The loss of a training as a module: images -> two views -> reconstruction and consistency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.copies import CopiesDecoder, CopiesEncoder, quarter_group
from eqmodel.devices import computes_bfloat16
from eqmodel.errors import Refused
from eqmodel.losses import OrbitConsistency, entropy, reconstruction
from eqmodel.readouts import Readout, readout
from eqmodel.views import JITTERS, random_views

ENTROPY = 0.1  # weight of the entropy of attention weights


class Trunk(nn.Module):
    """The part of a model that is trained: images -> codes -> images.

    Where turned copies are not mixed, that is the network of one copy: views lie at random angles
    anyway, so a copy of one is a view like any other, and D12 trains in a third of its time.
    """

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model, self.group = model, model.group
        self.alone = isinstance(model.encoder, CopiesEncoder) and not model.config.mixing
        if self.alone:
            self.group = quarter_group(model.group)
            if model.attention is not None:
                raise Refused("readout attention needs turned copies that are mixed")

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, order, m)."""
        encoder = self.model.encoder
        if self.alone and isinstance(encoder, CopiesEncoder):
            images = encoder.base(encoder.copies.framed(images))
            return images
        codes: Tensor = encoder(images)
        return codes

    def decode(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, order, m) -> images (B, C, S, S) and, with attention, its weights (B, order)."""
        decoder, attention = self.model.decoder, self.model.attention
        if self.alone and isinstance(decoder, CopiesDecoder):
            return decoder.copies.cut(decoder.base(codes)), None
        if attention is None:
            return decoder(codes), None
        compressed, weights = attention(codes)
        return decoder(attention.expand(compressed, weights)), weights

    def read(self) -> Readout:
        """The readout of its codes."""
        config = self.model.config
        return readout(config.readout, self.group, self.model.attention, config.correlations)


class Objective(nn.Module):
    """A batch of images -> two random views of each -> the loss."""

    def __init__(
        self,
        architecture: AutoencoderConfig,
        weights: tuple[float, float],
        *,
        reconstructed: float = 1.0,
        views: str = "mild",
        loss: str = "contrast",
        bfloat16: bool = False,
    ) -> None:
        """``weights``: of consistency and of reconstruction. ``reconstructed``: the share of the
        first views that is decoded. ``views``: one of JITTERS. ``loss``: one of CONSISTENCY_LOSSES.
        ``bfloat16``: convolutions in bfloat16, on devices that compute in it.
        """
        super().__init__()
        self.trunk = Trunk(Autoencoder(architecture))
        self.weights, self.reconstructed, self.reduced = weights, reconstructed, bfloat16
        if views not in JITTERS:
            raise Refused(f"'{views}' are no views; use {' or '.join(JITTERS)}")
        self.jitter = JITTERS[views]
        self.readout = self.trunk.read()
        self.consistency: OrbitConsistency | None = None
        if weights[0]:
            with torch.no_grad():
                zeros = torch.zeros(1, self.trunk.group.order, architecture.features)
                self.consistency = OrbitConsistency(self.readout(zeros).shape[1], loss)

    @property
    def model(self) -> Autoencoder:
        return self.trunk.model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> a scalar."""
        mirrored = self.model.group.mirrored
        views = [random_views(images, mirrored, self.jitter)]
        if self.consistency is not None:
            views.append(random_views(images, mirrored, self.jitter))
        drawn = max(1, round(self.reconstructed * len(images)))
        reduced = self.reduced and computes_bfloat16(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
            codes = self.trunk.encode(torch.cat(views))
            decoded, attention = self.trunk.decode(codes[:drawn])
        loss = self.weights[1] * reconstruction(views[0][:drawn], decoded)
        if attention is not None:
            loss = loss + ENTROPY * entropy(attention.float())
        if self.consistency is not None:
            features = self.readout(codes.float())
            with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced):
                loss = loss + self.weights[0] * self.consistency(*features.chunk(2))
        return loss
