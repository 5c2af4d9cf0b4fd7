"""Clusters: what they find, what they are called, and that nothing degenerate breaks them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipelines.clusters import (
    ALONE,
    Previous,
    agreement,
    choose_k,
    cluster,
    match_ids,
    outlier_scores,
    write_clusters,
)


def blobs(sizes: list[int], dim: int = 8, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Unit rows around well separated directions, and the name of each row's direction."""
    chance = np.random.default_rng(seed)
    parts = [
        np.eye(dim)[number] + chance.normal(scale=0.05, size=(size, dim))
        for number, size in enumerate(sizes)
    ]
    made = np.concatenate(parts).astype(np.float32)
    labels = [f"l{number}" for number, size in enumerate(sizes) for _ in range(size)]
    return made / np.linalg.norm(made, axis=1, keepdims=True), labels


def ids_of(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.arange(len(vectors), dtype=np.int64) * 10


def test_separated_groups_are_found_by_size_with_medoid_cohesion_and_labels() -> None:
    vectors, labels = blobs([50, 120, 80])
    found = cluster(vectors, ids_of(vectors), labels, k=3, threads=1)
    assert [c.size for c in found.clusters] == [120, 80, 50]
    assert [c.labels for c in found.clusters] == [(("l1", 120),), (("l2", 80),), (("l0", 50),)]
    for c in found.clusters:
        rows = np.flatnonzero(found.assigned == c.id)
        total = (vectors[rows] @ vectors[rows].T).sum(1)
        assert total[rows == c.medoid] >= total.max() - 1e-2
        assert c.cohesion > 0.95
    assert found.agreement is not None
    assert found.agreement["purity"] == found.agreement["nmi"] == found.agreement["ari"] == 1.0
    members = found.members(found.clusters[0].id)
    assert (np.diff(found.distance[members]) >= 0).all()


def test_k_is_chosen_where_it_is_not_given() -> None:
    vectors, _ = blobs([60] * 6)
    k, words = choose_k(vectors, threads=1)
    assert k == 6
    assert "silhouette" in words
    assert len(cluster(vectors, ids_of(vectors), [None] * 360, threads=1).clusters) == 6


def test_density_finds_the_groups_and_leaves_out_what_is_in_none() -> None:
    vectors, labels = blobs([300, 200, 120, 0])
    chance = np.random.default_rng(9)
    lost = chance.normal(size=(4, 8)).astype(np.float32)
    lost[:, :3] = 0.0  # nowhere near the three
    lost /= np.linalg.norm(lost, axis=1, keepdims=True)
    both = np.concatenate([vectors, lost])
    found = cluster(both, ids_of(both), [*labels, *["lost"] * 4], method="density", threads=1)
    assert [c.labels[0][0] for c in found.clusters] == ["l0", "l1", "l2"]
    assert (found.assigned[-4:] == ALONE).all()
    assert (found.assigned[:620] == ALONE).mean() < 0.1
    assert found.num_alone + sum(c.size for c in found.clusters) == len(both)
    assert found.agreement is not None
    assert found.agreement["purity"] > 0.95
    assert "HDBSCAN" in found.criterion
    assert np.isfinite(found.distance).all()


def test_density_of_a_sample_gives_the_others_the_cluster_of_their_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.clusters.density.SAMPLE", 200)
    vectors, labels = blobs([1500, 900, 600])
    found = cluster(vectors, ids_of(vectors), labels, method="density", threads=1)
    assert [c.labels for c in found.clusters] == [
        (("l0", found.clusters[0].size),),
        (("l1", found.clusters[1].size),),
        (("l2", found.clusters[2].size),),
    ]
    assert found.num_alone < 300
    assert "200 images" in found.criterion
    # The same images are drawn on another night, whatever was added: the names stay.
    previous = Previous(ids_of(vectors), found.assigned.astype(np.int64))
    more, _ = blobs([100, 0, 0], seed=3)
    both = np.concatenate([vectors, more])
    ids = np.concatenate([ids_of(vectors), 50_001 + np.arange(100)])
    later = cluster(both, ids, [None] * 3100, method="density", previous=previous, threads=1)
    kept = found.assigned != ALONE
    assert (later.assigned[:3000][kept] == found.assigned[kept]).mean() > 0.95
    # And k-means goes on from there.
    centres = cluster(both, ids, [None] * 3100, previous=previous, threads=1)
    assert sorted(c.id for c in centres.clusters) == sorted(c.id for c in found.clusters)


@pytest.mark.parametrize("method", ["kmeans", "density"])
@pytest.mark.parametrize("k", [None, 1, 5])
@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(np.ones((1, 4), np.float32) / 2, id="one image"),
        pytest.param(np.repeat(np.ones((1, 4), np.float32) / 2, 30, axis=0), id="all identical"),
        pytest.param(np.eye(4, dtype=np.float32)[:3], id="fewer than clusters"),
        pytest.param(np.eye(4, dtype=np.float32)[[0, 1] * 9], id="two kinds"),
        pytest.param(np.empty((0, 4), np.float32), id="none"),
    ],
)
def test_degenerate_collections_are_clustered(
    vectors: NDArray[np.float32], k: int | None, method: str
) -> None:
    labels = [None] * len(vectors)
    found = cluster(vectors, ids_of(vectors), labels, method=method, k=k, threads=1)
    inside = sum(c.size for c in found.clusters)
    assert found.num_alone + inside == len(vectors) == len(found.assigned)
    assert len(found.clusters) <= len(np.unique(vectors, axis=0))
    assert found.agreement is None
    assert np.isfinite(found.distance).all()


def test_ids_are_those_of_the_previous_clusters() -> None:
    vectors, labels = blobs([50, 120, 80])
    first = cluster(vectors, ids_of(vectors), labels, k=3, threads=1)
    previous = Previous(ids_of(vectors), first.assigned.astype(np.int64) + 40)
    # The smallest cluster grows to be the largest: it keeps its name all the same.
    more, _ = blobs([150, 0, 0], seed=5)
    both = np.concatenate([vectors, more])
    ids = np.concatenate([ids_of(vectors), 10_001 + np.arange(150) * 10])
    later = cluster(both, ids, [None] * 400, previous=previous, threads=1)
    assert later.criterion == "kept from the previous publication"
    assert (later.assigned[:250] == first.assigned + 40).all()
    assert later.clusters[0].id == first.assigned[0] + 40


def test_a_cluster_without_a_forerunner_gets_a_new_id() -> None:
    previous = Previous(np.arange(4), np.array([7, 7, 9, 9]))
    names = match_ids(np.array([1, 1, 0, 0, 2]), 3, np.arange(5), previous)
    assert names.tolist() == [9, 7, 10]


def test_agreement_counts_only_labelled_rows_and_neighbours() -> None:
    assigned = np.array([0, 0, 1, 1, 1])
    labels = ["a", "a", "b", "b", None]
    neighbours = np.array([[1, 4], [0, 4], [3, 0], [2, 4], [0, 1]])
    found = agreement(assigned, labels, neighbours)
    assert found is not None
    assert (found["num_labelled"], found["purity"], found["knn5_accuracy"]) == (4, 1.0, 1.0)
    wrong = agreement(assigned, labels, np.array([[2], [2], [0], [0], [0]]))
    assert wrong is not None
    assert wrong["knn5_accuracy"] == 0.0
    assert agreement(assigned, [None] * 5, neighbours) is None
    assert agreement(assigned, ["a"] * 5, neighbours) is not None  # one label


def test_the_outlier_score_is_the_distance_from_company() -> None:
    scores = np.array([[1.0, 0.9, -np.inf], [0.5, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(outlier_scores(scores), [0.05, 0.5], atol=1e-6)
    assert outlier_scores(np.full((2, 3), -np.inf, np.float32)).tolist() == [0, 0]
    assert outlier_scores(np.empty((1, 0), np.float32)).tolist() == [0]


def test_clusters_are_written_for_everyone(tmp_path: Path) -> None:
    vectors, labels = blobs([5, 9])
    found = cluster(vectors, ids_of(vectors), labels, k=2, threads=1)
    write_clusters(tmp_path / "c.parquet", ids_of(vectors), found, np.zeros(14, np.float32))
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.column_names == ["image_id", "cluster", "distance", "outlier_score"]
    assert table["cluster"].to_pylist() == found.assigned.tolist()
