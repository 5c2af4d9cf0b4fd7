"""An inverted file filled by Ray tasks: each reads some shards of the table and codes them.

A task is told the trained index once through the object store, reads the Parquet files of its
shards where it runs, and sends back codes and ids, no embedding; the driver merges them. At most
one task for each CPU is under way, so that what waits to be merged stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index.parts import filled_part
from pipelines.pool.session import ray_session
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, KnownFile

if TYPE_CHECKING:
    from pipelines.batch import Progress

PART = 100_000
"""Embeddings that one task codes: about a gigabyte of table at most, some tens of MB of codes."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Partitions:
    """Fills a trained index with the embeddings of one version of a table."""

    mode: str
    store: Folder
    table: EmbeddingTable
    progress: Progress

    def __call__(self, trained: Bytes) -> Iterator[Bytes]:
        """The filled parts, in the order in which they are done."""
        groups = partition(self.table.known())
        version = self.table.version
        with ray_session(self.mode, 1) as (cpus, _):
            shared = ray.put(trained)
            task = ray.remote(num_cpus=1, max_retries=3)(_fill)
            where = (self.store.url, self.table.identity.model_id, version)
            waiting, done = list(reversed(groups)), 0
            running: list[ray.ObjectRef] = []
            while waiting or running:
                while waiting and len(running) < max(1, int(cpus)):
                    running.append(task.remote(shared, *where, waiting.pop()))
                ready, running = ray.wait(running, num_returns=1)
                yield ray.get(ready[0])
                done += 1
                self.progress("indexing", done, len(groups), "partitions")


def partition(known: Mapping[str, KnownFile], most: int = PART) -> list[tuple[str, ...]]:
    """Sources in groups of at most ``most`` embeddings each, where one source alone is no more."""
    groups: list[list[str]] = []
    held = most
    for source in sorted(known):
        num = known[source].num_embedded
        if not num:
            continue
        if held + num > most:
            groups.append([])
            held = 0
        groups[-1].append(source)
        held += num
    return [tuple(group) for group in groups]


def _fill(
    trained: Bytes, store_url: str, model_id: str, version: int, sources: Sequence[str]
) -> Bytes:
    table = EmbeddingTable.open(Folder(store_url), model_id, version)
    if table is None:
        raise ArtifactError(f"{store_url}: the table of model {model_id} is gone; run again")
    batches = table.batches(["image_id", "embedding"], sources=set(sources))
    return filled_part(trained, batches)
