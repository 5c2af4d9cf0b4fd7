"""Tar shards: what is whole is kept, what is damaged says so, nothing ends silently."""

import gzip
import io
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ObjectChanged, StorageError
from pipelines.shards import Damage, ReadOptions, Sample, Shard, list_shards, read_shard
from pipelines.shards.members import number_of
from pipelines.shards.types import UniqueKeys
from pipelines.storage import Folder

MakeTar = Callable[[dict[str, bytes]], bytes]


def read_all(place: Path, options: ReadOptions | None = None) -> list[Sample | Damage]:
    folder = Folder(str(place))
    return [
        x
        for shard in list_shards(folder)
        for x in read_shard(folder, shard, options or ReadOptions())
    ]


def read_tar_bytes(place: Path, content: bytes, name: str = "x.tar") -> list[Sample | Damage]:
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    return read_all(place)


def five(make_tar: MakeTar) -> bytes:
    return make_tar({f"d/s{i}.png": bytes([i]) * (100 + 300 * i) for i in range(5)})


def test_samples_labels_and_ranges(tmp_path: Path, make_tar: MakeTar) -> None:
    content = make_tar(
        {
            "a/x.mask.png": b"mask",
            "a/x.png": b"PIX1",
            "a/x.jpg": b"second",
            "y.png": b"PIX2",
            "y.cls": b"7\n",
            "z.txt": b" cat ",
            "z.jpg": b"PIX3",
            "w.webp": b"PIX4",
            "w.json": b'{"label": 3}',
            "note.md": b"no",
        }
    )
    found = read_tar_bytes(tmp_path / "in", content)
    assert all(isinstance(x, Sample) for x in found)
    samples = [x for x in found if isinstance(x, Sample)]
    assert [(s.key, s.data, s.label) for s in samples] == [
        ("a/x", b"PIX1", None),
        ("y", b"PIX2", "7"),
        ("z", b"PIX3", "cat"),
        ("w", b"PIX4", "3"),
    ]
    for s in samples:
        assert s.offset is not None
        assert s.length is not None
        assert content[s.offset : s.offset + s.length] == s.data


def test_repeated_keys_and_our_own_mark(tmp_path: Path, make_tar: MakeTar) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("a.png", "a.png", "b.png", "a.png", "!empty.png", "a#1.png"):
            tar.addfile(tarfile.TarInfo(name))
    keys = [
        x.key for x in read_tar_bytes(tmp_path / "in", buffer.getvalue()) if isinstance(x, Sample)
    ]
    assert keys == ["a", "a#1", "b", "a#2", "!!empty", "a#1#1"]


def test_a_dotted_number_is_part_of_the_name(tmp_path: Path, make_tar: MakeTar) -> None:
    names = ["p.A01.s1.png", "p.A02.s1.png", "p.A02.s1.cls", "q.left.png", "q.right.png"]
    found = read_tar_bytes(tmp_path / "in", make_tar({name: name.encode() for name in names}))
    assert [(x.key, x.label) for x in found if isinstance(x, Sample)] == [
        ("p.A01.s1", None),
        ("p.A02.s1", "p.A02.s1.cls"),
        ("q", None),
    ]


@pytest.mark.parametrize(
    ("name", "data", "label"),
    [
        ("a.json", b'{"class": "x"}', "x"),
        ("a.json", b'{"label": "\\ud800"}', "?"),
        ("a.json", b"[" * 100_000, None),
        ("a.json", b"{broken", None),
        ("a.txt", b"\xff\0 caption", "\ufffd caption"),
        ("a.cls", b" ", None),
        ("a.txt", b"x" * 5000, "x" * 1000),
    ],
)
def test_labels_are_stored_as_text_whatever_they_hold(
    name: str, data: bytes, label: str | None, tmp_path: Path, make_tar: MakeTar
) -> None:
    (sample,) = read_tar_bytes(tmp_path / "in", make_tar({"a.png": b"1", name: data}))
    assert isinstance(sample, Sample)
    assert sample.label == label
    assert (label or "").encode() is not None


@pytest.mark.parametrize("cut", range(0, 8192, 512))
@pytest.mark.parametrize("shift", [0, 137])
def test_a_cut_anywhere_is_flagged_and_whole_members_are_kept(
    cut: int, shift: int, tmp_path: Path, make_tar: MakeTar
) -> None:
    content, ends = five(make_tar), []
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = [m.offset_data + -(-m.size // 512) * 512 for m in tar]
    assert ends[-1] < 8192 < len(content)
    at = cut + shift
    found = read_tar_bytes(tmp_path / "in", content[:at])
    whole = sum(end <= at for end in ends)
    assert sum(isinstance(x, Sample) for x in found) == whole
    is_proven = at >= ends[-1] + 1024
    assert isinstance(found[-1], Sample) == is_proven


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 511), member=st.integers(0, 4), bit=st.integers(0, 7))
def test_a_flipped_header_bit_is_flagged(
    position: int,
    member: int,
    bit: int,
    tmp_path_factory: pytest.TempPathFactory,
    make_tar: MakeTar,
) -> None:
    content = bytearray(five(make_tar))
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        start = tar.getmembers()[member].offset
    content[start + position] ^= 1 << bit
    found = read_tar_bytes(tmp_path_factory.mktemp("in"), bytes(content))
    if isinstance(found[-1], Damage):
        assert found[-1].position == start
        assert sum(isinstance(x, Sample) for x in found) == member
    else:  # some bits of the checksum field carry nothing: then nothing may be missing
        assert len(found) == 5
        assert 148 <= position < 156


def test_a_zeroed_header_is_flagged(tmp_path: Path, make_tar: MakeTar) -> None:
    content = bytearray(five(make_tar))
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        start = tar.getmembers()[2].offset
    content[start : start + 512] = bytes(512)
    found = read_tar_bytes(tmp_path / "in", bytes(content))
    assert len(found) == 3
    assert found[-1] == Damage(start, "a header is zeroed: one empty block, then more data")


def test_a_small_image_is_no_header_whose_sum_nobody_wrote(
    tmp_path: Path, make_tar: MakeTar
) -> None:
    """Read as signed numbers these bytes and eight spaces sum to 0, as an empty field would say."""
    whole = make_tar({"0.png": b"first", "1.png": b"\x80\x80", "2.png": b"last"})
    for lost in (1024, 1536):  # the second header, and its data
        content = whole[:lost] + whole[lost + 512 :]
        assert any(isinstance(x, Damage) for x in read_tar_bytes(tmp_path / str(lost), content))


def test_links_devices_and_paths_that_climb_are_rejected_and_never_followed(
    tmp_path: Path,
) -> None:
    buffer = io.BytesIO()
    names = ["s.png", "h.png", "s", "../up.png", "/abs.png", "c.png", "p.png", "ok.png", "._ok.png"]
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in zip(names, ["2", "1", "2", "0", "0", "3", "6", "0", "0"], strict=True):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind.encode(), "/etc/passwd"
            tar.addfile(info)
    found = read_tar_bytes(tmp_path / "in", buffer.getvalue())
    assert [(x.key, x.error) for x in found if isinstance(x, Sample)] == [
        ("s", "a symbolic link, which is never read"),
        ("h", "a hard link, which is never read"),
        ("../up", "its path leads out of the tar"),
        ("/abs", "its path leads out of the tar"),
        ("c", "not a regular file, which is never read"),
        ("p", "not a regular file, which is never read"),
        ("ok", None),
    ]
    assert len(found) == 7
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "x.tar"]


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(style: int, tmp_path: Path) -> None:
    name = "/".join(["folder-" + "x" * 40] * 4)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        tar.addfile(tarfile.TarInfo(f"{name}/i.png"))
        tar.addfile(tarfile.TarInfo("j.png"))
    found = read_tar_bytes(tmp_path / "in", buffer.getvalue())
    assert [x.key for x in found if isinstance(x, Sample)] == [f"{name}/i", "j"]
    assert len(found) == 2


def test_gzip(tmp_path: Path, make_tar: MakeTar) -> None:
    packed = gzip.compress(five(make_tar))
    for name in ("x.tar.gz", "misnamed.tar"):
        found = read_tar_bytes(tmp_path / name, packed, name)
        assert len(found) == 5
        assert all(isinstance(x, Sample) and x.offset is None for x in found)
    for cut in range(1, len(packed), 7):
        damage = read_tar_bytes(tmp_path / "cut", packed[:cut], "x.tgz")[-1]
        assert isinstance(damage, Damage)
        assert "gzip" in damage.reason or "checksum" in damage.reason or "cut" in damage.reason
    for name, magic in {"x.tar.zst": b"\x28\xb5\x2f\xfd", "x.tar.bz2": b"BZh9"}.items():
        (damage,) = read_tar_bytes(tmp_path / name, magic + bytes(600), name)
        assert isinstance(damage, Damage)
        assert "pack it as .tar or .tar.gz" in damage.reason


def test_caps(tmp_path: Path, make_tar: MakeTar) -> None:
    content = make_tar({"a.png": b"x", "b.png": bytes(3 << 20), "b.cls": b"1", "c.png": b"z"})
    read_tar_bytes(tmp_path / "in", content)
    found = read_all(tmp_path / "in", ReadOptions(max_member_bytes=1 << 20))
    assert [(x.key, x.data, x.label, x.error) for x in found if isinstance(x, Sample)] == [
        ("a", b"x", None, None),
        ("b", b"", "1", "3145728 bytes are over the cap of 1048576"),
        ("c", b"z", None, None),
    ]
    assert len(read_all(tmp_path / "in", ReadOptions(max_shard_bytes=1 << 20))) == 3  # is plain
    few = read_all(tmp_path / "in", ReadOptions(max_members=2))
    assert few[-1] == Damage(1024 + 512 + (3 << 20), "more than 2 members")
    for tail in (b"", bytes(3 << 20)):
        zipped = gzip.compress(content if not tail else make_tar({"a.png": b"x"}) + tail)
        (tmp_path / "bomb").mkdir(exist_ok=True)
        (tmp_path / "bomb" / "x.tgz").write_bytes(zipped)
        *_, damage = read_all(tmp_path / "bomb", ReadOptions(max_shard_bytes=1 << 20))
        assert isinstance(damage, Damage)
        assert damage.reason == "more than 1048576 bytes after decompression"


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:512]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@pytest.mark.parametrize("size", [0, 10, 511, 513, 1200, 5000, 0o77777777777])
def test_a_size_that_lies_is_flagged(size: int, tmp_path: Path, make_tar: MakeTar) -> None:
    content = bytearray(make_tar({"a.png": b"x" * 600, "b.png": b"y" * 600}))
    header = bytes(content[:124]) + b"%011o\0" % size + bytes(content[136:512])
    content[:512] = with_checksum(header)
    found = read_tar_bytes(tmp_path / "in", bytes(content))
    blocks = -(-size // 512)
    if blocks == 2:  # nothing in a tar tells that a member is shorter than it was
        assert len(found) == 2
    else:
        assert isinstance(found[-1], Damage)


@pytest.mark.parametrize(
    ("records", "path"),
    [
        (b"17 path=abc.pngx\n", "abc.pngx"),
        (b"17 path=\xffbc.png.\n", "\ufffdbc.png."),
        (b"19 path=abc.pngxy\n", None),
        (b"9999999 path=a\n", None),
        (b"path=abc\n", None),
        (b"12 size=ten\n", None),
        (b"5 abc\n", None),
    ],
)
def test_pax_headers(records: bytes, path: str | None, tmp_path: Path, make_tar: MakeTar) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    head = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    found = read_tar_bytes(tmp_path / "in", head + make_tar({"old.png": b"1"}))
    if path is None:
        assert isinstance(found[0], Damage)
        assert found[0].position == 0
    else:
        assert found == []  # no image's name any more
    alone = read_tar_bytes(tmp_path / "alone", head + bytes(1024))
    assert isinstance(alone[-1], Damage)


def test_a_large_pax_header_takes_linear_time(tmp_path: Path, make_tar: MakeTar) -> None:
    records = b"6 a=b\n" * 170_000
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    head = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    started = time.perf_counter()
    assert len(read_tar_bytes(tmp_path / "in", head + make_tar({"a.png": b"1"}))) == 1
    assert time.perf_counter() - started < 5


def test_an_object_that_was_replaced_is_not_damage(tmp_path: Path, make_tar: MakeTar) -> None:
    read_tar_bytes(tmp_path / "in", five(make_tar))
    folder, file = Folder(str(tmp_path / "in")), tmp_path / "in" / "x.tar"
    (shard,) = list_shards(folder)
    reading = read_shard(folder, shard, ReadOptions())
    next(reading)
    with file.open("r+b") as stream:
        stream.truncate(3000)
    with pytest.raises(ObjectChanged):
        list(reading)
    with pytest.raises(ObjectChanged):
        list(read_shard(folder, shard))


class Cut(Folder):
    """A storage that drops the connection for good, after so many bytes."""

    def stream(self, path: str, etag: str | None = None) -> Any:
        import contextlib

        from pipelines.read_ahead import SequentialReader

        @contextlib.contextmanager
        def cut() -> Any:
            data = self.read(path)[:2048]
            size = self.read(path).__len__()
            raw = SequentialReader(lambda at, want: data[at : at + want], size, self.url)
            yield io.BufferedReader(raw)

        return cut()


def test_a_connection_that_is_cut_is_not_damage(tmp_path: Path, make_tar: MakeTar) -> None:
    for name, content in {"x.tar": five(make_tar), "x.tgz": gzip.compress(five(make_tar))}.items():
        place = tmp_path / name
        read_tar_bytes(place, content, name)
        folder = Cut(str(place))
        (shard,) = list_shards(folder)
        if name == "x.tar":
            with pytest.raises(StorageError, match="are missing"):
                list(read_shard(folder, shard))


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=150)
images = st.dictionaries(
    names.filter(lambda n: not n.startswith("._") and n != ".."),
    st.binary(max_size=1500),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(
    members=images,
    style=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    zipped=st.booleans(),
    data=st.data(),
)
def test_any_tar_is_read_whole_and_any_part_of_it_is_damaged(
    members: dict[str, bytes],
    style: int,
    zipped: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    buffer, ends = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for number, (name, content) in enumerate(members.items()):
            info = tarfile.TarInfo(f"{number}/{name}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            ends.append(buffer.tell())
    whole = buffer.getvalue()
    place = tmp_path_factory.mktemp("any")
    packed = gzip.compress(whole, 1) if zipped else whole
    found = read_tar_bytes(place, packed, "x.tar")
    assert [x.data if isinstance(x, Sample) else x for x in found] == list(members.values())
    cut = data.draw(st.integers(1, (ends[-1] if ends else 0) + 1023))
    part = read_tar_bytes(place, whole[:cut], "x.tar")
    kept = sum(end <= cut for end in ends)
    assert [x.data for x in part[:-1] if isinstance(x, Sample)] == list(members.values())[:kept]
    assert isinstance(part[-1], Damage)
    assert part[-1].position <= cut


@settings(max_examples=150, deadline=None)
@given(noise=st.binary(min_size=1, max_size=3000), spoilt=st.integers(0, 10_000))
def test_noise_raises_nothing(
    noise: bytes, spoilt: int, tmp_path_factory: pytest.TempPathFactory, make_tar: MakeTar
) -> None:
    content = bytearray(five(make_tar))
    start = spoilt % len(content)
    content[start : start + len(noise)] = noise
    place = tmp_path_factory.mktemp("noise")
    for data in (noise, bytes(content)):
        found = read_tar_bytes(place, data, "x.tar")
        assert all(isinstance(x, Sample) for x in found[:-1])


def test_numbers_of_headers() -> None:
    assert number_of(b"\x80" + (1 << 34).to_bytes(11, "big")) == 1 << 34
    assert number_of(b"0000644\0") == number_of(b" 644\0 12") == 0o644
    for wrong in (b"0_1\0", b"+7\0", b"-7\0", b"9\0", b"\xff" * 8):
        assert number_of(wrong) is None


def test_old_signed_checksums_and_sparse_files(tmp_path: Path, make_tar: MakeTar) -> None:
    content = bytearray(make_tar({"\u00e9.png": b"1", "b.png": b"2"}))
    start = content.index(b"\xc3\xa9.png") if b"\xc3\xa9.png" in content[:512] else None
    if start is None:  # a PAX header came first
        start = content.rindex(b".png", 0, 2048) // 512 * 512
    start = start // 512 * 512
    header = bytearray(content[start : start + 512])
    header[0:2] = b"\xc3\xa9"
    blank = bytes(header[:148]) + b" " * 8 + bytes(header[156:])
    header[148:156] = b"%06o\0 " % sum(struct.unpack("512b", blank))
    content[start : start + 512] = header
    assert len(read_tar_bytes(tmp_path / "in", bytes(content))) == 2
    sparse = bytearray(make_tar({"s.png": b"12", "b.png": b"2"}))
    sparse[156:157], sparse[482:483] = b"S", b"\1"
    sparse[:512] = with_checksum(bytes(sparse[:512]))
    content = sparse[:512] + bytes(512) + sparse[512:]
    found = read_tar_bytes(tmp_path / "sparse", bytes(content))
    assert [(x.key, x.error) for x in found if isinstance(x, Sample)] == [
        ("s", "a sparse file, which is never read"),
        ("b", None),
    ]
    assert len(found) == 2


@pytest.mark.parametrize("gap", [0, 1, 511, 512, 2 << 20])
def test_data_after_the_end_is_flagged(gap: int, tmp_path: Path, make_tar: MakeTar) -> None:
    whole = five(make_tar)
    found = read_tar_bytes(tmp_path / "in", whole + bytes(gap) + b"x")
    assert found[5:] == [Damage(len(whole) + gap, "data after the end marker")]
    assert len(read_tar_bytes(tmp_path / "in", whole + bytes(gap))) == 5


def test_unique_keys_are_unique() -> None:
    unique = UniqueKeys()
    assert [unique(key) for key in ("a#1", "a", "a", "a", "!a#1", "!a", "!a")] == [
        *("a#1", "a", "a#2", "a#3", "!!a#1", "!!a", "!!a#2")
    ]


def test_an_empty_object_is_damaged(tmp_path: Path) -> None:
    assert read_tar_bytes(tmp_path / "in", b"") == [Damage(0, "empty object")]
    folder = Folder(str(tmp_path / "in"))
    assert [s.kind for s in list_shards(folder)] == ["tar"]
    assert isinstance(list_shards(folder)[0], Shard)


def test_the_reason_of_an_image_not_read_becomes_its_rows_error() -> None:
    from pipelines.prepare import Preparer
    from pipelines.quarantine import Quarantine

    unread = Sample("a", b"", error="a symbolic link, which is never read")
    embedder: Any = None  # never asked
    (row,) = Preparer(embedder, "x.tar", 1.0).prepare([unread], {}).rows
    (alone,) = Quarantine("", "cpu", "x.tar", 1.0).embed([unread])
    assert row.error == alone.error == unread.error
