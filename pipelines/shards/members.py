"""The members of a tar stream, read so that its end is proven.

Python's tarfile ends silently on a cut or a damaged header. This reader does not: a tar is whole
only if two zero blocks come, and then nothing but zeros. Understood: ustar, PAX (path and size),
GNU long names, base-256 numbers, old signed checksums. Members are streamed, never written to disk.

What no reader can see: a flipped bit in a member's data (only a digest does), and a zeroed header
of an empty last member.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from pipelines.shards.types import Damage

BLOCK = 512
MAGIC_AT = 257
SKIP_BYTES = 1 << 20
MAX_EXTENDED_BYTES = 1 << 20  # of one PAX or GNU long-name header
REGULAR = frozenset(b"0\0007")
WITHOUT_DATA = frozenset(b"123456")  # links, devices, folders, FIFOs
SPARSE = ord("S")
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
_OCTAL = re.compile(rb"[0-7]*")
_ZEROS = bytes(BLOCK)


class DamagedTar(Exception):
    """Where and why a tar cannot be read on."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.damage = Damage(position, reason)


class Member(NamedTuple):
    """One member: ``kind`` is tar's type flag, ``offset`` and ``size`` of its data in bytes in the
    uncompressed tar; ``data`` is None where it was not wanted.
    """

    name: str
    kind: int
    offset: int
    size: int
    data: bytes | None


@dataclass
class _Extended:
    """What PAX and GNU headers say of the member that follows."""

    at: int
    path: str | None = None
    size: int | None = None


def read_members(
    stream: BinaryIO,
    wanted: Callable[[str, int, int], bool],
    max_members: int,
    max_bytes: int | None = None,
) -> Iterator[Member]:
    """Every member of an uncompressed tar stream, in order.

    wanted: by (name, kind, size) whether to keep its data. max_bytes: of the whole stream. Raises
    DamagedTar unless it ends as it should; what the stream itself raises passes through.
    """
    source = _Source(stream, max_bytes)
    extended: _Extended | None = None
    for _ in range(max_members):
        start = source.at
        block = source.take(BLOCK, "header")
        if block == _ZEROS:
            if extended is not None:
                raise DamagedTar(extended.at, "extended header without a member")
            return source.check_end(start)
        kind, size = _checked(block, start)
        if kind in b"xgLK":
            if size > MAX_EXTENDED_BYTES:
                raise DamagedTar(start, f"extended header of {size} bytes is over the cap")
            data = source.take_padded(size, "extended header")
            extended = _extend(extended or _Extended(start), kind, data)
            continue
        name = _name_of(block)
        if extended is not None:
            name = extended.path or name
            size = size if extended.size is None or kind in WITHOUT_DATA else extended.size
            extended = None
        source.skip_sparse_map(block, kind)
        offset = source.at
        content = None
        if wanted(name, kind, size):
            content = source.take_padded(size, "member")
            if _holds_header(content):
                raise DamagedTar(start, "its size reaches over the next member")
        else:
            source.skip_padded(size)
        yield Member(name, kind, offset, size, content)
    raise DamagedTar(source.at, f"more than {max_members} members")


class _Source:
    """Bytes of the stream, counted: ``at`` is the position of the next one."""

    def __init__(self, stream: BinaryIO, max_bytes: int | None) -> None:
        self._stream, self._max_bytes, self.at = stream, max_bytes, 0

    def take(self, size: int, what: str) -> bytes:
        """Exactly ``size`` bytes, or DamagedTar at the position where they end."""
        whole = self._read(size)
        if len(whole) == size:
            return whole
        parts, left = [whole] * bool(whole), size - len(whole)
        while left > 0:
            part = self._read(left)
            if not part:
                reason = f"cut within a {what}" if left < size else f"ends before the next {what}"
                raise DamagedTar(self.at, reason)
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take_padded(self, size: int, what: str) -> bytes:
        """``size`` bytes, and the padding of their last block after them."""
        data = self.take(_padded(size), what)
        return data if len(data) == size else data[:size]

    def skip_padded(self, size: int) -> None:
        """Pass over a member's blocks without holding them."""
        left = _padded(size)
        while left > 0:
            left -= len(self.take(min(left, SKIP_BYTES), "member"))

    def skip_sparse_map(self, block: bytes, kind: int) -> None:
        """Pass over the extension blocks of GNU's old sparse format."""
        more = kind == SPARSE and block[482]
        while more:
            more = self.take(BLOCK, "sparse map")[504]

    def check_end(self, start: int) -> None:
        """After the first zero block, at ``start``: one more, and then nothing but zeros."""
        if self.take(BLOCK, "end marker") != _ZEROS:
            raise DamagedTar(start, "a header is zeroed: one empty block, then more data")
        while rest := self._read(SKIP_BYTES):
            data = rest.lstrip(b"\0")
            if data:
                raise DamagedTar(self.at - len(data), "data after the end marker")

    def _read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except GZIP_ERRORS as error:
            raise DamagedTar(self.at, f"damaged gzip stream: {error}") from error
        self.at += len(data)
        if self._max_bytes is not None and self.at > self._max_bytes:
            raise DamagedTar(self.at, f"more than {self._max_bytes} bytes after decompression")
        return data


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _checked(block: bytes, at: int) -> tuple[int, int]:
    """A header's type flag and the size of its data in bytes, once its checksum is found right."""
    unsigned = signed = _sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if not block.isascii():
        signed -= 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    told = block[148:156]
    if not told.strip(b" \0") or number_of(told) not in (unsigned, signed):
        raise DamagedTar(at, "header checksum is wrong")
    kind, size = block[156], number_of(block[124:136])
    if size is None:
        raise DamagedTar(at, "header gives no size")
    return kind, 0 if kind in WITHOUT_DATA else size


def _sum(block: bytes) -> int:
    """The sum of 512 bytes; of 256 it is below the modulus of Adler-32, whose lower half it is."""
    return (zlib.adler32(block[:256], 0) & 0xFFFF) + (zlib.adler32(block[256:], 0) & 0xFFFF)


def _holds_header(data: bytes) -> bool:
    """Whether another member lies in this one's data: no image and no label holds a header at a
    block's start, but a size that lies may reach over some, and even end where a tar may end.
    """
    letters = data[MAGIC_AT::BLOCK]  # where each block would have the first letter of its magic
    number = letters.find(b"u")
    while number >= 0:
        block = data[number * BLOCK : (number + 1) * BLOCK]
        if len(block) == BLOCK and block.startswith(b"ustar", MAGIC_AT):
            with contextlib.suppress(DamagedTar):
                _checked(block, number * BLOCK)
                return True
        number = letters.find(b"u", number + 1)
    return False


@lru_cache(maxsize=1 << 12)  # sums and sizes come again and again
def number_of(text: bytes) -> int | None:
    """A number of a header, octal or base-256; None when it is neither, or negative."""
    if text[0] == 0x80:  # base-256, for 8 GiB and more
        return int.from_bytes(text[1:], "big")
    digits = text.split(b"\0", 1)[0].strip(b" ")
    return int(digits or b"0", 8) if _OCTAL.fullmatch(digits) else None


def _name_of(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "replace")


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _extend(extended: _Extended, kind: int, data: bytes) -> _Extended:
    if kind == ord("L"):
        extended.path = _text(data)
    elif kind == ord("x"):
        records = _pax_records(data, extended.at)
        if b"path" in records:
            extended.path = _text(records[b"path"])
        if b"size" in records:
            if not records[b"size"].isdigit():
                raise DamagedTar(extended.at, "extended header gives no size")
            extended.size = int(records[b"size"])
    return extended


def _pax_records(data: bytes, at: int) -> dict[bytes, bytes]:
    """The records "length key=value newline" of a PAX header."""
    records, start = {}, 0
    while start < len(data) and data[start] != 0:
        space = data.find(b" ", start, start + 12)
        length = data[start:space]
        end = start + int(length) if space > 0 and length.isdigit() else 0
        equals = data.find(b"=", space, end)
        if not space < equals < end <= len(data) or data[end - 1 : end] != b"\n":
            raise DamagedTar(at, "extended header is malformed")
        records[data[space + 1 : equals]] = data[equals + 1 : end - 1]
        start = end
    return records
