"""A store as one file, by every format and filter; and a store that is only read."""

import csv
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import local_files, open_store
from pipelines.errors import SettingsError
from pipelines.export import Exported, Selection, export
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.storage import Folder
from pipelines.store import Store
from tests.pipelines.conftest import QUICK, Made


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def published(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The embedded store, published; its artifacts are cached for this module alone."""
    place = tmp_path_factory.mktemp("published")
    shutil.copytree(embedded.store.url, place / "store")
    publish(Folder(str(place / "store")), embedded.model_id, dataclasses.replace(QUICK, clusters=3))
    return open_store(str(place / "store"), cache=place / "cache")


def exported(store: Store, target: Path, **chosen: Any) -> Exported:
    more = {name: chosen.pop(name) for name in ("columns", "format") if name in chosen}
    return export(store, str(target), Selection(**chosen), silent, **more)


def test_three_formats_hold_the_same_rows(published: Store, tmp_path: Path) -> None:
    truth = published.embeddings().to_pylist()
    truth = [row for row in truth if row["embedding"] is not None]
    vectors = np.array([row["embedding"] for row in truth], np.float32)
    done = exported(published, tmp_path / "e.npy")
    assert (done.num_rows, done.format) == (len(truth), "npy")
    assert done.table_version == published.table.version
    matrix = np.load(tmp_path / "e.npy", allow_pickle=False)
    np.testing.assert_array_equal(matrix, vectors)
    with (tmp_path / "e.keys.csv").open(newline="") as file:
        keys = list(csv.DictReader(file))
    assert [(row["key"], row["source"], int(row["image_id"])) for row in keys] == [
        (row["key"], row["source"], row["image_id"]) for row in truth
    ]
    exported(published, tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["image_id", "key", "source", "label", "cluster", "embedding"]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), vectors)
    by_id = {row["image_id"]: row["cluster"] for row in published.clusters().to_pylist()}
    assert table["cluster"].to_pylist() == [by_id[row["image_id"]] for row in truth]
    exported(published, tmp_path / "e.csv")
    with (tmp_path / "e.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = np.array([[row[f"e{n}"] for n in range(matrix.shape[1])] for row in rows], np.float32)
    np.testing.assert_array_equal(found, vectors)


def test_filters_choose_rows(published: Store, tmp_path: Path) -> None:
    truth = [row for row in published.embeddings().to_pylist() if row["embedding"] is not None]
    label = truth[0]["label"]

    def keys(**chosen: Any) -> list[str]:
        exported(published, tmp_path / "e.parquet", columns=["key"], **chosen)
        found: list[str] = pq.read_table(tmp_path / "e.parquet")["key"].to_pylist()
        return found

    assert keys(labels=(label,)) == [row["key"] for row in truth if row["label"] == label]
    assert keys(sources=("b.*",)) == [row["key"] for row in truth if row["source"] == "b.tar"]
    assert set(keys(keys=("turn?d", "equal"))) == {"turned", "equal"}
    assert keys(keys=("urned",)) == []
    assert pq.read_table(tmp_path / "e.parquet").column_names == ["key"]
    every = [keys(clusters=(number,)) for number in range(3)]
    assert sorted(key for found in every for key in found) == sorted(row["key"] for row in truth)
    assert all(every)
    exported(published, tmp_path / "r.csv", rejected=True)
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["broken"]
    assert rows[0]["error"]
    none = exported(published, tmp_path / "n.npy", labels=("no such label",))
    assert none.num_rows == 0
    assert np.load(tmp_path / "n.npy").shape == (0, published.table.identity.dim)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("e.txt", {}, "ends in .npy, .csv or .parquet"),
        ("e.npy", {"rejected": True}, "no embedding"),
        ("e.csv", {"columns": ["thumbnail"]}, "holds bytes"),
        ("e.csv", {"columns": ["nope"]}, "--column nope"),
        ("missing/e.csv", {}, "there is no folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    published: Store, tmp_path: Path, name: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        exported(published, tmp_path / name, **more)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_into_the_store(published: Store, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="inside the store"):
        exported(published, Path(published.url) / "e.csv")


def test_a_store_is_searched_and_exported_without_one_attempt_to_write(
    published: Store, embedded: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(published.url, store)
    for path in [*store.rglob("*"), store]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def looks() -> dict[str, tuple[int, int]]:
        facts = {path: path.stat() for path in [store, *store.rglob("*")]}
        return {str(path): (f.st_mtime_ns, f.st_ino) for path, f in facts.items()}

    before, attempts = looks(), list[str]()
    place, remove = local_files.place, local_files.remove

    def spy(call: Any, path: Path, *arguments: Any) -> Any:
        if str(path).startswith(str(store)):
            attempts.append(str(path))
        return call(*arguments)

    monkeypatch.setattr(local_files, "place", lambda src, dst: spy(place, dst, src, dst))
    monkeypatch.setattr(local_files, "remove", lambda path: spy(remove, path, path))
    try:
        searcher = Searcher.open(str(store), cache=tmp_path / "cache")
        image = next(iter(embedded.images.values()))
        assert searcher.search([image], 3, align=True)[0][0].score > 0.999
        hits = searcher.search_keys([next(iter(embedded.images))], 3)[0]
        assert searcher.thumbnails(hits)
        opened = open_store(str(store), cache=tmp_path / "cache")
        assert opened.status()["up_to_date"]
        exported(opened, tmp_path / "e.npy")
        assert attempts == []
        assert looks() == before
    finally:
        for path in [store, *store.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
