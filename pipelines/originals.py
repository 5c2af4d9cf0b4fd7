"""A sample of the user's own images, read back from INPUT: what the audit and the sheet look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eqmodel.errors import OrbitError
from pipelines.decode import decode
from pipelines.errors import Rejected
from pipelines.shards import Damage, ReadOptions, Shard, list_shards, read_shard
from pipelines.shards.listing import input_folder
from pipelines.storage import Folder

Pixels = NDArray[Any]
SHARDS_STREAMED = 4
"""Shards that can only be read from their start (gzip, Parquet): no more than so many are."""


def spread_sample(rows: pa.Table, wanted: int, seed: int = 0) -> list[int]:
    """At most ``wanted`` row numbers: any where rows can be fetched by themselves, else from a few
    shards, so that reading them back stays cheap. ``rows`` has source, item_etag and offset."""
    chance = np.random.default_rng(seed)
    single = rows["item_etag"].is_valid().to_numpy() | rows["offset"].is_valid().to_numpy()
    if single.any():
        candidates = np.flatnonzero(single)
    else:
        sources = np.asarray(rows["source"].cast(pa.string()).to_pylist(), object)
        names = sorted(set(sources.tolist()))
        chosen = chance.permutation(len(names))[:SHARDS_STREAMED]
        candidates = np.flatnonzero(np.isin(sources, [names[i] for i in chosen]))
    size = min(wanted, len(candidates))
    return np.sort(chance.choice(candidates, size, replace=False)).tolist() if size else []


def read_originals(
    input_url: str,
    records: Mapping[int, Mapping[str, Any]],
    options: ReadOptions | None = None,
    buckets: int = 1024,
) -> dict[int, Pixels]:
    """Decoded pixels of the images that are still there unchanged; the others are left out.

    ``records``: row -> its source, source_etag, item_etag, key, offset and length.

    One ranged read each where the offset or the object is known, else its shard is streamed.
    OrbitError or OSError when INPUT cannot be reached at all.
    """
    folder = input_folder(input_url)
    found: dict[int, Pixels] = {}
    streamed: dict[str, dict[str, int]] = defaultdict(dict)
    for row, record in records.items():
        if record["item_etag"] is None and record["offset"] is None:
            streamed[record["source"]][record["key"]] = row
            continue
        pixels = _read_one(folder, record)
        if pixels is not None:
            found[row] = pixels
    if streamed:
        shards = {shard.source: shard for shard in list_shards(Folder(input_url), buckets=buckets)}
        for source, keys in streamed.items():
            if source in shards:
                found.update(_stream(folder, shards[source], keys, options or ReadOptions()))
    return found


def _read_one(folder: Folder, record: Mapping[str, Any]) -> Pixels | None:
    try:
        if record["item_etag"] is not None:
            data = folder.read(_object_key(record["key"]), etag=record["item_etag"])
        else:
            data = folder.read(
                record["source"], record["offset"], record["length"], etag=record["source_etag"]
            )
        return decode(data)
    except (Rejected, OrbitError, OSError):
        return None


def _object_key(key: str) -> str:
    # A real leading "!" is doubled in the table.
    return key[1:] if key.startswith("!!") else key


def _stream(
    folder: Folder, shard: Shard, keys: Mapping[str, int], options: ReadOptions
) -> Iterable[tuple[int, Pixels]]:
    left = dict(keys)
    for sample in read_shard(folder, shard, options):
        if isinstance(sample, Damage) or not left:
            return
        row = left.pop(sample.key, None)
        if row is None:
            continue
        try:
            yield row, decode(sample.data)
        except Rejected:
            continue
