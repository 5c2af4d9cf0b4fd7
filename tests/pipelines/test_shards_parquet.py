"""Parquet shards: columns by name, caps, and every damage said."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.shards import Damage, ReadOptions, Sample, list_shards, read_shard
from pipelines.storage import Folder


def read_all(place: Path, options: ReadOptions | None = None) -> list[Sample | Damage]:
    folder = Folder(str(place))
    return [
        x
        for shard in list_shards(folder)
        for x in read_shard(folder, shard, options or ReadOptions())
    ]


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


def test_columns_of_other_types(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1"], "key": [b"\xffk"], "y": pa.array([["a"]]), "n": [2.5]})
    parquet(tmp_path / "a", table)
    (sample,) = read_all(tmp_path / "a", ReadOptions(key_column="key", label_column="n"))
    assert isinstance(sample, Sample)
    assert (sample.key, sample.label) == ("\ufffdk", "2.5")
    (damage,) = read_all(tmp_path / "a", ReadOptions(label_column="y"))
    assert isinstance(damage, Damage)
    assert "text or numbers are expected" in damage.reason


def test_caps(tmp_path: Path) -> None:
    parquet(tmp_path / "a", pa.table({"image": [b"small", b"x" * 5000, b"small"]}))
    found = read_all(tmp_path / "a", ReadOptions(max_member_bytes=1000))
    assert [(x.data, x.error) for x in found if isinstance(x, Sample)] == [
        (b"small", None),
        (b"", "5000 bytes are over the cap of 1000"),
        (b"small", None),
    ]
    (damage,) = read_all(tmp_path / "a", ReadOptions(max_shard_bytes=50))
    assert isinstance(damage, Damage)
    assert "after decompression are over the cap of 50" in damage.reason


def test_a_file_without_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "a", pa.table({"image": pa.array([], pa.binary())}))
    assert read_all(tmp_path / "a") == []


@pytest.mark.parametrize("step", [1, 3])
def test_a_cut_anywhere_is_damage(step: int, tmp_path: Path) -> None:
    parquet(tmp_path / "a", pa.table({"image": [bytes([i]) * 50 for i in range(5)]}))
    file = tmp_path / "a" / "x.parquet"
    whole = file.read_bytes()
    for cut in range(step, len(whole), 17):
        file.write_bytes(whole[:cut])
        assert isinstance(read_all(tmp_path / "a")[-1], Damage)


def test_a_flipped_bit_under_a_page_checksum_is_damage(tmp_path: Path) -> None:
    images = [bytes([i]) * 500 for i in range(5)]
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "x.parquet"
    pq.write_table(
        pa.table({"image": images}),
        file,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    data = bytearray(file.read_bytes())
    data[data.index(b"\2" * 500) + 100] ^= 1
    file.write_bytes(data)
    assert isinstance(read_all(tmp_path / "a")[-1], Damage)


BOMB = """
import re, sys
from pipelines.shards import Sample, list_shards, read_shard
from pipelines.storage import Folder
folder = Folder(sys.argv[1])
(shard,) = list_shards(folder)
def most():
    return int(re.search("VmHWM: *(.*) kB", open("/proc/self/status").read())[1]) >> 10
before = most()
sizes = [len(found.data) for found in read_shard(folder, shard) if isinstance(found, Sample)]
print(sizes == [8 << 20] * 2000, most() - before)
"""


def test_one_value_named_by_many_rows_is_not_held_many_times(tmp_path: Path) -> None:
    """A dictionary of one value of 8 MiB and 2,000 rows: a small file, and 16 GB of images."""
    named = pa.DictionaryArray.from_arrays(
        pa.array([0] * 2000, pa.int32()), pa.array([bytes(8 << 20)], pa.binary())
    )
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": named}), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 5000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path)], capture_output=True, text=True, check=True
    )
    whole, mebibytes = done.stdout.split()
    assert whole == "True"
    assert int(mebibytes) < 300
