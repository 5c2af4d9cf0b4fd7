"""Nights of publications whose index is updated: shared files, clean-up, erasure, other readers."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.batch import silent
from pipelines.erasure import erase
from pipelines.errors import ConflictError
from pipelines.publication import publish
from pipelines.restore import restore
from pipelines.retention import DAY_S, RetentionOptions, collect_garbage
from pipelines.search import Only, Searcher
from pipelines.server import Live
from pipelines.storage import Folder
from pipelines.table import PublicationLog, PublicationRow
from pipelines.verify import VerifyOptions, verify
from tests.pipelines.conftest import QUICK, embed_here, sample_members

IVF = replace(QUICK, index_kind="IVF4,SQ8", audit_images=0, map_points=10, clusters=3)
GONE, CHANGED, FRESH = "a/3.png", "a/5.png", "c/0.png"


def pictures(num: int, shard: int = 0) -> list[bytes]:
    """The first images of a shard of the sample."""
    return [data for name, data in sample_members(num, shard).items() if name.endswith(".png")]


class Nights:
    """One store, whose INPUT, a folder of images, changes from night to night."""

    def __init__(self, place: Path) -> None:
        self.input, self.store = place / "input", Folder(str(place / "store"))
        self.cache = place / "cache"
        self.add("a", pictures(60))
        self.add("b", pictures(60, shard=1))
        self.model_id = self.embed()

    def add(self, folder: str, images: list[bytes]) -> None:
        """Put images into a folder of INPUT."""
        (self.input / folder).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(images):
            (self.input / folder / f"{number}.png").write_bytes(data)

    def embed(self) -> str:
        return embed_here(str(self.input), self.store.url)[1]

    def publish(self, **options: object) -> PublicationRow:
        return publish(self.store, self.model_id, replace(IVF, **options))  # type: ignore[arg-type]

    def change(self) -> None:
        """An image goes, one is replaced by another, one comes."""
        (self.input / GONE).unlink()
        (self.input / CHANGED).write_bytes(pictures(1, shard=2)[0])
        self.add("c", pictures(2, shard=2)[1:])
        self.embed()

    def searcher(self) -> Searcher:
        return Searcher.open(self.store.url, self.cache)

    def rows(self) -> list[PublicationRow]:
        log = PublicationLog.open(self.store)
        return [] if log is None else log.rows()

    def make_old(self) -> None:
        then = time.time() - 8 * DAY_S
        for path in Path(self.store.url).rglob("*"):
            os.utime(path, (then, then))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    nights = Nights(tmp_path_factory.mktemp("nights"))
    nights.publish()
    nights.change()
    nights.publish()
    return nights


@pytest.fixture
def nights(made: Nights, tmp_path: Path) -> Nights:
    """A copy of the store after two nights; INPUT stays where it is, as it is."""
    shutil.copytree(made.store.url, tmp_path / "store")
    copy = object.__new__(Nights)
    copy.__dict__ |= made.__dict__
    copy.store, copy.cache = Folder(str(tmp_path / "store")), tmp_path / "cache"
    return copy


def owners(row: PublicationRow) -> dict[str, str]:
    """By file name the publication in whose folder it lies."""
    return {file.path.split("/")[2]: file.path.split("/")[1] for file in row.files}


def test_the_second_night_names_the_base_of_the_first(nights: Nights) -> None:
    first, second = nights.rows()
    index = second.facts["index"]
    assert (first.facts["index"]["how"], index["how"]) == ("built", "updated")
    assert (index["base_num"], index["num_dead"], index["delta_num"]) == (120, 2, 2)
    assert index["why"] == "2 rows added, 2 removed"
    found = owners(second)
    base = {"index.faiss", "trained.faiss", "answers.npz", "ids.arrow", "vectors.npy", "poses.npy"}
    assert {name for name, owner in found.items() if owner == first.id} == base
    assert {"delta.faiss", "delta.arrow", "tombstones.npy", "clusters.npy"} < found.keys()
    digests = {file.path: file.sha256 for file in first.files}
    assert all(digests.get(file.path, file.sha256) == file.sha256 for file in second.files)
    assert (second.facts["num_added"], second.facts["num_removed"]) == (1, 1)
    assert second.facts["num_changed"] == 1


def test_updated_and_rebuilt_answer_alike(nights: Nights) -> None:
    updated = nights.searcher()
    second = nights.rows()[-1]
    rebuilt_row = nights.publish(force=True)
    rebuilt = nights.searcher()
    assert rebuilt_row.facts["index"]["how"] == "built"
    assert len(updated.rows) == len(rebuilt.rows) == 120
    assert second.recall_at_10 is not None
    assert rebuilt_row.recall_at_10 is not None
    assert abs(second.recall_at_10 - rebuilt_row.recall_at_10) <= 0.005
    for searcher in (updated, rebuilt):  # all lists: what differs is what the segments hold
        searcher._index.nprobe, searcher._index.factor = 4, 8
    keys = [record["key"] for record in rebuilt.rows.records(range(120), ["key"])]
    for left, right in zip(
        updated.search_keys(keys, 10), rebuilt.search_keys(keys, 10), strict=True
    ):
        assert [hit.score for hit in left] == pytest.approx([hit.score for hit in right], abs=1e-6)
        # Of copies that tie for the last place either may come.
        clear = [hit.score > left[-1].score + 1e-5 for hit in left]
        for mine, other, certain in zip(left, right, clear, strict=True):
            assert not certain or replace(mine, cluster=None) == replace(other, cluster=None)


def test_a_query_meets_only_what_is_there(nights: Nights) -> None:
    searcher = nights.searcher()
    everything = searcher.search_keys([FRESH], 1000)[0]
    keys = [hit.key for hit in everything]
    assert len(keys) == len(set(keys)) == 120
    assert GONE not in keys
    assert {CHANGED, FRESH} < set(keys)
    assert {hit.cluster for hit in everything} == {0, 1, 2}
    searched = searcher.rows.passing(cluster=everything[0].cluster)
    assert len(searched) == sum(hit.cluster == everything[0].cluster for hit in everything)


def test_a_whole_store_of_two_segments_has_no_finding(nights: Nights) -> None:
    verdict = verify(nights.store, VerifyOptions(audit_images=8, every=True), silent)
    assert verdict.findings == []
    assert verdict.num_vectors == 120
    assert verdict.num_audited == 8
    base = Path(nights.store.url, next(f.path for f in nights.rows()[1].files if "ids" in f.path))
    base.write_bytes(base.read_bytes()[:-8])
    assert verify(nights.store, VerifyOptions(audit_images=0), silent).findings


def test_clean_up_keeps_the_base_of_a_retained_publication(nights: Nights) -> None:
    first, second = nights.rows()
    nights.make_old()
    cleaned = collect_garbage(nights.store, RetentionOptions(keep=1), silent)
    assert cleaned.forgotten == [first.id]
    left = {entry.path for entry in nights.store.entries("artifacts")}
    assert left == {file.path for file in second.files}
    assert {path.split("/")[1] for path in left} == {first.id, second.id}
    assert len(nights.searcher().search_keys([FRESH], 1000)[0]) == 120
    # The next update still builds on the same base.
    fresh = (nights.input / FRESH).read_bytes()
    facts = (nights.input / FRESH).stat()
    (nights.input / FRESH).unlink()
    try:
        nights.embed()
        third = nights.publish()
    finally:
        (nights.input / FRESH).write_bytes(fresh)
        os.utime(nights.input / FRESH, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert third.facts["index"]["how"] == "updated"
    assert owners(third)["index.faiss"] == first.id
    assert len(nights.searcher().rows) == 119
    restore(nights.store, second.id, silent)
    assert len(nights.searcher().rows) == 120


def test_a_base_that_clean_up_has_taken_is_never_named_again(nights: Nights) -> None:
    log = PublicationLog.open(nights.store)
    assert log is not None
    first, second = log.rows()
    row = replace(second, id="late")
    shared = [file.path for file in second.files if f"/{first.id}/" in file.path]
    assert log.append(row, shared).seq == 3
    log.forget({1, 2, 3}, live_too=True)
    with pytest.raises(ConflictError, match="was cleaned up meanwhile; run again"):
        log.append(row, shared)
    assert log.rows() == []


def test_an_erased_image_leaves_the_tombstones_too(nights: Nights) -> None:
    second = nights.rows()[-1]
    found = erase(nights.store, [GONE], False, silent)
    assert found.unknown == []
    assert {key for _, key in found.images} == {GONE}
    assert second.id in found.publications
    rows = nights.rows()
    assert len(rows) == 1
    assert rows[0].id == found.published
    assert rows[0].facts["index"]["how"] == "built"
    for path in Path(nights.store.url, "artifacts").rglob("*.arrow"):
        assert GONE.encode() not in path.read_bytes()
    assert len(nights.searcher().rows) == 120
    assert erase(nights.store, [GONE], False, silent).unknown == [GONE]


def test_a_server_takes_an_update_and_keeps_the_copy_of_its_base(nights: Nights) -> None:
    first, second = nights.rows()
    restore(nights.store, first.id, silent)
    live = Live.open(nights.store.url, cache=str(nights.cache))
    copies = nights.cache.rglob("index.faiss")
    before = next(copies).stat().st_ino
    restore(nights.store, second.id, silent)
    assert live.refresh()
    assert live.alarm is None
    inodes = {path.stat().st_ino for path in nights.cache.rglob("index.faiss")}
    assert inodes == {before}  # linked, not fetched again
    stored = live.view.stored(live.view.searcher.row_of_key(FRESH))
    hits = live.view.neighbours(*stored, k=5)
    assert hits[0].key == FRESH
    assert hits[0].pose == {"angle_degrees": 0.0, "mirror": False}
    labelled = live.view.neighbours(*stored, 1000, Only(label=hits[0].label))
    assert {hit.label for hit in labelled} == {hits[0].label}


def test_many_changes_are_folded_in_and_a_doubled_collection_is_trained_anew(
    tmp_path: Path,
) -> None:
    nights = Nights(tmp_path)
    first = nights.publish()
    nights.add("c", pictures(8, shard=2))
    nights.embed()
    assert nights.publish().facts["index"]["how"] == "updated"
    nights.add("d", pictures(16, shard=2))
    nights.embed()
    third = nights.publish()
    assert third.facts["index"]["how"] == "folded"
    assert owners(third)["trained.faiss"] == first.id
    assert owners(third)["index.faiss"] == third.id
    assert (third.facts["index"]["delta_num"], third.facts["index"]["base_num"]) == (0, 144)
    assert len(nights.searcher().search_keys(["d/0.png"], 1000)[0]) == 144
    nights.add("e", pictures(120, shard=2))
    nights.embed()
    fourth = nights.publish()
    assert fourth.facts["index"]["how"] == "retrained"
    assert "trained when there were 120" in fourth.facts["index"]["why"]
    assert set(owners(fourth).values()) == {fourth.id}


def test_a_previous_publication_that_is_damaged_is_left_and_all_is_built_anew(
    nights: Nights,
) -> None:
    first, second = nights.rows()
    base = Path(nights.store.url, "artifacts", first.id, "vectors.npy")
    base.write_bytes(base.read_bytes()[:-4])
    other = nights.input / "b" / "other.png"
    other.write_bytes(pictures(3, shard=2)[2])
    try:
        nights.embed()
        row = nights.publish()
    finally:
        other.unlink()
    assert row.facts["index"]["how"] == "built"
    assert first.id not in owners(row).values()
    assert len(nights.searcher().rows) == 121
    assert second.id != row.id
