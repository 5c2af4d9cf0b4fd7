"""What an INPUT holds: tar and Parquet objects, and images in hash buckets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import InputError, ObjectChanged, ObjectMissing
from pipelines.shards import ReadOptions, Sample, list_shards, read_shard
from pipelines.shards.listing import bucket_of, input_folder
from pipelines.storage import Folder

MakeTar = Callable[[dict[str, bytes]], bytes]


def five(make_tar: MakeTar) -> bytes:
    return make_tar({f"d/s{i}.png": bytes([i]) * (100 + 300 * i) for i in range(5)})


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
    with pytest.raises(InputError, match="is not there") as raised:
        list_shards(Folder(str(tmp_path / "missing")))
    assert isinstance(raised.value, FileNotFoundError)
    assert raised.value.exit_code == 2


def test_on_s3(s3_url: str, make_tar: MakeTar) -> None:
    folder = Folder(f"{s3_url}/in")
    folder.write("a/x.tar", five(make_tar))
    folder.write("b/pic.png", b"pixels")
    shards = list_shards(folder, buckets=4)
    assert [s.kind for s in shards] == ["tar", "folder"]
    samples = [x for s in shards for x in read_shard(folder, s)]
    assert len(samples) == 6
    assert all(isinstance(x, Sample) for x in samples)


def test_what_is_listed_and_what_is_not(tmp_path: Path) -> None:
    for name in ("_MG_1.JPG", "a b.png", "._x.png", ".cache/y.png", "__MACOSX/z.png", "t.tar.zst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    shards = list_shards(Folder(str(tmp_path)), buckets=1)
    assert [s.source for s in shards] == ["folder/00000-of-00001", "t.tar.zst"]
    assert [item.key for item in shards[0].items] == ["_MG_1.JPG", "a b.png"]


def test_the_bucket_of_a_key_is_for_ever() -> None:
    assert [bucket_of(key, 1024) for key in ("a.png", "b/c.jpg", "ü")] == [598, 955, 823]


def test_one_missing_bucket_is_no_input(s3_url: str) -> None:
    for url in (f"{s3_url}/nothing", "s3://no-such-bucket-here", "s3://no-such-bucket-here/x"):
        with pytest.raises(InputError, match="is not there"):
            list_shards(Folder(url))
    assert list_shards(Folder(s3_url)) == []


def test_many_images_over_a_network_come_in_order_and_pinned(s3_url: str) -> None:
    folder = Folder(s3_url)
    for i in range(40):
        folder.write(f"{i:02d}.png", bytes([i]) * (i + 1))
    (shard,) = list_shards(folder, buckets=1)
    options = ReadOptions(max_member_bytes=39)
    found = [x for x in read_shard(folder, shard, options) if isinstance(x, Sample)]
    assert [x.key for x in found] == [f"{i:02d}.png" for i in range(40)]
    assert [x.data for x in found[:-1]] == [bytes([i]) * (i + 1) for i in range(39)]
    assert found[-1].error == "40 bytes are over the cap of 39"
    reading = read_shard(folder, shard)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    folder.write("17.png", b"other")
    with pytest.raises(ObjectChanged):
        list(read_shard(folder, shard))
    folder.delete("17.png")
    with pytest.raises(ObjectMissing):
        list(read_shard(folder, shard))
