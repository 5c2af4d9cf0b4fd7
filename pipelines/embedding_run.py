"""The part of the job that needs workers: hand out, collect receipts, commit every few seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eqmodel.errors import OrbitError, Refused
from pipelines import scratch
from pipelines.dispatch import Dispatch
from pipelines.efficiency import Demand, Ideal, ideal
from pipelines.embed import WorkerSettings
from pipelines.errors import IncompleteError, SettingsError
from pipelines.faults import faultpoint
from pipelines.layout import Layout, lay_out
from pipelines.pool import Growth, Pool, PoolSettings, largest_node, memory_there, ray_session
from pipelines.signals import StopRequest, stop_requests
from pipelines.summary import Clock, EmbedSummary
from pipelines.table import EmbeddingTable, KnownFile, Receipt
from pipelines.telemetry import log
from pipelines.warm_up import MOST_AT_ONCE

if TYPE_CHECKING:
    from pipelines.batch import Job, Progress
    from pipelines.failures import Failure

MAX_REPLANS = 3
HEARTBEAT_S = 60.0
LOOKS_AT_ONCE = 32
LEAST_ROWS_TO_JUDGE = 100
"""The share of rows without an image (rejected, or ``!damaged``) is held against a run only when it
added at least so many."""


class EmbeddingRun:
    """One run over the shards of a job; ``execute`` once."""

    def __init__(self, job: Job, table: EmbeddingTable, progress: Progress, started: float) -> None:
        self._job, self._table, self._progress, self._started = job, table, progress, started
        self._clock = Clock()
        self._waiting: list[Receipt] = []
        self._held: dict[str, bool] = {}
        self._seen = 0
        self._landed: list[Receipt] = []
        self._removed: list[KnownFile] = []
        self._last_receipt: float | None = None
        self._next_commit = 0.0
        self._next_heartbeat = 0.0
        self._failures: dict[str, str] = {}
        self._ending = "what was done is committed"
        self._dispatch = self._new_dispatch(job.work)

    def execute(self) -> EmbedSummary:
        """Embed and commit; the summary holds the failure of a run that is not complete."""
        settings = self._job.settings
        flags = settings.worker_flags
        self._say("starting workers")
        least = int((flags.min_workers or 1) * (flags.cpus_per_worker or 1))
        with ray_session(settings.ray, least) as (cpus, gpus), stop_requests() as stop:
            if settings.ray == "local" and (flags.gpus_per_worker or 0) > gpus:
                raise SettingsError(
                    f"--gpus-per-worker {flags.gpus_per_worker:g}: this machine has {gpus:g}; "
                    "use a cluster with --ray, or leave the flag out"
                )
            growth = Growth(
                lay_out(cpus, gpus, self._dispatch.total, flags, memory_there(), largest_node()),
                most=min(flags.max_workers or self._dispatch.total, self._dispatch.total),
                joined=settings.ray != "local",
                asked=flags.max_workers is not None,
            )
            pool = Pool(self._pool_settings(growth), self._take, self._tick, stop)
            with growth, pool:
                fatal = self._work(pool, stop)
                self._note_times(pool)
                rates = None if fatal or stop() else pool.calibrate()
                self._commit_last(fatal, stop())
        scratch.clean_stale()  # of workers, which are ended by force
        reached = None
        if rates is not None:
            reached = ideal(rates, self._demand(growth.layout))
        return self._summary(reached, growth.layout.cores, self._failure(fatal, stop))

    def _work(self, pool: Pool, stop: StopRequest) -> Failure | None:
        """Work the plan off; shards that changed meanwhile are listed and planned again."""
        from pipelines.batch import list_input

        for _ in range(MAX_REPLANS):
            fatal = pool.run(self._dispatch)
            self._failures |= self._dispatch.failures
            changed = self._dispatch.replan
            if fatal is not None or stop() or not changed:
                return fatal
            self._commit(final=False)
            job = self._job
            listed = list_input(job.listed, self._table, job.settings.buckets, job.name)
            known = self._table.known()
            again = [(s, known.get(s.source)) for s in listed if s.source in changed]
            self._dispatch = self._new_dispatch(again)
        for source in self._dispatch.replan:
            self._failures[source] = f"it changed while it was read, {MAX_REPLANS} times"
        return None

    def _new_dispatch(self, work: object) -> Dispatch:
        settings = self._job.settings
        return Dispatch(
            work,  # type: ignore[arg-type]
            run=self._job.run,
            max_attempts=settings.max_attempts,
            batch_size=settings.batch_size or MOST_AT_ONCE,
        )

    def _pool_settings(self, growth: Growth) -> PoolSettings:
        job, settings, layout = self._job, self._job.settings, growth.layout
        worker = WorkerSettings(
            input_url=job.input.url,
            store_url=job.store.url,
            model_id=job.model_id,
            model_folder=str(job.model_folder),
            read=job.read_options,
            thumbnail_share=settings.thumbnail_share,
            batch_size=settings.batch_size,
            threads=layout.threads,
            device=layout.device,
            reduced_jpeg=settings.reduced_jpeg,
            compile=settings.compile,
            prefix=job.prefix,
            run=job.run,
            log_format=log().format,
        )
        return PoolSettings(
            layout, worker, settings.deadline_s, workers=growth, leaving=growth.leaving,
            expect=self._expect,
        )  # fmt: skip

    # -- what the pool calls ------------------------------------------------------------------

    def _expect(self, receipts: Sequence[Receipt]) -> None:
        """Look for the files of several receipts at once: a store far away takes its time, and one
        after another the driver would take fewer receipts than many workers send."""
        if len(receipts) > 1 and not self._job.store.is_local:
            with ThreadPoolExecutor(min(len(receipts), LOOKS_AT_ONCE)) as threads:
                held = list(threads.map(self._table.holds, receipts))
            self._held = {
                receipt.path: there for receipt, there in zip(receipts, held, strict=True)
            }

    def _take(self, receipt: Receipt) -> bool:
        """Believe a receipt only when its file is there, whole."""
        held = self._held.pop(receipt.path, None)
        if not (self._table.holds(receipt) if held is None else held):
            return False
        self._waiting.append(receipt)
        self._seen += receipt.num_embedded + receipt.num_rejected
        faultpoint("driver.received")
        self._last_receipt = time.monotonic()
        return True

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_commit:
            self._next_commit = now + self._job.settings.commit_every_s
            self._commit(final=False)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self._beat()
        self._say("embedding")

    def _commit(self, final: bool) -> None:
        """Commit the receipts in hand; vanished shards go with the last commit of a whole run."""
        vanished = [file.source for file in self._job.plan.vanished] if final else []
        if not self._waiting and not vanished:
            return
        began = time.monotonic()
        faultpoint("driver.commit")
        committed = self._table.commit(self._waiting, vanished)
        faultpoint("driver.committed")
        took = time.monotonic() - began
        self._clock.commit_s += took
        log().event(
            "commit", table_version=committed.version, shards=len(committed.landed),
            removed=len(committed.removed), seconds=round(took, 4),
        )  # fmt: skip
        self._waiting = []
        self._landed += committed.landed
        self._removed += committed.removed
        self._dispatch.drop(self._table.foreign())

    def _commit_last(self, fatal: Failure | None, stopped: bool) -> None:
        """What is done; where that fails too, what had ended the run is still told first."""
        try:
            self._commit(final=fatal is None and not stopped)
        except OrbitError as error:
            if fatal is None:
                raise
            self._ending = f"the last commit failed too: {error}"

    def _beat(self) -> None:
        """Settings and a sign of life under runs/, for people and for clean-up only."""
        beat = {
            "run": self._job.run,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "model_id": self._job.model_id,
            "settings": asdict(self._job.settings),
            "shards_done": len(self._dispatch.done),
            "shards_total": self._dispatch.total,
            "table_version": self._table.version,
        }
        self._job.store.write(f"runs/{self._job.run}/heartbeat.json", json.dumps(beat).encode())

    def _say(self, stage: str) -> None:
        note = f"{self._seen:,} images" if self._seen else ""
        self._progress(stage, len(self._dispatch.done), self._dispatch.total, note)

    # -- the end ------------------------------------------------------------------------------

    def _note_times(self, pool: Pool) -> None:
        first = pool.first_handed_out
        if first is None:
            self._clock.startup_s = time.monotonic() - self._started
            return
        self._clock.startup_s = first - self._started
        self._clock.steady_s = (self._last_receipt or time.monotonic()) - first

    def _demand(self, layout: Layout) -> Demand:
        return Demand(
            num_encoded=sum(r.num_encoded for r in self._landed),
            in_bytes=sum(r.in_bytes for r in self._landed),
            cores=layout.cores,
            gpus=layout.gpus,
            workers=layout.workers,
        )

    def _failure(self, fatal: Failure | None, stop: StopRequest) -> OrbitError | None:
        if stop():
            return stop.error()
        if fatal is not None:
            kind = Refused if fatal.exit_code == Refused.exit_code else IncompleteError
            return kind(f"{fatal.message}; {self._ending}")
        if self._failures:
            source, reason = next(iter(sorted(self._failures.items())))
            return IncompleteError(
                f"{len(self._failures)} of {len(self._job.work)} shards failed, the others are "
                f"committed; {source}: {reason}; run again to try them once more"
            )
        return self._too_many_rejects()

    def _too_many_rejects(self) -> OrbitError | None:
        rejected = sum(r.num_rejected for r in self._landed)
        damaged = sum(r.damaged for r in self._landed)
        rows = sum(r.num_embedded for r in self._landed) + rejected + damaged
        allowed = self._job.settings.max_reject_share
        if rows < LEAST_ROWS_TO_JUDGE or rejected + damaged <= allowed * rows:
            return None
        also = f" and {damaged} damaged shards told" if damaged else ""
        return IncompleteError(
            f"{rejected} images were rejected{also} in {rows} rows, at most {allowed:.0%} of them "
            "expected; the rest is committed: see the table's column 'error', or raise "
            "--max-reject-share"
        )

    def _summary(
        self, reached: Ideal | None, cores: float, failure: OrbitError | None
    ) -> EmbedSummary:
        return EmbedSummary(
            model_id=self._job.model_id,
            table_version=self._table.version,
            counts=self._table.counts(),
            planned=self._job.planned,
            landed=tuple(self._landed),
            num_removed=sum(file.num_seen for file in self._removed),
            clock=self._clock,
            ideal=reached,
            cores=cores,
            failure=failure,
        )
