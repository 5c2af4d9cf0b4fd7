"""`orbit index`: publish an index, clusters and a report of the embeddings a store holds."""

from typing import Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress


@verb("orbit index s3://bucket/store")
def index(
    store: Store,
    clusters: Annotated[
        int | None, typer.Option("--clusters", min=1, help="number of clusters [default: chosen]")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Publish index, clusters and report of the newest embeddings; the last stage of `orbit run`."""
    from jobs.publications import publish_live

    with progress() as show:
        row = publish_live(store, clusters, show)
    return row


if __name__ == "__main__":
    run_alone(index)
