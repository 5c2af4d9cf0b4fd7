"""A publication: whole or not there, once per table version, and what changed since the last."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import drift, open_store, publication
from pipelines.errors import IncompleteError, NotPublishedError, StoreError
from pipelines.index import file_sha256
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.storage import Folder
from pipelines.table import PublicationLog
from tests.pipelines.conftest import QUICK, Made, MakeTar, embed_here, sample_members

FILES = {
    *("index.faiss", "index.json", "ids.arrow", "vectors.npy", "poses.npy"),
    *("clusters.parquet", "report.html", "report.json", "report.schema.json"),
    *("map.png", "clusters.png", "variance.png", "turns.png"),
}


@pytest.fixture
def store(embedded: Made, tmp_path: Path) -> Folder:
    """A fresh copy of the embedded store."""
    shutil.copytree(embedded.store.url, tmp_path / "store")
    return Folder(str(tmp_path / "store"))


def document(store: Folder, publication_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read(f"artifacts/{publication_id}/report.json"))
    return found


def test_everything_is_published_once_per_version(store: Folder, embedded: Made) -> None:
    stages: list[str] = []
    run = {"images_per_s": 99.0, "efficiency": 0.5, "limit": "cpu", "num_encoded": 78}
    options = dataclasses.replace(QUICK, run=run)
    row = publish(store, embedded.model_id, options, lambda stage, *_: stages.append(stage))
    assert {file.path.rpartition("/")[2] for file in row.files} == FILES
    for file in row.files:
        local = Path(store.url, file.path)
        assert (local.stat().st_size, file_sha256(local)) == (file.size, file.sha256)
    assert row.recall_at_10 == 1.0
    assert row.facts["num_embedded"] == 78
    assert store.read("report.html") == store.read(f"artifacts/{row.id}/report.html")
    assert stages[0] == "reading"
    again = publish(store, embedded.model_id, QUICK, lambda stage, *_: pytest.fail(stage))
    assert again == row
    assert len(store.entries("artifacts")) == len(FILES)
    forced = publish(store, embedded.model_id, dataclasses.replace(QUICK, force=True))
    assert (forced.seq, forced.table_version) == (2, row.table_version)
    # What the run measured is still known when its version is told again.
    assert document(store, forced.id)["efficiency"]["images_per_s"] == 99.0
    assert document(store, forced.id)["drift"]["num_unchanged"] == 78


@pytest.mark.parametrize("place", ["_upload", "_write"])
def test_a_crash_before_the_row_leaves_the_old_one_live(
    store: Folder, embedded: Made, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(store, embedded.model_id, QUICK)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publication._Publishing, place, die)
    with pytest.raises(KeyboardInterrupt):
        publish(store, embedded.model_id, dataclasses.replace(QUICK, force=True))
    log = PublicationLog.open(store)
    assert log is not None
    assert log.live() == first
    assert len(Searcher.open(store.url, cache=Path(store.url, "..", "cache")).rows) == 78


def test_a_publisher_that_comes_second_does_not_step_back(
    store: Folder, embedded: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication._Publishing, "_make_visible", _after_another(embedded.model_id))
    row = publish(store, embedded.model_id, QUICK)
    log = PublicationLog.open(store)
    assert log is not None
    assert [r.id for r in log.rows()] == [row.id] == ["another"]


def _after_another(model_id: str) -> Any:
    whole = publication._Publishing._make_visible

    def late(self: Any, *args: Any) -> Any:
        other = publication.PublicationRow("another", model_id, self.table.version + 1)
        PublicationLog.open_or_create(self.store).append(other)
        return whole(self, *args)

    return late


def test_recall_under_what_was_asked_is_not_published(store: Folder, embedded: Made) -> None:
    too_much = dataclasses.replace(QUICK, recall=1.01)
    with pytest.raises(IncompleteError, match=r"reaches recall 1\.0000 at 10, 1\.01 was asked"):
        publish(store, embedded.model_id, too_much)
    assert (
        publish(store, embedded.model_id, dataclasses.replace(too_much, allow_low_recall=True)).seq
        == 1
    )


def test_without_embeddings_there_is_nothing_to_publish(tmp_path: Path) -> None:
    with pytest.raises(NotPublishedError, match="run 'orbit run' first"):
        publish(Folder(str(tmp_path)), "0" * 16, QUICK)
    with pytest.raises(StoreError, match="is not a store"):
        open_store(str(tmp_path))


def test_the_next_night_is_compared_and_keeps_cluster_ids(
    tmp_path: Path, make_tar: MakeTar
) -> None:
    source = tmp_path / "input"
    source.mkdir()
    members = sample_members(40)
    (source / "a.tar").write_bytes(make_tar(members))
    store, model_id = embed_here(str(source), str(tmp_path / "store"))
    options = dataclasses.replace(QUICK, clusters=4)
    first = publish(store, model_id, options)
    told = document(store, first.id)["drift"]
    assert (told["previous"], told["verdict"]) == (None, "first")
    names = [name for name in members if name.endswith(".png")]
    changed = dict(members)
    changed[names[0]] = sample_members(1, shard=1)[names_of(1)[0]]  # other bytes, same key
    del changed[names[1]]
    changed |= {"new-1.png": members[names[2]], "new-2.png": members[names[3]]}
    (source / "a.tar").write_bytes(make_tar(changed))
    embed_here(str(source), store.url)
    second = publish(store, model_id, dataclasses.replace(QUICK, clusters=None))
    found = document(store, second.id)["drift"]
    assert found["previous"] == first.id
    assert (found["num_added"], found["num_removed"], found["num_changed"]) == (2, 1, 1)
    assert found["num_unchanged"] == 38
    assert {row["cluster"] for row in found["clusters"]} == {0, 1, 2, 3}
    assert found["num_moved_cluster"] <= 4
    assert second.facts["num_added"] == 2
    assert found["verdict"] == "alike"  # 40 images of which 3 are new
    assert second.facts["drift"]["word"] == found["word"]


def names_of(shard: int) -> list[str]:
    return [name for name in sample_members(1, shard) if name.endswith(".png")]


def test_one_image_and_identical_images_are_published(tmp_path: Path, make_tar: MakeTar) -> None:
    members = sample_members(1)
    image = next(data for name, data in members.items() if name.endswith(".png"))
    for number, made in enumerate([{"a.png": image}, {f"{i}.png": image for i in range(12)}]):
        source = tmp_path / f"input-{number}"
        source.mkdir()
        (source / "a.tar").write_bytes(make_tar(made))
        store, model_id = embed_here(str(source), str(tmp_path / f"store-{number}"))
        row = publish(store, model_id, QUICK)
        told = document(store, row.id)
        assert told["clusters"]["num_clusters"] == 1
        assert told["duplicates"]["num_redundant"] == len(made) - 1
        hits = Searcher.open(store.url, tmp_path / "cache").search_keys([sorted(made)[0][:-4]], 99)
        assert len(hits[0]) == len(made)


def test_the_audit_is_left_out_with_a_word_when_the_source_is_gone(
    embedded: Made, tmp_path: Path, make_tar: MakeTar
) -> None:
    source = tmp_path / "input"
    source.mkdir()
    (source / "a.tar").write_bytes(make_tar(sample_members(5)))
    store, model_id = embed_here(str(source), str(tmp_path / "store"))
    shutil.rmtree(source)
    told = document(store, publish(store, model_id, QUICK).id)
    assert "INPUT" in told["invariance"]["skipped"]
    assert told["recall"]["num_turned_queries"] == 0


def test_a_store_opens_for_a_notebook(store: Folder, embedded: Made, tmp_path: Path) -> None:
    opened = open_store(store.url, cache=tmp_path / "cache")
    assert not opened.status()["up_to_date"]
    with pytest.raises(NotPublishedError):
        opened.clusters()
    row = publish(store, embedded.model_id, QUICK)
    status = opened.status()
    assert status["up_to_date"]
    assert status["publication"]["id"] == row.id
    json.dumps(status)
    assert opened.embeddings(["key", "error"]).num_rows == 79
    assert opened.to_pandas(["key"]).shape == (79, 1)
    assert opened.clusters().num_rows == 78
    assert [p.id for p in opened.publications()] == [row.id]
    assert opened.search(embedded.images["turned"], 3)[0].score > 0.9999


def test_drift_counts_by_identity_and_content() -> None:
    def snapshot(name: str, ids: list[int], digests: list[str], clusters: list[int]) -> Any:
        numbers = np.array(ids, np.int64)
        return drift.Snapshot(name, numbers, np.array(clusters), pa.array(digests), np.ones(2))

    before = snapshot("one", [1, 2, 3], ["a", "b", "c"], [0, 0, 1])
    found = drift.compare(before, snapshot("two", [2, 3, 4], ["b", "x", "d"], [0, 2, 2]))
    counted = [found[f"num_{n}"] for n in ("added", "removed", "changed", "unchanged")]
    assert counted == [1, 1, 1, 1]
    assert found["num_moved_cluster"] == 1
    assert [(c["cluster"], c["before"], c["now"], c["state"]) for c in found["clusters"]] == [
        (0, 2, 1, "kept"),
        (1, 1, 0, "gone"),
        (2, 0, 2, "new"),
    ]
    assert found["mean_shift"] == 0
