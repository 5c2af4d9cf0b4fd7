"""One shard in, one Parquet file and a receipt out: threads inside, no Ray in it."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import calibrate, scratch
from pipelines.allocator import keep_freed_memory
from pipelines.carried import Carried
from pipelines.efficiency import Rates
from pipelines.errors import ModelMismatchError
from pipelines.faults import faultpoint
from pipelines.isolated import IsolatedDecoder
from pipelines.models import checkpoint_of_store
from pipelines.pacing import Tally, Turn, chunked
from pipelines.prepare import Prepared, Preparer, fill
from pipelines.quarantine import Quarantine
from pipelines.shard_file import CheckedFile, Row, ShardFile
from pipelines.shards import Damage, ReadOptions, Sample, Shard, read_shard
from pipelines.storage import Folder
from pipelines.table import KnownFile, Receipt, file_statistics, shard_folder

if TYPE_CHECKING:
    from eqmodel import Embedder

BATCH_BYTES = 64 << 20
"""Model input of one batch at most, whatever the batch size says."""


@dataclass(frozen=True, slots=True)
class ShardWork:
    """One shard to embed: ``previous`` is its file in the table, when it has changed.

    ``quarantine``: 1, its images are decoded in a child process; 2, embedded there one at a time.
    """

    shard: Shard
    run: str
    attempt: int
    previous: KnownFile | None = None
    batch_size: int = 256
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
    batch_size: int = 256
    threads: int = 1
    device: str = "cpu"
    prefix: str = ""
    run: str = ""
    log_format: str = "text"


def as_listed(shard: Shard, prefix: str) -> Shard:
    """A shard under its name in INPUT: a further INPUT's sources have its name in front."""
    return replace(shard, source=shard.source.removeprefix(prefix)) if prefix else shard


class ShardEmbedder:
    """Embeds shards with one model; ``embed`` may be called from two threads at once.

    Then the second shard is fetched and decoded while the first is encoded; the older one has
    the first call on the encoder. ``progress`` grows with every batch and as bytes come, for the
    driver's deadline; ``threads`` is what torch may use, the declared CPUs or more when the driver
    says so.
    """

    def __init__(self, settings: WorkerSettings, worker: str = "worker") -> None:
        self.settings, self.worker, self.progress = settings, worker, 0
        self.threads = settings.threads
        self.input = Folder(settings.input_url)
        self.table = Folder(settings.store_url).child(f"embeddings/{settings.model_id}")
        self._place = scratch.folder()
        self.embedder = load_embedder(settings, Path(self._place.name))
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._turn, self._steps = Turn(), itertools.count(1)
        self.input.on_read = self._step  # a shard may be long and hold few images
        self._first: Shard | None = None
        self._kept: list[Sample] = []

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
                with tally.timed("write"):
                    checked = file.finish()
            path = (
                f"{shard_folder(shard.source)}/{work.run}-{work.attempt}"
                f"-{checked.num_rows}-{checked.sha256}.parquet"
            )
            faultpoint("worker.written")
            with tally.timed("upload"):
                self.table.upload(checked.path, path)
            faultpoint("worker.uploaded")
        self._step()
        faultpoint("worker.receipt")
        return self._receipt(work, file, checked, path, tally)

    def calibrate(self) -> Rates | None:
        """This worker's rates on images of its first shard; None when it has seen no image."""
        if self._first is None or not self._kept:
            return None
        first = as_listed(self._first, self.settings.prefix)
        return calibrate.measure(self.embedder, self._kept, self.input, first)

    def _add_images(self, file: ShardFile, work: ShardWork, carried: Carried, tally: Tally) -> None:
        ticket, damage = self._turn.ticket(), list[Damage]()
        samples = self._samples(work, carried, damage, tally)
        if work.quarantine > 1:
            self._add_in_quarantine(file, work, samples, tally)
        else:
            parts = self._decoded_apart if work.quarantine else self._prepared
            for prepared in parts(work, samples, carried):
                file.add(self._encoded(prepared, ticket, tally))
                self._step()
        for found in damage:
            file.mark("!damaged", f"at {found.position}: {found.reason}")
        if not file.num_rows:
            file.mark("!empty")

    def _samples(
        self, work: ShardWork, carried: Carried, damage: list[Damage], tally: Tally
    ) -> Iterator[Sample]:
        shard = as_listed(work.shard, self.settings.prefix)
        reading = iter(read_shard(self.input, shard, self.settings.read, only=carried.missing))
        keep = not work.quarantine and self._first in (None, work.shard)
        while True:
            with tally.timed("fetch"):
                found = next(reading, None)
            if found is None:
                return
            if isinstance(found, Damage):
                damage.append(found)
                continue
            if keep and len(self._kept) < calibrate.IMAGES:
                self._first = work.shard
                self._kept.append(found)
            tally.in_bytes += len(found.data)
            yield found

    def _prepared(
        self, work: ShardWork, samples: Iterator[Sample], carried: Carried
    ) -> Iterator[Prepared]:
        """Batches of decoded images in the order of the shard."""
        preparer = Preparer(self.embedder, work.shard.source, self.settings.thumbnail_share)
        enough = batch_size(self.embedder, work.batch_size)
        waiting: deque[Future[Prepared]] = deque()
        ready = Prepared()
        for chunk in chunked(samples, min(enough, 64)):
            waiting.append(self._decoders.submit(preparer.prepare, chunk, carried.by_digest))
            if len(waiting) > self.settings.threads + 1:
                ready.absorb(waiting.popleft().result())
                self._step()
            if len(ready.encodable) >= enough:
                yield ready
                ready = Prepared()
        while waiting:
            ready.absorb(waiting.popleft().result())
            if len(ready.encodable) >= enough or not waiting:
                yield ready
                ready = Prepared()

    def _decoded_apart(
        self, work: ShardWork, samples: Iterator[Sample], carried: Carried
    ) -> Iterator[Prepared]:
        """The same by a decoder that may crash without harm, one image at a time."""
        enough = min(batch_size(self.embedder, work.batch_size), 64)
        with IsolatedDecoder() as child:
            preparer = Preparer(
                self.embedder, work.shard.source, self.settings.thumbnail_share, child.decode
            )
            for chunk in chunked(samples, enough):
                yield preparer.prepare(chunk, carried.by_digest)

    def _encoded(self, prepared: Prepared, ticket: int, tally: Tally) -> list[Row]:
        import torch

        tally.seconds.absorb(prepared.seconds)
        if prepared.encodable:
            faultpoint("worker.encode")
            batch = torch.cat(prepared.pixels)
            prepared.pixels.clear()
            with self._turn.hold(ticket), tally.timed("encode"):
                torch.set_num_threads(self.threads)
                embeddings, poses = self.embedder.encode(batch)
            fill(prepared.encodable, embeddings, poses)
            tally.num_encoded += len(prepared.encodable)
        return prepared.rows

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
            seconds=dict(tally.seconds),
        )


def batch_size(embedder: Embedder, asked: int) -> int:
    """Images per batch: what was asked for, within 64 MiB of model input."""
    image_bytes = embedder.channels * embedder.image_size**2 * 4
    return max(1, min(asked, BATCH_BYTES // image_bytes))


def load_embedder(settings: WorkerSettings, place: Path) -> Embedder:
    """The run's model on the worker's device, warmed up with two batches of real size.

    Taken from the driver's folder where that exists, else from the copy in the store (into
    ``place``). ModelMismatchError when it is another model than the driver planned with.
    """
    import torch

    from eqmodel import Embedder

    faultpoint("worker.load")
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    folder = Path(settings.model_folder)
    if not folder.is_dir():
        folder = checkpoint_of_store(Folder(settings.store_url), settings.model_id, place)
    embedder = Embedder.load(folder, device=settings.device)
    if embedder.model_id != settings.model_id:
        raise ModelMismatchError(
            f"{folder}: model {embedder.model_id} found, {settings.model_id} expected: "
            "the checkpoint changed during the run; run again"
        )
    count, size = batch_size(embedder, settings.batch_size), embedder.image_size
    for _ in range(2):
        embedder.encode(torch.zeros(count, embedder.channels, size, size))
    return embedder
