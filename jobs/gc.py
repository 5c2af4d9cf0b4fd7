"""`orbit gc`: remove what no retained publication needs, or every trace of some images."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress

MIB = 1 << 20


@verb("orbit gc s3://bucket/store --dry-run")
def gc(
    store: Store,
    keep: Annotated[int, typer.Option(min=1, help="newest publications to keep")] = 30,
    grace_days: Annotated[
        float, typer.Option(min=0.0, help="nothing younger goes, by the store's clock")
    ] = 7.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="tell what would go, change nothing")
    ] = False,
    erase_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="erase the images of these keys, one KEY or SOURCE/KEY a line"
        ),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Remove files that no retained publication needs; safe beside a running job, and when killed.

    With --erase-keys: remove these images' rows, every older version that holds them and every
    publication made of them, and publish anew. Take them out of INPUT first.
    """
    from pipelines.storage import Folder

    with progress() as show:
        if erase_keys is not None:
            from pipelines.erasure import erase, read_keys

            erased = erase(Folder(store), read_keys(erase_keys), dry_run, show)
            return Answer(erased.as_dict(), erased.told())
        from pipelines.retention import DAY_S, RetentionOptions, collect_garbage

        options = RetentionOptions(keep, grace_days * DAY_S, dry_run)
        cleaned = collect_garbage(Folder(store), options, show)
    document = cleaned.as_dict()
    lines = [f"{found.path}: {found.why}" for found in cleaned.garbage] if dry_run else []
    lines += [f"publication {name}: older than the {keep} kept" for name in cleaned.forgotten]
    word = "would be removed" if dry_run else "removed"
    lines.append(
        f"{document['num_removed']:,} objects, {document['removed_bytes'] / MIB:,.1f} MiB {word}; "
        f"{cleaned.num_publications} publications are kept"
    )
    return Answer(document, "\n".join(lines))


if __name__ == "__main__":
    run_alone(gc)
