"""WebDataset tar shards: members grouped into samples.

The name of a sample is its members' name up to the first dot of its last part, as WebDataset has
it; a part with a digit belongs to the name, so that ``plate.A01.png`` and ``plate.A02.png`` are two
samples and not two fields of one. The image of a group is the first one named plainly
(``x.png`` before ``x.mask.png``), its label comes from .cls, .txt or .json. An extension that comes
twice begins a new sample.

An image that is not read is a sample with a reason (``error``), and the rest goes on: over the cap,
a link, a device, a sparse file, a path that is absolute or climbs with "..". Nothing is followed,
nothing is written to disk.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from pipelines.shards.members import REGULAR, SPARSE, DamagedTar, Member, read_members
from pipelines.shards.types import (
    Damage,
    ReadOptions,
    Sample,
    Shard,
    UniqueKeys,
    clean_text,
    is_image,
    over_the_cap,
)
from pipelines.storage import Folder

LABELS = ("cls", "txt", "json")
MAX_LABEL_BYTES = 1 << 20
GZIP = b"\x1f\x8b"
OTHER_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KINDS = {ord("1"): "a hard link", ord("2"): "a symbolic link", SPARSE: "a sparse file"}


def read_tar(folder: Folder, shard: Shard, options: ReadOptions) -> Iterator[Sample | Damage]:
    """Samples of a tar or gzip'ed tar, with the range of their bytes in a plain one.

    The object's identity is checked once more before its Damage, or its last sample, is given: an
    object that was replaced while it was read is not damage.
    """
    if shard.size == 0:
        yield Damage(0, "empty object")
        return
    damage: Damage | None = None
    with folder.stream(shard.source, shard.etag) as raw:
        head = raw.peek(8)[:8]  # type: ignore[attr-defined]
        zipped = head.startswith(GZIP)
        samples = _Samples(options, ranged=not zipped)
        try:
            _refuse_other_compressions(head)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
            cap = options.max_shard_bytes if zipped else None
            for member in read_members(stream, samples.wants, options.max_members, cap):
                before = samples.add(member)
                if before is not None:
                    yield before
        except DamagedTar as damaged:
            damage = damaged.damage
    last = samples.finish()
    if last is not None:
        yield last
    if damage is not None:
        yield damage


def _refuse_other_compressions(head: bytes) -> None:
    for magic, name in OTHER_COMPRESSIONS.items():
        if head.startswith(magic):
            raise DamagedTar(0, f"compressed by {name}; pack it as .tar or .tar.gz")


@dataclass(slots=True)
class _Group:
    """The members of one sample."""

    key: str = ""
    extensions: set[str] = field(default_factory=set)
    plain: Member | None = None
    other: Member | None = None
    labels: dict[str, bytes] = field(default_factory=dict)


class _Samples:
    """Members in, samples out, one group behind."""

    def __init__(self, options: ReadOptions, *, ranged: bool) -> None:
        self._options, self._ranged = options, ranged
        self._unique, self._group = UniqueKeys(), _Group()

    def wants(self, name: str, kind: int, size: int) -> bool:
        """Whether a member's data is worth holding."""
        if kind not in REGULAR:
            return False
        if is_image(name):
            return size <= self._options.max_member_bytes
        return name.rpartition(".")[2].lower() in LABELS and size <= MAX_LABEL_BYTES

    def add(self, member: Member) -> Sample | None:
        """Take a member; gives the sample before it when it begins another."""
        if _is_foreign(member.name):
            return None
        key, extension = split_name(member.name)
        before = None
        if key != self._group.key or extension in self._group.extensions:
            before = self.finish(key)
        group = self._group
        group.extensions.add(extension)
        if is_image(member.name):
            if "." not in extension:
                group.plain = group.plain or member
            else:
                group.other = group.other or member
        elif member.data is not None:
            group.labels.setdefault(extension.rpartition(".")[2], member.data)
        return before

    def finish(self, following: str = "") -> Sample | None:
        """The sample of the group at hand, if it has an image; the next one is ``following``."""
        group, self._group = self._group, _Group(following)
        image = group.plain or group.other
        if image is None:
            return None
        key, label = self._unique(group.key), _label(group.labels)
        error = self._refusal(image)
        if error is not None or image.data is None:
            return Sample(key, b"", label, error=error)
        place = (image.offset, image.size) if self._ranged else (None, None)
        return Sample(key, image.data, label, *place)

    def _refusal(self, image: Member) -> str | None:
        if image.kind not in REGULAR:
            return f"{_KINDS.get(image.kind, 'not a regular file')}, which is never read"
        name = image.name
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            return "its path leads out of the tar"
        return over_the_cap(image.size, self._options)


def split_name(name: str) -> tuple[str, str]:
    """A member's sample key and its extension, lower case: "d/x.seg.png" -> ("d/x", "seg.png")."""
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    if base.count(".") == 1:
        key, _, extension = base.partition(".")
        return f"{folder}{slash}{key}", extension.lower()
    parts = base.split(".")
    middle = range(1, len(parts) - 1)
    last = max((i for i in middle if any(c.isdigit() for c in parts[i])), default=0)
    key, extension = ".".join(parts[: last + 1]), ".".join(parts[last + 1 :])
    return f"{folder}{slash}{key}", extension.lower()


def _is_foreign(name: str) -> bool:
    # What macOS puts beside each file has its extension but is no image.
    if "._" not in name and "__MACOSX" not in name:
        return False
    parts = name.split("/")
    return parts[-1].startswith("._") or "__MACOSX" in parts


def _label(labels: dict[str, bytes]) -> str | None:
    for kind in ("cls", "txt"):
        if kind in labels:
            return clean_text(labels[kind].decode("utf-8", "replace")) or None
    if "json" not in labels:
        return None
    try:
        found = json.loads(labels["json"])
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        for name in ("label", "class", "cls"):
            if isinstance(found.get(name), str | int | float):
                return clean_text(str(found[name])) or None
    return None
