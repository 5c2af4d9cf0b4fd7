"""`orbit verify`: is everything in a store what it should be?"""

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store
from jobs.progress import progress


@verb("orbit verify s3://bucket/store")
def verify(
    store: Store,
    audit: Annotated[int, typer.Option(min=0, help="images of INPUT to turn and compare")] = 64,
    every: Annotated[
        bool, typer.Option("--all", help="read the artifacts of old publications too")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="drop damaged rows; the next run embeds them again"),
    ] = False,
    as_json: Json = False,
) -> Answer:
    """Compare table, files, index and publications of a store with each other.

    One line for each thing that is off, and exit code 1; nothing is changed without --repair.
    """
    from pipelines.storage import Folder
    from pipelines.verify import VerifyOptions
    from pipelines.verify import verify as look

    with progress() as show:
        options = VerifyOptions(audit_images=audit, every=every, repair=repair)
        verdict = look(Folder(store), options, show)
    lines = [f"{finding.where}: {finding.what}" for finding in verdict.findings]
    audited = f"{verdict.num_audited} images turned, invariance error "
    audited += "-" if verdict.invariance_error is None else f"{verdict.invariance_error:.1e}"
    lines.append(
        f"{'whole' if not lines else f'{len(lines)} findings'}: {verdict.num_files:,} files with "
        f"{verdict.num_rows:,} rows, {verdict.num_artifacts:,} artifacts, "
        f"{verdict.num_vectors:,} vectors in the index, {verdict.skipped or audited}"
    )
    if verdict.broken:
        lines.append(
            f"{verdict.num_repaired} shards were dropped from the table: run 'orbit run' again"
            if repair
            else f"{len(verdict.broken)} shards have damaged rows: --repair drops them, and the "
            "next 'orbit run' embeds them again"
        )
    document = verdict.as_dict()
    document["findings"] = [asdict(finding) for finding in verdict.findings]
    return Answer(document, "\n".join(lines), verdict.failure())


if __name__ == "__main__":
    run_alone(verify)
