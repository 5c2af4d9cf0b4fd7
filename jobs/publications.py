"""What `orbit index` and `orbit report` share: a publication of the newest embeddings."""

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
    recall: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="recall at 10 that the index must reach")
    ] = 0.99
    allow_low_recall: Annotated[
        bool, typer.Option("--allow-low-recall", help="publish although it does not")
    ] = False

    def options(self, force: bool = False) -> "PublishOptions":
        """As the pipelines take them."""
        from pipelines.publication import PublishOptions

        return PublishOptions(
            clusters=self.clusters,
            recall=self.recall,
            allow_low_recall=self.allow_low_recall,
            force=force,
        )


@dataclass(frozen=True)
class Published:
    """The live publication, as JSON values, and whether it was made just now."""

    facts: dict[str, Any]
    new: bool


def publish_newest(url: str, flags: PublishFlags, force: bool, show: Progress) -> Published:
    """Publish the newest embeddings of a store unless they are live. StoreError if it is none."""
    from pipelines import open_store
    from pipelines.publication import publish
    from pipelines.store import describe

    store = open_store(url)
    before = [row.id for row in store.publications()]
    row = publish(store.folder, store.model_id, flags.options(force), show)
    return Published(describe(row, store.url), row.id not in before)
