"""WebDataset tar shards, read so that their end is proven.

Python's tarfile ends silently on a cut or a damaged header. This reader does not: a shard is whole
only if two zero blocks come, and then nothing but zeros. Members are streamed and never written to
disk.

Skipped without damage: folders, links, devices and members whose name is absolute or climbs with
".."; their contents are never looked at.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pipelines.errors import StorageError
from pipelines.shards.types import Damage, ReadOptions, Sample, Shard, UniqueKeys, is_image
from pipelines.storage import Folder

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20  # of one PAX or GNU long-name header
REGULAR = (b"0", b"\0", b"7")
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
LABELS = ("cls", "txt", "json")


class _Damaged(Exception):
    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.damage = Damage(position, reason)


@dataclass
class _Member:
    name: str
    offset: int  # of the data, in the uncompressed tar
    data: bytes


@dataclass
class _Group:
    """The members of one sample: same name up to the first dot of its last part."""

    name: str
    image: _Member | None = None
    labels: dict[str, bytes] = field(default_factory=dict)


def read_tar(folder: Folder, shard: Shard, options: ReadOptions) -> Iterator[Sample | Damage]:
    """Samples of a tar (or gzip'ed tar): the first image of each group, label from .cls, .txt or
    .json.
    """
    if shard.size == 0:
        yield Damage(0, "empty object")
        return
    zipped = not shard.source.lower().endswith(".tar")
    unique, group = UniqueKeys(), _Group("")
    with folder.stream(shard.source, shard.etag) as raw:
        counted = _Counted(raw, shard.size)
        stream: BinaryIO = gzip.GzipFile(fileobj=counted) if zipped else counted  # type: ignore[assignment]
        try:
            for member in _members(stream, options):
                stem, extension = _split(member.name)
                if stem != group.name:
                    yield from _sample(group, unique, ranged=not zipped)
                    group = _Group(stem)
                if is_image(member.name):
                    group.image = group.image or member
                elif extension in LABELS:
                    group.labels.setdefault(extension, member.data)
        except _Damaged as damaged:
            if group.image is not None:
                yield from _sample(group, unique, ranged=not zipped)
            yield damaged.damage
            return
    yield from _sample(group, unique, ranged=not zipped)


class _Counted(io.RawIOBase):
    """Reads that may end only where the object ends: an early end is the storage's fault, not
    damage.
    """

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw, self._left = raw, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._left -= len(data)
        if self._left > 0 and (not data or (size > 0 and len(data) < size)):
            raise StorageError(f"the object ended {self._left} bytes early; it will be read again")
        return data


def _members(stream: BinaryIO, options: ReadOptions) -> Iterator[_Member]:
    """Every regular member of an uncompressed tar stream. Raises _Damaged unless it ends as it
    should.
    """
    at, long_name = 0, None
    for _ in range(options.max_members):
        header = _read(stream, BLOCK, at, "header")
        if not header.strip(b"\0"):
            _check_end(stream, at + BLOCK)
            return
        size = _checked_size(header, at)
        kind = header[156:157]
        if kind in (b"x", b"g", b"L", b"K") and size > MAX_EXTENDED_BYTES:
            raise _Damaged(at, f"extended header of {size} bytes is over the cap")
        if size > options.max_member_bytes:
            raise _Damaged(
                at, f"member of {size} bytes is over the cap of {options.max_member_bytes}"
            )
        if at + size > options.max_shard_bytes:
            raise _Damaged(at, f"more than {options.max_shard_bytes} bytes after decompression")
        data = _read(stream, -(-size // BLOCK) * BLOCK, at + BLOCK, "member")[:size]
        name, start = long_name or _name_of(header), at + BLOCK
        at += BLOCK + -(-size // BLOCK) * BLOCK
        if kind == b"L":
            long_name = data.rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":
            long_name = _pax_path(data) or long_name
        elif kind not in (b"g", b"K"):
            long_name = None
            if kind in REGULAR and _is_safe(name):
                yield _Member(name, start, data)
    raise _Damaged(at, f"more than {options.max_members} members")


def _read(stream: BinaryIO, size: int, at: int, what: str) -> bytes:
    try:
        parts, got = [], 0
        while got < size:
            part = stream.read(size - got)
            if not part:
                raise _Damaged(
                    at + got, f"cut within a {what}" if got else f"ends before the next {what}"
                )
            parts.append(part)
            got += len(part)
        return b"".join(parts)
    except GZIP_ERRORS as error:
        raise _Damaged(at, f"damaged gzip stream: {error}") from error


def _check_end(stream: BinaryIO, at: int) -> None:
    """After the first zero block: one more, and then nothing but zeros."""
    if _read(stream, BLOCK, at, "end marker").strip(b"\0"):
        raise _Damaged(at - BLOCK, "a header is zeroed: one empty block, then more data")
    try:
        while rest := stream.read(1 << 20):
            at += len(rest)
            if rest.strip(b"\0"):
                raise _Damaged(at, "data after the end marker")
    except GZIP_ERRORS as error:
        raise _Damaged(at, f"damaged gzip stream: {error}") from error


def _checked_size(header: bytes, at: int) -> int:
    """The member's size in bytes, once the header's checksum is found right."""
    stored = _number(header[148:156])
    if stored != sum(header) - sum(header[148:156]) + 8 * 32:
        raise _Damaged(at, "header checksum is wrong")
    size = _number(header[124:136])
    if size is None or size < 0:
        raise _Damaged(at, "header gives no size")
    return size if header[156:157] in (*REGULAR, b"x", b"g", b"L", b"K") else 0


def _number(text: bytes) -> int | None:
    if text[0] & 0x80:  # base-256, for sizes of 8 GiB and more
        return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
    try:
        return int(text.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _name_of(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax_path(data: bytes) -> str | None:
    """The path of a PAX header: records of "length key=value newline"."""
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            return None
        record = data[len(length) + 1 : int(length)].rstrip(b"\n")
        if record.startswith(b"path="):
            return record[5:].decode("utf-8", "replace")
        data = data[int(length) :]
    return None


def _is_safe(name: str) -> bool:
    parts = name.split("/")
    hidden = parts[-1].startswith(("._", ".DS_Store"))
    return bool(parts[-1]) and not name.startswith("/") and ".." not in parts and not hidden


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extensions = base.partition(".")
    return f"{folder}{slash}{stem}", extensions.rpartition(".")[2].lower()


def _sample(group: _Group, unique: UniqueKeys, *, ranged: bool) -> Iterator[Sample]:
    if group.image is None:
        return
    image = group.image
    offset, length = (image.offset, len(image.data)) if ranged else (None, None)
    yield Sample(unique(group.name), image.data, _label(group.labels), offset, length)


def _label(labels: dict[str, bytes]) -> str | None:
    for kind in ("cls", "txt"):
        if kind in labels:
            return labels[kind].decode("utf-8", "replace").strip()[:1000] or None
    try:
        found = json.loads(labels.get("json", b"null"))
    except ValueError:
        return None
    if isinstance(found, dict):
        for name in ("label", "class", "cls"):
            if isinstance(found.get(name), str | int):
                return str(found[name])[:1000]
    return None
