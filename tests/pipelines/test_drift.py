"""Drift: a distance with a threshold that means something, and words that follow from figures."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines import drift
from pipelines.sampling import steady_sample
from pipelines.two_sample import energy_distance

Vectors = NDArray[np.float32]


def around(centre: int, num: int, seed: int, spread: float = 0.3) -> Vectors:
    """Unit embeddings around a direction."""
    made = np.eye(16)[centre] + spread * np.random.default_rng(seed).normal(size=(num, 16))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def snapshot(vectors: Vectors, ids: NDArray[np.int64] | None = None, **changed: str) -> Any:
    numbers = np.arange(len(vectors), dtype=np.int64) if ids is None else ids
    digests = [changed.get(f"i{n}", f"{n}") for n in numbers.tolist()]
    order = np.argsort(numbers)
    return drift.Snapshot(
        "p", numbers[order], np.zeros(len(vectors), np.int64),
        pa.array(digests).take(pa.array(order)), vectors.mean(0, dtype=np.float64), vectors, order,
    )  # fmt: skip


def compared(before: Any, now: Any, reconstruction: Any = None) -> dict[str, Any]:
    return drift.judged(drift.compare(before, now), reconstruction)


def test_the_distance_is_that_of_its_definition() -> None:
    x, y = around(0, 7, 1), around(1, 5, 2)

    def mean(a: Vectors, b: Vectors) -> float:
        return float(np.mean([[np.linalg.norm(p - q) for q in b] for p in a]))

    found = energy_distance(x, y)
    wanted = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert found.distance == pytest.approx(wanted, rel=1e-4)
    assert found.share == pytest.approx(wanted / (2 * mean(x, y)), rel=1e-4)
    assert energy_distance(x, x).distance == 0.0


def test_equal_distributions_differ_as_often_as_the_level_says() -> None:
    found = [
        energy_distance(around(0, 60, 2 * s), around(0, 60, 2 * s + 1), seed=s) for s in range(200)
    ]
    false = sum(one.differs for one in found)
    assert false <= 8  # 2 of 200 expected; more than 8 once in 4,000
    assert all(one.differs == (one.p_value <= 0.01) for one in found)
    assert np.median([one.p_value for one in found]) == pytest.approx(0.5, abs=0.12)


def test_other_distributions_differ() -> None:
    assert energy_distance(around(0, 60, 1), around(1, 60, 2)).differs
    assert energy_distance(around(0, 400, 1), around(0, 400, 2, spread=0.4)).differs
    one = energy_distance(np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32))
    assert not one.differs  # two images tell nothing


def test_a_sample_stays_when_the_collection_grows() -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 62, 20_000)
    first = set(ids[steady_sample(ids, 1_000)].tolist())
    more = np.concatenate([ids, np.random.default_rng(1).integers(0, 1 << 62, 200)])
    assert len(first & set(more[steady_sample(more, 1_000)].tolist())) > 980
    assert len(first & set(ids[steady_sample(ids, 1_000, seed=1)].tolist())) < 100
    assert steady_sample(ids[:5], 9).tolist() == [0, 1, 2, 3, 4]
    # Sequential ids are no pattern in it.
    assert steady_sample(np.arange(10_000), 1_000).mean() == pytest.approx(5_000, rel=0.1)


def test_an_unchanged_collection_is_unchanged() -> None:
    vectors = around(0, 300, 1)
    found = compared(snapshot(vectors), snapshot(vectors))
    assert (found["verdict"], found["arrivals"]) == ("unchanged", None)
    assert found["distribution"]["distance"] == 0.0
    assert not found["distribution"]["differs"]


def test_more_of_the_same_is_alike() -> None:
    vectors = around(0, 600, 1)
    found = compared(snapshot(vectors[:500]), snapshot(vectors))
    assert (found["verdict"], found["num_added"]) == ("alike", 100)
    assert found["arrivals"]["num_arrived"] == 100
    assert found["arrivals"]["unfamiliar_share"] < 0.06


def test_a_shift_is_a_move() -> None:
    old, new = around(0, 500, 1), around(0, 200, 2)
    new[:, 1] += 0.15  # the same kind, another exposure
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    found = compared(snapshot(old), snapshot(np.concatenate([old, new])))
    assert found["verdict"] == "moved"
    assert found["arrivals"]["differs"]
    assert found["arrivals"]["unfamiliar_share"] < drift.MANY


def test_images_like_none_before_say_that_the_model_may_not_fit() -> None:
    old, new = around(0, 500, 1), around(5, 40, 2)
    found = compared(snapshot(old), snapshot(np.concatenate([old, new])))
    assert found["verdict"] == "unfit"
    assert "may no longer fit" in found["word"]
    assert "of what is new is like nothing that was there" in found["word"]
    assert found["arrivals"]["unfamiliar_share"] > 0.5


def test_changed_bytes_count_as_new() -> None:
    old = around(0, 200, 1)
    other = old.copy()
    other[:50] = around(5, 50, 2)
    found = compared(snapshot(old), snapshot(other, **{f"i{n}": "x" for n in range(50)}))
    assert (found["num_changed"], found["arrivals"]["num_arrived"]) == (50, 50)
    assert found["verdict"] == "unfit"


def test_removal_alone_moves_a_collection() -> None:
    both = np.concatenate([around(0, 300, 1), around(5, 300, 2)])
    found = compared(snapshot(both), snapshot(both[:300]))
    assert (found["verdict"], found["num_removed"], found["arrivals"]) == ("moved", 300, None)


def test_few_images_are_not_judged() -> None:
    vectors = around(0, 19, 1)
    found = compared(snapshot(vectors[:9]), snapshot(vectors))
    assert (found["distribution"], found["arrivals"], found["verdict"]) == (None, None, "alike")
    assert "Too few" in found["word"]


def test_images_that_the_model_redraws_badly_say_so_on_the_first_night() -> None:
    def told(ratio: float | None, num: int = 64) -> dict[str, Any]:
        redrawn = {"error": 0.3, "trained_error": 0.1, "ratio": ratio, "num_images": num}
        return drift.judged({"previous": None}, redrawn)

    assert told(3.0)["verdict"] == "unfit"
    assert "redraws" in told(3.0)["word"]
    assert [told(ratio)["verdict"] for ratio in (None, 1.1)] == ["first", "first"]
    assert told(3.0, num=1)["verdict"] == "first"  # one odd image is no finding


def test_images_far_from_all_before_are_a_finding_even_if_each_resembles_some() -> None:
    # All new images sit on one that was there: familiar each, yet another distribution.
    old = around(0, 500, 1, spread=0.5)
    new = np.repeat(old[:1], 40, 0)
    found = compared(snapshot(old), snapshot(np.concatenate([old, new])))
    assert found["arrivals"]["unfamiliar_share"] == 0
    assert found["arrivals"]["share"] > drift.FAR
    assert found["verdict"] == "unfit"
    assert "little in common" in found["word"]


def test_images_in_no_cluster_are_no_cluster() -> None:
    before, now = snapshot(around(0, 30, 1)), snapshot(around(0, 30, 1))
    before.clusters[:10], now.clusters[:5] = -1, -1
    now.clusters[5:8] = 3
    found = compared(before, now)
    assert [row["cluster"] for row in found["clusters"]] == [0, 3]
    assert (found["new_clusters"], found["gone_clusters"]) == ([3], [])
