"""The main job: list, compare with the table, embed what is new, commit, say what was done."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from eqmodel.errors import OrbitError
from pipelines import guards, scratch
from pipelines.config import EmbedSettings
from pipelines.errors import IncompleteError, InputError
from pipelines.faults import faultpoint
from pipelines.models import find_checkpoint, in_precision, keep_copy, model_id_of
from pipelines.shards import ReadOptions, Shard, list_shards
from pipelines.shards.listing import input_folder
from pipelines.storage import Folder
from pipelines.summary import Clock, EmbedSummary, Planned, RunSummary
from pipelines.table import Counts, EmbeddingTable, KnownFile, Plan, TableIdentity, live_model
from pipelines.telemetry import log, take_run_name

if TYPE_CHECKING:
    from pipelines.publication import PublishOptions


class Progress(Protocol):
    """Called with a stage's name, how much is done, of how much (None: not known), and a note."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Show it."""


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Job:
    """One run's places and plan, after every check and before anything is created."""

    settings: EmbedSettings
    model_id: str
    model_folder: Path
    listed: Folder
    store: Folder
    table: EmbeddingTable | None
    plan: Plan
    name: str = ""
    run: str = field(default_factory=take_run_name)

    @property
    def input(self) -> Folder:
        """The folder that sources are relative to: INPUT, or the parent of a single object."""
        return input_folder(self.listed.url)

    @property
    def prefix(self) -> str:
        """What the sources of this INPUT begin with in the table."""
        return f"{self.name}/" if self.name else ""

    @property
    def read_options(self) -> ReadOptions:
        """How the input's columns are called."""
        return read_options(self.settings)

    @property
    def work(self) -> tuple[tuple[Shard, KnownFile | None], ...]:
        """The shards to embed, each with the file that it replaces; at most ``limit`` of them."""
        known = {} if self.table is None else self.table.known()
        chosen = self.plan.work[: self.settings.limit]
        return tuple((shard, known.get(shard.source)) for shard in chosen)

    @property
    def planned(self) -> Planned:
        """The plan in numbers."""
        plan = self.plan
        return Planned(
            num_added=len(plan.added),
            num_changed=len(plan.changed),
            num_vanished=len(plan.vanished),
            num_unchanged=len(plan.unchanged),
            num_bytes=sum(shard.size for shard in plan.work),
        )


def read_options(settings: EmbedSettings) -> ReadOptions:
    """How the input's columns are called."""
    return ReadOptions(
        image_column=settings.image_column,
        key_column=settings.key_column,
        label_column=settings.label_column,
    )


def embed_input(settings: EmbedSettings, progress: Progress = silent) -> EmbedSummary:
    """Bring STORE's embeddings table to what INPUT holds now.

    With nothing to do neither Ray nor torch is imported. Raises what is refused before any work
    (exit 2), ListingError, ConflictError; a run that did part of its work returns a summary
    whose ``failure`` says what is missing. Signals: see ``signals.py``.
    """
    started = time.monotonic()
    scratch.clean_stale()
    with scratch.folder() as place:
        job = prepare_job(settings, Path(place), progress)
        if settings.dry_run or job.plan.empty:
            summary = untouched(job)
        elif not job.plan.work:
            summary = remove_vanished(job)
        else:
            from pipelines.embedding_run import EmbeddingRun

            faultpoint("driver.planned")
            table = open_table(job)
            faultpoint("driver.created")
            summary = EmbeddingRun(job, table, progress, started).execute()
    summary.clock.elapsed_s = time.monotonic() - started
    if summary.landed:
        keep_summary(job, summary)
    return summary


def keep_summary(job: Job, summary: EmbedSummary) -> None:
    """The run's figures beside its heartbeat, for people: no reason to fail."""
    try:
        job.store.write(f"runs/{job.run}/summary.json", json.dumps(summary.as_dict()).encode())
    except OrbitError as error:
        log().event("summary", message=str(error))


def run_input(
    settings: EmbedSettings, options: PublishOptions | None = None, progress: Progress = silent
) -> RunSummary:
    """``embed_input``, then a publication of the table's version unless that one is live."""
    from pipelines.publish_run import publish_version

    summary = embed_input(settings, progress)
    read = read_options(settings)
    faultpoint("driver.embedded")
    go_live = settings.go_live or not settings.new_model
    try:
        return publish_version(Folder(settings.store), summary, options, progress, read, go_live)
    except OrbitError as error:
        if summary.failure is None or error.exit_code > 128:
            raise
        raise IncompleteError(f"{summary.failure}; and nothing was published: {error}") from error


def prepare_job(settings: EmbedSettings, place: Path, progress: Progress) -> Job:
    """Check everything that can be checked without touching the store, and make the plan."""
    listed, store = Folder(settings.input), Folder(settings.store)
    guards.check_places(listed, store)
    folder = in_precision(
        find_checkpoint(settings.model, place), settings.precision, place, settings.allow_inexact
    )
    model_id = model_id_of(folder)
    guards.check_model(store, live_model(store), model_id, settings.new_model)
    table = EmbeddingTable.open(store, model_id)
    name = input_name(table, listed.url, settings.add_input)
    progress("listing", 0, None, listed.url)
    shards = list_input(listed, table, settings.buckets, name)
    progress("listing", len(shards), len(shards), "shards found")
    guards.check_listing(listed.url, shards, table, settings.allow_vanish, name)
    plan = Plan(shards, (), (), ()) if table is None else table.plan(shards, name)
    return Job(settings, model_id, folder, listed, store, table, plan, name)


def input_name(table: EmbeddingTable | None, url: str, add: str | None) -> str:
    """The name of INPUT in the table, "" for the first one. InputError where it does not fit."""
    if table is not None:
        return guards.check_input(table, url, add)
    if add is not None:
        raise InputError(
            f"--add-input {add}: the store has no INPUT yet, and its first one has no name; "
            "leave the flag out"
        )
    return ""


def list_input(
    listed: Folder, table: EmbeddingTable | None, buckets: int, name: str = ""
) -> tuple[Shard, ...]:
    """The shards of INPUT, hashed into the number of buckets that the table was made with.

    An object store cannot tell an empty folder from none: where the store knows shards, an INPUT
    that is not there counts as an empty one, and the guards decide. InputError for a new store.
    """
    try:
        shards = list_shards(listed, buckets=buckets if table is None else table.identity.buckets)
    except InputError:
        if table is not None and table.known(name):
            return ()
        raise
    if name:
        return tuple(replace(shard, source=f"{name}/{shard.source}") for shard in shards)
    if table is not None:
        guards.check_owner(table.identity, name, shards)
    return tuple(shards)


def open_table(job: Job) -> EmbeddingTable:
    """The table to write to. A new one is made only after the model and the first images fit."""
    if job.table is not None:
        if job.name and job.table.identity.name_of(job.listed.url) is None:
            job.table.add_input(job.name, job.listed.url)
        keep_copy(job.store, job.model_id, job.model_folder)
        return job.table
    from eqmodel import Embedder

    embedder = Embedder.load(job.model_folder)
    guards.check_images(job.input, [shard for shard, _ in job.work], job.read_options, embedder)
    identity = TableIdentity(
        model_id=job.model_id,
        input_url=job.listed.url,
        buckets=job.settings.buckets,
        dim=embedder.dim,
        group=embedder.group.name,
    )
    keep_copy(job.store, job.model_id, job.model_folder)
    table = EmbeddingTable.create(job.store, identity)
    guards.check_input(table, job.listed.url)  # another writer may have been faster
    return table


def untouched(job: Job) -> EmbedSummary:
    """Nothing to do, or only to be told: nothing was created, nothing changed."""
    counts = Counts(0, 0, 0, 0, 0) if job.table is None else job.table.counts()
    version = None if job.table is None else job.table.version
    return EmbedSummary(job.model_id, version, counts, job.planned, dry_run=job.settings.dry_run)


def remove_vanished(job: Job) -> EmbedSummary:
    """Nothing to embed, only rows to remove: one commit, no Ray."""
    table, clock = open_table(job), Clock()
    began = time.monotonic()
    committed = table.commit([], [file.source for file in job.plan.vanished])
    clock.commit_s = time.monotonic() - began
    removed = sum(file.num_seen for file in committed.removed)
    return EmbedSummary(
        job.model_id, table.version, table.counts(), job.planned, num_removed=removed, clock=clock
    )
