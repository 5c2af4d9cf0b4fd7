"""Several INPUTs in one store: whose source is whose, and what vanishes of which."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.batch import Job, embed_input, open_table, prepare_job
from pipelines.config import EmbedSettings
from pipelines.embed import ShardEmbedder, ShardWork, WorkerSettings
from pipelines.errors import ConflictError, InputError
from pipelines.report.invariance import read_all_originals
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, TableIdentity
from tests.pipelines.conftest import MODEL, MakeTar, sample_members


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


def test_identity_knows_whose_a_source_is() -> None:
    one = TableIdentity("m", "/in", 4, 2, "d4")
    two = TableIdentity("m", "/in", 4, 2, "d4", inputs=(("b", "s3://b"), ("c", "/c")))
    assert "orbit.inputs" not in one.configuration()
    for identity in (one, two):
        assert TableIdentity.from_configuration(dict(identity.configuration())) == identity
    assert [two.name_of(url) for url in ("/in", "s3://b", "/c", "/d")] == ["", "b", "c", None]
    sources = ["b/x.tar", "b.tar", "bb/x.tar", "folder/00001-of-00004", "c/folder/00001-of-00004"]
    assert [two.owner(source) for source in sources] == ["b", "", "", "", "c"]
    assert {one.owner(source) for source in sources} == {""}


def test_an_input_is_added_by_a_commit_that_others_notice(tmp_path: Path) -> None:
    store = Folder(str(tmp_path / "store"))
    identity = TableIdentity("m" * 16, "/in", 4, 2, "d4")
    table = EmbeddingTable.create(store, identity)
    other, behind = (EmbeddingTable.open(store, "m" * 16) for _ in range(2))
    assert other is not None
    assert behind is not None
    table.add_input("b", "/b")
    assert table.identity.inputs == (("b", "/b"),)
    reopened = EmbeddingTable.open(store, "m" * 16)
    assert reopened is not None
    assert reopened.identity == table.identity
    with pytest.raises(ConflictError):
        other.add_input("b", "/elsewhere")
    assert behind.identity.inputs == ()


class World:
    """Two folders of tars and a store, embedded in this process, without Ray."""

    def __init__(self, place: Path, make_tar: MakeTar) -> None:
        self.place, self._make_tar = place, make_tar
        self.store = Folder(str(place / "store"))
        for name in ("one", "two"):
            (place / name).mkdir()

    def put(self, path: str, shard: int, num: int = 6) -> None:
        file = self.place / path
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(self._make_tar(sample_members(num, shard)))

    def prepare(self, source: str, **more: Any) -> Job:
        settings = EmbedSettings(str(self.place / source), MODEL, self.store.url, **more)
        (self.place / "checkpoint").mkdir(exist_ok=True)
        return prepare_job(settings, self.place / "checkpoint", silent)

    def embed(self, source: str, **more: Any) -> EmbeddingTable:
        job = self.prepare(source, **more)
        table = open_table(job)
        folder = str(job.model_folder)
        worker = ShardEmbedder(
            WorkerSettings(job.input.url, self.store.url, job.model_id, folder, prefix=job.prefix)
        )
        receipts = [worker.embed(ShardWork(s, job.run, 1, previous=p)) for s, p in job.work]
        table.commit(receipts, [file.source for file in job.plan.vanished])
        assert worker.calibrate() is not None or not receipts
        return table


@pytest.fixture
def world(tmp_path: Path, make_tar: MakeTar) -> World:
    made = World(tmp_path, make_tar)
    for number in range(6):
        made.put(f"one/{number}.tar", number % 5)
    made.put("two/0.tar", 1)
    made.put("two/sub/9.tar", 2)
    return made


def test_each_input_is_embedded_and_vanishes_for_itself(world: World) -> None:
    world.embed("one")
    table = world.embed("two", add_input="more")
    sources = {f"{n}.tar" for n in range(6)}
    assert set(table.known()) == sources | {"more/0.tar", "more/sub/9.tar"}
    rows = table.read(["source", "key", "embedding"]).to_pylist()
    assert len(rows) == 8 * 6
    assert all(row["embedding"] for row in rows)

    for source in ("one", "two"):
        assert world.prepare(source).plan.empty
    assert world.prepare("two", add_input="more").plan.empty
    (world.place / "two" / "0.tar").unlink()
    world.put("two/1.tar", 3)
    plan = world.prepare("two", allow_vanish=True).plan
    assert [shard.source for shard in plan.added] == ["more/1.tar"]
    assert [file.source for file in plan.vanished] == ["more/0.tar"]
    assert world.prepare("one").plan.empty
    table = world.embed("two", allow_vanish=True)
    assert set(table.known()) == sources | {"more/1.tar", "more/sub/9.tar"}

    names = ["source", "source_etag", "item_etag", "key", "offset", "length"]
    records = dict(enumerate(table.read(names).to_pylist()))
    originals = read_all_originals(table.identity, records, None)
    assert len(originals) == len(records) == 8 * 6


@pytest.mark.parametrize(
    ("source", "add", "words"),
    [
        ("two", None, "--add-input NAME to hold both"),
        ("one", "again", "as its first INPUT"),
        ("two", "bad/name", "letters, digits"),
        ("two", "sub", "no folder of another INPUT"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(
    world: World, source: str, add: str | None, words: str
) -> None:
    world.put("one/sub/7.tar", 0)
    before = world.embed("one").version
    with pytest.raises(InputError, match=words):
        world.prepare(source, add_input=add)
    assert world.prepare("one").table.version == before  # type: ignore[union-attr]


def test_names_are_held_once_and_a_first_input_has_none(world: World) -> None:
    with pytest.raises(InputError, match="no INPUT yet"):
        world.prepare("one", add_input="a")
    world.embed("one")
    world.embed("two", add_input="a")
    (world.place / "three").mkdir()
    with pytest.raises(InputError, match=r"names .*two already"):
        world.prepare("three", add_input="a")
    with pytest.raises(InputError, match="as a"):
        world.prepare("two", add_input="b")
    world.put("one/a/5.tar", 0)
    with pytest.raises(InputError, match="has the name of another INPUT"):
        world.prepare("one")


@pytest.mark.cluster_slow
def test_the_whole_run_takes_two_inputs(world: World) -> None:
    one = EmbedSettings(str(world.place / "one"), MODEL, world.store.url)
    two = EmbedSettings(str(world.place / "two"), MODEL, world.store.url, add_input="more")
    assert embed_input(one).counts.num_seen == 36
    summary = embed_input(two)
    assert (summary.failure, summary.counts.num_seen, summary.num_encoded) == (None, 48, 12)
    assert embed_input(two).planned.nothing
