"""A bucket's images on this disk, each read and decoded once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.decode import decode
from pipelines.errors import InputError, Rejected
from pipelines.pacing import chunked
from pipelines.shards import Damage, ReadOptions, Sample, Shard, list_shards, read_shard
from pipelines.shards.listing import input_folder
from pipelines.storage import Folder
from pipelines.training.stored import StoredImages, Writer

if TYPE_CHECKING:
    from pipelines.batch import Progress

BUCKETS = 64
CHUNK = 64
LARGEST_SIDE = 512
"""Twice the largest model input: more pixels than that are no use to a training."""


@dataclass(frozen=True)
class Part:
    """Which share of a collection one of several workers reads: ``number`` of ``of``."""

    number: int = 0
    of: int = 1


def read_images(
    url: str,
    place: Path,
    progress: Progress,
    *,
    limit: int | None = None,
    seed: int = 0,
    largest_side: int = LARGEST_SIDE,
    part: Part = Part(),
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> StoredImages:
    """The images of INPUT that decode, in an order the seed decides, stored in ``place``.

    At most ``limit`` of them, spread over the shards; longer than ``largest_side`` pixels they are
    made smaller. What is there of the same collection, from a
    training that was stopped, is taken as it is. InputError when INPUT holds no shard.
    """
    shards = list_shards(Folder(url), buckets=BUCKETS)
    if not shards:
        raise InputError(f"{url} holds no image, tar or Parquet file: nothing to train on")
    made_from = {
        "input": Folder(url).url, "shards": digest(shards), "limit": limit, "seed": seed,
        "max_side": largest_side, "part": asdict(part), "read": asdict(read), "format": 1,
    }  # fmt: skip
    kept = StoredImages.kept(place, made_from)
    if kept is not None:
        progress("reading", len(shards), len(shards), f"{len(kept):,} images kept from before")
        return kept
    writer, reader = (
        Writer(place, largest_side),
        _Reader(input_folder(url), read, part, len(shards)),
    )
    mine = reader.own(shuffled(shards, seed))
    share = None if limit is None else -(-limit // part.of)
    for done, shard in enumerate(mine, start=1):
        left = None if share is None else -(-(share - writer.num_images) // (len(mine) - done + 1))
        for image in reader.images(shard, left):
            writer.add(image)
        progress("reading", done, len(mine), f"{writer.num_images:,} images")
    return writer.finish(made_from)


def shuffled(shards: Sequence[Shard], seed: int) -> list[Shard]:
    """The shards in an order that the seed decides."""
    return [shards[n] for n in np.random.default_rng(seed).permutation(len(shards))]


def digest(shards: Iterable[Shard]) -> str:
    """Of which shards, in which state, a collection consists."""
    found = hashlib.sha256()
    for shard in shards:
        found.update(f"{shard.source}\0{shard.etag}\0".encode())
    return found.hexdigest()


class _Reader:
    """Decodes the images of one worker's share: whole shards, or every n-th image of all."""

    def __init__(self, folder: Folder, read: ReadOptions, part: Part, num_shards: int) -> None:
        self._folder, self._read, self._part = folder, read, part
        self._by_shard = num_shards >= 2 * part.of
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")

    def own(self, shards: list[Shard]) -> list[Shard]:
        """The shards that this worker reads."""
        return shards[self._part.number :: self._part.of] if self._by_shard else shards

    def images(self, shard: Shard, most: int | None) -> Iterator[NDArray[Any]]:
        """The images of a shard that decode, up to where it is damaged, ``most`` at most."""
        samples = self._samples(shard)
        if not self._by_shard:
            samples = islice(samples, self._part.number, None, self._part.of)
        return islice(self._decoded(samples), most)

    def _samples(self, shard: Shard) -> Iterator[Sample]:
        for sample in read_shard(self._folder, shard, self._read):
            if isinstance(sample, Damage):
                return
            if sample.error is None:
                yield sample

    def _decoded(self, samples: Iterator[Sample]) -> Iterator[NDArray[Any]]:
        for chunk in chunked(samples, CHUNK):
            for image in self._threads.map(_decode, chunk):
                if image is not None:
                    yield image


def _decode(sample: Sample) -> NDArray[Any] | None:
    try:
        return decode(sample.data)
    except Rejected:
        return None
