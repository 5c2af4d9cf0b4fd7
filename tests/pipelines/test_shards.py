"""Every kind of shard: what is whole is kept, what is damaged says so, nothing ends silently."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.shards import Damage, ReadOptions, Sample, list_shards, read_shard
from pipelines.shards.listing import bucket_of, input_folder
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
            "a/x.1.png": b"PIX1",
            "a/x.1.jpg": b"second",
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
        for name in ("a.png", "b.png", "a.png", "!empty.png", "a.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    keys = [
        x.key for x in read_tar_bytes(tmp_path / "in", buffer.getvalue()) if isinstance(x, Sample)
    ]
    assert keys == ["a", "b", "a#1", "!!empty", "a#2"]


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


def test_links_devices_and_paths_that_climb_are_never_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("d.png", tarfile.CHRTYPE),
            ("../up.png", tarfile.REGTYPE),
            ("/abs.png", tarfile.REGTYPE),
            ("ok.png", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = read_tar_bytes(tmp_path / "in", buffer.getvalue())
    assert [x.key for x in found if isinstance(x, Sample)] == ["ok"]
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
    found = read_tar_bytes(tmp_path / "in", packed, "x.tar.gz")
    assert len(found) == 5
    assert all(isinstance(x, Sample) and x.offset is None for x in found)
    cut = read_tar_bytes(tmp_path / "cut", packed[:-20], "x.tgz")
    assert isinstance(cut[-1], Damage)
    assert "gzip" in cut[-1].reason
    bomb = gzip.compress(make_tar({"a.png": b"x", "b.png": bytes(3 << 20)}))
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "x.tgz").write_bytes(bomb)
    capped = read_all(tmp_path / "bomb", ReadOptions(max_member_bytes=1 << 20))
    assert len(capped) == 2
    assert isinstance(capped[1], Damage)
    assert "over the cap" in capped[1].reason
    by_total = read_all(tmp_path / "bomb", ReadOptions(max_shard_bytes=1 << 20))
    assert isinstance(by_total[-1], Damage)


def test_a_size_that_lies_is_flagged(tmp_path: Path, make_tar: MakeTar) -> None:
    content = bytearray(make_tar({"a.png": b"x" * 600, "b.png": b"y"}))
    content[124:136] = b"00000000010\0"
    header = bytes(content[:148]) + b" " * 8 + bytes(content[156:512])
    content[148:156] = b"%06o\0 " % sum(header)
    found = read_tar_bytes(tmp_path / "in", bytes(content))
    assert isinstance(found[-1], Damage)
    assert "checksum" in found[-1].reason


def parquet(place: Path, table: pa.Table, name: str = "x.parquet") -> None:
    place.mkdir(exist_ok=True)
    pq.write_table(table, place / name, row_group_size=2)


def test_parquet_columns(tmp_path: Path) -> None:
    images = [b"one", b"two", None, b"four"]
    parquet(
        tmp_path / "a",
        pa.table(
            {"image": pa.array(images, pa.binary()), "id": [10, 11, 12, 10], "y": list("abcd")}
        ),
    )
    found = read_all(tmp_path / "a", ReadOptions(key_column="id", label_column="y"))
    assert [(x.key, x.data, x.label) for x in found if isinstance(x, Sample)] == [
        ("10", b"one", "a"),
        ("11", b"two", "b"),
        ("12", b"", "c"),
        ("10#1", b"four", "d"),
    ]
    hugging_face = pa.array([{"bytes": b"one", "path": "p"}])
    parquet(tmp_path / "b", pa.table({"image": hugging_face}))
    assert [x.key for x in read_all(tmp_path / "b") if isinstance(x, Sample)] == ["row-0"]


def test_parquet_damage(tmp_path: Path) -> None:
    parquet(tmp_path / "a", pa.table({"picture": [b"x"]}))
    assert read_all(tmp_path / "a") == [Damage(0, "no column 'image'; it has picture")]
    parquet(tmp_path / "b", pa.table({"image": [1.5]}))
    assert read_all(tmp_path / "b") == [
        Damage(0, "column 'image' holds double, bytes are expected")
    ]
    parquet(tmp_path / "c", pa.table({"image": [b"x" * 100]}))
    file = tmp_path / "c" / "x.parquet"
    file.write_bytes(file.read_bytes()[:-6])
    (damage,) = read_all(tmp_path / "c")
    assert isinstance(damage, Damage)
    assert "not a whole Parquet file" in damage.reason
    file.write_bytes(b"")
    assert read_all(tmp_path / "c") == [Damage(0, "empty object")]


def test_folders_in_buckets(tmp_path: Path) -> None:
    place = tmp_path / "in"
    for i in range(40):
        (place / f"class-{i % 2}").mkdir(parents=True, exist_ok=True)
        (place / f"class-{i % 2}" / f"{i}.png").write_bytes(bytes([i]))
    (place / "top.jpg").write_bytes(b"t")
    (place / "readme.txt").write_bytes(b"no")
    folder = Folder(str(place))
    shards = list_shards(folder, buckets=8)
    assert sum(len(s.items) for s in shards) == 41
    assert len(shards) <= 8
    found = {x.key: x for s in shards for x in read_shard(folder, s) if isinstance(x, Sample)}
    assert found["class-1/3.png"].label == "class-1"
    assert found["top.jpg"].label is None
    assert all(x.item_etag for x in found.values())
    before = {s.source: s.etag for s in shards}
    (place / "class-0" / "new.png").write_bytes(b"n")
    after = {s.source: s.etag for s in list_shards(folder, buckets=8)}
    changed = {source for source in after if before.get(source) != after[source]}
    assert changed == {f"folder/{bucket_of('class-0/new.png', 8):05d}-of-00008"}
    one = next(s for s in shards if len(s.items) > 1)
    key = one.items[0].key
    assert [
        x.key for x in read_shard(folder, one, only=frozenset([key])) if isinstance(x, Sample)
    ] == [key]


def test_inputs_that_are_one_object_empty_or_missing(tmp_path: Path, make_tar: MakeTar) -> None:
    (tmp_path / "x.tar").write_bytes(five(make_tar))
    (shard,) = list_shards(Folder(str(tmp_path / "x.tar")))
    parent = input_folder(str(tmp_path / "x.tar"))
    assert shard.source == "x.tar"
    assert len(list(read_shard(parent, shard))) == 5
    (tmp_path / "empty").mkdir()
    assert list_shards(Folder(str(tmp_path / "empty"))) == []
    with pytest.raises(InputError, match="is not there"):
        list_shards(Folder(str(tmp_path / "missing")))


def test_on_s3(s3_url: str, make_tar: MakeTar) -> None:
    folder = Folder(f"{s3_url}/in")
    folder.write("a/x.tar", five(make_tar))
    folder.write("b/pic.png", b"pixels")
    shards = list_shards(folder, buckets=4)
    assert [s.kind for s in shards] == ["tar", "folder"]
    samples = [x for s in shards for x in read_shard(folder, s)]
    assert len(samples) == 6
    assert all(isinstance(x, Sample) for x in samples)


def test_base_256_sizes_are_read() -> None:
    from pipelines.shards.tar import _number

    assert _number(b"\x80" + (1 << 34).to_bytes(11, "big")) == 1 << 34
    assert _number(b"0000644\0") == 0o644
