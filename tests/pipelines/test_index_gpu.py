"""The GPU branch against a stub of faiss-gpu's interface: no GPU is here, so what runs is our side
of it, and its falling back."""

from typing import Any

import faiss
import numpy as np
import pytest

from pipelines.index import gpu


class Device:
    """An index "on a device": FAISS's own on the CPU, which may answer wrongly."""

    def __init__(self, index: Any, wrong: bool) -> None:
        self._index, self._wrong, self.asked = index, wrong, 0

    def add(self, points: Any) -> None:
        self._index.add(points)

    def search(self, queries: Any, k: int) -> Any:
        self.asked += len(queries)
        scores, found = self._index.search(queries, k)
        return scores, (found + 1) % self._index.ntotal if self._wrong else found

    def reset(self) -> None:
        self._index.reset()


class Quantized:
    """An index that is being trained; what counts is who finds its centroids."""

    d, metric_type, quantizer = 8, faiss.METRIC_INNER_PRODUCT, object()
    clustering_index: Any = None


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    how: dict[str, Any] = {"wrong": False, "fails": False, "made": []}

    def to_all(index: Any) -> Device:
        if how["fails"]:
            raise RuntimeError("CUDA error 2 out of memory")
        how["made"].append(Device(index, how["wrong"]))
        return how["made"][-1]  # type: ignore[no-any-return]

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_all, raising=False)
    return how


def test_without_a_gpu_nothing_is_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    index = Quantized()
    with gpu.clustering(index):
        assert index.clustering_index is None


def test_a_gpu_that_agrees_finds_the_centroids(with_gpu: dict[str, Any]) -> None:
    assert gpu.is_there()
    index = Quantized()
    with gpu.clustering(index):
        assert index.clustering_index is with_gpu["made"][0]
    assert index.clustering_index is None
    assert with_gpu["made"][0].asked == gpu.COMPARED
    assert with_gpu["made"][0]._index.ntotal == 0


@pytest.mark.parametrize("how", ["wrong", "fails"])
def test_a_gpu_that_fails_or_disagrees_is_not_used(
    with_gpu: dict[str, Any], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpu[how] = True
    index = Quantized()
    with gpu.clustering(index):
        assert index.clustering_index is None
    assert "GPU" in caplog.text


def test_an_exact_index_needs_no_clustering(with_gpu: dict[str, Any]) -> None:
    with gpu.clustering(faiss.IndexFlatIP(4)):
        assert with_gpu["made"] == []
    assert np.isfinite(gpu.AGREEMENT)
