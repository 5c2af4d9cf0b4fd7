"""`orbit index`: publish an index, clusters and a report of the embeddings a store holds."""

from typing import Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress
from jobs.publications import Force, PublishFlags, publish_newest


@verb("orbit index s3://bucket/store")
def index(
    store: Store,
    flags: PublishFlags,
    force: Force = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|URL", help="fill a large index by Ray tasks [default: here]"
        ),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Publish index, clusters and report of the newest embeddings; the last stage of `orbit run`.

    With nothing new it does nothing, and says so. What changed since last night is added to last
    night's index; --force builds a new one.
    """
    with progress() as show:
        published = publish_newest(store, flags, force, show, ray)
    facts = published.facts
    how = facts.get("index", {}).get("how", "")
    lines = [
        f"live     publication {facts['id']}, {facts['num_embedded']:,} images, "
        f"index {facts['index_kind']} {how}, recall@10 {facts['recall_at_10']:.3f}",
        f"report   {facts['report']}",
    ]
    if not published.new:
        lines.insert(0, "nothing to do: the newest embeddings are live (--force publishes again)")
    return Answer(facts, "\n".join(lines))


if __name__ == "__main__":
    run_alone(index)
