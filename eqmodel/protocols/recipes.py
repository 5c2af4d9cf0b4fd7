"""The named trainings: one per published row, one recommended, and the pixels as they are.

The published rows follow Kuzminykh et al. (ACML 2018): reconstruction alone, no consistency term.
They see 200,000 images, or 60,000 and fewer where the group is D12 and a step takes three times as
long: sized for 12 minutes at most on two AVX-512 cores without bfloat16, and on a busy machine the
same row. The paper does not give the sizes of its codes; mean-d12, gram-d12 and attention-d4
have wider ones here, because narrow ones missed its linear readings. The recommended recipe sees
1.2 million images, where there are no mirrors 450,000 or, by a wider network on a GPU, 600,000; or
it stops after 8.5 minutes: seven trainings within an hour on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eqmodel.errors import Refused
from eqmodel.protocols.draws import Protocol
from eqmodel.training import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """How one row of a table is made. ``config`` None: the pixels themselves, nothing is trained.

    unmirrored: what is set otherwise on protocols without mirrors; unmirrored_on_gpu: what else
    where a GPU trains, which sees enough images in the time for a wider network.
    """

    name: str
    description: str
    config: TrainConfig | None
    unmirrored: Mapping[str, Any] = field(default_factory=dict)
    unmirrored_on_gpu: Mapping[str, Any] = field(default_factory=dict)

    def config_for(
        self,
        protocol: Protocol,
        seed: int,
        *,
        max_minutes: float | None = None,
        device: str = "cpu",
    ) -> TrainConfig | None:
        """The training of one seed on a protocol; max_minutes can only shorten it."""
        if self.config is None:
            return None
        config = self.config
        if not protocol.mirrored:
            config = replace(config, **self.unmirrored)
            if device != "cpu":
                config = replace(config, **self.unmirrored_on_gpu)
        if max_minutes is not None:
            limit = min(max_minutes, config.max_minutes or max_minutes)
            config = replace(config, max_minutes=limit)
        name = f"{self.name}-{protocol.drawn}-{seed}"
        return replace(config, seed=seed, device=device, name=name, description=self.description)


PUBLISHED = TrainConfig(
    consistency=0.0,
    reconstruction=1.0,
    reconstructed=1.0,
    kinds=0.0,
    orbits="none",
    power=0.0,
    views="mild",
    correlations="all",
    mixing=True,
    images_seen=200_000,
    patience=1000,
    bfloat16=True,
)


def published(name: str, description: str, group: str, readout: str, **more: Any) -> Recipe:
    """A row of the paper's table."""
    return Recipe(name, description, replace(PUBLISHED, group=group, readout=readout, **more))


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("raw-pixels", "the pixels, nothing trained", None),
        published(
            "autoencoder",
            "the plain autoencoder: no group, the code itself",
            "c1",
            "mean",
            width=16,
            features=64,
        ),
        published("mean-d4", "average pooling of the D4 code", "d4", "mean"),
        published(
            "mean-d12",
            "average pooling of the D12 code",
            "d12",
            "mean",
            features=160,
            dim=160,
            images_seen=50_000,
        ),
        published("attention-d4", "equivariant attention inside D4", "d4", "attention", dim=512),
        published(
            "attention-d12",
            "equivariant attention inside D12",
            "d12",
            "attention",
            images_seen=60_000,
        ),
        published("gram-d4", "Gram pooling of the D4 code", "d4", "gram"),
        published(
            "gram-d12",
            "Gram pooling of the D12 code",
            "d12",
            "gram",
            dim=256,
            images_seen=60_000,
        ),
        Recipe(
            "recommended",
            "D12 (C12 without mirrors) by unmixed copies, Gram pooling, orbit consistency under "
            "strong views beside a light reconstruction",
            TrainConfig(
                group="d12",
                orbits="jittered",
                power=1.0,
                floor=1e-3,
                kinds=0.4,
                images_seen=1_200_000,
                max_minutes=8.5,
                batch_size=256,
                patience=1000,
                bfloat16=True,
            ),
            unmirrored={"group": "c12", "width": 12, "features": 48, "images_seen": 450_000},
            unmirrored_on_gpu={
                "width": 16,
                "features": 64,
                "batch_size": 512,
                "images_seen": 600_000,
            },
        ),
    )
}


def recipe_of(name: str) -> Recipe:
    """The recipe of that name; Refused, with the names there are, when there is none."""
    if name not in RECIPES:
        raise Refused(f"no recipe '{name}': expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
