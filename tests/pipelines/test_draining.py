"""A node that is announced to go: its workers finish what they have, and get nothing more."""

from typing import Any

import pytest

from pipelines.dispatch import Dispatch
from pipelines.layout import Layout
from pipelines.pool import PoolSettings
from pipelines.pool.actor import Ready, Whereabouts
from pipelines.pool.driver import Pool
from pipelines.pool.slots import Slot
from pipelines.shards import Shard

LAYOUT = Layout(2, 1.0, 0.0, 1, 2.0, 0.0)


class Actor:
    """Takes what it is given, and answers nothing."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.embed = self

    def remote(self, works: Any) -> Any:
        self.given.extend(works)
        return f"ref {works[0].shard.source}"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(Slot, "kill", lambda slot: names.append(slot.name))
    return names


def slot(name: str, node: str, ready: bool = True) -> Slot:
    there = Whereabouts(1, "machine", node)
    made = Slot(name, Actor(), None, None, 0.0, 0.0, 1, there)
    made.ready = Ready() if ready else None
    return made


def test_workers_on_a_drained_node_end_when_they_have_nothing_in_work(ended: list[str]) -> None:
    going: set[str] = set()
    settings: Any = PoolSettings(LAYOUT, None, leaving=lambda: going)  # type: ignore[arg-type]
    pool = Pool(settings, lambda _: True, lambda: None, lambda: False)
    work = Dispatch(
        [(Shard(f"{n}.tar", "e", 30 - n, "tar"), None) for n in range(20)],
        run="r", max_attempts=4, batch_size=8,
    )  # fmt: skip
    stays, leaves, loads = slot("stays", "a"), slot("leaves", "b"), slot("loads", "b", ready=False)
    pool._slots = [stays, leaves, loads]
    pool.first_handed_out = 0.0
    pool._let_go()
    pool._hand_out(work, 1.0)
    assert [len(one.works) for one in pool._slots] == [2, 2, 0]

    going.add("b")
    pool._let_go()
    stays.works.clear()
    del leaves.works["ref 1.tar"]
    pool._hand_out(work, 2.0)
    assert [len(one.works) for one in pool._slots] == [2, 1, 0]
    assert ended == []

    leaves.works.clear()
    loads.ready = Ready()
    pool._let_go()
    assert pool._slots == [stays]
    assert ended == ["leaves", "loads"]
    assert pool.num_restarts == 0  # it is no death, and costs no pause
