"""`orbit train`: a checkpoint from a bucket of images, without labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from eqmodel.errors import Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.progress import Progress, progress

if TYPE_CHECKING:
    from eqmodel.training import EpochReport, TrainConfig

MIN_IMAGES = 32
MAX_PIXEL_BYTES = 4 << 30
"""Decoded images held in memory; a collection that has more is trained on a part of it."""


@dataclass(frozen=True)
class TrainFlags:
    """What a training can be told; the fields of `eqmodel.training.TrainConfig`."""

    group: Annotated[str, typer.Option(help="c1, c4, d4, c12 or d12")] = "d4"
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
    learning_rate: Annotated[float, typer.Option(help="of the first steps")] = 2e-3
    consistency: Annotated[
        float, typer.Option(min=0.0, help="weight of: turned views get one embedding")
    ] = 1.0
    reconstruction: Annotated[
        float, typer.Option(min=0.0, help="weight of: the image can be drawn from its code")
    ] = 0.25
    views: Annotated[
        str, typer.Option(help="how much the turned views differ in shape and stroke: strong, mild")
    ] = "strong"
    images_seen: Annotated[
        int | None, typer.Option(min=1, help="images shown in all; sets the epochs")
    ] = None
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="train in bfloat16; the checkpoint is float32")
    ] = False
    seed: Annotated[int, typer.Option(help="of the choice of images and of the training")] = 0
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu"
    name: Annotated[str | None, typer.Option(help="what the model is called")] = None
    description: Annotated[str, typer.Option(help="a sentence for its card")] = ""

    def config(self) -> "TrainConfig":
        """As eqmodel takes them."""
        from eqmodel.training import TrainConfig

        return TrainConfig(**vars(self))


def read_collection(url: str, limit: int, seed: int, show: Progress) -> list[NDArray[Any]]:
    """Images of INPUT, decoded, at most `limit`, spread over its shards; rejects are left out."""
    from pipelines.shards import list_shards
    from pipelines.storage import Folder

    folder = Folder(url)
    shards = list_shards(folder, buckets=64)
    if not shards:
        raise Refused(f"{url} holds no image, tar or Parquet file: nothing to train on")
    images: list[NDArray[Any]] = []
    held = 0
    for done, shard in enumerate(shuffled(shards, seed), start=1):
        share = -(-(limit - len(images)) // (len(shards) - done + 1))
        for image in islice(decoded(folder, shard), share):
            images.append(image)
            held += image.nbytes
            if held >= MAX_PIXEL_BYTES:
                show.say(f"{len(images):,} images fill {held / 1e9:.1f} GB: training on these")
                return images
        show("reading", done, len(shards), f"{len(images):,} images")
    return images


def shuffled(shards: list[Any], seed: int) -> list[Any]:
    """The shards in an order that the seed decides."""
    import numpy as np

    return [shards[n] for n in np.random.default_rng(seed).permutation(len(shards))]


def decoded(folder: Any, shard: Any) -> Iterator[NDArray[Any]]:
    """The images of one shard that can be decoded, up to where it is damaged."""
    from pipelines.decode import decode
    from pipelines.errors import Rejected
    from pipelines.shards import Damage, ReadOptions, read_shard

    for sample in read_shard(folder, shard, ReadOptions()):
        if isinstance(sample, Damage):
            return
        try:
            yield decode(sample.data)
        except Rejected:
            continue


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
    limit: Annotated[int, typer.Option(min=MIN_IMAGES, help="images used, at most")] = 60_000,
    as_json: Json = False,
) -> Answer:
    """Train a checkpoint on a collection's own images. Stopped, it resumes where it was."""
    with progress() as show:
        images = read_collection(source, limit, flags.seed, show)
        if len(images) < MIN_IMAGES:
            raise Refused(
                f"{source} gave {len(images)} readable images, expected {MIN_IMAGES} at least"
            )
        from eqmodel.training import train as train_model

        card = train_model(images, out, flags.config(), progress=epochs_shown(show), source=source)
    return Answer({"model": str(out), "num_images": len(images), **card}, card_text(out, card))


def card_text(out: Path, card: dict[str, Any]) -> str:
    """Where the model is, and what can be expected of it."""
    return (
        f"{out}: trained; invariance error {card['invariance_error']:.1e}, "
        f"free-angle rank-1 {card['free_angle_rank1']:.3f}"
    )


if __name__ == "__main__":
    run_alone(train)
