"""Workers that take the place of others: how soon, and what they are spared."""

import time
from typing import Any

import pytest

from pipelines.dispatch import Dispatch
from pipelines.embed import WorkerSettings
from pipelines.layout import Layout
from pipelines.pool import PoolSettings
from pipelines.pool.actor import Ready
from pipelines.pool.driver import LONGEST_RESTART_S, Pool
from pipelines.pool.slots import Slot
from pipelines.shards import Shard

LAYOUT = Layout(2, 1.0, 0.0, 1, 2.0, 0.0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[WorkerSettings]:
    """What the workers that were started were told."""
    told: list[WorkerSettings] = []

    def start(name: str, layout: Layout, worker: WorkerSettings, now: float) -> Slot:
        told.append(worker)
        return Slot(name, None, None, f"loading {name}", now, now, 1)

    monkeypatch.setattr(Slot, "start", start)
    monkeypatch.setattr(Slot, "kill", lambda slot: None)
    return told


def pool_of_two() -> tuple[Pool, Any]:
    work = Dispatch(
        [(Shard(f"{n}.tar", "e", 1, "tar"), None) for n in range(9)],
        run="r", max_attempts=4, batch_size=8,
    )  # fmt: skip
    settings = PoolSettings(LAYOUT, WorkerSettings("/in", "/out", "m", "/model"))
    pool = Pool(settings, lambda _: True, lambda: None, lambda: False)
    pool._start_missing(work, 0.0)
    return pool, work


def test_it_takes_the_batch_size_that_another_worker_measured(told: list[WorkerSettings]) -> None:
    pool, work = pool_of_two()
    first, second = pool._slots
    pool._take(first, first.loading, Ready(64), work)
    pool._bury(second, work, "killed", lost=False)
    pool._start_missing(work, 1e9)
    assert [one.batch_size for one in told] == [None, None, 64]


@pytest.mark.parametrize(
    ("loaded", "lost", "at_once"), [(False, False, 4), (True, False, 8), (False, True, 8)]
)
def test_only_workers_that_do_nothing_but_die_are_followed_by_a_pause(
    told: list[WorkerSettings], loaded: bool, lost: bool, at_once: int
) -> None:
    """Both may go at once; one that had its model, or went with its machine, says nothing."""
    pool, work = pool_of_two()
    for _ in range(3):
        for slot in list(pool._slots):
            slot.ready = Ready() if loaded else None
            pool._bury(slot, work, "killed", lost)
        pool._start_missing(work, time.monotonic())
    assert len(told) == at_once
    pool._start_missing(work, time.monotonic() + LONGEST_RESTART_S)
    assert len(pool._slots) == 2
