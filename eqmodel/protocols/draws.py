"""The protocols, and what each draws: images turned and mirrored, split, for a seed.

A draw is a function of the protocol, the source and the seed alone. Angles are uniform about the
centre of the image, the interpolation is bilinear, outside lies 0, and pixels are stored as uint8.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eqmodel.actions import rotation_matrices, warp
from eqmodel.errors import Refused

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
BATCH = 4096
PLANKTON_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Labelled:
    """images (N, H, W) uint8 and their class numbers, labels (N,) int64."""

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> Labelled:
        return Labelled(self.images[indices], self.labels[indices])

    def first(self, limit: int | None) -> Labelled:
        return self if limit is None else Labelled(self.images[:limit], self.labels[:limit])


@dataclass(frozen=True)
class Source:
    """A data set as published; one that has no split of its own has an empty test half."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]

    def pooled(self) -> Labelled:
        """Both halves as one, the training half first."""
        halves = (self.train, self.test) if len(self.test) else (self.train,)
        return Labelled(
            np.concatenate([half.images for half in halves]),
            np.concatenate([half.labels for half in halves]),
        )


@dataclass(frozen=True)
class Protocol:
    """turned: each image lies at its own angle. mirrored: half of them are mirrored, and so is
    what a recipe's group must hold. num_train, num_test: drawn anew from both halves for every
    seed; None: the published split.
    """

    name: str
    dataset: str
    mirrored: bool
    description: str
    turned: bool = True
    num_train: int | None = None
    num_test: int | None = None

    @property
    def drawn(self) -> str:
        """What names the draw: protocols that draw the same images have the same name here."""
        kind = ("o2" if self.mirrored else "so2") if self.turned else "upright"
        size = f"-{self.num_train}" if self.num_train else ""
        return f"{self.dataset}-{kind}{size}"


@dataclass(frozen=True)
class Draw:
    """What one seed of a protocol trains on, fits its probes on, and tests on.

    upright: test images (at most 1,000) as they were before they were turned.
    """

    train: Labelled
    test: Labelled
    upright: Pixels
    classes: tuple[str, ...]
    sha256: str


def of_images(suffix: str, dataset: str, long_name: str) -> list[Protocol]:
    """The three protocols on a data set of 60,000 and 10,000 images."""
    names = {"mnist": ("augmented-mnist", "mnist-rot", "o2-mnist")}
    augmented, rotated, clustered = names.get(
        suffix, (f"augmented-{suffix}", f"{suffix}-rot", f"o2-{suffix}")
    )
    return [
        Protocol(
            augmented,
            dataset,
            mirrored=True,
            description=f"{long_name} under rotations and reflections, 60,000 / 10,000",
        ),
        Protocol(
            rotated,
            dataset,
            mirrored=False,
            description=f"{long_name} under rotations, 12,000 / 50,000 of all 70,000",
            num_train=12_000,
            num_test=50_000,
        ),
        Protocol(
            clustered,
            dataset,
            mirrored=True,
            description=f"clusters of {long_name} under rotations and reflections, 10,000",
        ),
    ]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        *of_images("mnist", "mnist", "MNIST"),
        *of_images("fashion", "fashion-mnist", "Fashion-MNIST"),
        Protocol(
            "plankton",
            "plankton",
            mirrored=True,
            description="National Data Science Bowl, padded to square, 32x32, as photographed",
            turned=False,
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """The protocol of that name; Refused, with the names there are, when there is none."""
    if name not in PROTOCOLS:
        raise Refused(f"no protocol '{name}': expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def draw(protocol: Protocol, source: Source, seed: int, limit: int | None = None) -> Draw:
    """The images of one seed, at most ``limit`` for training and as many for the test.

    Raises Refused when the source holds too few images for the protocol.
    """
    generator = np.random.default_rng((zlib.crc32(protocol.drawn.encode()), seed))
    train, test = halves(protocol, source, generator)
    if min(len(train), len(test)) == 0:
        raise Refused(
            f"{protocol.name}: found {len(train)} training and {len(test)} test images, "
            "expected some of each: name the folder of the whole data set with --data"
        )
    upright = test.first(limit).images[:1000]
    if protocol.turned:
        train = turned(train, protocol.mirrored, generator, limit)
        test = turned(test, protocol.mirrored, generator, limit)
    train, test = train.first(limit), test.first(limit)
    digest = hashlib.sha256()
    for part in (train.images, train.labels, test.images, test.labels):
        digest.update(np.ascontiguousarray(part).data)
    return Draw(train, test, upright, source.classes, digest.hexdigest())


def halves(
    protocol: Protocol, source: Source, generator: np.random.Generator
) -> tuple[Labelled, Labelled]:
    """Training and test images, not yet turned: the published split, or one drawn at random."""
    if protocol.num_train is None and len(source.test):
        return source.train, source.test
    pooled = source.pooled()
    order = generator.permutation(len(pooled))
    if protocol.num_train is None or protocol.num_test is None:
        num_test = max(1, round(len(pooled) * PLANKTON_TEST_SHARE))
        return pooled.take(order[num_test:]), pooled.take(order[:num_test])
    wanted = protocol.num_train + protocol.num_test
    num_train = protocol.num_train
    if len(pooled) < wanted:  # a part of the data set: the same proportion of it
        num_train = len(pooled) * protocol.num_train // wanted
    return pooled.take(order[:num_train]), pooled.take(order[num_train:wanted])


def turned(
    half: Labelled, mirrored: bool, generator: np.random.Generator, limit: int | None = None
) -> Labelled:
    """The images, each mirrored left-right with probability 1/2 where ``mirrored``, then turned
    counter-clockwise by its own uniform angle: one bilinear interpolation, outside 0.

    With a limit the first so many, as they are without it.
    """
    angles = torch.from_numpy(generator.uniform(0.0, 360.0, len(half)).astype(np.float32))
    flips = torch.from_numpy(generator.random(len(half)) < (0.5 if mirrored else 0.0))
    kept = half.first(limit)
    out = np.empty_like(kept.images)
    for start in range(0, len(kept), BATCH):
        part = slice(start, min(start + BATCH, len(kept)))
        pixels = torch.from_numpy(kept.images[part].astype(np.float32))[:, None]
        moved = warp(pixels, rotation_matrices(angles[part], flips[part]), 0.0)[:, 0]
        out[part] = moved.round().clamp(0, 255).to(torch.uint8).numpy()
    return Labelled(out, kept.labels)
