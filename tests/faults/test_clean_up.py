"""Clean-up, restoring and erasing: beside a running job, killed midway, never anything live."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.ages import clock
from pipelines.batch import silent
from pipelines.erasure import erase, read_keys
from pipelines.errors import ArtifactError, KeyNotFoundError, SettingsError, StoreError
from pipelines.restore import restore
from pipelines.retention import DAY_S, RetentionOptions, collect_garbage
from pipelines.search import Searcher
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, PublicationLog

from .conftest import MODEL_ID, World, Zygote, live_row, read_rows


@pytest.fixture(scope="module")
def three_nights(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, make_png: Any, make_tar: Any
) -> World:
    """Three publications of three table versions; what the first two alone need is garbage."""
    place = tmp_path_factory.mktemp("nights")
    world = World(Folder(str(place / "in")), Folder(str(place / "out")), make_png, make_tar)
    world.put("staying.tar", range(6), bad=(3,))
    for night in range(3):
        world.put("changing.tar", range(night, 8 + night))
        assert zygote.start("run", **world.where()).wait() == 0
    world.check()
    return world


@pytest.fixture
def nights(three_nights: World, tmp_path: Path) -> World:
    """A copy to damage; INPUT stays where it is."""
    shutil.copytree(three_nights.store.url, tmp_path / "store")
    world = World(three_nights.input, Folder(str(tmp_path / "store")), *_makers(three_nights))
    world.truth, world.bad = dict(three_nights.truth), set(three_nights.bad)
    world.digests = dict(three_nights.digests)
    return world


def _makers(world: World) -> tuple[Any, Any]:
    return world.make_png, world.make_tar


def make_old(store: Folder, days: float, below: str = "") -> None:
    """As if everything had been written that long ago."""
    then = time.time() - days * DAY_S
    for path in Path(store.url, below).rglob("*"):
        os.utime(path, (then, then))


def objects(store: Folder) -> set[str]:
    return {entry.path for entry in store.entries()}


def clean(store: Folder, **options: Any) -> Any:
    return collect_garbage(store, RetentionOptions(**options), silent)


def ids(store: Folder) -> list[str]:
    log = PublicationLog.open(store)
    assert log is not None
    return [row.id for row in log.rows()]


def test_nothing_young_goes_and_nothing_that_is_kept(nights: World) -> None:
    before = objects(nights.store)
    assert clean(nights.store, keep=1).garbage == []
    make_old(nights.store, 8)
    cleaned = clean(nights.store, keep=30)
    assert cleaned.forgotten == []
    assert {found.why for found in cleaned.garbage} == {"of a run that has ended"}
    assert before - objects(nights.store) == {g.path for g in cleaned.garbage}
    nights.check()
    for publication in ids(nights.store):
        restore(nights.store, publication, silent)


def test_what_only_old_publications_need_goes(nights: World) -> None:
    make_old(nights.store, 8)
    first, second, third = ids(nights.store)
    told = clean(nights.store, keep=1, dry_run=True)
    before = objects(nights.store)
    assert told.forgotten == [first, second]
    cleaned = clean(nights.store, keep=1)
    assert cleaned.forgotten == [first, second]
    assert [vars(g) for g in cleaned.garbage if "publications/" not in g.path] == [
        vars(g) for g in told.garbage if "publications/" not in g.path
    ]
    gone = before - objects(nights.store)
    assert gone == {found.path for found in cleaned.garbage}
    # 2 old files of the changed shard, 2 x 8 artifacts, 3 runs
    assert sum(path.startswith("embeddings/") for path in gone) == 2
    assert {path.split("/")[1] for path in gone if path.startswith("artifacts/")} == {first, second}
    assert ids(nights.store) == [third]
    nights.check()
    with pytest.raises(KeyNotFoundError, match=f"no publication {first}"):
        restore(nights.store, first, silent)
    assert Searcher.open(nights.store.url, Path(nights.store.url).parent / "cache").publication.id


def test_the_files_of_a_run_with_a_heartbeat_stay(nights: World) -> None:
    folder = f"embeddings/{MODEL_ID}/{'0' * 16}"
    for run in ("20260101T000000_dead", "20260101T000000_live"):
        nights.store.write(f"{folder}/{run}-1-8-{'f' * 64}.parquet", b"uploaded, not committed")
        nights.store.write(f"runs/{run}/heartbeat.json", b"{}")
    nights.store.write("notes/mine.txt", b"not Orbit's")
    nights.store.write(f"embeddings/{MODEL_ID}/mine.parquet", b"not Orbit's")
    make_old(nights.store, 8)
    os.utime(Path(nights.store.url, "runs/20260101T000000_live/heartbeat.json"))
    gone = {found.path for found in clean(nights.store).garbage}
    assert f"{folder}/20260101T000000_dead-1-8-{'f' * 64}.parquet" in gone
    assert not [path for path in gone if "live" in path or "mine" in path]
    assert {"notes/mine.txt", f"embeddings/{MODEL_ID}/mine.parquet"} <= objects(nights.store)


def test_a_file_dropped_lately_stays_for_its_readers(nights: World) -> None:
    make_old(nights.store, 8)
    table = EmbeddingTable.open(nights.store, MODEL_ID)
    assert table is not None
    path = f"embeddings/{MODEL_ID}/{table.known()['changing.tar'].path}"
    table.commit([], ["changing.tar"])
    log = PublicationLog.open(nights.store)
    assert log is not None
    log.forget({row.seq for row in log.rows()}, live_too=True)
    assert path not in {found.path for found in clean(nights.store).garbage}
    make_old(nights.store, 8)
    assert path in {found.path for found in clean(nights.store).garbage}


def test_the_age_is_told_by_the_clock_of_the_store(
    nights: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(nights.store, 6)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * DAY_S)
    assert clean(nights.store, keep=1).garbage == []
    assert abs(clock(nights.store) - real()) < 5


@pytest.mark.parametrize("nth", [1, 7, 18])
def test_killed_while_it_deletes(zygote: Zygote, nights: World, nth: int) -> None:
    make_old(nights.store, 8)
    started = zygote.start("gc", f"gc.delete@{nth}:kill", store=nights.store.url, keep=1)
    assert (started.wait(), started.fired) == (-signal.SIGKILL, True)
    nights.check()
    again = zygote.start("gc", store=nights.store.url, keep=1)
    assert again.wait() == 0
    nights.check()
    assert {path.split("/")[1] for path in objects(nights.store) if path.startswith("artif")} == {
        ids(nights.store)[-1]
    }


def test_killed_before_it_forgets(zygote: Zygote, nights: World) -> None:
    make_old(nights.store, 8)
    before = objects(nights.store)
    started = zygote.start("gc", "gc.forget@1:kill", store=nights.store.url, keep=1)
    assert (started.wait(), started.fired) == (-signal.SIGKILL, True)
    assert before <= objects(nights.store) | {"runs/.clock"}
    nights.check()


@pytest.mark.parametrize(
    "point",
    ["worker.uploaded@1"]
    + [
        pytest.param(point, marks=pytest.mark.faults_slow)
        for point in ("driver.commit@2", "driver.embedded@1", "publish.uploading@3")
    ],
)
def test_beside_a_running_job(zygote: Zygote, nights: World, tmp_path: Path, point: str) -> None:
    """The job is held at a point, everything it wrote but its heartbeat looks old, clean-up runs
    with no mercy but the rules, and the job goes on."""
    nights.input = Folder(str(tmp_path / "in"))
    shutil.copytree(read_input(nights), nights.input.url)
    # The store's INPUT cannot change; so this is a new store, with its own first night.
    nights.store = Folder(str(tmp_path / "fresh"))
    assert zygote.start("run", **nights.where()).wait() == 0
    make_old(nights.store, 8)
    for number in range(2):
        nights.put(f"new-{number}.tar", range(5))
    started = zygote.start("run", f"{point}:stop", **nights.where())
    while not started.fired:
        time.sleep(0.02)
    time.sleep(0.2)
    make_old(nights.store, 8, f"embeddings/{MODEL_ID}")
    gone = {found.path for found in clean(nights.store, keep=1).garbage}
    os.kill(started.pid, signal.SIGCONT)
    assert started.wait() == 0, started.output.read_text()
    assert not [path for path in gone if path.startswith("embeddings/")]
    nights.check()


def read_input(world: World) -> str:
    table = EmbeddingTable.open(world.store, MODEL_ID)
    assert table is not None
    return table.identity.input_url


def test_a_table_that_cannot_be_read_keeps_everything(nights: World) -> None:
    make_old(nights.store, 8)
    log = Path(nights.store.url, "embeddings", MODEL_ID, "_delta_log")
    shutil.move(log, log.with_name("moved"))
    before = objects(nights.store)
    with pytest.raises(StoreError, match="nothing was removed"):
        clean(nights.store, keep=1)
    assert {path for path in before if path.startswith("embeddings/")} <= objects(nights.store)


# -- restoring --------------------------------------------------------------------------------


def test_an_older_publication_is_restored_by_one_row(nights: World) -> None:
    first, _, third = ids(nights.store)
    row = restore(nights.store, first, silent)
    assert (row.id, row.seq, row.state) == (first, 4, "restored")
    live = live_row(nights.store)
    assert live is not None
    assert live["id"] == first
    assert nights.store.read("report.html") == nights.store.read(f"artifacts/{first}/report.html")
    assert restore(nights.store, first, silent).seq == 4  # live already: nothing is done
    assert restore(nights.store, third, silent).seq == 5
    make_old(nights.store, 8)
    clean(nights.store, keep=1)
    nights.check()


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "longer":
        file.write_bytes(data + b"\0")
    else:
        data[len(data) // 2] ^= 4
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "truncated", "longer", "flipped"])
@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy", "report.html"])
def test_a_damaged_publication_is_not_restored(nights: World, name: str, how: str) -> None:
    first, _, third = ids(nights.store)
    damage(Path(nights.store.url, "artifacts", first, name), how)
    with pytest.raises(ArtifactError, match="the live publication stays"):
        restore(nights.store, first, silent)
    assert ids(nights.store)[-1] == third


@pytest.mark.parametrize("how", ["truncated", "longer", "flipped"])
@pytest.mark.parametrize("name", ["index.faiss", "ids.arrow", "vectors.npy", "index.json"])
def test_a_damaged_index_is_not_searched(nights: World, name: str, how: str) -> None:
    damage(Path(nights.store.url, "artifacts", ids(nights.store)[-1], name), how)
    with pytest.raises(ArtifactError, match="sha256"):
        Searcher.open(nights.store.url, Path(nights.store.url).parent / "cache")


def test_a_restored_publication_that_lacks_a_table_file_is_refused(nights: World) -> None:
    first = ids(nights.store)[0]
    table = EmbeddingTable.open(nights.store, MODEL_ID, 1)
    assert table is not None
    table.folder.delete(table.known()["changing.tar"].path)
    with pytest.raises(ArtifactError, match="gone or altered"):
        restore(nights.store, first, silent)


# -- erasing ----------------------------------------------------------------------------------

ERASED = "staying.tar/4"


def traces(store: Folder, image: str = ERASED) -> list[str]:
    """Parquet files and sidecars, of any age, that still hold the erased image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for entry in store.entries():
        if entry.path.endswith("ids.arrow"):
            table = pa.ipc.open_file(store.read(entry.path)).read_all()
        elif entry.path.startswith("embeddings/") and entry.path.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(store.read(entry.path)))
        else:
            continue
        names = zip(table["source"].to_pylist(), table["key"].to_pylist(), strict=True)
        if image in {f"{source}/{key}" for source, key in names}:
            found.append(entry.path)
    return found


@pytest.mark.parametrize(
    "fault",
    ["", "erase.committed", "gc.delete@20"]
    + [
        pytest.param(fault, marks=pytest.mark.faults_slow)
        for fault in ("erase.commit", "publish.row", "gc.delete")
    ],
)
def test_an_erased_image_leaves_no_trace(zygote: Zygote, nights: World, fault: str) -> None:
    assert len(traces(nights.store)) == 4  # one Parquet file of three versions, three sidecars
    order = {"store": nights.store.url, "keys": [ERASED]}
    if fault:
        started = zygote.start("erase", f"{fault}:kill", **order)
        assert (started.wait(), started.fired) == (-signal.SIGKILL, True)
        nights.check_between()
    again = zygote.start("erase", **order)
    assert again.wait() == 0, again.output.read_text()
    assert traces(nights.store) == []
    nights.truth["staying.tar"] = [key for key in nights.truth["staying.tar"] if key != "4"]
    nights.check()
    assert len(ids(nights.store)) == 1
    started = zygote.start("run", source=read_input(nights), store=nights.store.url)
    assert started.wait() == 0
    assert started.json["num_encoded"] == 0
    nights.check()


def test_a_key_that_several_images_have_is_refused(nights: World, tmp_path: Path) -> None:
    before = objects(nights.store)
    with pytest.raises(SettingsError, match="give SOURCE/KEY"):
        erase(nights.store, ["4"], False, silent)
    told = erase(nights.store, [ERASED, "nowhere"], True, silent)
    assert told.unknown == ["nowhere"]
    assert objects(nights.store) == before
    (tmp_path / "keys").write_text(f"\n{ERASED}\n{ERASED}\n")
    assert read_keys(tmp_path / "keys") == [ERASED]
    with pytest.raises(SettingsError, match="no key found"):
        read_keys(Path(os.devnull))
    assert len(read_rows(nights.store)) == nights.images.total()


MakeWorld = Callable[[str], World]


@pytest.mark.faults_slow
def test_on_s3_too(zygote: Zygote, s3_url: str, make_world: MakeWorld) -> None:
    world = make_world(s3_url)
    for night in range(2):
        world.put("0.tar", range(night, 8 + night))
        assert zygote.start("run", **world.where()).wait() == 0
    started = zygote.start("gc", "gc.delete@3:kill", store=world.store.url, keep=1, grace_s=0)
    assert (started.wait(), started.fired) == (-signal.SIGKILL, True)
    world.check()
    assert zygote.start("gc", store=world.store.url, keep=1, grace_s=0).wait() == 0
    world.check()
    assert len(ids(world.store)) == 1
