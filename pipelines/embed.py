"""One shard in, one Parquet file and a receipt out: threads inside, no Ray in it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines import calibrate, scratch
from pipelines.carried import Carried
from pipelines.efficiency import Rates
from pipelines.faults import faultpoint
from pipelines.isolated import IsolatedDecoder
from pipelines.lanes import Lanes
from pipelines.pacing import Seconds, Tally, Turn, chunked
from pipelines.prepare import Prepared, Preparer, fill
from pipelines.quarantine import Quarantine
from pipelines.shard_file import CheckedFile, Row, ShardFile, to_table
from pipelines.shards import Damage, ReadOptions, Sample, Shard, read_shard
from pipelines.storage import Folder
from pipelines.table import KnownFile, Receipt, file_statistics, shard_folder
from pipelines.warm_up import MOST_AT_ONCE, load_embedder, warm_up

REDUCED_TO = 2
"""With ``reduced_jpeg``, pixels a side for each one of the model's input, at least."""
CHUNK = 64
"""Images that are decoded at once."""


@dataclass(frozen=True, slots=True)
class ShardWork:
    """One shard to embed: ``previous`` is its file in the table, when it has changed.

    ``quarantine``: 1, its images are decoded in a child process; 2, embedded there one at a time.
    """

    shard: Shard
    run: str
    attempt: int
    previous: KnownFile | None = None
    batch_size: int = MOST_AT_ONCE
    quarantine: int = 0


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a run is told once; plain values, so that it travels anywhere."""

    input_url: str
    store_url: str
    model_id: str
    model_folder: str
    read: ReadOptions = field(default_factory=ReadOptions)
    thumbnail_share: float = 1.0
    batch_size: int | None = None
    threads: int = 1
    device: str = "cpu"
    reduced_jpeg: bool = False
    compile: bool = False
    prefix: str = ""
    run: str = ""
    log_format: str = "text"


def as_listed(shard: Shard, prefix: str) -> Shard:
    """A shard under its name in INPUT: a further INPUT's sources have its name in front."""
    return replace(shard, source=shard.source.removeprefix(prefix)) if prefix else shard


class ShardEmbedder:
    """Embeds shards with one model; ``embed`` may be called from two threads at once.

    Then the second shard is fetched while the first is decoded and encoded, and the first one's
    file is written and uploaded while the second is; the older one goes first. ``progress`` grows
    with every batch and as bytes come, for the driver's deadline.

    Memory, beside the model and what is fetched ahead (72 MiB of each of two shards at most, see
    ``read_ahead.py``): of each of ``threads`` lanes a chunk of images (4 MiB as stored, 16 MiB of
    pixels) and two batches (64 MiB of model input each at most), and what encoding one takes.
    """

    def __init__(self, settings: WorkerSettings, worker: str = "worker") -> None:
        self.settings, self.worker, self.progress = settings, worker, 0
        self.input = Folder(settings.input_url)
        self.table = Folder(settings.store_url).child(f"embeddings/{settings.model_id}")
        self._place = scratch.folder()
        self.embedder = load_embedder(settings, Path(self._place.name))
        self.batching = warm_up(self.embedder, settings.threads, settings.batch_size)
        self.lanes = Lanes(settings.threads, encodes=self.batching.in_lanes)
        to_table([Row("")], "", "")  # at the first of all, pyarrow imports pandas: 0.3 s
        self._reading, self._encoding, self._steps = Turn(), Turn(), itertools.count(1)
        self.input.on_read = self._step  # a shard may be long and hold few images
        self._first: Shard | None = None
        self._kept: list[Sample] = []
        self._counting, self._counted_s = threading.Lock(), time.process_time()
        self._core_s, self._num_encoded = Seconds(), 0

    def embed(self, work: ShardWork) -> Receipt:
        """Embed one shard, upload its file under a name never used before, and vouch for it.

        Raises what reading the input or writing the store raises; a broken image raises nothing,
        it becomes a row with its reason.
        """
        tally, shard = Tally(), work.shard
        faultpoint("worker.fetch")
        with scratch.folder() as place:
            carried = Carried.read(self.table, work.previous, shard, Path(place))
            with ShardFile(Path(place, "shard.parquet"), shard.source, shard.etag) as file:
                file.add(carried.rows)
                self._add_images(file, work, carried, tally)
                with tally.phases.timed("write"):
                    checked = file.finish()
            path = (
                f"{shard_folder(shard.source)}/{work.run}-{work.attempt}"
                f"-{checked.num_rows}-{checked.sha256}.parquet"
            )
            faultpoint("worker.written")
            with tally.phases.timed("upload"):
                self.table.upload(checked.path, path)
            faultpoint("worker.uploaded")
        self._step()
        faultpoint("worker.receipt")
        return self._receipt(work, file, checked, path, tally)

    @property
    def _reduced(self) -> int:
        return REDUCED_TO * self.embedder.image_size if self.settings.reduced_jpeg else 0

    def calibrate(self) -> Rates | None:
        """This worker's rates on images of its first shard; None when it has seen no image."""
        if self._first is None or not self._kept:
            return None
        first = as_listed(self._first, self.settings.prefix)
        threads = self.settings.threads
        budget_s = min(sum(self._core_s.values()), calibrate.BUDGET_S)
        rates = calibrate.measure(
            self.embedder, self._kept, self.input, first, threads, self._reduced, budget_s
        )
        if rates is None or not self._num_encoded:
            return rates
        seen = {phase: spent / self._num_encoded for phase, spent in self._core_s.items()}
        return calibrate.bounded(rates, seen, self.lanes.encodes)

    def _add_images(self, file: ShardFile, work: ShardWork, carried: Carried, tally: Tally) -> None:
        damage = list[Damage]()
        ticket = self._reading.ticket()
        with tally.phases.timed("fetch"):
            samples = begun(self._samples(work, carried, damage, tally))
        with ExitStack() as turn:
            turn.enter_context(self._reading.hold(ticket))
            if work.quarantine > 1:
                self._add_in_quarantine(file, work, samples, tally)
            else:
                parts = self._decoded_apart if work.quarantine else self._embedded
                if not self.lanes.alone:  # the next shard may begin while this one's end is encoded
                    samples = followed_by(samples, turn.close)
                count = min(work.batch_size, self.batching.batch_size, CHUNK)
                chunks = tally.phases.each("fetch", chunked(samples, count))
                for done in parts(work, chunks, carried, ticket):
                    tally.phases.absorb(done.phases)
                    tally.num_encoded += done.num_encoded
                    with tally.phases.timed("write"):
                        file.add(done.rows)
                    self._step()
        for found in damage:
            file.mark("!damaged", f"at {found.position}: {found.reason}")
        if not file.num_rows:
            file.mark("!empty")

    def _samples(
        self, work: ShardWork, carried: Carried, damage: list[Damage], tally: Tally
    ) -> Iterator[Sample]:
        shard = as_listed(work.shard, self.settings.prefix)
        reading = read_shard(self.input, shard, self.settings.read, only=carried.missing)
        keep = not work.quarantine and self._first in (None, work.shard)
        kept = 0
        for found in reading:
            if isinstance(found, Damage):
                damage.append(found)
                continue
            if keep and len(self._kept) < calibrate.IMAGES and kept < calibrate.KEPT_BYTES:
                self._first = work.shard
                self._kept.append(found)
                kept += len(found.data)
            tally.in_bytes += len(found.data)
            yield found

    def _embedded(
        self, work: ShardWork, chunks: Iterator[list[Sample]], carried: Carried, ticket: int
    ) -> Iterator[Prepared]:
        """Batches of finished rows in the order of the shard."""
        preparer = Preparer(
            self.embedder, work.shard.source, self.settings.thumbnail_share, reduced=self._reduced
        )
        enough = min(work.batch_size, self.batching.batch_size)

        def prepare(chunk: list[Sample]) -> Prepared:
            prepared = preparer.prepare(chunk, carried.by_digest)
            self._step()
            return prepared

        def encode(ready: Prepared) -> Prepared:
            return self._encoded(ready, ticket)

        return self.lanes.through(chunks, prepare, encode, enough)

    def _decoded_apart(
        self, work: ShardWork, chunks: Iterator[list[Sample]], carried: Carried, ticket: int
    ) -> Iterator[Prepared]:
        """The same by a decoder that may crash without harm, one image at a time."""
        with IsolatedDecoder() as child:
            preparer = Preparer(
                self.embedder, work.shard.source, self.settings.thumbnail_share, child.decode
            )
            for chunk in chunks:
                yield self._encoded(preparer.prepare(chunk, carried.by_digest), ticket)

    def _encoded(self, prepared: Prepared, ticket: int) -> Prepared:
        """Its rows filled in; outside the lanes one batch at a time, on all threads of torch."""
        import torch

        from eqmodel.preprocess import joined

        if not prepared.encodable:
            return prepared
        faultpoint("worker.encode")
        batch = joined(prepared.pixels)
        prepared.pixels.clear()
        with ExitStack() as turn:
            if not self.lanes.encodes:
                turn.enter_context(self._encoding.hold(ticket))
                torch.set_num_threads(self.lanes.threads)
            with prepared.phases.timed("encode"):
                embeddings, poses = self.embedder.encode(batch)
        fill(prepared.encodable, embeddings, poses)
        prepared.num_encoded = len(prepared.encodable)
        return prepared

    def _add_in_quarantine(
        self, file: ShardFile, work: ShardWork, samples: Iterator[Sample], tally: Tally
    ) -> None:
        settings = self.settings
        folder = str(self.embedder.folder)
        with Quarantine(
            folder, settings.device, work.shard.source, settings.thumbnail_share
        ) as child:
            for row in child.embed(samples):
                file.add([row])
                tally.num_encoded += row.embedding is not None
                self._step()

    def _spent(self, work: ShardWork, tally: Tally) -> float:
        """Seconds of cores that the process took since this was last asked, or since the start."""
        with self._counting:
            if not work.quarantine:  # in which a child does the work
                self._core_s.absorb(tally.phases.core_s)
                self._num_encoded += tally.num_encoded
            before, self._counted_s = self._counted_s, time.process_time()
            return self._counted_s - before

    def _step(self) -> None:
        self.progress = next(self._steps)

    def _receipt(
        self, work: ShardWork, file: ShardFile, checked: CheckedFile, path: str, tally: Tally
    ) -> Receipt:
        shard, counted = work.shard, (file.num_rows, file.num_embedded, file.num_rejected)
        return Receipt(
            source=shard.source,
            etag=shard.etag,
            path=path,
            size=checked.size,
            sha256=checked.sha256,
            md5=checked.md5,
            num_rows=file.num_rows,
            num_embedded=file.num_embedded,
            num_rejected=file.num_rejected,
            num_encoded=tally.num_encoded,
            damaged=file.damaged,
            stats=file_statistics(shard.source, shard.etag, *counted, file.damaged),
            worker=self.worker,
            pid=os.getpid(),
            in_bytes=tally.in_bytes if shard.kind == "folder" else shard.size,
            seconds=dict(tally.phases.seconds),
            core_s=dict(tally.phases.core_s) | {"whole": self._spent(work, tally)},
        )


def begun(samples: Iterator[Sample]) -> Iterator[Sample]:
    """The same samples; the first one is fetched at once, and more of the shard behind it."""
    first = list(itertools.islice(samples, 1))
    return itertools.chain(first, samples)


def followed_by(samples: Iterator[Sample], act: Callable[[], None]) -> Iterator[Sample]:
    """The same samples, and ``act`` once there are no more."""
    yield from samples
    act()
