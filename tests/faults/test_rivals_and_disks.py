"""Several drivers at once, a disk that is full, and a clock that is wrong."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from eqmodel.checkpoint import resolve
from pipelines.batch import silent
from pipelines.models import model_id_of
from pipelines.search import Searcher
from pipelines.table import EmbeddingTable
from pipelines.verify import VerifyOptions, verify

from .conftest import MODEL_ID, World, Zygote, live_row, log_entries, read_rows


def race(zygote: Zygote, world: World, num: int, chance: random.Random) -> list[int]:
    started = []
    for _ in range(num):
        started.append(zygote.start("run", **world.where()))
        time.sleep(chance.uniform(0, 0.5))
    codes = [one.wait() for one in started]
    for one, code in zip(started, codes, strict=True):
        assert code in (0, 75), one.output.read_text()
    return codes


def test_two_drivers_of_a_new_store(zygote: Zygote, world: World, chance: random.Random) -> None:
    assert race(zygote, world, 2, chance) == [0, 0]
    world.check()


def test_a_driver_with_an_older_listing_undoes_nothing(zygote: Zygote, world: World) -> None:
    """Held after its plan; meanwhile a shard changes, one comes and one goes, and a second driver
    does all of it. The first goes on with its old listing and ends well."""
    for number in range(3, 10):
        world.put(f"{number}.tar", range(4))
    assert zygote.start("run", **world.where()).wait() == 0
    for name in ("0.tar", "1.tar"):
        world.put(name, range(2, 9))
    held = zygote.start("run", "driver.planned@1:stop", **world.where())
    while not held.fired:
        time.sleep(0.02)
    world.put("0.tar", range(5, 16))
    world.put("new.tar", range(6))
    world.input.delete("2.tar")
    del world.truth["2.tar"]
    assert zygote.start("run", **world.where()).wait() == 0
    world.check()
    os.kill(held.pid, signal.SIGCONT)
    assert held.wait() == 0, held.output.read_text()
    world.check()


OTHER = "d12-28-grey"


@pytest.mark.faults_slow
def test_two_models_at_once_are_never_mixed(zygote: Zygote, world: World) -> None:
    """Both find an empty store: each fills a table of its own, and what is live is of one model."""
    started = [zygote.start("run", model=model, **world.where()) for model in ("d4-28-grey", OTHER)]
    assert [one.wait() for one in started] == [0, 0]
    ids = [model_id_of(resolve(model)) for model in ("d4-28-grey", OTHER)]
    for model_id in ids:
        table = EmbeddingTable.open(world.store, model_id)
        assert table is not None
        rows = table.read(["source", "key", "embedding"])
        found = zip(rows["source"].to_pylist(), rows["key"].to_pylist(), strict=True)
        assert Counter(found) == world.images
        sizes = {len(row) for row in rows["embedding"].to_pylist() if row is not None}
        assert sizes == {table.identity.dim}
    live = live_row(world.store)
    assert live is not None
    assert live["model_id"] in ids
    assert all(f"artifacts/{live['id']}/" in file["path"] for file in live["files"])
    assert verify(world.store, VerifyOptions(audit_images=0), silent).findings == []
    again = zygote.start("run", **world.where())
    assert again.wait() == (0 if live["model_id"] == ids[0] else 2)


@pytest.mark.faults_slow
def test_three_drivers_of_a_changed_store(
    zygote: Zygote, world: World, chance: random.Random
) -> None:
    assert zygote.start("run", **world.where()).wait() == 0
    world.put("0.tar", range(4, 12))
    for number in range(3, 7):
        world.put(f"{number}.tar", range(5))
    race(zygote, world, 3, chance)
    again = zygote.start("run", **world.where())
    assert again.wait() == 0
    assert again.json["num_encoded"] == 0
    world.check()


@pytest.mark.faults_slow
@pytest.mark.parametrize("storage", ["local", "s3"])
@pytest.mark.parametrize("attempt", range(5))
def test_drivers_that_also_die(
    zygote: Zygote,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_world: Callable[[str], World],
    chance: random.Random,
    storage: str,
    attempt: int,
) -> None:
    url = str(tmp_path / "world") if storage == "local" else request.getfixturevalue("s3_url")
    world = make_world(url)
    for number in range(3, 10):
        world.put(f"{number}.tar", range(6))
    points = ["driver.received", "driver.commit", "log.written", "driver.committed"]
    for _ in range(4):
        faults = [f"{chance.choice(points)}@{chance.randrange(1, 6)}:kill", "", ""]
        started = [zygote.start("run", fault, **world.where()) for fault in faults]
        codes = [one.wait() for one in started]
        assert set(codes) <= {0, 75, -9}
        world.check_between()
    assert zygote.start("run", **world.where()).wait() == 0
    world.check()


@pytest.mark.parametrize(("largest_file", "num_images"), [(2_000, 8), (60_000, 0)])
def test_a_full_disk_keeps_what_is_published(
    zygote: Zygote, world: World, largest_file: int, num_images: int
) -> None:
    """A limit on the size of files: 2 kB stops the shards, 60 kB the artifacts alone."""
    assert zygote.start("run", **world.where()).wait() == 0
    before = live_row(world.store)
    world.put("9.tar", range(8))
    started = zygote.start("run", largest_file=largest_file, **world.where())
    assert started.wait() == 1, started.output.read_text()
    world.check_between()
    assert live_row(world.store) == before
    assert world.images.total() - len(read_rows(world.store)) == num_images
    assert Searcher.open(world.store.url, Path(world.store.url).parent / "cache")
    assert zygote.start("run", **world.where()).wait() == 0
    world.check()


def test_a_tar_that_is_older_than_the_last_run_is_seen(zygote: Zygote, world: World) -> None:
    """What is new is told by content identity, never by comparing clocks."""
    assert zygote.start("run", **world.where()).wait() == 0
    for name in ("0.tar", "7.tar"):
        world.put(name, range(20, 25))
        then = time.time() - 400 * 86_400
        os.utime(Path(world.input.url, name), (then, then))
    assert zygote.start("run", **world.where()).wait() == 0
    world.check()


@pytest.mark.parametrize(
    "clocks",
    [("86400", "-86400"), pytest.param(("back", "back"), marks=pytest.mark.faults_slow)],
)
def test_a_clock_that_is_off_or_steps_back_changes_nothing(
    zygote: Zygote, world: World, clocks: tuple[str, str]
) -> None:
    """The second night is two days before the first, or the clock goes back all the time."""
    first, second = ({"ORBIT_TEST_CLOCK": clock} for clock in clocks)
    assert zygote.start("run", env=first, **world.where()).wait() == 0
    world.check()
    before = live_row(world.store)
    world.put("0.tar", range(3, 12))
    world.put("4.tar", range(4))
    assert zygote.start("run", env=second, **world.where()).wait() == 0
    world.check()
    after = live_row(world.store)
    assert before is not None
    assert after is not None
    assert after["created"] < before["created"] or clocks[0] == "back"
    assert zygote.start("gc", env=second, store=world.store.url, keep=1).wait() == 0
    world.check()
    assert Searcher.open(world.store.url, Path(world.store.url).parent / "cache")


def test_a_reader_sees_whole_versions_alone(zygote: Zygote, world: World) -> None:
    """Polled throughout: each version is some shards, each of them whole."""
    for number in range(3, 9):
        world.put(f"{number}.tar", range(6))
    started = zygote.start("run", "driver.embedded@1:stop", **world.where())
    seen = set[int]()
    while not started.fired:
        time.sleep(0.01)
        if not (Path(world.store.url) / "embeddings" / MODEL_ID / "_delta_log").exists():
            continue
        rows = read_rows(world.store)
        whole = {source: len(keys) for source, keys in world.truth.items()}
        counted: dict[str, int] = {}
        for row in rows:
            counted[row["source"]] = counted.get(row["source"], 0) + 1
        assert all(whole[source] == count for source, count in counted.items())
        seen.add(len(counted))
    os.kill(started.pid, 18)
    assert started.wait() == 0
    assert len(seen) > 2
    assert len(log_entries(world.store, f"embeddings/{MODEL_ID}")) > 3
    world.check()
