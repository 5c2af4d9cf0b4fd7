"""A worker that was given up goes on after its replacement has finished."""

import threading
from pathlib import Path

import pytest

from eqmodel.checkpoint import resolve
from pipelines import faults
from pipelines.batch import silent
from pipelines.embed import ShardEmbedder, ShardWork, WorkerSettings
from pipelines.models import keep_copy
from pipelines.retention import RetentionOptions, collect_garbage
from pipelines.shards import list_shards
from pipelines.table import EmbeddingTable, Receipt, TableIdentity
from pipelines.verify import VerifyOptions, verify

from .conftest import MODEL_ID, World, named_files, read_rows
from .test_retired_models import make_old

MODEL = resolve("d4-28-grey")


@pytest.mark.parametrize("point", ["worker.fetch", "worker.encode", "worker.written"])
def test_what_a_zombie_uploads_is_never_named(
    world: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    settings = WorkerSettings(world.input.url, world.store.url, MODEL_ID, str(MODEL))
    zombie = ShardEmbedder(settings, "zombie")
    identity = TableIdentity(MODEL_ID, world.input.url, 4, zombie.embedder.dim, "d4")
    table = EmbeddingTable.create(world.store, identity)
    keep_copy(world.store, MODEL_ID, MODEL)
    shards = list_shards(world.input)
    late: list[Receipt] = []
    release = threading.Event()
    monkeypatch.setattr(faults, "_happen", lambda fault: release.wait(60))
    monkeypatch.setattr(faults, "_passed", type(faults._passed)())
    monkeypatch.setenv("ORBIT_FAULT", f"{point}@1:sleep")
    thread = threading.Thread(
        target=lambda: late.append(zombie.embed(ShardWork(shards[0], "run", 1)))
    )
    thread.start()
    while not faults._passed[point]:
        thread.join(0.01)
    monkeypatch.delenv("ORBIT_FAULT")
    replacement = ShardEmbedder(settings, "replacement")
    receipts = [replacement.embed(ShardWork(shard, "run", 2)) for shard in shards]
    assert all(table.holds(receipt) for receipt in receipts)
    table.commit(receipts)
    before = read_rows(world.store)
    release.set()
    thread.join(60)
    assert len(late) == 1
    name = f"embeddings/{MODEL_ID}"
    orphan = f"{name}/{late[0].path}"
    assert world.store.stat(orphan) is not None
    assert late[0].path not in named_files(world.store, name)
    assert read_rows(world.store) == before
    assert verify(world.store, VerifyOptions(audit_images=0), silent).broken == []
    make_old(world.store)
    cleaned = collect_garbage(world.store, RetentionOptions(), silent)
    assert {found.path for found in cleaned.garbage} == {orphan}
    assert Path(world.store.url, name, receipts[0].path).exists()
