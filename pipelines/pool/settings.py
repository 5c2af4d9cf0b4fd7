"""What the pool is told by the run that uses it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pipelines.embed import WorkerSettings
from pipelines.layout import Layout
from pipelines.table import Receipt


@dataclass(frozen=True)
class PoolSettings:
    """``deadline_s``: seconds without any progress after which a worker counts as stuck.

    ``workers`` tells how many actors there may be now, ``leaving`` on which nodes nothing new is to
    begin, where that changes (``growth.py``). ``expect`` is told all receipts of one look before
    they are handed on one by one.
    """

    layout: Layout
    worker: WorkerSettings
    deadline_s: float = 300.0
    run: str = "run"
    workers: Callable[[], int] | None = None
    leaving: Callable[[], Collection[str]] = tuple
    expect: Callable[[Sequence[Receipt]], None] = lambda receipts: None
