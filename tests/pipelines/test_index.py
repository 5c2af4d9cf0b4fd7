"""The index: kinds, recall by score, the rows beside it, and what is refused on loading."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines.errors import ArtifactError, IncompleteError
from pipelines.index import (
    EXACT_UP_TO,
    Asked,
    IndexSpec,
    OrbitIndex,
    Rows,
    Segment,
    Sidecar,
    build_index,
    choose_kind,
    collect,
    collected_columns,
    exact_top,
    file_sha256,
    held_out_rows,
    kmeans,
    measure_recall,
    nearest_others,
    open_index,
)
from pipelines.index.contents import contents
from pipelines.index.kinds import FLAT_UP_TO, KINDS
from pipelines.index.recall import is_held_out
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


def asked(rows: Rows, num: int = 200, target: float = 0.99, **more: Any) -> Asked:
    return Asked(held_out_rows(rows.ids, num), target=target, threads=1, **more)


def made(
    kind: str, num: int, folder: Path, vectors: Any = None, **asking: Any
) -> tuple[Rows, OrbitIndex, IndexSpec]:
    rows = collect([batch(unit(num) if vectors is None else vectors)], num, DIM, folder)
    index, spec = build_index(rows, spec_of(kind, num), asked(rows, **asking))
    return rows, index, spec


def saved(rows: Rows, index: OrbitIndex, folder: Path) -> dict[str, str]:
    index.save(folder / "index.faiss")
    rows.write_ids(folder / "ids.arrow")
    return {"index.faiss": file_sha256(folder / "index.faiss")}


def test_the_kind_follows_number_and_dimension_and_memory() -> None:
    assert choose_kind(EXACT_UP_TO, 64) == "IDMap2,Flat"
    assert choose_kind(FLAT_UP_TO, 64) == "IVF1789,Flat"
    assert choose_kind(1_000_000, 64) == "IVF4000,SQ8"
    assert choose_kind(20_000_000, 64) == "IVF17889,PQ64x4fs"
    chosen = [choose_kind(100_000, 256, budget << 20) for budget in (110, 30, 16, 9, 7)]
    codes = [name.rpartition(",")[2] for name in chosen]
    assert codes == ["Flat", "SQ8", "PQ256x4fs", "PQ128x4fs", "RaBitQ"]
    with pytest.raises(IncompleteError, match=r"takes 5\.8 MiB, --index-memory allows 1\.0"):
        choose_kind(100_000, 256, 1 << 20)


@pytest.mark.parametrize("kind", ["flat", "sq8", "pq", "pq-half", "rabitq"])
def test_the_memory_told_is_the_memory_taken(kind: str, tmp_path: Path) -> None:
    chosen = next(one for one in KINDS if one.name == kind)
    num = 8_000
    factory = chosen.factory(num, DIM).replace("IVF358", "IVF32")
    _, index, _ = made(factory, num, tmp_path, target=0.5)
    index.save(tmp_path / "index.faiss")
    told = chosen.num_bytes(num, DIM) - 358 * DIM * 4
    assert (tmp_path / "index.faiss").stat().st_size == pytest.approx(told, rel=0.15)


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


KINDS_TRIED = ("IDMap2,Flat", "IVF64,Flat", "IVF64,SQ8", "IVF64,PQ16x4fs", "IVF64,RaBitQ")


@pytest.mark.parametrize("kind", KINDS_TRIED)
def test_an_index_answers_with_image_ids_and_its_recall_is_measured(
    kind: str, tmp_path: Path
) -> None:
    rows, index, spec = made(kind, 6000, tmp_path, turned=unit(20, 5))
    assert spec.recall["recall"] >= 0.99
    assert spec.recall["num_queries"] == 100 + 20
    scores, ids = index.search(np.asarray(rows.vectors[:50]), 3)
    assert (ids[:, 0] == rows.ids[:50]).all()
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-4)
    digests = saved(rows, index, tmp_path)
    sidecar = Sidecar.open(tmp_path, spec)
    loaded = open_index(tmp_path, digests, spec, sidecar)
    assert (loaded.search(np.asarray(rows.vectors[:50]), 3)[1] == ids).all()
    if kind.startswith("IVF"):
        assert 1 <= spec.nprobe <= spec.nlist == 64
        assert {(p["nprobe"], p["factor"]) for p in spec.curve} >= {(spec.nprobe, spec.factor)}
        assert loaded.nprobe == spec.nprobe
        assert 0 < spec.fit < 1
    held = sorted(int(image_id) for ids, _ in contents(loaded) for image_id in ids)
    assert held == rows.ids.tolist()


def test_codes_are_compared_again_by_the_embeddings(tmp_path: Path) -> None:
    rows, index, spec = made("IVF16,PQ8x4fs", 3000, tmp_path)
    assert spec.factor > 1
    truth = exact_top(rows.vectors, np.asarray(rows.vectors[:40]), 5)[0]
    scores, _ = index.search(np.asarray(rows.vectors[:40]), 5)
    rough, _ = index.search(np.asarray(rows.vectors[:40]), 5, factor=1)
    assert (np.abs(scores - truth) < 1e-5).mean() > 0.9
    assert np.abs(rough - truth).max() > 0.01


def test_an_inverted_file_probes_on_until_k_are_found(tmp_path: Path) -> None:
    rows, index, _ = made("IVF100,Flat", 2000, tmp_path)
    _, ids = index.search(np.asarray(rows.vectors[:3]), 1500, nprobe=1)
    assert (ids >= 0).all()


def test_a_tuned_index_reaches_no_target_by_luck(tmp_path: Path) -> None:
    low = made("IVF64,Flat", 3000, tmp_path, target=0.5)[2]
    high = made("IVF64,Flat", 3000, tmp_path, target=0.999)[2]
    assert low.nprobe < high.nprobe
    assert low.recall["recall"] < 0.99 <= high.recall["recall"]


def test_what_is_held_out_is_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.index import build

    ids = np.random.default_rng(1).permutation(10_000).astype(np.int64) * 7
    assert is_held_out(ids).mean() == pytest.approx(1 / 16, abs=0.01)
    assert is_held_out(ids[held_out_rows(ids, 300)]).all()
    seen: list[Any] = []
    whole = build.gpu.clustering

    def watch(index: Any) -> Any:
        train = index.train
        index.train = lambda sample: (seen.append(sample), train(sample))
        return whole(index)

    monkeypatch.setattr(build.gpu, "clustering", watch)
    rows, _, _ = made("IVF16,Flat", 2000, tmp_path)
    held_out = np.asarray(rows.vectors[np.flatnonzero(is_held_out(rows.ids))])
    trained = {row.tobytes() for row in seen[0]}
    assert len(trained) > 900
    assert not trained & {row.tobytes() for row in held_out}


def test_loading_refuses_what_is_not_as_published(tmp_path: Path) -> None:
    rows, index, spec = made("IDMap2,Flat", 100, tmp_path)
    digests, sidecar = saved(rows, index, tmp_path), Sidecar(Segment.of(rows))
    path = tmp_path / "index.faiss"
    with pytest.raises(ArtifactError, match=r"dimension 16, index\.json says 8"):
        open_index(tmp_path, digests, replace(spec, dim=8), sidecar)
    with pytest.raises(ArtifactError, match="number of vectors"):
        open_index(tmp_path, digests, replace(spec, base_num=99), sidecar)
    for kind in KINDS_TRIED[1:]:
        with pytest.raises(ArtifactError, match="type IndexIDMap2"):
            open_index(tmp_path, digests, replace(spec, kind=kind), sidecar)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="sha256"):
        open_index(tmp_path, digests, spec, sidecar)
    path.write_bytes(b"IxFI" + b"\xff" * 400)
    with pytest.raises(ArtifactError, match="FAISS cannot read it"):
        open_index(tmp_path, {path.name: file_sha256(path)}, spec, sidecar)


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
    spec = replace(spec_of("IDMap2,Flat", 50), base_num=50)
    sidecar = Sidecar.open(tmp_path, spec)
    assert sidecar.rows_of(np.array([rows.ids[7], 2])).tolist() == [7, -1]
    assert sidecar.records([7])[0]["cluster"] == 7
    assert sidecar.passing(label="x", cluster=7).tolist() == (
        [7] if sidecar.records([7])[0]["label"] else []
    )
    assert sidecar.passing(source="a.tar").tolist() == list(range(50))
    assert sidecar.passing(source="b.tar").tolist() == []
    with pytest.raises(ArtifactError, match="51"):
        Sidecar.open(tmp_path, replace(spec, base_num=51))


def test_rows_of_many_pieces_are_read_in_the_order_asked(tmp_path: Path) -> None:
    vectors = unit(50)
    rows = collect([batch(vectors, label=["x", None] * 25)], 50, DIM, tmp_path)
    table = pa.concat_tables([rows.table.slice(i, 7) for i in range(0, 50, 7)])
    segment = Segment(table, rows.vectors, rows.poses)
    wanted = np.random.default_rng(0).permutation(50)[:33]
    assert segment.records(wanted) == rows.table.take(pa.array(wanted)).to_pylist()
    assert segment.records(wanted[:2], ["key"]) == rows.records(wanted[:2], ["key"])
    assert segment.records(wanted[:0]) == segment.emptied().records(wanted[:0]) == []


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
    index, _ = build_index(rows, spec_of("IDMap2,Flat", 70), asked(rows, 7))
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
