"""The values that travel: frozen, small, without pixels but for ``Sample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

MIB = 1 << 20
IMAGE_SUFFIXES = frozenset(
    [
        ".fit",
        ".fits",
        ".fts",
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    ]
)


@dataclass(frozen=True)
class Item:
    """One image of a folder: ``key`` is its path relative to INPUT."""

    key: str
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """``source`` relative to INPUT; ``etag`` its content identity; ``size`` in bytes.

    A tar or Parquet object, or one hash bucket of the images of a folder, which are then its
    ``items``.
    """

    source: str
    etag: str
    size: int
    kind: Literal["tar", "parquet", "folder"]
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """Columns of Parquet inputs, and caps.

    An image over max_member_bytes is rejected; a gzip'ed tar over max_shard_bytes once
    decompressed, a Parquet file over them, and a tar over max_members are damaged there.
    """

    image_column: str = "image"
    key_column: str | None = None
    label_column: str | None = None
    max_member_bytes: int = 256 * MIB
    max_shard_bytes: int = 64 * 1024 * MIB
    max_members: int = 10_000_000


class Sample(NamedTuple):
    """One image's bytes with its key, made unique in its shard, and its label if it has one.

    offset, length: where the bytes lie in the shard's object, in bytes; None where they cannot be
    read by a range (gzip, Parquet). item_etag: content identity of the image's own object, in
    folders. error: why the bytes were not read (``data`` is empty then): the image is rejected with
    it.
    """

    key: str
    data: bytes
    label: str | None = None
    offset: int | None = None
    length: int | None = None
    item_etag: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Damage:
    """The shard ends badly at ``position``: a byte of the (uncompressed) tar, or a row of the
    Parquet file. All whole samples came before.
    """

    position: int
    reason: str


class UniqueKeys:
    """Makes keys unique in their shard: the n-th repetition of ``key`` becomes ``key#n``.

    A leading "!" is doubled, because keys that begin with one are Orbit's own.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, key: str) -> str:
        key = f"!{key}" if key.startswith("!") else key
        times = self._seen.get(key, 0)
        unique = f"{key}#{times}" if times else key
        while unique in self._seen and times:  # a sample is really called so
            times += 1
            unique = f"{key}#{times}"
        self._seen[key] = times + 1
        self._seen.setdefault(unique, 1)
        return unique


def suffix_of(name: str) -> str:
    """The last suffix of a name, lower case, with its dot; "" if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") + 1 else ""


def is_image(name: str) -> bool:
    """Whether the name says that it is an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def clean_text(text: str, most: int = 1000) -> str:
    """A label as it can be stored: stripped, bounded, valid UTF-8 without NUL."""
    kept = text.strip()[:most].replace("\0", "")
    return kept.encode("utf-8", "replace").decode()


def over_the_cap(size: int, options: ReadOptions) -> str | None:
    """Why an image of so many bytes is not read; None when it is."""
    if size <= options.max_member_bytes:
        return None
    return f"{size} bytes are over the cap of {options.max_member_bytes}"
