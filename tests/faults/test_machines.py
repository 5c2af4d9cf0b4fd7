"""Machines of a cluster that are lost and come back, under a driver that joined it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import MODEL_ID, World, log_entries, read_rows
from .machines import Driver, Machines, machines

pytestmark = [pytest.mark.faults_slow, pytest.mark.timeout(900)]
SHARDS, IMAGES = 16, 60


@pytest.fixture
def two_machines() -> Iterator[Machines]:
    with machines(1, 1) as made:
        yield made


@pytest.fixture
def filled(world: World) -> World:
    for number in range(SHARDS):
        world.put(f"{number}.tar", range(IMAGES), bad=(7,))
    return world


def committed(world: World) -> int:
    """Shards in the table, from its log."""
    try:
        entries = log_entries(world.store, f"embeddings/{MODEL_ID}")
    except OSError:
        return 0
    return sum("add" in action for actions in entries for action in actions)


def wait_for(what: Callable[[], bool], driver: Driver, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert driver.running, driver.told
        assert time.monotonic() < until, driver.told
        time.sleep(0.05)


def check(world: World, driver: Driver) -> None:
    assert driver.process.wait(timeout=400) == 0, driver.told
    rows = read_rows(world.store)
    assert sorted((row["source"], row["key"]) for row in rows) == sorted(world.images.elements())
    for row in rows:
        good = (row["source"], row["key"]) not in world.bad
        assert (row["embedding"] is not None) == good == (row["error"] is None)


def slowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every worker process stops for a moment at its third shard, so that there is a midst."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    rules = [f"worker.fetch@{n}:sleep=6" for n in (3, 4, 5)]
    monkeypatch.setenv("ORBIT_FAULT", ",".join(rules))
    monkeypatch.setenv("ORBIT_FAULT_TOKENS", str(tokens))


def test_a_machine_is_lost(filled: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shards move to the other one, and no shard is held to have killed a worker."""
    slowed(monkeypatch, tmp_path)
    with machines(1, 1) as made:
        where = (filled.input.url, filled.store.url, tmp_path / "out")
        driver = Driver.start(*where, ray=made.address)
        wait_for(lambda: committed(filled) >= 2, driver)
        made.lose(made.nodes[0])
        check(filled, driver)


@pytest.mark.parametrize("cpus", [1, 2])
def test_all_workers_are_lost_and_one_machine_returns(
    filled: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    slowed(monkeypatch, tmp_path)
    with machines(1, 1) as made:
        where = (filled.input.url, filled.store.url, tmp_path / "out")
        driver = Driver.start(*where, ray=made.address)
        wait_for(lambda: committed(filled) >= 2, driver)
        for node in list(made.nodes):
            made.lose(node)
        time.sleep(5)
        assert driver.running, driver.told  # it waits
        made.add(cpus)
        check(filled, driver)


def test_a_cluster_is_joined_by_auto_and_left_as_it_was(
    filled: World, two_machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", two_machines.address)
    driver = Driver.start(filled.input.url, filled.store.url, tmp_path / "out", ray="auto")
    check(filled, driver)
    again = Driver.start(filled.input.url, filled.store.url, tmp_path / "again", ray="auto")
    assert again.process.wait(timeout=200) == 0, again.told
    assert '"num_encoded": 0' in again.told


def test_a_worker_that_hangs_is_ended_on_its_machine(
    filled: World, two_machines: Machines, tmp_path: Path
) -> None:
    where = (filled.input.url, filled.store.url, tmp_path / "out")
    filled.put("large.tar", range(3000))
    driver = Driver.start(*where, ray=two_machines.address, deadline_s=6.0)
    wait_for(lambda: bool(two_machines.workers(driver.ready)), driver)
    stopped = two_machines.workers(driver.ready)[0]
    stopped.suspend()
    check(filled, driver)
    stopped.wait(timeout=20)
