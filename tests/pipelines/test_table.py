"""The embeddings table and the publication log, on local files and on S3."""

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ConflictError, FormatError, TableError
from pipelines.shard_file import Row, ShardFile
from pipelines.shards import Shard
from pipelines.storage import Folder
from pipelines.table import (
    SCHEMA,
    EmbeddingTable,
    PublicationLog,
    PublicationRow,
    PublishedFile,
    Receipt,
    TableIdentity,
    file_statistics,
    live_model,
    shard_folder,
)
from pipelines.table import log as delta_log

IDENTITY = TableIdentity("m" * 16, "/in", 1024, 2, "d4")
MODEL = IDENTITY.model_id


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "store"))


@pytest.fixture
def table(store: Folder) -> EmbeddingTable:
    return EmbeddingTable.create(store, IDENTITY)


def reopened(table: EmbeddingTable) -> EmbeddingTable:
    again = EmbeddingTable.open(Folder(table.folder.url.rpartition("/embeddings/")[0]), MODEL)
    assert again is not None
    return again


def write_shard(
    table: EmbeddingTable, place: Path, source: str, etag: str = "1", name: str = "a"
) -> Receipt:
    """A file of two embedded images, one rejected image and a damage marker, with its receipt."""
    rows = [
        {"image_id": n, "key": f"k{n}", "source": source, "source_etag": etag, "digest": f"d{n}"}
        for n in range(3)
    ]
    for row in rows[:2]:
        row |= {"embedding": [0.6, 0.8], "pose_code": b"\1"}
    rows[2]["error"] = "truncated"
    rows.append({"image_id": 9, "key": "!damaged", "source": source, "source_etag": etag})
    rows[3]["error"] = "cut"
    local = place / f"{shard_folder(source)}-{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), local)
    path = f"{shard_folder(source)}/{name}.parquet"
    size = table.folder.upload(local, path).size
    return Receipt(
        source=source,
        etag=etag,
        path=path,
        size=size,
        sha256=hashlib.sha256(local.read_bytes()).hexdigest(),
        num_rows=4,
        num_embedded=2,
        num_rejected=1,
        num_encoded=2,
        damaged=True,
        stats=file_statistics(source, etag, 4, 2, 1, True),
        worker="w",
        pid=1,
        in_bytes=10,
    )


def shard(source: str, etag: str = "1") -> Shard:
    return Shard(source, etag, 1, "tar")


def test_a_table_is_made_read_and_counted_on_every_storage(folder_url: str, tmp_path: Path) -> None:
    store = Folder(folder_url)
    assert EmbeddingTable.open(store, MODEL) is None
    table = EmbeddingTable.create(store, IDENTITY)
    receipt = write_shard(table, tmp_path, "a.tar")
    assert table.holds(receipt)
    assert not table.holds(replace(receipt, size=receipt.size + 1))
    assert not table.holds(replace(receipt, path="0/no.parquet"))
    assert not table.holds(replace(receipt, sha256="0" * 64, md5="0" * 32))
    content = table.folder.read(receipt.path)
    assert table.holds(replace(receipt, sha256="", md5=hashlib.md5(content).hexdigest())) == (
        table.folder.scheme == "s3"
    )
    flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
    table.folder.write(receipt.path, flipped)
    assert not table.holds(receipt)
    table.folder.write(receipt.path, content)
    assert table.holds(receipt)
    table.commit([receipt, write_shard(table, tmp_path, 'b "é".tar')])
    again = EmbeddingTable.open(store, MODEL)
    assert again is not None
    assert again.identity == IDENTITY
    counts = again.counts()
    assert (counts.num_seen, counts.num_embedded, counts.num_rejected) == (6, 4, 2)
    assert (counts.num_damaged_shards, counts.num_shards) == (2, 2)
    rows = again.read(["key", "source", "embedding"])
    assert rows.num_rows == 6
    assert set(rows["source"].to_pylist()) == {"a.tar", 'b "é".tar'}
    assert again.read(include_markers=True).num_rows == 8
    assert again.read(sources=["a.tar"]).num_rows == 3
    assert again.read(sources=[]).num_rows == 0
    assert sum(batch.num_rows for batch in again.batches(["key"])) == 6


def test_nothing_in_the_log_expires_before_ten_years(table: EmbeddingTable) -> None:
    configuration = table.configuration
    assert configuration["delta.logRetentionDuration"] == "interval 3650 days"
    assert configuration["delta.deletedFileRetentionDuration"] == "interval 3650 days"
    assert configuration["orbit.format_version"] == "1"
    assert configuration["orbit.input_url"] == "/in"


def test_the_plan_compares_by_source_and_then_by_etag(
    table: EmbeddingTable, tmp_path: Path
) -> None:
    table.commit([write_shard(table, tmp_path, s) for s in ("same", "new content", "gone")])
    plan = table.plan([shard("same"), shard("new content", "2"), shard("new")])
    assert [s.source for s in plan.added] == ["new"]
    assert [s.source for s in plan.changed] == ["new content"]
    assert [f.source for f in plan.vanished] == ["gone"]
    assert [f.source for f in plan.unchanged] == ["same"]
    assert not plan.empty


def test_a_changed_and_a_vanished_shard_leave_in_the_commit_that_adds(
    table: EmbeddingTable, tmp_path: Path
) -> None:
    table.commit([write_shard(table, tmp_path, s) for s in ("a", "b")])
    done = table.commit([write_shard(table, tmp_path, "a", "2", "b")], vanished=["b"])
    assert sorted(f.source for f in done.removed) == ["a", "b"]
    assert {s: f.etag for s, f in reopened(table).known().items()} == {"a": "2"}
    assert done.version == 2
    earlier = EmbeddingTable.open(
        Folder(table.folder.url.rpartition("/embeddings/")[0]), MODEL, version=1
    )
    assert earlier is not None
    assert sorted(earlier.known()) == ["a", "b"]


def test_what_a_commit_leaves_known_is_what_the_log_says(
    table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the log is not read again, as nobody else has committed: that would cost every
    commit of a large table a look at all its files."""
    table.commit([write_shard(table, tmp_path, s) for s in ("a", "b", "c")])
    assert table.known() == reopened(table).known()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.table.embeddings._known_files", None)
        table.commit([write_shard(table, tmp_path, "a", "2", "b")], vanished=["b"])
    assert table.known() == reopened(table).known()
    assert sorted(table.known()) == ["a", "c"]
    other = reopened(table)
    other.commit([write_shard(other, tmp_path, "e", "1", "other")])
    table.commit([write_shard(table, tmp_path, "d", "1", "mine")])
    assert table.known() == reopened(table).known()
    assert sorted(table.known()) == ["a", "c", "d", "e"]
    assert table.foreign() == {"e"}


def test_what_another_writer_touched_is_dropped_whatever_its_etag(
    table: EmbeddingTable, tmp_path: Path
) -> None:
    table.commit([write_shard(table, tmp_path, s) for s in ("a", "b", "c")])
    other = reopened(table)
    other.commit([write_shard(other, tmp_path, "a", "2", "other")], vanished=["b"])
    mine = [write_shard(table, tmp_path, s, "2", "mine") for s in ("a", "b", "d")]
    done = table.commit(mine, vanished=["c"])
    assert done.dropped == ("a", "b")
    assert [r.source for r in done.landed] == ["d"]
    assert [f.source for f in done.removed] == ["c"]
    known = reopened(table).known()
    assert {s: f.path.rpartition("/")[2] for s, f in known.items()} == {
        "a": "other.parquet",
        "d": "mine.parquet",
    }
    later = table.commit([write_shard(table, tmp_path, "a", "3", "late")])
    assert later.dropped == ("a",)
    assert later.version == done.version


def test_two_that_add_the_same_new_shard_leave_it_once(
    table: EmbeddingTable, tmp_path: Path
) -> None:
    """Nothing is removed: the application id makes them collide, and no commit is rebased."""
    other = reopened(table)
    other.commit([write_shard(other, tmp_path, "a", name="other")])
    done = table.commit([write_shard(table, tmp_path, s, name="mine") for s in ("a", "b")])
    assert done.dropped == ("a",)
    assert sorted(reopened(table).known()) == ["a", "b"]
    assert reopened(table).read().num_rows == 6


def test_the_application_id_alone_makes_two_collide(
    table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where deltalake would move a lost commit onto the other's version by itself."""

    properties = delta_log.CommitProperties

    def rebased(**given: Any) -> Any:
        return properties(**(given | {"max_commit_retries": 15}))

    monkeypatch.setattr(delta_log, "CommitProperties", rebased)
    other = reopened(table)
    other.commit([write_shard(other, tmp_path, "a", name="other")])
    done = table.commit([write_shard(table, tmp_path, s, name="mine") for s in ("a", "b")])
    assert done.dropped == ("a",)
    assert reopened(table).read().num_rows == 6
    log = Path(table.folder.url, "_delta_log")
    for version in (1, 2):
        actions = map(json.loads, (log / f"{version:020d}.json").read_text().splitlines())
        named = [action["txn"] for action in actions if "txn" in action]
        assert [(one["appId"], one["version"]) for one in named] == [("orbit", version)]


def test_eight_writers_leave_contiguous_versions_and_no_double(
    table: EmbeddingTable, tmp_path: Path
) -> None:
    failures: list[Exception] = []

    def write(number: int) -> None:
        mine = reopened(table)
        for turn in range(5):
            receipt = write_shard(mine, tmp_path, f"{number}-{turn}")
            while True:
                try:
                    mine.commit([receipt])
                    break
                except ConflictError:
                    continue
                except Exception as error:
                    failures.append(error)
                    return

    writers = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    last = reopened(table)
    assert last.version == 40
    assert len(last.known()) == 40
    assert last.read().num_rows == 120


def test_five_lost_commits_in_a_row_are_a_conflict(
    table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    receipt = write_shard(table, tmp_path, "mine")
    change = table._change
    turns = iter(range(100))

    def race(receipts: list[Receipt], vanished: list[str]) -> object:
        other = reopened(table)
        other.commit([write_shard(other, tmp_path, f"other-{next(turns)}")])
        return change(receipts, vanished)

    monkeypatch.setattr(table, "_change", race)
    with pytest.raises(ConflictError, match="5 commits in a row") as caught:
        table.commit([receipt])
    assert caught.value.exit_code == 75
    assert "mine" not in reopened(table).known()


def test_a_commit_whose_reply_was_lost_is_found_in_the_log(
    table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = delta_log.DeltaLog._write

    def lose_the_reply(self: delta_log.DeltaLog, *arguments: object) -> Exception | None:
        failure = write(self, *arguments)  # type: ignore[arg-type]
        return failure or OSError("the connection was closed")

    monkeypatch.setattr(delta_log.DeltaLog, "_write", lose_the_reply)
    done = table.commit([write_shard(table, tmp_path, "a")])
    assert [r.source for r in done.landed] == ["a"]
    assert reopened(table).version == 1


def test_a_log_that_cannot_be_written_is_no_conflict(
    table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(delta_log.DeltaLog, "_write", lambda *_: OSError("no space"))
    with pytest.raises(TableError, match=r"cannot be written \(no space\)"):
        table.commit([write_shard(table, tmp_path, "a")])


def test_a_newer_format_is_refused(store: Folder) -> None:
    newer = replace(IDENTITY, format_version=2).configuration()
    delta_log.DeltaLog.create(store.child(f"embeddings/{MODEL}"), SCHEMA, newer)
    with pytest.raises(FormatError, match="format 2, this Orbit knows up to 1"):
        EmbeddingTable.open(store, MODEL)


def test_a_table_whose_input_changed_meanwhile_is_a_conflict(
    table: EmbeddingTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "identity", replace(IDENTITY, input_url="/before"))
    with pytest.raises(ConflictError, match="INPUT or format changed"):
        table.commit([write_shard(table, tmp_path, "a")])


def test_a_foreign_or_broken_table_is_told_in_one_line(store: Folder, tmp_path: Path) -> None:
    folder = store.child(f"embeddings/{MODEL}")
    delta_log.DeltaLog.create(folder, SCHEMA, {})
    with pytest.raises(TableError, match="not Orbit's"):
        EmbeddingTable.open(store, MODEL)
    log = Path(folder.url, "_delta_log", "00000000000000000000.json")
    log.write_text("{nonsense\n")
    with pytest.raises(TableError, match="cannot be read") as caught:
        EmbeddingTable.open(store, MODEL)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_the_log_keep_the_counts(table: EmbeddingTable, tmp_path: Path) -> None:
    table.commit([write_shard(table, tmp_path, "a")])
    table._log._table.create_checkpoint()
    for first in Path(table.folder.url, "_delta_log").glob("0*.json"):
        first.unlink()
    assert reopened(table).counts() == table.counts()
    assert reopened(table).known() == table.known()


def test_a_flipped_bit_is_never_read(table: EmbeddingTable, tmp_path: Path) -> None:
    """Each page of a file has a checksum, which is verified."""
    table.commit([_written(table, tmp_path)])
    (path,) = (file.path for file in table.known().values())
    file = Path(table.folder.url, path)
    whole, rows = file.read_bytes(), table.read()
    assert rows.num_rows == 6
    with pq.ParquetFile(file) as opened:
        group = opened.metadata.row_group(0)
        chunks = [group.column(n) for n in range(group.num_columns)]
    chunk = next(c for c in chunks if c.path_in_schema.startswith("embedding"))
    end = chunk.data_page_offset + chunk.total_compressed_size
    for place in range(end - 30, end):  # within the page, after its header
        data = bytearray(whole)
        data[place] ^= 16
        file.write_bytes(data)
        with pytest.raises(TableError, match="rows cannot be read") as raised:
            table.read()
        assert "\n" not in str(raised.value)


def _written(table: EmbeddingTable, place: Path) -> Receipt:
    """A file as workers write it."""
    import numpy as np

    local = place / "written.parquet"
    with ShardFile(local, "a.tar", "1") as file:
        chance = np.random.default_rng(0)
        for n in range(6):
            row = Row(f"k{n}", digest=f"d{n}")
            row.embedding, row.pose_code = chance.random(2, np.float32), bytes([n] * 64)
            file.add([row])
        checked = file.finish()
    path = f"{shard_folder('a.tar')}/written.parquet"
    table.folder.upload(local, path)
    receipt = write_shard(table, place, "a.tar")
    stats = file_statistics("a.tar", "1", 6, 6, 0, False)
    return replace(receipt, path=path, size=checked.size, num_rows=6, stats=stats)


def test_ten_thousand_known_shards_are_planned_in_seconds(table: EmbeddingTable) -> None:
    sources = [f"shard-{n:05d}.tar" for n in range(10_000)]
    receipts = [
        Receipt(s, "1", f"{shard_folder(s)}/a.parquet", 9, "", 4, 3, 1, 3, False,
                file_statistics(s, "1", 4, 3, 1, False), "w", 1, 1)
        for s in sources
    ]  # fmt: skip
    table.commit(receipts)
    began = time.monotonic()
    again = reopened(table)
    plan = again.plan([shard(s) for s in sources])
    assert plan.empty
    assert again.counts().num_seen == 40_000
    took = time.monotonic() - began
    print(f"\nplan over 10,000 finished shards, opening the table included: {took:.2f} s")
    assert took < 5


def test_publications_are_numbered_and_the_last_one_is_live(folder_url: str) -> None:
    store = Folder(folder_url)
    assert PublicationLog.open(store) is None
    assert live_model(store) is None
    log = PublicationLog.open_or_create(store)
    assert log.live() is None
    other = PublicationLog.open_or_create(store)
    row = PublicationRow(
        id="p1",
        model_id=MODEL,
        table_version=3,
        files=(PublishedFile("artifacts/p1/index", 10, "ab"),),
        recall_at_10=0.99,
        facts={"kind": "exact", "counts": {"num_seen": 4}},
    )
    first = log.append(row)
    assert first == replace(row, seq=1)
    second = other.append(replace(row, id="p2", recall_at_10=None))
    assert second.seq == 2
    log.reload()
    assert log.live() == second
    assert [r.id for r in log.rows()] == ["p1", "p2"]
    restored = log.append(log.rows()[0])
    assert (restored.seq, restored.id) == (3, "p1")
    assert live_model(store) == MODEL


def test_statistics_tell_every_count() -> None:
    stats = json.loads(file_statistics("s", "e", 10, 6, 3, True))
    assert stats["numRecords"] == 10
    assert stats["minValues"] == stats["maxValues"] == {"source": "s", "source_etag": "e"}
    assert (stats["nullCount"]["digest"], stats["nullCount"]["embedding"]) == (1, 4)
    assert stats["nullCount"]["error"] == 6
