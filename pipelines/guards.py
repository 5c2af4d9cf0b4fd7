"""What is refused before any work, and what is never deleted on a listing's word alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from eqmodel.errors import ChannelError
from pipelines.decode import decode
from pipelines.errors import (
    InputError,
    ListingError,
    ModelMismatchError,
    Rejected,
    StoreError,
)
from pipelines.shards import ReadOptions, Sample, Shard, read_shard
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable

if TYPE_CHECKING:
    from eqmodel import Embedder

MAX_VANISHED_SHARE = 0.2
PEEKED_SHARDS = 8
PEEKED_IMAGES = 8
_PARTS_OF_A_STORE = {"models", "embeddings", "publications", "artifacts", "runs", "report.html"}


def check_places(input_folder: Folder, store: Folder) -> None:
    """StoreError unless STORE can be one: apart from INPUT, and a folder or not there yet."""
    if (store.url + "/").startswith(input_folder.url + "/"):
        raise StoreError(
            f"{store.url}: lies inside INPUT, its files would be taken for images; "
            "choose a STORE outside INPUT"
        )
    if "://" in store.url and not store.url.startswith("file://"):
        return
    path = Path(store.url.removeprefix("file://"))
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path}: a file was found, a folder expected for STORE; choose another")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise StoreError(f"{path}: {above} is a file, a folder expected; choose another STORE")
    if path.is_dir():
        found = {name for name in os.listdir(path) if not name.startswith(".")}
        if found and not found & _PARTS_OF_A_STORE:
            raise StoreError(
                f"{path}: neither a store nor an empty folder (it holds {min(found)}); "
                "choose another STORE"
            )


def check_model(store: Folder, live: str | None, model_id: str, new_model: bool) -> None:
    """ModelMismatchError when the store is another model's, unless a new one was asked for."""
    if live is not None and live != model_id and not new_model:
        raise ModelMismatchError(
            f"{store.url}: made with model {live}, {model_id} was given; use that model, "
            "or --new-model to embed everything again with this one"
        )


def check_input(table: EmbeddingTable, input_url: str) -> None:
    """InputError when the table was made from another INPUT."""
    known = table.identity.input_url
    if known != input_url:
        raise InputError(
            f"{input_url}: the store was made from {known}; use that INPUT or another STORE"
        )


def check_listing(
    input_url: str, shards: Sequence[Shard], table: EmbeddingTable | None, allow_vanish: bool
) -> None:
    """Never delete because a listing came back short.

    InputError (exit 2) for an empty INPUT of a new store; ListingError (exit 1) for an empty
    listing, or one that lacks more than a fifth of the known shards or, for folders, images.
    """
    known = {} if table is None else table.known()
    if not known:
        if not shards:
            raise InputError(
                f"{input_url}: no tar, Parquet or image file found; check the URL and the access"
            )
        return
    lacking = missing_share(shards, {source: file.num_seen for source, file in known.items()})
    if (lacking > MAX_VANISHED_SHARE or not shards) and not allow_vanish:
        raise ListingError(
            f"{input_url}: {lacking:.0%} of what the store knows ({len(known)} shards) is no "
            f"longer listed, at most {MAX_VANISHED_SHARE:.0%} expected; nothing was removed: "
            "check INPUT, or use --allow-vanish"
        )


def missing_share(shards: Sequence[Shard], known: dict[str, int]) -> float:
    """The share of known shards, or of known images in folders, that a listing lacks.

    ``known`` maps each source to its images. A folder's bucket is still listed while one of its
    images is, so there the images are counted too.
    """
    listed = {shard.source: shard for shard in shards}
    shards_lacking = sum(source not in listed for source in known) / len(known)
    folders = {
        source: count
        for source, count in known.items()
        if source in listed and listed[source].kind == "folder"
    }
    images = sum(folders.values())
    gone = sum(max(0, count - len(listed[s].items)) for s, count in folders.items())
    return max(shards_lacking, gone / images if images else 0.0)


def check_images(
    input_folder: Folder, shards: Sequence[Shard], options: ReadOptions, embedder: Embedder
) -> None:
    """Look at the first images, before anything is created.

    ChannelError when none of those that decode fits the model; InputError when every shard was
    looked into and there is no image at all.
    """
    refusal: ChannelError | None = None
    seen = 0
    for shard in shards[:PEEKED_SHARDS]:
        samples = islice(read_shard(input_folder, shard, options), PEEKED_IMAGES)
        for sample in samples:
            if not isinstance(sample, Sample):
                continue
            seen += 1
            try:
                embedder.accepts(decode(sample.data))
            except Rejected:
                continue
            except ChannelError as error:
                refusal = refusal or error
            else:
                return
        if refusal is not None:
            raise refusal
    if not seen and len(shards) <= PEEKED_SHARDS:
        raise InputError(
            f"{input_folder.url}: no image in its {len(shards)} shards; expected JPEG, PNG, TIFF "
            "or another known format in them: check the files and the column names"
        )
