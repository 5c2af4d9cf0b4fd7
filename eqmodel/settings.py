"""What a training is told, and what follows from it: preprocessing, network and loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.autoencoder import AutoencoderConfig, fitting_size, sides
from eqmodel.errors import Refused
from eqmodel.objective import Objective
from eqmodel.peers import Peers
from eqmodel.preprocess import PreprocessSpec, channels_of
from eqmodel.projection import FLOOR


@dataclass(frozen=True)
class TrainConfig:
    """What a training uses. ``image_size`` and ``channels`` None: taken from the images.

    images_seen: how many images the training shows in all, whatever the size of the collection; it
    sets the epochs. correlations, mixing, padded: as in AutoencoderConfig; padded None: decided by
    what the images show outside their inner circle. views: how much the two views of an image
    differ (JITTERS). reconstructed: the share of each batch that is decoded.
    power, floor, orbits: of the projection; orbits "turned"
    fits it on free turns of the images, "jittered" on views as in training, "none" on the images
    alone: their principal components. kinds: the share of an
    embedding's squared norm that gathers neighbours into kinds (kinds.py). arch: "dense", or
    "octic" for speed (octic.py). learning_rate: of "dense"; see ``first_rate``.
    """

    group: str = "d4"
    readout: str = "gram"
    image_size: int | None = None
    channels: int | None = None
    width: int = 6
    features: int = 32
    dim: int = 128
    fit: str = "resize"
    background: float | str = "border"
    scaling: Any = "dtype"
    epochs: int = 10
    images_seen: int | None = None
    max_minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    consistency: float = 1.0
    consistency_loss: str = "contrast"
    reconstruction: float = 0.25
    patience: int = 3
    held_out: float = 0.02
    power: float = 0.25
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = False
    correlations: str = "quarter"
    mixing: bool = False
    padded: bool | None = None
    views: str = "strong"
    reconstructed: float = 0.5
    orbits: str = "turned"
    floor: float = FLOOR
    kinds: float = 0.3
    arch: str = "dense"
    name: str | None = None
    description: str = ""
    recommended: bool = False


# As multiples of the rate of "dense". Measured on mnist-rot, D12 and width 6, 5-NN of whitened
# readouts: octic after 70 seconds of a core 0.838 at the same rate, 0.861 at 2.5 times; after 120
# seconds 0.873 at 5 times, dense 0.878.
RATES = {"octic": 5.0}


def first_rate(config: TrainConfig) -> float:
    """The learning rate that the schedule starts from: an octic network has an eighth of the
    weights of a dense one, and takes larger steps.
    """
    return config.learning_rate * RATES.get(config.arch, 1.0)


def as_recorded(config: TrainConfig) -> dict[str, Any]:
    """The fields of a config, without an architecture that is the dense one: what was made before
    there was a choice is found again.
    """
    fields = asdict(config)
    if config.arch == "dense":
        del fields["arch"]
    return fields


def fitted_to(
    images: Sequence[NDArray[Any]],
    config: TrainConfig,
    peers: Peers = Peers(),  # noqa: B008 - frozen
) -> TrainConfig:
    """The config with image size, channels and epochs from the data where they were left open; all
    peers take the leader's.
    """
    if len(images) < 32:
        raise Refused(f"{len(images)} images are too few to train on; at least 32 are needed")
    if config.channels is None:
        counts = [channels_of(image) for image in images[:1000]]
        config = replace(config, channels=max(set(counts), key=counts.count))
    if config.image_size is None:
        median = float(np.median([max(image.shape[:2]) for image in images]))
        config = replace(config, image_size=fitting_size(median))
    if config.images_seen is not None:
        config = replace(
            config, epochs=max(1, round(config.images_seen / len(images) / peers.size))
        )
    if config.channels is None or not 1 <= config.channels <= 8:
        raise Refused(f"the images have {config.channels} channels; 1 to 8 are possible")
    sides(config.image_size or 0)
    return replace(
        config,
        image_size=int(peers.agreed(config.image_size or 0)),
        channels=int(peers.agreed(config.channels)),
        epochs=int(peers.agreed(config.epochs)),
    )


def preprocess_spec(config: TrainConfig) -> PreprocessSpec:
    """The preprocessing that the config asks for."""
    return PreprocessSpec(
        image_size=config.image_size or 28,
        channels=config.channels or 1,
        fit=config.fit,  # type: ignore[arg-type]
        background=config.background,  # type: ignore[arg-type]
        scaling=config.scaling,
    )


def architecture(config: TrainConfig) -> AutoencoderConfig:
    """The network that the config asks for."""
    return AutoencoderConfig(
        group=config.group,
        image_size=config.image_size or 28,
        channels=config.channels or 1,
        width=config.width,
        features=config.features,
        readout=config.readout,
        attention_dim=max(config.dim // 2, 1),
        correlations=config.correlations,
        mixing=config.mixing or config.readout == "attention",  # which weighs all copies at once
        padded=config.padded is not False,
        arch=config.arch,
    )


def objective_of(config: TrainConfig) -> Objective:
    """What the config asks to minimise."""
    return Objective(
        architecture(config),
        (config.consistency, config.reconstruction),
        reconstructed=config.reconstructed,
        views=config.views,
        loss=config.consistency_loss,
        bfloat16=config.bfloat16,
    )
