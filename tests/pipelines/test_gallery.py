"""Thumbnails: of a shard's Parquet file only what one of them needs is read, and read once."""

import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.gallery import Gallery
from pipelines.pictures import kind_of
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.shard_file import Row, ShardFile
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, RowGroups
from pipelines.thumbnails import encode_thumbnail
from tests.pipelines.conftest import QUICK, MakeTar, embed_here, sample_members

NUM, GROUP = 40, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_tar: MakeTar) -> Folder:
    """One shard of 40 images in row groups of 16."""
    place = tmp_path_factory.mktemp("gallery")
    (place / "input").mkdir()
    (place / "input" / "a.tar").write_bytes(make_tar(sample_members(NUM)))
    whole = ShardFile.add

    def add(self: ShardFile, rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), GROUP):
            whole(self, rows[start : start + GROUP])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.shard_file.ROWS_PER_GROUP", GROUP)
        patch.setattr(ShardFile, "add", add)
        made, model_id = embed_here(str(place / "input"), str(place / "store"))
    publish(made, model_id, QUICK)
    return made


@pytest.fixture
def searcher(store: Folder, tmp_path: Path) -> Searcher:
    return Searcher.open(store.url, tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(group, column) of every read."""
    seen: list[tuple[int, str]] = []
    whole = RowGroups.read

    def read(self: RowGroups, group: int, column: str) -> pa.ChunkedArray:
        seen.append((group, column))
        return whole(self, group, column)

    monkeypatch.setattr(RowGroups, "read", read)
    return seen


def test_one_thumbnail_reads_the_names_and_one_group(
    searcher: Searcher, reads: list[tuple[int, str]]
) -> None:
    keys = sorted(searcher.rows.columns(np.arange(NUM), ["key"])["key"].to_pylist())
    first, last = (searcher.row_of_key(key) for key in (keys[0], keys[-1]))
    reads.clear()
    assert searcher.gallery.stored(last)
    assert reads == [(0, "key"), (1, "key"), (2, "key"), (2, "thumbnail")]
    assert searcher.gallery.stored(last)
    assert searcher.gallery.stored(first)
    assert reads[4:] == [(0, "thumbnail")]


def test_it_is_the_thumbnail_of_the_table(searcher: Searcher, store: Folder) -> None:
    live = searcher.publication
    table = EmbeddingTable.open(store, live.model_id, live.table_version)
    assert table is not None
    stored = table.read(["image_id", "thumbnail"]).to_pydict()
    expected = dict(zip(stored["image_id"], stored["thumbnail"], strict=True))
    found = {
        int(searcher.rows.ids_of(np.array([number]))[0]): searcher.gallery.stored(number)
        for number in range(NUM)
    }
    assert found == expected
    assert len(set(found.values())) == NUM


def test_many_who_ask_for_one_group_read_it_once(
    searcher: Searcher, reads: list[tuple[int, str]]
) -> None:
    begin = threading.Barrier(8)

    def ask(row: int) -> bytes | None:
        begin.wait()
        return searcher.gallery.stored(row)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert len(reads) == len(set(reads)) <= 6


def test_what_is_held_is_bounded(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.gallery.HELD_BYTES", 1)
    gallery: Gallery = searcher.gallery
    pictures = [gallery.stored(row) for row in range(NUM)]
    assert len(gallery._held) == 1
    assert [gallery.stored(row) for row in range(NUM)] == pictures


def test_the_media_type_of_a_thumbnail_is_what_it_is() -> None:
    small, large = np.zeros((28, 28), np.uint8), np.zeros((99, 99, 3), np.uint8)
    for pixels, kind in ((small, "webp"), (large, "jpeg")):
        data = encode_thumbnail(pixels)
        assert kind_of(data) == f"image/{kind}"
        assert Image.open(io.BytesIO(data)).format == kind.upper()
    assert kind_of(b"\x89PNG") == "image/png"
