"""Damaged tars: whole members before the damage are kept, and no loss is ever silent."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.shards import Damage, ReadOptions, Shard, read_shard
from pipelines.storage import Folder

BLOCK = 512
MakeTar = Callable[[dict[str, bytes]], bytes]
Mutation = Callable[[random.Random, bytearray], int]
"""Changes the bytes of a tar; returns the position before which nothing was touched."""


def headers(data: bytes) -> list[int]:
    """Positions of the members' headers in an undamaged tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar]


def a_header(chance: random.Random, data: bytearray) -> int:
    return chance.choice(headers(bytes(data)))


def cut_at_a_block(chance: random.Random, data: bytearray) -> int:
    at = chance.randrange(len(data) // BLOCK) * BLOCK
    del data[at:]
    return at


def cut_anywhere(chance: random.Random, data: bytearray) -> int:
    at = chance.randrange(1, len(data))
    del data[at:]
    return at


def flip_a_bit_of_a_header(chance: random.Random, data: bytearray) -> int:
    at = a_header(chance, data)
    data[at + chance.randrange(BLOCK)] ^= 1 << chance.randrange(8)
    return at


def flip_many_bits(chance: random.Random, data: bytearray) -> int:
    """At most one in a header: two can cancel out in its sum, which no reader can see."""
    names, touched = headers(bytes(data)), set[int]()
    for _ in range(chance.randrange(1, 30)):
        place = chance.randrange(len(data))
        block = place // BLOCK * BLOCK
        if block not in names or block not in touched:
            data[place] ^= 1 << chance.randrange(8)
            touched.add(block)
    return min(touched)


def zero_a_header(chance: random.Random, data: bytearray) -> int:
    at = a_header(chance, data)
    data[at : at + BLOCK] = bytes(BLOCK)
    return at


def zero_two_blocks(chance: random.Random, data: bytearray) -> int:
    """Not of the last member: what is left would be a whole tar."""
    at = chance.choice(headers(bytes(data))[:-1])
    data[at : at + 2 * BLOCK] = bytes(2 * BLOCK)
    return at


def overwrite_a_header(chance: random.Random, data: bytearray) -> int:
    at = a_header(chance, data)
    data[at : at + BLOCK] = chance.randbytes(BLOCK)
    return at


def lose_a_block(chance: random.Random, data: bytearray) -> int:
    at = chance.randrange(len(data) // BLOCK) * BLOCK
    del data[at : at + BLOCK]
    return at


def repeat_a_header(chance: random.Random, data: bytearray) -> int:
    at = a_header(chance, data)
    data[at:at] = data[at : at + BLOCK]
    return at


def tell_a_wrong_size(chance: random.Random, data: bytearray) -> int:
    """In another block than the true one, with a checksum that fits."""
    at = a_header(chance, data)
    true = int(data[at + 124 : at + 135], 8)
    told = max(0, true + chance.choice([-4, -2, -1, 1, 2, 5, 100, 10**7]) * BLOCK)
    data[at + 124 : at + 136] = b"%011o\0" % told
    data[at + 148 : at + 156] = b"        "
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    return at


def append_rubbish(chance: random.Random, data: bytearray) -> int:
    at = len(data)
    data += chance.randbytes(chance.randrange(1, 2 * BLOCK))
    return at


MUTATIONS: list[Mutation] = [
    cut_at_a_block, cut_anywhere, flip_a_bit_of_a_header, flip_many_bits, zero_a_header,
    zero_two_blocks, overwrite_a_header, lose_a_block, repeat_a_header, tell_a_wrong_size,
    append_rubbish,
]  # fmt: skip


class Reader:
    """Reads bytes as a shard, through the storage as a worker does."""

    def __init__(self, place: Path) -> None:
        self._folder = Folder(str(place))

    def read(self, data: bytes, name: str = "a.tar") -> tuple[dict[str, bytes], bool]:
        """Bytes of each key, and whether anything was told to be wrong."""
        Path(self._folder.url, name).write_bytes(data)
        entry = self._folder.stat(name)
        assert entry is not None
        shard = Shard(name, entry.etag, entry.size, "tar")
        images: dict[str, bytes] = {}
        told = False
        for found in read_shard(self._folder, shard, ReadOptions()):
            if isinstance(found, Damage):
                told = True
            else:
                assert found.key not in images
                images[found.key] = found.data
                told = told or found.error is not None
        return images, told


def a_tar(chance: random.Random, make_tar: MakeTar) -> tuple[bytes, dict[str, bytes], list[int]]:
    """A tar, the bytes of each key, and where each member ends."""
    images = {
        f"{n:03d}": chance.randbytes(chance.randrange(1, 1500))
        for n in range(chance.randrange(2, 7))
    }
    data = make_tar({f"{key}.png": content for key, content in images.items()})
    starts = [*headers(data)[1:], 0]
    ends = [start or len(data) for start in starts]
    return data, images, ends


def check(
    reader: Reader, chance: random.Random, make_tar: MakeTar, mutation: Mutation
) -> tuple[bool, bytes]:
    """One damaged tar; whether something was lost, and the tar."""
    data, images, ends = a_tar(chance, make_tar)
    damaged = bytearray(data)
    untouched = mutation(chance, damaged)
    found, told = reader.read(bytes(damaged))
    lost = images.keys() - found.keys()
    assert told or not lost, f"{mutation.__name__}: {lost} lost silently"
    for key, end in zip(images, ends, strict=True):
        if end <= untouched:
            assert found[key] == images[key], f"{mutation.__name__}: {key} lies before the damage"
    return bool(lost), bytes(damaged)


def silent_in_tarfile(data: bytes, num: int) -> bool:
    """Whether Python's own reader gives fewer members and no error."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return sum(tar.extractfile(member) is not None for member in tar) < num
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return False


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_no_loss_is_silent(
    tmp_path: Path, chance: random.Random, make_tar: MakeTar, mutation: Mutation
) -> None:
    reader = Reader(tmp_path)
    for _ in range(60):
        check(reader, chance, make_tar, mutation)


def test_a_cut_at_every_block_is_told(
    tmp_path: Path, chance: random.Random, make_tar: MakeTar
) -> None:
    data, images, ends = a_tar(chance, make_tar)
    reader = Reader(tmp_path)
    whole = len(data.rstrip(b"\0")) // BLOCK * BLOCK
    for at in range(0, whole, BLOCK):
        found, told = reader.read(data[:at])
        assert told
        assert set(found) >= {k for k, end in zip(images, ends, strict=True) if end <= at}
    assert reader.read(data) == (images, False)


def test_damaged_gzip_is_told(tmp_path: Path, chance: random.Random, make_tar: MakeTar) -> None:
    reader = Reader(tmp_path)
    for _ in range(200):
        data, images, _ = a_tar(chance, make_tar)
        damaged = bytearray(gzip.compress(data))
        if chance.random() < 0.5:
            del damaged[chance.randrange(1, len(damaged)) :]
        else:
            damaged[chance.randrange(10, len(damaged))] ^= 1 << chance.randrange(8)
        found, told = reader.read(bytes(damaged), "a.tar.gz")
        assert told or found == images


@pytest.mark.faults_slow
def test_ten_thousand(tmp_path: Path, chance: random.Random, make_tar: MakeTar) -> None:
    reader, num_lost, num_silent = Reader(tmp_path), 0, 0
    for number in range(10_000):
        lost, damaged = check(reader, chance, make_tar, MUTATIONS[number % len(MUTATIONS)])
        num_lost += lost
        num_silent += lost and silent_in_tarfile(damaged, 2)
    print(f"\n10,000 damaged tars: {num_lost} with a loss, all told; tarfile: {num_silent} silent")
    assert num_lost > 1000
