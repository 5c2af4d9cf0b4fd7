"""`orbit train`: a checkpoint from a bucket of images, without labels."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqmodel.errors import Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.progress import Progress, progress

if TYPE_CHECKING:
    from eqmodel.training import EpochReport, TrainConfig
    from pipelines.training import StoredImages

MIN_IMAGES = 32
ANY_SIDE = 1 << 30


@dataclass(frozen=True)
class TrainFlags:
    """What a training can be told; the fields of `eqmodel.training.TrainConfig`."""

    group: Annotated[str, typer.Option(help="c1, c4, d4, c12 or d12")] = "d4"
    arch: Annotated[str, typer.Option(help="dense, or octic: built for speed")] = "dense"
    readout: Annotated[str, typer.Option(help="gram, bispectrum, mean, max, rms or attention")] = (
        "gram"
    )
    image_size: Annotated[
        int | None, typer.Option(help="side of the model's input [default: fits the median]")
    ] = None
    channels: Annotated[
        int | None, typer.Option(help="channels of the model's input [default: the images']")
    ] = None
    width: Annotated[int, typer.Option(min=1, help="channels of the first layer")] = 6
    features: Annotated[int, typer.Option(min=1, help="features per group element")] = 32
    dim: Annotated[int, typer.Option(min=1, help="length of an embedding")] = 128
    fit: Annotated[str, typer.Option(help="resize, crop or native")] = "resize"
    epochs: Annotated[int, typer.Option(min=1, help="passes over the images, at most")] = 10
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="stop training after so many minutes")
    ] = None
    patience: Annotated[
        int, typer.Option(min=1, help="epochs without a better held-out error before it stops")
    ] = 3
    batch_size: Annotated[int, typer.Option(min=2, help="images per step")] = 128
    learning_rate: Annotated[
        float, typer.Option(help="of the first steps; --arch octic takes five times as large ones")
    ] = 2e-3
    consistency: Annotated[
        float, typer.Option(min=0.0, help="weight of: turned views get one embedding")
    ] = 1.0
    reconstruction: Annotated[
        float, typer.Option(min=0.0, help="weight of: the image can be drawn from its code")
    ] = 0.25
    power: Annotated[
        float,
        typer.Option(help="of the projection: 1 whitens, below 0 keeps what turns change least"),
    ] = 0.25
    views: Annotated[
        str, typer.Option(help="how much the turned views differ in shape and stroke: strong, mild")
    ] = "strong"
    images_seen: Annotated[
        int | None, typer.Option(min=1, help="images shown in all; sets the epochs")
    ] = None
    bfloat16: Annotated[
        bool,
        typer.Option(
            "--bfloat16",
            help="train in bfloat16 where the device has it; the checkpoint is float32",
        ),
    ] = False
    seed: Annotated[int, typer.Option(help="of the choice of images and of the training")] = 0
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu"
    name: Annotated[str | None, typer.Option(help="what the model is called")] = None
    description: Annotated[str, typer.Option(help="a sentence for its card")] = ""

    def config(self) -> "TrainConfig":
        """As eqmodel takes them."""
        from eqmodel.training import TrainConfig

        return TrainConfig(**vars(self))

    @property
    def largest_side(self) -> int:
        """Pixels of a stored image: twice the model's input, where the scale does not count."""
        from pipelines.training.reading import LARGEST_SIDE

        if self.fit == "native":
            return ANY_SIDE
        return min(LARGEST_SIDE, 2 * self.image_size) if self.image_size else LARGEST_SIDE


@dataclass(frozen=True)
class WorkerFlags:
    """Training by several workers, each with a part of the images."""

    workers: Annotated[
        int | None, typer.Option(min=1, help="train on so many Ray workers [default: here, alone]")
    ] = None
    cpus_per_worker: Annotated[float, typer.Option(min=0.1, help="CPUs of each")] = 1.0
    ray: Annotated[
        str,
        typer.Option(metavar="local|auto|URL", envvar="ORBIT_RAY", help="the Ray of these workers"),
    ] = "local"
    shared: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="where workers of several machines keep their state [default: beside MODEL]",
        ),
    ] = None


def epochs_shown(show: Progress) -> Any:
    """What training calls several times per epoch."""

    def report(epoch: "EpochReport") -> None:
        percent = round(100 * (epoch.epoch - 1 + epoch.share) / epoch.epochs)
        note = (
            f"epoch {epoch.epoch} of {epoch.epochs}, {epoch.images_per_s:,.0f} images/s, "
            f"held-out error {epoch.held_out:.3f}"
        )
        show("training (%)", percent, 100, note)

    return report


@verb("orbit train s3://bucket/images --out model/")
def train(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="folder or URL of the images")],
    out: Annotated[Path, typer.Option(metavar="MODEL", help="folder that gets the checkpoint")],
    flags: TrainFlags,
    workers: WorkerFlags,
    limit: Annotated[
        int | None, typer.Option(min=MIN_IMAGES, help="images used, at most [default: all]")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Train a checkpoint on a collection's own images. Stopped, it resumes where it was.

    The images are read once and kept on disk, in MODEL.training, until the model is done.
    """
    place = Path(f"{out}.training")
    begun = place.exists()
    try:
        with progress() as show:
            if workers.workers is not None:
                return by_workers(source, out, flags, workers, limit, show)
            images = read_here(source, place, flags, limit, show)
            from eqmodel.training import train as train_model

            card = train_model(
                images, out, flags.config(), progress=epochs_shown(show), source=source
            )
    except Refused:
        if not begun:
            shutil.rmtree(place, ignore_errors=True)
        raise
    return answer(out, card, len(images))


def read_here(
    source: str, place: Path, flags: TrainFlags, limit: int | None, show: Progress
) -> "StoredImages":
    """The collection on this disk. Refused when too little of it can be read."""
    from pipelines.training import read_images

    images = read_images(
        source,
        place / "images",
        show,
        limit=limit,
        seed=flags.seed,
        largest_side=flags.largest_side,
    )
    if len(images) < MIN_IMAGES:
        raise Refused(
            f"{source} gave {len(images)} readable images, expected {MIN_IMAGES} at least"
        )
    return images


def by_workers(
    source: str,
    out: Path,
    flags: TrainFlags,
    workers: WorkerFlags,
    limit: int | None,
    show: Progress,
) -> Answer:
    """The same by Ray workers, each with a part of the images."""
    from pipelines.training.workers import Training, train_on_workers

    training = Training(
        source=source,
        out=out.absolute(),
        config=flags.config(),
        workers=workers.workers or 1,
        cpus_per_worker=workers.cpus_per_worker,
        ray=workers.ray,
        shared=workers.shared,
        limit=limit,
        largest_side=flags.largest_side,
    )
    card = train_on_workers(training, show, epochs_shown(show))
    return answer(out, card, int(card["num_images"]))


def answer(out: Path, card: dict[str, Any], num_images: int) -> Answer:
    """What the training came to."""
    document = {"model": str(out), "num_images": num_images, **card}
    return Answer(document, card_text(out, card))


def card_text(out: Path, card: dict[str, Any]) -> str:
    """Where the model is, and what can be expected of it."""
    return (
        f"{out}: trained; invariance error {card['invariance_error']:.1e}, "
        f"free-angle rank-1 {card['free_angle_rank1']:.3f}"
    )


if __name__ == "__main__":
    run_alone(train)
