"""The lanes of a worker and the pace they are given: order, bounds, threads; without a model."""

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from eqmodel import Embedder
from pipelines import warm_up as module
from pipelines.lanes import Lanes
from pipelines.prepare import Prepared
from pipelines.shard_file import Row
from pipelines.shards import Sample
from pipelines.warm_up import BUDGET_S, at_most, fastest, warm_up


def chunks(count: int, each: int) -> Iterator[list[Sample]]:
    numbers = itertools.count()
    for _ in range(count):
        yield [Sample(str(next(numbers)), b"") for _ in range(each)]


class Work:
    """Prepares and encodes nothing, some of it late; counts what is under way."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.preparing, self.encoding = set[str](), set[str]()

    def prepare(self, chunk: list[Sample]) -> Prepared:
        self.preparing.add(threading.current_thread().name)
        self._work(0.001 * (int(chunk[0].key) % 3))
        rows = [Row(sample.key) for sample in chunk]
        return Prepared(rows, [row for row in rows if int(row.key) % 5])

    def encode(self, ready: Prepared) -> Prepared:
        self.encoding.add(threading.current_thread().name)
        self._work(0.001 * (len(ready.rows) % 4))
        ready.num_encoded = len(ready.encodable)
        return ready

    def _work(self, seconds: float) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(seconds)
        with self.lock:
            self.now -= 1


@pytest.mark.parametrize("encodes", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_come_in_the_order_of_the_shard(threads: int, encodes: bool) -> None:
    work, lanes = Work(), Lanes(threads, encodes=encodes)
    done = list(lanes.through(chunks(23, 4), work.prepare, work.encode, enough=10))
    assert [row.key for part in done for row in part.rows] == [str(n) for n in range(23 * 4)]
    assert all(part.num_encoded == len(part.encodable) for part in done)
    assert all(10 <= len(part.encodable) < 10 + 4 for part in done[:-1])
    assert work.most <= threads + (not encodes)
    here = threading.current_thread().name
    assert (here in work.encoding) == (threads == 1 or not encodes)
    assert (here in work.preparing) == (threads == 1 and encodes)


def test_no_more_is_read_ahead_than_is_under_way() -> None:
    taken, finished = 0, 0

    def counted() -> Iterator[list[Sample]]:
        nonlocal taken
        for chunk in chunks(30, 4):
            taken += 1
            assert taken - finished / 4 <= 3 * (2 + 1) + (2 + 2)
            yield chunk

    work = Work()
    for part in Lanes(2).through(counted(), work.prepare, work.encode, enough=9):
        finished += len(part.rows)
    assert finished == 120


def test_more_threads_at_the_end_of_a_run() -> None:
    work, lanes = Work(), Lanes(1)
    rows = 0
    for part in lanes.through(chunks(30, 4), work.prepare, work.encode, enough=8):
        rows += len(part.rows)
        lanes.use(3)
    assert rows == 120
    assert work.most > 1


def test_what_a_lane_raises_is_raised_where_the_rows_are_taken() -> None:
    def broken(chunk: list[Sample]) -> Prepared:
        raise MemoryError(chunk[0].key)

    with pytest.raises(MemoryError, match="0"):
        list(Lanes(2).through(chunks(9, 4), broken, Work().encode, enough=8))


def test_the_fastest_batch_and_the_largest_of_nearly_equal_ones() -> None:
    now = 0.0
    cost = {256: 1.0, 128: 0.99, 64: 0.5, 32: 2.0}

    def encode(size: int) -> None:
        nonlocal now
        now += 1e-4 * size * cost[size]

    def choose() -> int:
        return fastest([256, 128, 64, 32], encode, now + BUDGET_S, lambda: now)

    assert choose() == 64
    cost[64] = 0.98
    assert choose() == 256
    cost.update(dict.fromkeys(cost, 1e6))  # slower than the time there is
    begun = now
    assert choose() == 256
    assert now - begun < 300 * 1e6


def test_a_pace_that_is_given_is_kept_and_one_that_is_not_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BUDGET_S", 60.0)  # a busy machine may not do a round in two
    embedder = Embedder.load("d4-28-grey", verify=False)
    given = warm_up(embedder, 1, 48)
    assert (given.batch_size, given.in_lanes) == (48, True)
    sizes: list[int] = []
    encode = embedder.encode

    def noted(batch: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(batch))
        return encode(batch)

    embedder.encode = noted  # type: ignore[method-assign, assignment]
    measured = warm_up(embedder, 1, None)
    assert set(sizes) == {256, 128, 64, 32}
    assert measured.batch_size in sizes
    assert at_most(embedder, 10**9) == (64 << 20) // (28 * 28 * 4)
