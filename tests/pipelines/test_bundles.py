"""Several small shards in one call to a worker, and what a failure of such a call means."""

import gc
import os
import threading
from typing import Any

import pytest

from pipelines.dispatch import Dispatch
from pipelines.embed import ShardWork, WorkerSettings
from pipelines.failures import Failure
from pipelines.layout import Layout
from pipelines.pool import PoolSettings
from pipelines.pool.actor import Answer, Ready, ShardWorker
from pipelines.pool.bundles import CALL_S, MOST_SHARDS, Pace, after_death, after_standstill
from pipelines.pool.driver import Pool
from pipelines.pool.slots import Slot
from pipelines.shards import Shard
from pipelines.table import Receipt
from pipelines.warm_up import Batching


def dispatch(num: int, max_attempts: int = 4) -> Dispatch:
    shards = [(Shard(f"s{n:02d}", "e", 100 - n, "tar"), None) for n in range(num)]
    return Dispatch(shards, run="r", max_attempts=max_attempts, batch_size=256)


def names(works: tuple[ShardWork, ...]) -> list[str]:
    return [work.shard.source for work in works]


def receipt(work: ShardWork) -> Receipt:
    return Receipt(work.shard.source, "e", "p", 1, "", 1, 1, 0, 1, False, "{}", "w", 1, 1)


def test_small_shards_share_a_call_and_large_ones_do_not() -> None:
    pace = Pace()
    assert pace.shards(10_000, 2) == 1  # nothing is known
    pace.note(1, CALL_S)
    assert pace.shards(10_000, 2) == 1
    pace = Pace()
    pace.note(10, CALL_S)
    assert pace.shards(10_000, 2) == 10
    pace.note(2, CALL_S)  # slower: at once
    assert pace.shards(10_000, 2) == 2
    for _ in range(100):  # quicker: by and by
        pace.note(10, CALL_S / 100)
    assert pace.shards(10_000, 2) == MOST_SHARDS
    assert pace.shards(80, 2) == 10  # towards the end everybody gets some
    assert pace.shards(1, 2) == 1


def test_a_call_holds_no_shard_with_which_something_went_wrong() -> None:
    work = dispatch(6)
    first = work.bundle(0.0, 3)
    assert names(first) == ["s00", "s01", "s02"]
    work.fail("s01", "broken", 0.0)
    work.finish("s00")
    work.give_back("s02", alone=True)
    assert names(work.bundle(0.0, 3)) == ["s02"]
    assert names(work.bundle(0.0, 9)) == ["s03", "s04", "s05"]  # s01, after them, waits
    assert names(work.bundle(0.0, 9)) == []
    assert names(work.bundle(60.0, 9)) == ["s01"]
    for source in ("s01", "s02", "s03", "s04", "s05"):
        work.finish(source)
    assert work.finished


def test_a_death_with_several_counts_against_none_and_each_is_tried_alone() -> None:
    work = dispatch(3)
    calls = [work.bundle(0.0, 2), work.bundle(0.0, 1)]
    after_death(calls, work, 0.0, lost=False)
    assert [names(work.bundle(0.0, 9)) for _ in range(3)] == [["s00"], ["s01"], ["s02"]]
    assert [work._tasks[s].deaths for s in ("s00", "s01", "s02")] == [0, 0, 0]
    lost = dispatch(3)
    after_death([lost.bundle(0.0, 3)], lost, 0.0, lost=True)
    assert names(lost.bundle(0.0, 9)) == ["s00", "s01", "s02"]


def test_a_death_counts_against_the_shard_in_work_and_not_the_one_fetched_ahead() -> None:
    """And one that kills when it was fetched ahead is the older one by and by."""
    work = dispatch(2)
    for deaths in (1, 2):
        calls = [work.bundle(0.0, 1), work.bundle(0.0, 1)]
        assert [names(call) for call in calls] == [["s00"], ["s01"]]
        after_death(calls, work, 0.0, lost=False)
        assert [work._tasks[s].deaths for s in ("s00", "s01")] == [deaths, 0]
    (quarantined,) = work.bundle(0.0, 1)
    assert (quarantined.shard.source, quarantined.quarantine) == ("s00", 1)
    work.finish("s00")
    after_death([work.bundle(0.0, 1)], work, 0.0, lost=False)
    assert work._tasks["s01"].deaths == 1


def test_a_standstill_with_several_is_no_attempt_of_any() -> None:
    work = dispatch(3, max_attempts=1)
    calls = [work.bundle(0.0, 2), work.bundle(0.0, 1)]
    after_standstill(calls, work, 0.0, "no progress")
    assert [names(work.bundle(0.0, 9)) for _ in range(3)] == [["s00"], ["s01"], ["s02"]]
    assert work.failures == {}
    one = dispatch(1, max_attempts=1)
    after_standstill([one.bundle(0.0, 1)], one, 0.0, "no progress")
    assert one.failures == {"s00": "no progress (1 attempts)"}


def test_the_worker_ends_a_call_at_the_first_failure() -> None:
    threads: list[str] = []

    class Embedder:
        def embed(self, work: ShardWork) -> Receipt:
            threads.append(threading.current_thread().name)
            if work.shard.source == "s01":
                raise ValueError("broken")
            return receipt(work)

    worker = ShardWorker()
    worker._embedder = Embedder()  # type: ignore[assignment]
    answer = worker.embed(dispatch(3).bundle(0.0, 3))
    assert [type(result) for result in answer.results] == [Receipt, Failure]
    assert set(threads) == {"embed_0"}  # its own, which start when the model is loaded


@pytest.mark.parametrize("told", ["receipts", "failure", "fatal"])
def test_the_driver_settles_each_shard_of_a_call(told: str) -> None:
    believed: list[str] = []
    layout = Layout(1, 1.0, 0.0, 1, 1.0, 0.0)
    pool = Pool(
        PoolSettings(layout, None),  # type: ignore[arg-type]
        lambda found: not believed.append(found.source), lambda: None, lambda: False,
    )  # fmt: skip
    work = dispatch(4)
    works = work.bundle(0.0, 4)
    one = Slot("w", None, None, None, 0.0, 0.0, 1, ready=Ready(), works={"ref": works})
    second: Any = {
        "receipts": receipt(works[1]),
        "failure": Failure("retry", "broken"),
        "fatal": Failure("fatal", "full"),
    }[told]
    rest = [receipt(w) for w in works[2:]] if told == "receipts" else []
    ended = pool._take(one, "ref", Answer((receipt(works[0]), second, *rest), 0.01), work)
    assert (ended is not None) == (told == "fatal")
    if told == "receipts":
        assert work.finished
        assert believed == ["s00", "s01", "s02", "s03"]
    else:
        assert believed == ["s00"]
        waits = ["s02", "s03", "s01"] if told == "failure" else ["s01", "s02", "s03"]
        assert list(work._pending) == waits
    assert not one.works


def test_a_loaded_worker_is_spared_by_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen_before: list[int] = []

    class Embedder:
        batching = Batching(batch_size=7, in_lanes=False)

        def __init__(self, *_: object) -> None:
            frozen_before.append(gc.get_freeze_count())

    monkeypatch.setattr("pipelines.pool.actor.ShardEmbedder", Embedder)
    monkeypatch.setattr("pipelines.pool.actor.worker_log", lambda *_: None)
    monkeypatch.setattr("pipelines.pool.actor.Meters", lambda _: None)
    settings = WorkerSettings(input_url="i", store_url="s", model_id="m", model_folder="f")
    try:
        assert ShardWorker().load(settings, "w") == Ready(7, os.getpid())
        assert gc.get_freeze_count() > frozen_before[0] + 1000
    finally:
        gc.unfreeze()
