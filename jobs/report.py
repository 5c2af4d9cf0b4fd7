"""`orbit report`: the report of the newest embeddings, in the store and as a file of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress
from jobs.publications import Force, PublishFlags, publish_newest


@verb("orbit report s3://bucket/store --out report.html")
def report(
    store: Store,
    flags: PublishFlags,
    force: Force = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="copy the HTML page to this file")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Make the report of the newest embeddings, or find it when it is made already.

    A report belongs to a publication: where there is none of the newest embeddings, index and
    clusters are made with it.
    """
    with progress() as show:
        published = publish_newest(store, flags, force, show)
    facts = dict(published.facts)
    if out is not None:
        from pipelines.storage import Folder

        Folder(store).download(f"artifacts/{facts['id']}/report.html", out)
        facts["copy"] = str(out)
    return Answer(facts, str(out or facts["report"]))


if __name__ == "__main__":
    run_alone(report)
