"""The Searcher: neighbours, poses, keys, its cache, what it refuses; and the contact sheet."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from eqmodel.errors import Refused
from pipelines.errors import (
    ArtifactError,
    KeyNotFoundError,
    ModelMismatchError,
    NotPublishedError,
)
from pipelines.index import Segment, Sidecar
from pipelines.pictures import Pose, apply_pose, from_pixels
from pipelines.publication import publish
from pipelines.search import Hit, Searcher
from pipelines.sheet import write_sheet
from pipelines.storage import Folder
from tests.pipelines.conftest import QUICK, Made


@pytest.fixture(scope="module")
def published(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A published copy of the embedded store."""
    place = tmp_path_factory.mktemp("published") / "store"
    shutil.copytree(embedded.store.url, place)
    store = Folder(str(place))
    publish(store, embedded.model_id, QUICK)
    return store


@pytest.fixture(scope="module")
def searcher(published: Folder, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return Searcher.open(published.url, tmp_path_factory.mktemp("cache"))


def test_every_turned_copy_finds_its_image_first(searcher: Searcher, embedded: Made) -> None:
    same = {"equal", "turned", next(iter(embedded.images))}
    for key, image in list(embedded.images.items())[:12]:
        copies = [np.rot90(image[:, ::-1] if m else image, k) for m in (0, 1) for k in range(4)]
        for hits in searcher.search(copies, 3):
            assert hits[0].key == key or {hits[0].key, key} <= same
            assert hits[0].score == pytest.approx(1, abs=1e-5)
            assert hits[0].score >= hits[1].score >= hits[2].score


def test_rounding_does_not_decide_which_copy_comes_first(searcher: Searcher) -> None:
    vector = searcher.rows.vectors[searcher.row_of_key("turned")]
    lengths = 1 + np.linspace(-3e-7, 3e-7, 25)
    answers = searcher.search_vectors((vector * lengths[:, None]).astype(np.float32), 3)
    assert {hit.key for hit in answers[0]} >= {"equal", "turned"}
    for hits in answers:
        assert [hit.image_id for hit in hits] == sorted((h.image_id for h in hits), key=int)
        assert {hit.score for hit in hits} == {1.0}


def test_the_pose_turns_the_hit_onto_the_query(searcher: Searcher, embedded: Made) -> None:
    right = 0
    keys = [key for key in embedded.images if key not in ("equal", "turned")][1:31]
    for number, key in enumerate(keys):
        image = embedded.images[key]
        query = np.rot90(image[:, ::-1] if number % 2 else image, number % 4)
        hit = searcher.search([query], 1, align=True)[0][0]
        assert hit.key == key
        assert hit.pose is not None
        pose = Pose(hit.pose["angle_degrees"], hit.pose["mirror"])
        turned = np.asarray(apply_pose(from_pixels(image), pose), np.float32)
        apart = np.abs(turned - np.asarray(from_pixels(query), np.float32)).mean()
        right += bool(apart < 1)
    assert right >= 29


def test_a_hit_is_the_json_of_the_interface(searcher: Searcher, embedded: Made) -> None:
    hit = searcher.search_keys(["turned"], 2)[0][0]
    told = hit.as_dict()
    assert list(told) == ["key", "source", "label", "score", "image_id", "cluster"]
    assert isinstance(told["image_id"], str)
    assert searcher.rows.rows_of(np.array([int(told["image_id"])]))[0] >= 0
    aligned = searcher.search_keys(["turned"], 2, align=True)[0][0].as_dict()
    assert set(aligned["pose"]) == {"angle_degrees", "mirror"}


def test_a_key_reads_the_stored_embedding_and_loads_no_model(published: Folder) -> None:
    cold = Searcher.open(published.url, Path(published.url, "..", "cold"))
    hits = cold.search_keys(["turned"], 80)[0]
    assert len(hits) == 78
    assert len({hit.image_id for hit in hits}) == 78
    assert cold._embedder is None


def test_keys_that_are_not_there_or_not_one_are_told(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyNotFoundError, match="no image with the key 'nobody'"):
        searcher.search_keys(["nobody"])
    assert searcher.search_keys(["b.tar/turned"], 1)[0][0].score == 1.0
    with pytest.raises(KeyNotFoundError):
        searcher.search_keys(["a.tar/turned"])
    base = searcher.rows.base
    twice = base.table["key"].to_pylist()
    twice[:2] = ["same", "same"]
    table = base.table.set_column(base.table.schema.get_field_index("key"), "key", [twice])
    monkeypatch.setattr(searcher, "rows", Sidecar(Segment(table, base.vectors, base.poses)))
    with pytest.raises(KeyNotFoundError, match=r"2 images have the key 'same'.*SOURCE/KEY"):
        searcher.search_keys(["same"])


@pytest.mark.parametrize("k", [0, -1, 10**9])
def test_a_senseless_k_is_refused(searcher: Searcher, k: int) -> None:
    with pytest.raises(Refused, match="from 1 to 10,000"):
        searcher.search_keys(["turned"], k)


def test_no_query_has_no_answer(searcher: Searcher) -> None:
    assert searcher.search([], 3) == []
    assert searcher.search_keys([], 3) == []


def test_another_model_is_refused(searcher: Searcher) -> None:
    other = cast(Any, SimpleNamespace(model_id="f" * 16))
    with pytest.raises(ModelMismatchError, match="model ffffffffffffffff was given"):
        searcher.use(other)


def test_a_store_without_a_publication_says_what_to_do(embedded: Made) -> None:
    with pytest.raises(NotPublishedError, match="make one with 'orbit run"):
        Searcher.open(embedded.store.url)


def test_a_damaged_cache_is_fetched_again_and_a_damaged_store_is_refused(
    published: Folder, tmp_path: Path
) -> None:
    cache, copy = tmp_path / "cache", tmp_path / "store"
    shutil.copytree(published.url, copy)
    Searcher.open(str(copy), cache)
    index = next(cache.rglob("index.faiss"))
    good = index.read_bytes()
    index.write_bytes(good[:-1] + b"\x00")
    assert len(Searcher.open(str(copy), cache).rows) == 78
    assert index.read_bytes() == good
    model = next(copy.glob("models/*/model.safetensors"))
    other = Searcher.open(str(copy), cache)
    assert other.embedder.model_id == model.parent.name
    kept = next(cache.rglob("model.safetensors"))
    kept.write_bytes(b"damaged")
    assert Searcher.open(str(copy), cache).embedder.model_id == model.parent.name
    stored = next(copy.rglob("index.faiss"))
    stored.write_bytes(good[:-1] + b"\x00")
    index.unlink()
    with pytest.raises(ArtifactError, match="sha256"):
        Searcher.open(str(copy), cache)
    assert not index.exists()


def test_a_new_publication_is_taken_up(embedded: Made, tmp_path: Path) -> None:
    import dataclasses

    shutil.copytree(embedded.store.url, tmp_path / "store")
    store = Folder(str(tmp_path / "store"))
    publish(store, embedded.model_id, QUICK)
    first = Searcher.open(store.url, tmp_path / "cache")
    assert first.refresh() is first
    publish(store, embedded.model_id, dataclasses.replace(QUICK, force=True))
    fresh = first.refresh()
    assert fresh.publication.seq == 2
    assert first.search_keys(["turned"], 1) == fresh.search_keys(["turned"], 1)


def test_old_publications_leave_the_cache(published: Folder, tmp_path: Path) -> None:
    searcher = Searcher.open(published.url, tmp_path)
    place = next(tmp_path.glob("*/publications"))
    for number in range(5):
        (place / f"old-{number}").mkdir()
    Searcher.open(published.url, tmp_path)
    left = sorted(path.name for path in place.iterdir())
    assert len(left) == 3
    assert searcher.publication.id in left


def hit_of(image_id: str, pose: dict[str, Any] | None) -> Hit:
    return Hit(f"a/very/long/key/{'x' * 90}", "a.tar", None, 0.5, image_id, 0, pose)


def test_the_sheet_shows_hits_turned_to_match(tmp_path: Path) -> None:
    import io

    pixels = np.zeros((48, 48), np.uint8)
    pixels[:, :24] = 255  # the left half is white
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    hits = [
        hit_of("1", {"angle_degrees": 0.0, "mirror": True}),
        hit_of("1", {"angle_degrees": 90.0, "mirror": False}),
        hit_of("1", None),
        hit_of("2", None),
    ]
    path = tmp_path / "sheet.png"
    write_sheet(path, [(pixels, hits), (None, [])], {"1": buffer.getvalue()})
    with Image.open(path) as sheet:
        shown = np.asarray(sheet.convert("L"), np.float32)
    left = 64 + 264 + 68  # margin, query, gutter
    mirrored, turned, stored = (
        shown[64 : 64 + 208, left + i * 236 : left + i * 236 + 208] for i in range(3)
    )
    assert mirrored[:, 120:200].mean() > 250 > 5 > mirrored[:, 8:88].mean()
    assert turned[120:200].mean() > 250 > 5 > turned[8:88].mean()
    assert stored[:, 8:88].mean() > 250 > 5 > stored[:, 120:200].mean()


def test_the_sheet_draws_no_more_rows_than_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sheet.MAX_PIXELS", 8_000_000)
    rows = [(np.zeros((9, 5), np.uint8), [hit_of("1", None)] * 13)] * 70
    write_sheet(tmp_path / "sheet.png", rows, {"1": b"no picture"})
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 6_000_000 < sheet.height * sheet.width <= 8_500_000


def test_thumbnails_come_from_the_published_version(searcher: Searcher) -> None:
    hits = searcher.search_keys(["turned"], 5)[0]
    found = searcher.thumbnails(hits)
    assert set(found) == {hit.image_id for hit in hits}
    assert searcher.picture_of_key("turned") is not None
