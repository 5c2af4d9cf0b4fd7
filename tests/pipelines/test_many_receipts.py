"""What the driver does with many receipts at once, from a store that answers slowly."""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pipelines.embedding_run import EmbeddingRun


@dataclass
class Slow:
    """A table on a store far away; all files are there but those with an odd number."""

    asked: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def holds(self, receipt: Any) -> bool:
        time.sleep(0.2)
        with self.lock:
            self.asked.append(receipt.path)
        return int(receipt.path) % 2 == 0


def run_on(table: Slow, is_local: bool) -> Any:
    """An EmbeddingRun as far as receipts go."""
    run: Any = EmbeddingRun.__new__(EmbeddingRun)
    run._table, run._job = table, SimpleNamespace(store=SimpleNamespace(is_local=is_local))
    run._held, run._waiting, run._seen = {}, [], 0
    return run


def receipts(count: int) -> list[Any]:
    return [SimpleNamespace(path=str(n), num_embedded=1, num_rejected=0) for n in range(count)]


def test_files_of_many_receipts_are_looked_for_at_once_and_each_once() -> None:
    table = Slow()
    run, many = run_on(table, is_local=False), receipts(16)
    began = time.monotonic()
    run._expect(many)
    believed = [run._take(receipt) for receipt in many]
    assert time.monotonic() - began < 1.6  # one after another: 3.2 s
    assert believed == [n % 2 == 0 for n in range(16)]
    assert sorted(table.asked) == sorted(receipt.path for receipt in many)
    assert run._waiting == many[::2]


def test_a_receipt_that_comes_again_is_looked_for_again() -> None:
    table = Slow()
    run, few = run_on(table, is_local=False), receipts(2)
    run._expect(few)
    assert run._take(few[0])
    assert run._take(few[0])
    assert table.asked.count("0") == 2


def test_on_this_machine_each_is_looked_for_in_its_turn() -> None:
    table = Slow()
    run, few = run_on(table, is_local=True), receipts(2)
    run._expect(few)
    assert table.asked == []
    assert [run._take(receipt) for receipt in few] == [True, False]
