"""The index: kinds, recall by score, the rows beside it, and what is refused on loading."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines.errors import ArtifactError
from pipelines.index import (
    EXACT_UP_TO,
    IndexSpec,
    Sidecar,
    build_index,
    choose_kind,
    collect,
    collected_columns,
    exact_top,
    file_sha256,
    held_out_rows,
    kmeans,
    load_index,
    measure_recall,
    nearest_others,
)
from pipelines.table import SCHEMA

DIM = 16


def unit(num: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def batch(vectors: NDArray[np.float32], **columns: list[Any]) -> pa.RecordBatch:
    num = len(vectors)
    made: dict[str, Any] = {
        "image_id": np.random.default_rng(9).permutation(num).astype(np.int64) * 7 + 3,
        "key": [f"k{i}" for i in range(num)],
        "source": ["a.tar"] * num,
        "source_etag": ["e"] * num,
        "digest": [f"d{i}" for i in range(num)],
        "embedding": list(vectors),
        "pose_code": [bytes([i % 100] * 64) for i in range(num)],
    }
    made |= columns
    arrays = [pa.array(made.get(f.name, [None] * num), f.type) for f in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, names=SCHEMA.names).select(collected_columns())


def spec_of(kind: str, num: int) -> IndexSpec:
    return IndexSpec(kind, num, DIM, "0123456789abcdef", 3)


def test_the_kind_follows_the_number() -> None:
    assert choose_kind(EXACT_UP_TO, 64) == "IDMap2,Flat"
    assert choose_kind(1_000_000, 64) == "IVF4000,Flat"


def test_exact_top_is_brute_force_and_leaves_out_the_own_row() -> None:
    vectors = unit(300)
    scores, rows = exact_top(vectors, vectors[:5], 4, np.arange(5))
    brute = vectors[:5] @ vectors.T
    brute[np.arange(5), np.arange(5)] = -2
    assert (rows == np.argsort(-brute, axis=1)[:, :4]).all()
    np.testing.assert_allclose(scores, np.sort(brute, axis=1)[:, ::-1][:, :4], rtol=1e-6)


def test_recall_counts_ties_and_misses_by_score() -> None:
    vectors = np.repeat(unit(30), 4, axis=0)  # every image four times: any of them is right
    queries, own = vectors[:1], np.array([-1])

    def ties(asked: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return exact_top(vectors, asked, k)[1]

    def half(asked: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        rows = exact_top(vectors, asked, k)[1]
        rows[:, 5:] = -1
        return rows

    assert measure_recall(ties, vectors, queries, own).recall == 1.0
    assert measure_recall(half, vectors, queries, own).recall == 0.5


def test_a_row_that_finds_only_itself_has_found_nothing() -> None:
    vectors = unit(50)

    def itself(asked: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return np.column_stack([np.arange(5), np.full((5, k - 1), -1)])

    assert measure_recall(itself, vectors, vectors[:5], np.arange(5)).recall == 0.0


def test_recall_of_one_image_is_one() -> None:
    found = measure_recall(lambda q, k: np.zeros((1, k), np.int64), unit(1), unit(1), np.array([0]))
    assert (found.recall, found.num_queries) == (1.0, 0)


@pytest.mark.parametrize("kind", ["IDMap2,Flat", "IVF64,Flat"])
def test_an_index_answers_with_image_ids_and_its_recall_is_measured(
    kind: str, tmp_path: Path
) -> None:
    rows = collect([batch(unit(6000))], 6000, DIM, tmp_path)
    held_out = held_out_rows(6000, 200)
    index, spec = build_index(
        rows.vectors, rows.ids, spec_of(kind, 6000), held_out, extra_queries=unit(20, 5), threads=1
    )
    assert spec.recall["recall"] >= 0.99
    assert spec.recall["num_queries"] == 100 + 20
    _, ids = index.search(np.asarray(rows.vectors[:50]), 3)
    assert (ids[:, 0] == rows.ids[:50]).all()
    index.save(tmp_path / "index.faiss")
    loaded = load_index(tmp_path / "index.faiss", file_sha256(tmp_path / "index.faiss"), spec)
    assert (loaded.search(np.asarray(rows.vectors[:50]), 3)[1] == ids).all()
    if kind.startswith("IVF"):
        assert 1 <= spec.nprobe < spec.nlist == 64
        recalls = [point["recall"] for point in spec.curve]
        assert recalls == sorted(recalls)
        assert loaded.nprobe == spec.nprobe


def test_an_inverted_file_probes_on_until_k_are_found(tmp_path: Path) -> None:
    rows = collect([batch(unit(2000))], 2000, DIM, tmp_path)
    index, _ = build_index(
        rows.vectors, rows.ids, spec_of("IVF100,Flat", 2000), held_out_rows(2000, 50), threads=1
    )
    _, ids = index.search(np.asarray(rows.vectors[:3]), 1500, nprobe=1)
    assert (ids >= 0).all()


def test_a_tuned_index_reaches_no_target_by_luck(tmp_path: Path) -> None:
    rows = collect([batch(unit(3000))], 3000, DIM, tmp_path)
    spec = spec_of("IVF64,Flat", 3000)
    low = build_index(
        rows.vectors, rows.ids, spec, held_out_rows(3000, 200), target=0.5, threads=1
    )[1]
    high = build_index(
        rows.vectors, rows.ids, spec, held_out_rows(3000, 200), target=0.999, threads=1
    )[1]
    assert low.nprobe < high.nprobe
    assert low.recall["recall"] < 0.99 <= high.recall["recall"]


def test_loading_refuses_what_is_not_as_published(tmp_path: Path) -> None:
    rows = collect([batch(unit(100))], 100, DIM, tmp_path)
    index, spec = build_index(
        rows.vectors, rows.ids, spec_of("IDMap2,Flat", 100), held_out_rows(100, 10), threads=1
    )
    path = tmp_path / "index.faiss"
    index.save(path)
    digest = file_sha256(path)
    with pytest.raises(ArtifactError, match=r"dimension 16, index\.json says 8"):
        load_index(path, digest, replace(spec, dim=8))
    with pytest.raises(ArtifactError, match="number of vectors"):
        load_index(path, digest, replace(spec, num=99))
    with pytest.raises(ArtifactError, match="type IndexIDMap2"):
        load_index(path, digest, replace(spec, kind="IVF64,Flat"))
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        load_index(path, digest, spec)
    path.write_bytes(b"IxFI" + b"\xff" * 400)
    with pytest.raises(ArtifactError, match="FAISS cannot read it"):
        load_index(path, file_sha256(path), spec)


def test_rows_are_aligned_and_in_ascending_id(tmp_path: Path) -> None:
    vectors = unit(50)
    whole = batch(vectors, label=["x", None] * 25)
    rows = collect([whole.slice(0, 20), whole.slice(20)], 50, DIM, tmp_path)
    assert (np.diff(rows.ids) > 0).all()
    for row, record in enumerate(rows.table.to_pylist()):
        number = int(record["key"][1:])
        np.testing.assert_array_equal(rows.vectors[row], vectors[number])
        assert rows.poses[row, 0] == number % 100
        assert record["label"] == (None if number % 2 else "x")
    assert rows.vectors.filename is not None  # memory-mapped
    rows.with_clusters(np.arange(50, dtype=np.int32)).write_ids(tmp_path / "ids.arrow")
    sidecar = Sidecar(tmp_path, 50, DIM)
    assert sidecar.rows_of(np.array([rows.ids[7], 2])).tolist() == [7, -1]
    assert sidecar.records([7])[0]["cluster"] == 7
    with pytest.raises(ArtifactError, match="51"):
        Sidecar(tmp_path, 51, DIM)


def test_rejected_rows_have_no_place_and_a_wrong_count_is_an_error(tmp_path: Path) -> None:
    vectors: list[Any] = list(unit(5))
    vectors[2] = None
    rows = collect([batch(unit(5), embedding=vectors)], 4, DIM, tmp_path)
    assert "k2" not in rows.table["key"].to_pylist()
    with pytest.raises(ArtifactError, match="4 embedded rows, its log says 5"):
        collect([batch(unit(5), embedding=vectors)], 5, DIM, tmp_path)


def test_colliding_ids_are_told_apart_by_a_salt(tmp_path: Path) -> None:
    crowd = batch(unit(6), image_id=[5, 9, 5, 5, 1, 9], key=list("fedcba"))
    rows = collect([crowd], 6, DIM, tmp_path)
    assert len(set(rows.ids.tolist())) == 6
    kept = {r["key"]: (r["image_id"], r["salt"]) for r in rows.table.to_pylist()}
    # The first by (source, key) keeps its id; the others are hashed again, always alike.
    assert kept["c"] == (5, 0)
    assert kept["a"] == (9, 0)
    assert all(kept[key][1] >= 1 for key in "dfe")
    assert all(0 <= image_id < 2**63 for image_id, _ in kept.values())
    again = collect([crowd], 6, DIM, tmp_path)
    assert again.ids.tolist() == rows.ids.tolist()


def test_nothing_embedded_makes_empty_rows(tmp_path: Path) -> None:
    rows = collect([batch(unit(0))], 0, DIM, tmp_path)
    assert rows.vectors.shape == (0, DIM)


def test_nearest_others_never_hold_the_row_itself(tmp_path: Path) -> None:
    vectors = np.concatenate([unit(40), np.repeat(unit(1, 3), 30, axis=0)])
    rows = collect([batch(vectors)], 70, DIM, tmp_path)
    index, _ = build_index(
        rows.vectors, rows.ids, spec_of("IDMap2,Flat", 70), held_out_rows(70, 7), threads=1
    )
    near = nearest_others(index, rows, 10)
    assert near.rows.shape == (70, 10)
    assert not (near.rows == np.arange(70)[:, None]).any()
    exact = exact_top(rows.vectors, np.asarray(rows.vectors), 10, np.arange(70))[0]
    np.testing.assert_allclose(near.scores, exact, atol=1e-5)


def test_kmeans_gives_unit_centroids_and_begins_where_it_is_told() -> None:
    vectors = unit(500)
    centroids = kmeans(vectors, 7, threads=1)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    again = kmeans(vectors, 7, threads=1, start=centroids, seed=99)
    assert (np.einsum("kd,kd->k", centroids, again) > 0.9).all()
