"""What `orbit index` and `orbit report` share: a publication of the newest embeddings."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.progress import Progress

if TYPE_CHECKING:
    from pipelines.publication import PublishOptions


Force = Annotated[bool, typer.Option("--force", help="publish again although nothing is new")]


@dataclass(frozen=True)
class PublishFlags:
    """How to publish."""

    clusters: Annotated[
        int | None, typer.Option(min=1, help="number of clusters [default: chosen]")
    ] = None
    clustering: Annotated[
        str,
        typer.Option(
            metavar="kmeans|density",
            help="k-means, or by density (HDBSCAN), which finds the number itself",
        ),
    ] = "kmeans"
    map_points: Annotated[
        int, typer.Option(min=0, max=20_000, help="images on the map of the report")
    ] = 5_000
    recall: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="recall at 10 that the index must reach")
    ] = 0.99
    allow_low_recall: Annotated[
        bool, typer.Option("--allow-low-recall", help="publish although it does not")
    ] = False
    index_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="memory that the index may take, as 512MiB [default: any]"
        ),
    ] = None

    def options(self, force: bool = False, ray: str | None = None) -> "PublishOptions":
        """As the pipelines take them. SettingsError for what does not fit."""
        from pipelines.publication import PublishOptions

        return PublishOptions(
            index_memory=None if self.index_memory is None else read_size(self.index_memory),
            index_ray=ray,
            clusters=self.clusters,
            clustering=self.clustering,
            map_points=self.map_points,
            recall=self.recall,
            allow_low_recall=self.allow_low_recall,
            force=force,
        )


@dataclass(frozen=True)
class Published:
    """The live publication, as JSON values, and whether it was made just now."""

    facts: dict[str, Any]
    new: bool


def publish_newest(
    url: str, flags: PublishFlags, force: bool, show: Progress, ray: str | None = None
) -> Published:
    """Publish the newest embeddings of a store unless they are live. StoreError if it is none."""
    from pipelines import open_store
    from pipelines.publication import publish
    from pipelines.store import describe

    store = open_store(url)
    before = [row.id for row in store.publications()]
    row = publish(store.folder, store.model_id, flags.options(force, ray), show)
    return Published(describe(row, store.url), row.id not in before)


def read_size(text: str) -> int:
    """Bytes of "512MiB", "2GB", "1.5 GiB" or a plain number. SettingsError for anything else."""
    from pipelines.errors import SettingsError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?\s*", text)
    if found is None or (found[3] and not found[2]):
        raise SettingsError(f"size '{text}': bytes such as 512MiB or 2GB are expected")
    power = " KMGT".index(found[2].upper() or " ")
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if not size:
        raise SettingsError(f"size '{text}': more than nothing is expected")
    return size
