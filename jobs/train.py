"""`orbit train`: a checkpoint from a bucket of images, without labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from eqmodel.errors import Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.progress import Progress, progress

if TYPE_CHECKING:
    from eqmodel.training import EpochReport

MIN_IMAGES = 32


def read_collection(url: str, limit: int, seed: int, show: Progress) -> list[NDArray[Any]]:
    """Images of INPUT, decoded, at most `limit`, spread over its shards; rejects are left out."""
    from pipelines.shards import list_shards
    from pipelines.storage import Folder

    folder = Folder(url)
    shards = list_shards(folder, buckets=64)
    if not shards:
        raise Refused(f"{url} holds no image, tar or Parquet file: nothing to train on")
    images: list[NDArray[Any]] = []
    for done, shard in enumerate(shuffled(shards, seed), start=1):
        share = -(-(limit - len(images)) // (len(shards) - done + 1))
        images.extend(read_shard_images(folder, shard, share))
        show("reading", done, len(shards), f"{len(images):,} images")
        if len(images) >= limit:
            break
    return images


def shuffled(shards: list[Any], seed: int) -> list[Any]:
    import numpy as np

    return [shards[n] for n in np.random.default_rng(seed).permutation(len(shards))]


def read_shard_images(folder: Any, shard: Any, limit: int) -> Iterator[NDArray[Any]]:
    """The first `limit` images of one shard that can be decoded."""
    from pipelines.decode import decode
    from pipelines.errors import Rejected
    from pipelines.shards import Damage, ReadOptions, read_shard

    found = 0
    for sample in read_shard(folder, shard, ReadOptions()):
        if found >= limit or isinstance(sample, Damage):
            return
        try:
            yield decode(sample.data)
        except Rejected:
            continue
        found += 1


def epochs_shown(show: Progress) -> Any:
    """What training calls after every part of an epoch."""

    def report(epoch: "EpochReport") -> None:
        done = round(100 * (epoch.epoch - 1 + epoch.share))
        note = (
            f"epoch {epoch.epoch} of {epoch.epochs}, {epoch.images_per_s:,.0f} images/s, "
            f"held-out error {epoch.held_out:.3f}"
        )
        show("training", done, 100 * epoch.epochs, note)

    return report


@verb("orbit train s3://bucket/images --out model/")
def train(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="folder or URL of the images")],
    out: Annotated[Path, typer.Option(metavar="MODEL", help="folder that gets the checkpoint")],
    group: Annotated[str, typer.Option(help="c1, c4 or d4")] = "d4",
    readout: Annotated[str, typer.Option(help="gram, mean, max or attention")] = "gram",
    image_size: Annotated[
        int | None, typer.Option(help="side of the model's input [default: fits the median]")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="channels of the model's input [default: the images']")
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="length of an embedding")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the images, at most")] = 10,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="stop training after so many minutes")
    ] = None,
    limit: Annotated[int, typer.Option(min=MIN_IMAGES, help="images used, at most")] = 60_000,
    seed: Annotated[int, typer.Option(help="of the choice of images and of the training")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    as_json: Json = False,
) -> Answer:
    """Train a checkpoint on a collection's own images. Stopped, it resumes where it was."""
    with progress() as show:
        images = read_collection(source, limit, seed, show)
        if len(images) < MIN_IMAGES:
            raise Refused(
                f"{source} gave {len(images)} readable images, expected {MIN_IMAGES} at least"
            )
        from eqmodel.training import TrainConfig
        from eqmodel.training import train as train_model

        config = TrainConfig(
            group=group,
            readout=readout,
            image_size=image_size,
            channels=channels,
            dim=dim,
            epochs=epochs,
            max_minutes=max_minutes,
            seed=seed,
            device=device,
        )
        card = train_model(images, out, config, progress=epochs_shown(show), source=source)
    return Answer({"model": str(out), "num_images": len(images), **card}, card_text(out, card))


def card_text(out: Path, card: dict[str, Any]) -> str:
    return (
        f"{out}: trained; invariance error {card['invariance_error']:.1e}, "
        f"free-angle rank-1 {card['free_angle_rank1']:.3f}"
    )


if __name__ == "__main__":
    run_alone(train)
