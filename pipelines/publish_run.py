"""The last step of ``orbit run``: a publication of the table's version, unless it is live."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.shards import ReadOptions
from pipelines.storage import Folder
from pipelines.summary import EmbedSummary, RunSummary
from pipelines.table import PublicationLog, PublicationRow

if TYPE_CHECKING:
    from pipelines.batch import Progress
    from pipelines.publication import PublishOptions


def publish_version(
    store: Folder,
    summary: EmbedSummary,
    options: PublishOptions | None,
    progress: Progress,
    read: ReadOptions | None = None,
    go_live: bool = True,
) -> RunSummary:
    """Publish what was embedded; the live publication stands when it is of the same version.

    Nothing is published after a dry run, after a signal, or when no image was embedded.
    """
    log = PublicationLog.open(store)
    live = before = None if log is None else log.live()
    stopped = summary.failure is not None and summary.failure.exit_code > 128
    idle = summary.dry_run or stopped or not summary.counts.num_embedded
    if not idle and not _is_of(live, summary):
        from pipelines.publication import PublishOptions, publish

        told = replace(
            options or PublishOptions(),
            run=summary.as_dict(),
            read=read or ReadOptions(),
            go_live=go_live,
        )
        live = publish(store, summary.model_id, told, progress)
    went_live = live is not None and (live.seq > 0 or live == before)
    return RunSummary(
        embed=summary,
        recall_at_10=None if live is None else live.recall_at_10,
        publication=None if live is None else live.id,
        report=None if live is None else _report(store, live),
        live=went_live,
    )


def _is_of(live: PublicationRow | None, summary: EmbedSummary) -> bool:
    return (
        live is not None
        and live.model_id == summary.model_id
        and live.table_version == summary.table_version
    )


def _report(store: Folder, row: PublicationRow) -> str | None:
    pages = [file.path for file in row.files if file.path.endswith("report.html")]
    return f"{store.url}/{pages[0]}" if pages else None
