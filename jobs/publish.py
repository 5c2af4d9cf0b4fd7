"""`orbit publish`: make an older publication live again."""

from typing import Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress


@verb("orbit publish s3://bucket/store 20260101T020000-v7-0a1b2c")
def publish(
    store: Store,
    publication: Annotated[
        str, typer.Argument(metavar="ID", help="the publication (orbit status tells the newest)")
    ],
    as_json: Json = False,
) -> Answer:
    """Restore an older publication, until the next run publishes a newer one.

    Refused when an artifact of it is gone or altered; the live one stays then.
    """
    from pipelines.restore import restore
    from pipelines.storage import Folder
    from pipelines.store import describe

    folder = Folder(store)
    with progress() as show:
        row = restore(folder, publication, show)
    facts = describe(row, folder.url)
    text = (
        f"live     publication {row.id}, of version {row.table_version} of the table\n"
        f"report   {facts['report']}"
    )
    return Answer(facts, text)


if __name__ == "__main__":
    run_alone(publish)
