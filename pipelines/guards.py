"""What is refused before any work, and what is never deleted on a listing's word alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from eqmodel.errors import ChannelError
from pipelines.errors import (
    InputError,
    ListingError,
    ModelMismatchError,
    QuarantineError,
    Rejected,
    StoreError,
)
from pipelines.isolated import IsolatedDecoder
from pipelines.shards import ReadOptions, Sample, Shard, read_shard
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, TableIdentity

if TYPE_CHECKING:
    from eqmodel import Embedder

INPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
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


def check_input(table: EmbeddingTable, input_url: str, add: str | None = None) -> str:
    """The name of INPUT in the table: "" for the first one, ``add`` for one to be added.

    InputError when it is none of the table's and was not to be added, or cannot be.
    """
    identity = table.identity
    known = identity.name_of(input_url)
    if known is not None and add in (None, known):
        return known
    if add is None:
        raise InputError(
            f"{input_url}: the store was made from {identity.input_url}; use that INPUT or another "
            "STORE, or --add-input NAME to hold both"
        )
    taken = identity.of_inputs().get(add)
    if known is not None or taken is not None:
        raise InputError(
            f"--add-input {add}: " + (f"names {taken} already" if taken else f"{input_url} is in "
            "the store already" + (f" as {known}" if known else " as its first INPUT"))
        )  # fmt: skip
    if not INPUT_NAME.fullmatch(add) or any(s.startswith(f"{add}/") for s in table.known()):
        raise InputError(
            f"--add-input {add}: letters, digits, '.', '_' and '-' are expected, and no folder of "
            "another INPUT; choose another name"
        )
    return add


def check_owner(identity: TableIdentity, name: str, shards: Sequence[Shard]) -> None:
    """InputError when a folder of the first INPUT is called as another INPUT is."""
    found = next((s.source for s in shards if identity.owner(s.source) != name), None)
    if found is not None:
        raise InputError(
            f"{found}: this folder has the name of another INPUT of the store; rename the folder, "
            "or use another STORE"
        )


def check_listing(
    input_url: str,
    shards: Sequence[Shard],
    table: EmbeddingTable | None,
    allow_vanish: bool,
    name: str | None = None,
) -> None:
    """Never delete because a listing came back short.

    InputError (exit 2) for an empty INPUT of a new store; ListingError (exit 1) for an empty
    listing, or one that lacks more than a fifth of the known shards or, for folders, images.
    """
    known = {} if table is None else table.known() if name is None else table.known(name)
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
    with IsolatedDecoder() as child:  # an image that crashes it must not end the driver
        _check_images(input_folder, shards, options, embedder, child.decode)


def _check_images(
    input_folder: Folder,
    shards: Sequence[Shard],
    options: ReadOptions,
    embedder: Embedder,
    decode: Callable[[bytes], NDArray[Any]],
) -> None:
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
            except (Rejected, QuarantineError):
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
