"""Updating an index: what is found to have changed, and that the result is what a rebuild gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines.index import (
    TRAINED,
    Asked,
    Change,
    IndexSpec,
    OrbitIndex,
    Previous,
    Rows,
    Segment,
    Sidecar,
    build_index,
    collect,
    collected_columns,
    decide,
    file_sha256,
    find_change,
    fold_index,
    held_out_rows,
    open_index,
    touched_sources,
    update_index,
    with_change,
)
from pipelines.index.spec import CLUSTERS
from pipelines.table import SCHEMA, KnownFile

DIM, NUM, SHARD = 16, 3_000, 250
SPEC = IndexSpec("IVF48,Flat", NUM, DIM, "0123456789abcdef", 3)


def unit(num: int, seed: int) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).normal(size=(num, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


class Collection:
    """Images by number, in shards of 500: what a table holds on one night."""

    def __init__(self, num: int = NUM) -> None:
        self.vectors = dict(enumerate(unit(num, 0)))
        self.labels: dict[int, str | None] = {}

    def batches(self, sources: set[str] | None = None) -> list[pa.RecordBatch]:
        shards: dict[str, list[int]] = {}
        for number in self.vectors:
            shards.setdefault(f"{number // SHARD:04}.tar", []).append(number)
        return [
            self._batch(source, numbers)
            for source, numbers in shards.items()
            if sources is None or source in sources
        ]

    def _batch(self, source: str, numbers: list[int]) -> pa.RecordBatch:
        num = len(numbers)
        made: dict[str, Any] = {
            # Ids in another order than the numbers, and the same every night.
            "image_id": [(n * 2_654_435_761) % (1 << 40) for n in numbers],
            "key": [f"k{n}" for n in numbers],
            "source": [source] * num,
            "source_etag": [f"etag of {source}"] * num,
            "digest": [f"d{n}-{self.vectors[n][0]}" for n in numbers],
            "label": [self.labels.get(n) for n in numbers],
            "embedding": [self.vectors[n] for n in numbers],
            "pose_code": [bytes([n % 100] * 64) for n in numbers],
        }
        arrays = [pa.array(made.get(f.name, [None] * num), f.type) for f in SCHEMA]
        return pa.RecordBatch.from_arrays(arrays, names=SCHEMA.names).select(collected_columns())

    def rows(self, folder: Path, sources: set[str] | None = None) -> Rows:
        folder.mkdir(parents=True, exist_ok=True)
        batches = self.batches(sources)
        return collect(batches, sum(b.num_rows for b in batches), DIM, folder)


def asked(ids: NDArray[np.int64], live: NDArray[np.int64] | None = None) -> Asked:
    held_out = held_out_rows(ids, 300)
    return Asked(held_out if live is None else live[held_out], threads=1)


def built(collection: Collection, folder: Path, kind: str = SPEC.kind) -> Previous:
    rows = collection.rows(folder)
    index, spec = build_index(rows, replace(SPEC, kind=kind), asked(rows.ids), folder / TRAINED)
    index.save(folder / "index.faiss")
    rows.write_ids(folder / "ids.arrow")
    return reopened(folder, spec)


def reopened(folder: Path, spec: IndexSpec) -> Previous:
    digests = {path.name: file_sha256(path) for path in folder.iterdir()}
    return Previous(spec, Sidecar.open(folder, spec), folder, digests)


def sources(numbers: Any) -> set[str]:
    return {f"{n // SHARD:04}.tar" for n in numbers}


def a_night(collection: Collection, seed: int = 1) -> set[int]:
    """30 images go, 40 change, 50 come; the numbers that are touched."""
    chance = np.random.default_rng(seed)
    chosen = chance.choice(sorted(collection.vectors), 70, replace=False).tolist()
    for number in chosen[:30]:
        del collection.vectors[number]
    for number, vector in zip(chosen[30:], unit(40, seed + 100), strict=True):
        collection.vectors[number] = vector
    first = max(collection.vectors) + 1
    for number, vector in enumerate(unit(50, seed + 200), first):
        collection.vectors[number] = vector
    return {*chosen, *range(first, first + 50)}


def updated(
    previous: Previous, collection: Collection, touched: set[int], folder: Path
) -> tuple[Previous, OrbitIndex]:
    """The previous one brought to the collection, its files beside those of the base."""
    change = change_of(previous, collection, touched, folder)
    sidecar = with_change(previous.rows, change, folder)
    live = np.flatnonzero(sidecar.alive())
    spec = replace(SPEC, how="updated")
    index, spec, why = update_index(previous, sidecar, asked(sidecar.ids_of(live), live), spec)
    assert why is None
    index.save_delta(folder / "delta.faiss")
    for name in spec.base_files:
        (folder / name).symlink_to(previous.folder / name)
    return reopened(folder, spec), index


def change_of(
    previous: Previous, collection: Collection, touched: set[int], folder: Path
) -> Change:
    fresh = collection.rows(folder / "fresh", sources(touched))
    for file in (folder / "fresh").iterdir():
        file.rename(folder / f"fresh-{file.name}")
    (folder / "fresh").rmdir()
    change = find_change(previous.rows, sources(touched), fresh)
    assert change is not None
    return change


def same_answers(
    left: OrbitIndex, left_rows: Any, right: OrbitIndex, right_rows: Any, num: int = 200
) -> float:
    """The share of the left answers of 10 that the right would give as well, by score."""
    queries = unit(num, 77)
    found = []
    for index, rows in ((left, left_rows), (right, right_rows)):
        scores, ids = index.search(queries, 10)
        kept = np.asarray(rows.vectors[rows.rows_of(ids).ravel()]).reshape(num, 10, DIM)
        exact = np.einsum("qkd,qd->qk", kept, queries)
        np.testing.assert_allclose(scores, exact, atol=1e-5)
        found.append(exact)
    return float((found[0] >= found[1].min(1)[:, None] - 1e-5).mean())


@pytest.mark.parametrize("kind", ["IVF48,Flat", "IVF48,SQ8", "IVF48,PQ16x4fs"])
def test_three_nights_of_updates_are_what_a_rebuild_is(kind: str, tmp_path: Path) -> None:
    collection = Collection()
    previous = built(collection, tmp_path / "base", kind)
    assert previous.spec.recall["recall"] >= 0.99
    for night in range(3):
        touched = a_night(collection, seed=10 * night + 1)
        folder = tmp_path / f"night-{night}"
        folder.mkdir()
        previous, index = updated(previous, collection, touched, folder)
    rebuilt = collection.rows(tmp_path / "rebuilt")
    fresh, spec = build_index(rebuilt, replace(SPEC, kind=kind), asked(rebuilt.ids))
    # The same images, with the same embeddings and names.
    sidecar = previous.rows
    live = np.flatnonzero(sidecar.alive())
    assert np.sort(sidecar.ids_of(live)).tolist() == rebuilt.ids.tolist()
    place = sidecar.rows_of(rebuilt.ids)
    assert (np.asarray(sidecar.vectors[place]) == np.asarray(rebuilt.vectors)).all()
    names = ["key", "source", "digest"]
    assert sidecar.records(place, names) == rebuilt.records(range(len(rebuilt)), names)
    # The same answers, and as good ones.
    assert abs(previous.spec.recall["recall"] - spec.recall["recall"]) <= 0.005
    assert previous.spec.recall["recall"] >= 0.99
    loaded = open_index(previous.folder, previous.digests, previous.spec, sidecar)
    assert len(loaded) == len(index) == len(sidecar) == len(rebuilt)
    assert same_answers(loaded, sidecar, fresh, rebuilt) > 0.98
    assert same_answers(fresh, rebuilt, loaded, sidecar) > 0.98
    loaded.nprobe = fresh.nprobe = loaded.nlist
    loaded.factor = fresh.factor = 64
    assert same_answers(loaded, sidecar, fresh, rebuilt) == 1.0
    # The base was never touched, and the delta is as small as the change.
    assert (previous.spec.base_num, previous.spec.delta_num) == (NUM, 270 - lost(collection))


def lost(collection: Collection) -> int:
    """Of 3 x 90 fresh images those that changed twice or went again."""
    base = dict(enumerate(unit(NUM, 0)))
    different = [n for n, v in collection.vectors.items() if n not in base or (base[n] != v).any()]
    return 270 - len(different)


def test_a_fold_is_base_and_delta_in_one_with_the_same_centroids(tmp_path: Path) -> None:
    collection = Collection()
    previous = built(collection, tmp_path / "base", "IVF48,SQ8")
    touched = a_night(collection)
    (tmp_path / "night").mkdir()
    previous, index = updated(previous, collection, touched, tmp_path / "night")
    place = tmp_path / "folded"
    place.mkdir()
    etags = {source: f"new {source}" for source in sources(collection.vectors)}
    folded = previous.rows.gather(place, etags)
    assert set(folded.table["source_etag"].to_pylist()) == set(etags.values())
    made, spec, why = fold_index(previous, previous.rows, folded, asked(folded.ids), SPEC)
    assert why is None
    assert (spec.base_num, spec.delta_num, spec.num_dead) == (len(folded), 0, 0)
    assert (spec.trained_num, spec.fit) == (NUM, previous.spec.fit)
    index.nprobe = made.nprobe
    index.factor = made.factor = 8
    assert same_answers(index, previous.rows, made, folded) == 1.0


def test_what_did_not_change_in_a_shard_that_did_is_left_alone(tmp_path: Path) -> None:
    collection = Collection(2 * SHARD)
    previous = built(collection, tmp_path / "base", "IVF16,Flat")
    (tmp_path / "night").mkdir()
    nothing = change_of(previous, collection, {1}, tmp_path / "night")
    assert (len(nothing.added), len(nothing.gone)) == (0, 0)
    collection.labels[7] = "shoe"
    del collection.vectors[8]
    (tmp_path / "other").mkdir()
    change = change_of(previous, collection, {7}, tmp_path / "other")
    assert change.fresh.records(change.added, ["key"]) == [{"key": "k7"}]
    gone = previous.rows.records(change.gone, ["key"])
    assert sorted(record["key"] for record in gone) == ["k7", "k8"]


def test_equal_ids_of_different_images_ask_for_a_rebuild(tmp_path: Path) -> None:
    collection = Collection(2 * SHARD)
    previous = built(collection, tmp_path / "base", "IVF16,Flat")
    fresh = collection.rows(tmp_path / "fresh", {"0000.tar"})
    stolen = fresh.table["image_id"].to_pylist()
    stolen[0] = next(
        i for i in previous.rows.ids_of(np.arange(500)).tolist() if i not in set(stolen)
    )
    table = fresh.table.set_column(0, "image_id", pa.array(stolen))
    clash = Rows(table, fresh.vectors, fresh.poses)
    assert find_change(previous.rows, {"0000.tar"}, clash) is None


@pytest.mark.parametrize(
    ("added", "gone", "how"),
    [
        (50, 40, "updated"),
        (200, 90, "updated"),
        (200, 130, "folded"),
        (NUM, 0, "retrained"),
    ],
)
def test_the_way_follows_from_the_size_of_the_change(
    added: int, gone: int, how: str, tmp_path: Path
) -> None:
    collection = Collection()
    previous = built(collection, tmp_path)
    fresh = collection.rows(tmp_path / "some", {"0000.tar"})
    change = Change(fresh, np.arange(added), np.arange(gone))
    decision = decide(previous, change, None, SPEC.kind)
    assert decision.how == how, decision.why
    other = decide(previous, change, None, "IVF48,SQ8")
    assert (other.how, "IVF48,SQ8 fits" in other.why) == ("retrained", True)


def test_a_collection_that_drifts_away_is_found(tmp_path: Path) -> None:
    collection = Collection()
    for number in list(collection.vectors):  # everything lies in one corner of the sphere
        vector = collection.vectors[number]
        vector = vector * 0.2 + np.eye(DIM, dtype=np.float32)[0]
        collection.vectors[number] = vector / np.linalg.norm(vector)
    previous = built(collection, tmp_path / "base")
    for number, vector in zip(range(300), -unit(300, 5), strict=True):
        collection.vectors[number] = vector
    (tmp_path / "night").mkdir()
    change = change_of(previous, collection, set(range(300)), tmp_path / "night")
    sidecar = with_change(previous.rows, change, tmp_path / "night")
    live = np.flatnonzero(sidecar.alive())
    _, _, why = update_index(previous, sidecar, asked(sidecar.ids_of(live), live), SPEC)
    assert why is not None
    assert "1 - score with the centroids" in why


def test_a_recall_that_fell_is_found(tmp_path: Path) -> None:
    collection = Collection()
    previous = built(collection, tmp_path / "base")
    previous = replace(previous, spec=replace(previous.spec, nprobe=1))
    (tmp_path / "night").mkdir()
    change = change_of(previous, collection, a_night(collection), tmp_path / "night")
    sidecar = with_change(previous.rows, change, tmp_path / "night")
    live = np.flatnonzero(sidecar.alive())
    index, _, why = update_index(previous, sidecar, asked(sidecar.ids_of(live), live), SPEC)
    assert why is not None
    assert why.startswith("recall fell to 0.")
    assert index.nprobe == 2  # twice the one list that it had


def test_tombstones_never_crowd_out_what_lives(tmp_path: Path) -> None:
    rows = Collection(1000).rows(tmp_path)
    index, _ = build_index(rows, replace(SPEC, kind="IVF4,Flat", num=1000), asked(rows.ids))
    query = np.asarray(rows.vectors[:1])
    scores, ids = index.search(query, 200)
    dead = np.sort(ids[0, :150])
    bare = OrbitIndex(index.base, 4, dead=dead)
    left, found = bare.search(query, 50)
    assert found[0].tolist() == ids[0, 150:].tolist()
    np.testing.assert_allclose(left[0], scores[0, 150:])
    assert len(bare) == 850


def test_rows_of_two_segments_are_read_as_one(tmp_path: Path) -> None:
    collection = Collection(2 * SHARD)
    previous = built(collection, tmp_path / "base", "IVF16,Flat")
    collection.labels |= dict.fromkeys(range(0, 500, 5), "shoe")
    (tmp_path / "night").mkdir()
    change = change_of(previous, collection, set(range(500)), tmp_path / "night")
    sidecar = with_change(previous.rows, change, tmp_path / "night")
    assert (len(sidecar), len(sidecar.dead), len(change.added)) == (500, 100, 100)
    shoes = sidecar.passing(label="shoe")
    assert (shoes >= 500).all()
    assert len(shoes) == 100
    assert sidecar.find_key("k5") == sidecar.find_key("0000.tar/k5")
    assert sidecar.records(sidecar.find_key("k5"))[0]["label"] == "shoe"
    clusters = np.arange(sidecar.num_rows, dtype=np.int32)
    np.save(tmp_path / "night" / CLUSTERS, clusters)
    told = replace(sidecar, clusters=clusters)
    assert told.passing(cluster=550).tolist() == [550]
    assert told.passing(cluster=int(sidecar.dead[0])).tolist() == []
    assert told.records([550, 3], ["cluster", "key"])[0]["cluster"] == 550
    gathered = told.gather(tmp_path / "night")
    assert gathered.ids.tolist() == sorted(gathered.ids.tolist())
    assert gathered.table["cluster"].to_pylist() == told.rows_of(gathered.ids).tolist()
    assert isinstance(told.base, Segment)


def test_touched_sources_are_those_with_another_file() -> None:
    def known(path: str) -> KnownFile:
        return KnownFile("s", "e", path, 1, 1, 1, 0, False)

    before = {"same": known("a"), "changed": known("b"), "gone": known("c")}
    now = {"same": known("a"), "changed": known("b2"), "new": known("d")}
    assert touched_sources(before, now) == {"changed", "gone", "new"}
