"""Any order of listings, plans and commits by several drivers, against a model of the rules."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipelines.shards import Shard
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, Receipt, TableIdentity, file_statistics, shard_folder

from .conftest import SEED

IDENTITY = TableIdentity("m" * 16, "/in", 4, 2, "d4")
SOURCES = ["a.tar", "b.tar", "c.tar", "d.tar"]
DRIVERS = range(3)


@dataclass
class Expected:
    """What a driver may believe: the table as it last saw it, and what others touched since."""

    table: EmbeddingTable
    view: dict[str, str]
    foreign: set[str] = field(default_factory=set)


@seed(SEED)
class PlanAndCommit(RuleBasedStateMachine):
    """``current`` is the truth: the file of each source, by a dictionary's rules."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.store = Folder(str(Path(self.place.name, "store")))
        self.listing: dict[str, str] = {}
        self.current: dict[str, str] = {}
        self.etags: dict[str, str] = {}
        self.commits = 0
        self.number = 0

    def teardown(self) -> None:
        self.place.cleanup()

    @initialize()
    def start(self) -> None:
        EmbeddingTable.create(self.store, IDENTITY)
        self.drivers = [self.opened() for _ in DRIVERS]

    def opened(self) -> Expected:
        table = EmbeddingTable.open(self.store, IDENTITY.model_id)
        assert table is not None
        return Expected(table, dict(self.current))

    @rule(source=st.sampled_from(SOURCES), etag=st.sampled_from(["1", "2", "3"]))
    def an_object_comes_or_changes(self, source: str, etag: str) -> None:
        self.listing[source] = etag

    @rule(source=st.sampled_from(SOURCES))
    def an_object_goes(self, source: str) -> None:
        self.listing.pop(source, None)

    @rule(driver=st.sampled_from(DRIVERS))
    def a_driver_starts_again(self, driver: int) -> None:
        self.drivers[driver] = self.opened()

    @rule(
        driver=st.sampled_from(DRIVERS),
        finished=st.sets(st.sampled_from(SOURCES)),
        last=st.booleans(),
    )
    def a_driver_commits(self, driver: int, finished: set[str], last: bool) -> None:
        """Some shards of its plan, and with the last commit what has vanished."""
        expected = self.drivers[driver]
        listed = [Shard(source, etag, 1, "tar") for source, etag in sorted(self.listing.items())]
        plan = expected.table.plan(listed)
        self.check_plan(expected, plan)
        receipts = [self.receipt(s) for s in plan.work if s.source in finished]
        vanished = [file.source for file in plan.vanished] if last else []
        committed = expected.table.commit(receipts, vanished)
        self.follow(expected, receipts, vanished)
        landed = {receipt.source for receipt in committed.landed}
        assert landed == {r.source for r in receipts} - expected.foreign
        assert set(committed.dropped) == {r.source for r in receipts} - landed
        assert expected.table.foreign() == expected.foreign
        assert {s: f.path for s, f in expected.table.known().items()} == expected.view

    def check_plan(self, expected: Expected, plan: object) -> None:
        """Every listed source is in one part of it, every known one that is not listed too."""
        parts = {
            name: {entry.source for entry in getattr(plan, name)}
            for name in ("added", "changed", "vanished", "unchanged")
        }
        known = expected.view.keys()
        assert parts["added"] == self.listing.keys() - known
        assert parts["vanished"] == known - self.listing.keys()
        assert parts["changed"] | parts["unchanged"] == self.listing.keys() & known
        for source in parts["changed"] | parts["unchanged"]:
            same = self.etags[expected.view[source]] == self.listing[source]
            assert (source in parts["unchanged"]) == same

    def receipt(self, shard: Shard) -> Receipt:
        self.number += 1
        path = f"{shard_folder(shard.source)}/run-{self.number}-1-x.parquet"
        self.etags[path] = shard.etag
        stats = file_statistics(shard.source, shard.etag, 1, 1, 0, False)
        return Receipt(
            source=shard.source, etag=shard.etag, path=path, size=4, sha256="", num_rows=1,
            num_embedded=1, num_rejected=0, num_encoded=1, damaged=False, stats=stats,
            worker="w", pid=1, in_bytes=1,
        )  # fmt: skip

    def follow(self, expected: Expected, receipts: list[Receipt], vanished: list[str]) -> None:
        """The conflict rule: of what another touched since, everything of mine is dropped."""
        mine = {r.source: r.path for r in receipts}
        ours = {s for s in mine if s not in expected.foreign}
        gone = {s for s in vanished if s in expected.view and s not in expected.foreign}
        if not ours and not gone:
            return  # nothing to write, so nothing was heard of the others
        differ = {
            source
            for source in expected.view.keys() | self.current.keys()
            if expected.view.get(source) != self.current.get(source)
        }
        expected.foreign |= differ
        before = dict(self.current)
        for source in gone - expected.foreign:
            del self.current[source]
        self.current |= {s: path for s, path in mine.items() if s not in expected.foreign}
        self.commits += before != self.current
        expected.view = dict(self.current)

    @invariant()
    def the_table_is_what_the_rules_say(self) -> None:
        table = EmbeddingTable.open(self.store, IDENTITY.model_id)
        if table is None:
            return
        known = table.known()
        assert {source: file.path for source, file in known.items()} == self.current
        assert all(file.etag == self.etags[file.path] for file in known.values())
        assert table.counts().num_seen == len(self.current)
        assert table.version == self.commits  # contiguous: one version for each change


PlanAndCommit.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
TestPlanAndCommit = PlanAndCommit.TestCase
