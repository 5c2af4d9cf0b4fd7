"""One seed of one recipe on one protocol: train without labels, embed, read with them.

Training images go into training alone and without their labels; the labels first appear in
``readings``, when the embeddings are final. The supervised ceiling is the marked exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eqmodel.checkpoint import CARD, read_card
from eqmodel.embedder import Embedder
from eqmodel.protocols import clusterings, probes, results, turning
from eqmodel.protocols.ceiling import train_with_labels
from eqmodel.protocols.draws import PROTOCOLS, Draw, Protocol, Source, draw
from eqmodel.protocols.results import Result
from eqmodel.settings import as_recorded
from eqmodel.training import EpochReport, TrainConfig, train

Embed = Callable[[NDArray[np.generic]], NDArray[np.float32]]
Show = Callable[[str, int, int | None, str], None]
BLOCK = 2048


@dataclass(frozen=True)
class Job:
    """One row of a table for one seed. Neither config nor model: the raw pixels.

    config: trained first. model: a checkpoint that is there. ceiling: trained with labels.
    """

    protocol: Protocol
    recipe: str
    seed: int
    out: Path
    config: TrainConfig | None = None
    model: Path | str | None = None
    ceiling: bool = False
    limit: int | None = None
    device: str = "cpu"

    @property
    def kind(self) -> str:
        if self.model is not None:
            return results.MODEL
        if self.config is None:
            return results.BASELINE
        return results.CEILING if self.ceiling else results.LABEL_FREE

    @property
    def path(self) -> Path:
        name = f"{self.recipe}-ceiling" if self.ceiling else self.recipe
        return results.path_of(self.out, self.protocol.name, name, self.seed, self.limit)


@dataclass(frozen=True)
class Representation:
    """What turns images into embeddings, and what is known of it."""

    embed: Embed
    embedder: Embedder | None = None
    train_s: float = 0.0
    readings: dict[str, float] | None = None


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a draw, as stored."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


Look = Callable[[Job, Draw, Embedded], None]


def run(job: Job, source: Source, show: Show, look: Look | None = None) -> Result:
    """The result of one job, from its file when it was made before.

    ``look`` sees draw and embeddings of a new result, to draw figures.
    """
    drawn = draw(job.protocol, source, job.seed, job.limit)
    job = fitted_to(job, drawn)
    made_from = identity_of(job, drawn)
    known = known_result(job, made_from)
    if known is not None:
        show(f"{job.recipe}, seed {job.seed}", 1, 1, "read from an earlier run")
        return known
    representation = represent(job, drawn, show)
    began = time.monotonic()
    embedded = Embedded(
        stored(representation.embed, drawn.train.images, show, f"embedding for {job.recipe}"),
        stored(representation.embed, drawn.test.images, show, f"embedding tests for {job.recipe}"),
    )
    embed_s = time.monotonic() - began
    readings, curves = read_all(job, representation, drawn, embedded, show)
    embedder = representation.embedder
    result = Result(
        protocol=job.protocol.name,
        recipe=job.path.parent.name,
        kind=job.kind,
        seed=job.seed,
        limit=job.limit,
        made_from=made_from,
        num_train=len(drawn.train),
        num_test=len(drawn.test),
        draw_sha256=drawn.sha256,
        model_id=embedder.model_id if embedder is not None else None,
        config=asdict(job.config) if job.config is not None else None,
        readings=readings,
        curves=curves,
        seconds={
            "train_s": representation.train_s,
            "embed_s": round(embed_s, 1),
            "read_s": round(time.monotonic() - began - embed_s, 1),
        },
        device=job.device,
        versions=results.versions(),
    )
    results.write(job.path, result)
    if look is not None:
        look(job, drawn, embedded)
    return result


def known_result(job: Job, made_from: str) -> Result | None:
    """The result of an earlier run, of this protocol or of one that draws the same images."""
    alike = [p for p in PROTOCOLS.values() if p.drawn == job.protocol.drawn]
    for protocol in (job.protocol, *alike):
        known = results.read(replace(job, protocol=protocol).path)
        if known is not None and known.made_from == made_from:
            if known.protocol != job.protocol.name:
                known = replace(known, protocol=job.protocol.name)
                results.write(job.path, known)
            return known
    return None


def fitted_to(job: Job, drawn: Draw) -> Job:
    """The job with the image size of the draw where its config leaves it open."""
    if job.config is None:
        return job
    size = job.config.image_size or drawn.train.images.shape[-1]
    return replace(job, config=replace(job.config, image_size=size, channels=1))


def identity_of(job: Job, drawn: Draw) -> str:
    """What fixes the result of a job."""
    model = None
    if job.model is not None:
        model = Embedder.load(job.model, verify=False).model_id
    config = as_recorded(job.config) if job.config is not None else None
    return results.identity(results.READINGS, job.kind, config, model, drawn.sha256)


def represent(job: Job, drawn: Draw, show: Show) -> Representation:
    """The representation of a job: trained, loaded, or the pixels."""
    if job.model is not None:
        return of_checkpoint(job.model, job.device)
    if job.config is None:
        return Representation(raw_pixels)
    config = job.config
    fixed = results.identity(as_recorded(config), drawn.sha256)
    kind = "ceilings" if job.ceiling else "checkpoints"
    folder = job.out / kind / f"{job.protocol.drawn}-{job.recipe}-{job.seed}-{fixed[:8]}"
    if job.ceiling:
        stage = f"training {job.recipe} with labels, seed {job.seed} (%)"
        found = train_with_labels(
            drawn.train,
            config,
            folder,
            lambda share, note: show(stage, round(100 * share), 100, note),
        )
        own = {"classifier_accuracy": found.accuracy(drawn.test)}
        return Representation(found.embed, None, found.train_s, own)
    if not measured(folder):
        train_on_images(drawn.train.images, folder, config, job, show)
    return of_checkpoint(folder, job.device)


def measured(folder: Path) -> bool:
    """Whether a training ended there: its checkpoint has passed the gate on invariance."""
    if not folder.joinpath(CARD).is_file():
        return False
    return "invariance_error" in read_card(folder)["card"]


def train_on_images(
    images: NDArray[np.uint8], folder: Path, config: TrainConfig, job: Job, show: Show
) -> None:
    """Train a checkpoint into ``folder``. No labels come here."""
    stage = f"training {job.recipe}, seed {job.seed} (%)"

    def report(epoch: EpochReport) -> None:
        note = (
            f"epoch {epoch.epoch}, {epoch.images_per_s:,.0f} images/s, "
            f"held-out error {epoch.held_out:.3f}"
        )
        show(stage, round(100 * epoch.share), 100, note)

    folder.parent.mkdir(parents=True, exist_ok=True)
    train(list(images), folder, config, progress=report, source=job.protocol.drawn)


def of_checkpoint(where: Path | str, device: str) -> Representation:
    """A checkpoint as a representation."""
    embedder = Embedder.load(where, device=device)
    return Representation(
        lambda images: embedder.embed(list(images)),
        embedder,
        float(embedder.card.get("train_s", 0.0)),
    )


def raw_pixels(images: NDArray[np.generic]) -> NDArray[np.float32]:
    """Images (N, H, W), uint8 or float32 on the scale 0..1 -> (N, H W) float32 on that scale."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat / np.float32(255.0) if images.dtype == np.uint8 else flat


def stored(embed: Embed, images: NDArray[np.uint8], show: Show, stage: str) -> NDArray[np.float32]:
    """Embeddings (N, d) as they are stored."""
    parts = []
    for start in range(0, len(images), BLOCK):
        parts.append(probes.as_stored(embed(images[start : start + BLOCK])))
        show(stage, min(start + BLOCK, len(images)), len(images), "")
    return np.concatenate(parts)


def read_all(
    job: Job, representation: Representation, drawn: Draw, embedded: Embedded, show: Show
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Every reading of a representation, and its curves."""
    steps: list[tuple[str, Callable[[], dict[str, float]]]] = [
        ("probes", lambda: read_probes(drawn, embedded, job.seed)),
        (
            "clusters",
            lambda: clusterings.clusterings(embedded.test, drawn.test.labels, job.seed),
        ),
        ("turns", lambda: turning.turning_errors(representation.embed, drawn.upright)),
    ]
    readings: dict[str, float] = dict(representation.readings or {})
    for done, (name, reading) in enumerate(steps):
        show(f"reading {job.recipe}, seed {job.seed}", done, len(steps), name)
        readings |= reading()
    show(f"reading {job.recipe}, seed {job.seed}", len(steps), len(steps), "")
    curves = {"embedding": probes.explained_variance(embedded.train)}
    embedder = representation.embedder
    if embedder is not None:
        readings["reconstruction_error"] = turning.reconstruction_error(embedder, drawn.test.images)
        curves["readout"] = turning.readout_curve(embedder, drawn.test.images)
    for name, curve in curves.items():
        components = probes.components_for(curve)
        if components is not None:
            readings[f"{name}_components_90"] = float(components)
    return readings, curves


def read_probes(drawn: Draw, embedded: Embedded, seed: int) -> dict[str, float]:
    """The three classifiers, fitted on the training half and tested on the other."""
    arguments = (embedded.train, drawn.train.labels, embedded.test, drawn.test.labels)
    return {
        "logistic_regression": probes.logistic_regression(*arguments),
        "neural_network": probes.neural_network(*arguments, seed),
        "nearest_neighbours_5": probes.nearest_neighbours(*arguments),
    }


__all__ = ["Draw", "Embedded", "Job", "Representation", "Result", "run"]
