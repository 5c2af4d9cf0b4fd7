"""`orbit export`: a store's embeddings as one file for other programs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress

if TYPE_CHECKING:
    from pipelines.export import Selection

Several = list[str] | None


@dataclass(frozen=True)
class ExportFlags:
    """Which rows; what is given several times counts as any of them."""

    source: Annotated[Several, typer.Option(metavar="GLOB", help="of these shards")] = None
    key: Annotated[Several, typer.Option(metavar="GLOB", help="with such keys")] = None
    label: Annotated[Several, typer.Option(help="with this label")] = None
    cluster: Annotated[
        list[int] | None, typer.Option(help="of this cluster of the live publication")
    ] = None
    rejected: Annotated[
        bool, typer.Option("--rejected", help="the rejected images and why, instead of the others")
    ] = False

    def selection(self) -> "Selection":
        """As the pipelines take it."""
        from pipelines.export import Selection

        return Selection(
            sources=tuple(self.source or ()),
            keys=tuple(self.key or ()),
            labels=tuple(self.label or ()),
            clusters=tuple(self.cluster or ()),
            rejected=self.rejected,
        )


@verb("orbit export s3://bucket/store --out embeddings.parquet")
def export(
    store: Store,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="path or URL that ends in .npy, .csv or .parquet")
    ],
    flags: ExportFlags,
    column: Annotated[
        Several,
        typer.Option(help="a column of the table, or cluster [default: id, key, ..., embedding]"),
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="npy|csv|parquet", help="[default: FILE's suffix]")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Write the embeddings of the live publication, with their keys, into one file.

    npy: the matrix alone, and the keys beside it in NAME.keys.csv. The store is only read.
    """
    from pipelines import open_store
    from pipelines.export import export as write

    with progress() as show:
        done = write(open_store(store), out, flags.selection(), show, columns=column, format=format)
    lines = [f"{done.num_rows:,} rows of model {done.model_id}, table version {done.table_version}"]
    return Answer(done.as_dict(), "\n".join([*done.files, *lines]))


if __name__ == "__main__":
    run_alone(export)
