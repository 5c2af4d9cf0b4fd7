"""What a worker that comes later than others is spared."""

from typing import Any

import pytest

from pipelines.dispatch import Dispatch
from pipelines.embed import WorkerSettings
from pipelines.layout import Layout
from pipelines.pool import PoolSettings
from pipelines.pool.actor import Ready
from pipelines.pool.driver import Pool
from pipelines.pool.slots import Slot
from pipelines.shards import Shard

LAYOUT = Layout(2, 1.0, 0.0, 1, 2.0, 0.0)


def test_a_replacement_takes_the_batch_size_that_another_worker_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[WorkerSettings] = []

    def start(name: str, layout: Layout, worker: WorkerSettings, now: float) -> Slot:
        told.append(worker)
        return Slot(name, None, None, f"loading {name}", now, now, 1)

    monkeypatch.setattr(Slot, "start", start)
    monkeypatch.setattr(Slot, "kill", lambda slot: None)
    work: Any = Dispatch(
        [(Shard(f"{n}.tar", "e", 1, "tar"), None) for n in range(9)],
        run="r", max_attempts=4, batch_size=8,
    )  # fmt: skip
    settings = PoolSettings(LAYOUT, WorkerSettings("/in", "/out", "m", "/model"))
    pool = Pool(settings, lambda _: True, lambda: None, lambda: False)
    pool._start_missing(work, 0.0)
    first, second = pool._slots
    pool._take(first, first.loading, Ready(64), work)
    pool._bury(second, work, "killed", lost=False)
    pool._start_missing(work, 1e9)
    assert [one.batch_size for one in told] == [None, None, 64]
