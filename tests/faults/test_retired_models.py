"""What clean-up does with a model that no publication uses any more, and with one that waits."""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch import silent
from pipelines.retention import DAY_S, RetentionOptions, collect_garbage
from pipelines.storage import Folder
from pipelines.table import (
    SCHEMA,
    EmbeddingTable,
    PublicationLog,
    PublicationRow,
    Receipt,
    TableIdentity,
    file_statistics,
    shard_folder,
)

from .conftest import Zygote

OLD, NEW, WAITING = "a" * 16, "b" * 16, "c" * 16
ONE = RetentionOptions(keep=1)


def add_model(store: Folder, model_id: str, place: Path, live: bool = True) -> None:
    """A checkpoint, a table of one image, and a publication of it."""
    for name in ("model.safetensors", "model.json"):
        store.write(f"models/{model_id}/{name}", b"{}")
    identity = TableIdentity(model_id, "/in", 4, 2, "d4")
    table = EmbeddingTable.create(store, identity)
    row = {"image_id": 1, "key": "k", "source": "a.tar", "source_etag": "1", "digest": "d"}
    local = place / "file.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"embedding": [0.6, 0.8]}], schema=SCHEMA), local)
    entry = table.folder.upload(local, f"{shard_folder('a.tar')}/run-1-1-{model_id}.parquet")
    stats = file_statistics("a.tar", "1", 1, 1, 0, False)
    receipt = Receipt(
        source="a.tar", etag="1", path=entry.path, size=entry.size, sha256="", num_rows=1,
        num_embedded=1, num_rejected=0, num_encoded=1, damaged=False, stats=stats, worker="w",
        pid=1, in_bytes=1,
    )  # fmt: skip
    table.commit([receipt])
    log = PublicationLog.open_or_create(store)
    log.append(PublicationRow(f"of-{model_id}", model_id, table.version), live=live)


def make_old(store: Folder, below: str = "") -> None:
    then = time.time() - 30 * DAY_S
    for path in Path(store.url, below).rglob("*"):
        os.utime(path, (then, then))


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    made = Folder(str(tmp_path / "store"))
    add_model(made, OLD, tmp_path)
    add_model(made, NEW, tmp_path)
    make_old(made)
    return made


def rows_of(store: Folder, model_id: str) -> int:
    table = EmbeddingTable.open(store, model_id)
    assert table is not None
    return table.counts().num_seen


def test_a_model_goes_with_its_last_publication(store: Folder) -> None:
    told = collect_garbage(store, RetentionOptions(keep=1, dry_run=True), silent)
    assert (told.retired, told.forgotten) == ([OLD], [f"of-{OLD}"])
    assert rows_of(store, OLD) == 1
    cleaned = collect_garbage(store, ONE, silent)
    assert (cleaned.retired, cleaned.forgotten) == ([OLD], [f"of-{OLD}"])
    assert (rows_of(store, OLD), rows_of(store, NEW)) == (0, 1)
    assert len(store.entries(f"embeddings/{OLD}/{shard_folder('a.tar')}")) == 1  # for its readers
    make_old(store)
    collect_garbage(store, ONE, silent)
    assert store.entries(f"embeddings/{OLD}/{shard_folder('a.tar')}") == []
    assert store.entries(f"models/{OLD}") == []
    assert len(store.entries(f"models/{NEW}")) == 2
    assert len(store.entries(f"embeddings/{NEW}/{shard_folder('a.tar')}")) == 1
    assert collect_garbage(store, ONE, silent).garbage == []


def test_a_model_at_work_stays(store: Folder) -> None:
    store.write("runs/now/heartbeat.json", json.dumps({"model_id": OLD}).encode())
    assert collect_garbage(store, ONE, silent).retired == []
    make_old(store, "publications")
    assert (rows_of(store, OLD), len(store.entries(f"models/{OLD}"))) == (1, 2)


def test_a_table_written_to_lately_stays(store: Folder) -> None:
    entry = next(Path(store.url, "embeddings", OLD, "_delta_log").glob("*1.json"))
    os.utime(entry)
    assert collect_garbage(store, ONE, silent).retired == []
    assert (rows_of(store, OLD), len(store.entries(f"models/{OLD}"))) == (1, 2)


def test_a_publication_that_waits_to_go_live_stays(store: Folder, tmp_path: Path) -> None:
    add_model(store, WAITING, tmp_path, live=False)
    make_old(store)
    assert collect_garbage(store, ONE, silent).forgotten == [f"of-{OLD}"]
    assert rows_of(store, WAITING) == 1


@pytest.mark.parametrize("point", ["gc.retire", "gc.forget", "gc.delete"])
def test_killed_while_a_model_goes(zygote: Zygote, store: Folder, point: str) -> None:
    started = zygote.start("gc", f"{point}@1:kill", store=store.url, keep=1)
    assert started.wait() == -signal.SIGKILL
    assert rows_of(store, NEW) == 1
    log = PublicationLog.open(store)
    assert log is not None
    assert log.live().model_id == NEW  # type: ignore[union-attr]
    if point == "gc.retire":
        collect_garbage(store, ONE, silent)
        assert rows_of(store, OLD) == 0
    make_old(store)
    collect_garbage(store, ONE, silent)
    make_old(store)
    collect_garbage(store, ONE, silent)
    assert store.entries(f"models/{OLD}") == []
    assert len(store.entries(f"models/{NEW}")) == 2
