"""The main job over Google's and Azure's storage, as far as their emulators go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import open_store
from pipelines.errors import ObjectChanged
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.shards import ReadOptions, Sample, list_shards, read_shard
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable
from tests.pipelines.conftest import QUICK, embed_here


@pytest.fixture
def shard(make_png: Callable[..., bytes], make_tar: Callable[..., bytes]) -> bytes:
    noise = np.random.default_rng(7).integers(0, 255, (12, 28, 28), np.uint8)
    return make_tar({f"{place:02d}.png": make_png(image) for place, image in enumerate(noise)})


def test_google_as_input(gs_url: str, shard: bytes) -> None:
    """The emulator lacks the listing that a Delta table asks for: shards are listed and read."""
    folder = Folder(f"{gs_url}/day")
    folder.write("a.tar", shard)
    (found,) = list_shards(folder, buckets=16)
    assert (found.source, found.kind, found.size) == ("a.tar", "tar", len(shard))
    samples = list(read_shard(folder, found, ReadOptions()))
    assert [sample.key for sample in samples if isinstance(sample, Sample)] == [
        f"{place:02d}" for place in range(12)
    ]
    folder.write("a.tar", shard + b"\0" * 512)
    with pytest.raises(ObjectChanged):
        list(read_shard(folder, found, ReadOptions()))


def test_azure_as_input_and_store(
    az_url: str, shard: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage of the main job; Ray, which knows nothing of storage, is left out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Folder(az_url).write("day/a.tar", shard)
    store, model_id = embed_here(f"{az_url}/day", f"{az_url}/store")
    table = EmbeddingTable.open(store, model_id)
    assert table is not None
    assert table.counts().num_embedded == 12
    embed_here(f"{az_url}/day", f"{az_url}/store")  # nothing is new
    again = EmbeddingTable.open(store, model_id)
    assert again is not None
    assert again.version == table.version
    row = publish(store, model_id, QUICK)
    assert open_store(store.url).status()["publication"]["id"] == row.id
    (hits,) = Searcher.open(store.url).search_keys(["03"], 1)
    assert hits[0].key == "03"
