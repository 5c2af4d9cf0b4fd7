"""The main job on a real local Ray, on local files and on S3 over HTTP."""

import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from eqmodel.checkpoint import resolve
from eqmodel.errors import ChannelError
from pipelines.batch import embed_input
from pipelines.config import EmbedSettings
from pipelines.errors import InputError, ListingError, ModelMismatchError
from pipelines.models import model_id_of
from pipelines.storage import Folder
from pipelines.summary import EmbedSummary
from pipelines.table import EmbeddingTable, TableIdentity

pytestmark = pytest.mark.integration
MODEL = "d4-28-grey"
MODEL_ID = model_id_of(resolve(MODEL))
MakePng = Callable[[NDArray[Any]], bytes]
MakeTar = Callable[[dict[str, bytes]], bytes]


@pytest.fixture(scope="module", autouse=True)
def one_ray(s3_server: str) -> Iterator[None]:
    """One local Ray for the module, started after the S3 settings are in the environment."""
    from pipelines.pool import ray_session

    with ray_session("local", 2):
        yield


class World:
    """A bucket whose truth is known, and a store made from it."""

    def __init__(self, url: str, make_png: MakePng, make_tar: MakeTar) -> None:
        self.input, self.store = Folder(f"{url}/in"), Folder(f"{url}/out")
        self._png, self._tar = make_png, make_tar
        if self.input.is_local:
            Path(url).mkdir(parents=True, exist_ok=True)
        self.truth: dict[str, set[str]] = {}
        self.bad: set[tuple[str, str]] = set()

    def png(self, seed: int) -> bytes:
        return self._png(np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8))

    def put_tar(self, name: str, seeds: range, bad: tuple[int, ...] = ()) -> None:
        members = {f"{n}.png": b"broken" if n in bad else self.png(n) for n in seeds}
        self.input.write(name, self._tar(members))
        self.truth[name] = {str(n) for n in seeds}
        self.bad |= {(name, str(n)) for n in bad}

    def embed(self, **settings: Any) -> EmbedSummary:
        chosen = {"commit_every_s": 0.2, "buckets": 4, "workers": "1"} | settings
        return embed_input(EmbedSettings(self.input.url, MODEL, self.store.url, **chosen))

    def check(self) -> None:
        """The oracle: the multiset of (source, key), an embedding for every good image."""
        table = EmbeddingTable.open(self.store, MODEL_ID)
        assert table is not None
        rows = table.read(["source", "key", "embedding", "error"]).to_pylist()
        found = Counter((row["source"], row["key"]) for row in rows)
        assert found == Counter((s, k) for s, keys in self.truth.items() for k in keys)
        for row in rows:
            good = (row["source"], row["key"]) not in self.bad
            assert (row["embedding"] is not None) == good
            assert (row["error"] is None) == good
        counts = table.counts()
        assert counts.num_seen == counts.num_embedded + counts.num_rejected == len(rows)

    def objects(self) -> list[str]:
        return [entry.path for entry in self.store.entries()]


@pytest.fixture
def world(tmp_path: Path, make_png: MakePng, make_tar: MakeTar) -> World:
    return World(str(tmp_path / "world"), make_png, make_tar)


def test_night_after_night_on_every_storage(
    folder_url: str, make_png: MakePng, make_tar: MakeTar
) -> None:
    world = World(folder_url, make_png, make_tar)
    for number in range(6):
        world.put_tar(f"{number}.tar", range(40), bad=(7,) if number == 2 else ())
    first = world.embed(workers=None)
    world.check()
    assert first.failure is None
    assert (first.num_added, first.num_removed, first.num_encoded) == (240, 0, 239)
    assert (first.counts.num_seen, first.counts.num_rejected) == (240, 1)
    assert len({receipt.worker for receipt in first.landed}) == 2
    assert len({receipt.pid for receipt in first.landed}) == 2
    document = first.as_dict()
    assert document["images_per_s"] > 0
    assert 0 < document["efficiency_total"] <= document["efficiency"] <= 1.5
    assert document["limit"] in ("cpu", "network")
    assert document["elapsed_s"] >= document["steady_s"] + document["startup_s"]
    assert {f"models/{MODEL_ID}/model.json", f"models/{MODEL_ID}/model.safetensors"} <= set(
        world.objects()
    )

    before = world.objects()
    second = world.embed()
    assert second.failure is None
    assert (second.num_added, second.num_removed, second.num_encoded) == (0, 0, 0)
    assert second.as_dict()["images_per_s"] is None
    assert second.table_version == first.table_version
    assert world.objects() == before

    world.put_tar("6.tar", range(5))
    world.put_tar("1.tar", range(10, 50))
    world.input.delete("0.tar")
    del world.truth["0.tar"]
    plan = world.embed(dry_run=True)
    assert plan.as_dict()["plan"] == {
        "num_added": 1, "num_changed": 1, "num_vanished": 1, "num_unchanged": 4,
        "num_bytes": plan.planned.num_bytes,
    }  # fmt: skip
    assert world.objects() == before
    third = world.embed()
    world.check()
    assert {receipt.source for receipt in third.landed} == {"1.tar", "6.tar"}
    assert third.num_added == 45
    assert third.num_encoded == 5 + 10
    assert third.num_removed == 80

    world.input.delete("5.tar")
    del world.truth["5.tar"]
    fourth = world.embed()
    world.check()
    assert (fourth.num_added, fourth.num_removed) == (0, 40)


def test_folders_and_parquet_and_a_single_object(world: World) -> None:
    for n in range(12):
        world.input.write(f"birds/{n}.png", world.png(n))
    table = pa.table({
        "picture": [world.png(n) for n in range(5)], "name": [f"p{n}" for n in range(5)],
        "kind": ["a", "b", "a", "b", None],
    })  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    world.input.write("more.parquet", buffer.getvalue())
    columns = {"image_column": "picture", "key_column": "name", "label_column": "kind"}
    first = world.embed(**columns)
    assert first.failure is None
    rows = {r["key"]: r for r in first_rows(world, ["key", "source", "label", "item_etag"])}
    assert len(rows) == 17
    assert rows["p1"]["label"] == "b"
    assert rows["birds/3.png"]["label"] == "birds"
    assert rows["birds/3.png"]["item_etag"]
    assert rows["birds/3.png"]["source"].startswith("folder/")
    world.input.write("birds/3.png", world.png(100))
    world.input.write("birds/99.png", world.png(99))
    world.input.delete("birds/0.png")
    second = world.embed(**columns)
    assert second.num_encoded == 2
    assert second.counts.num_seen == 17
    alone = embed_input(
        EmbedSettings(f"{world.input.url}/more.parquet", MODEL, f"{world.store.url}2", **columns)
    )
    assert (alone.failure, alone.counts.num_seen) == (None, 5)


def first_rows(world: World, columns: list[str]) -> list[dict[str, Any]]:
    table = EmbeddingTable.open(world.store, MODEL_ID)
    assert table is not None
    rows: list[dict[str, Any]] = table.read(columns).to_pylist()
    return rows


def test_limit_leaves_the_rest_for_the_next_run(world: World) -> None:
    for number in range(4):
        world.put_tar(f"{number}.tar", range(4))
    assert world.embed(limit=3).num_added == 12
    assert world.embed(limit=3).num_added == 4
    world.check()


def test_a_listing_that_came_back_short_deletes_nothing(world: World) -> None:
    for number in range(4):
        world.put_tar(f"{number}.tar", range(3))
    world.embed()
    for number in range(2):
        world.input.delete(f"{number}.tar")
    with pytest.raises(ListingError, match="50% of what the store knows"):
        world.embed()
    world.check()
    for number in (2, 3):
        world.input.delete(f"{number}.tar")
    with pytest.raises(ListingError, match="100% of what"):
        world.embed()
    world.check()
    emptied = world.embed(allow_vanish=True)
    assert (emptied.num_removed, emptied.counts.num_seen) == (12, 0)


def test_what_does_not_fit_is_refused_and_nothing_is_created(world: World) -> None:
    world.put_tar("a.tar", range(2))
    other = world.store.child("of-another-model")
    EmbeddingTable.create(other, TableIdentity("f" * 16, world.input.url, 4, 2, "d4"))
    other.write(f"models/{'f' * 16}/model.json", b"{}")
    before = world.objects()
    with pytest.raises(ModelMismatchError, match="made with model ffffffffffffffff"):
        embed_input(EmbedSettings(world.input.url, MODEL, other.url))
    assert world.objects() == before

    empty = Folder(world.input.url + "-empty")
    empty.write("notes.txt", b"no image here")
    fresh = Path(world.store.url + "-fresh")
    with pytest.raises(InputError, match="no tar, Parquet or image file"):
        embed_input(EmbedSettings(empty.url, MODEL, str(fresh)))
    empty.write("a.tar", world._tar({"readme.txt": b"no image"}))
    with pytest.raises(InputError, match="no image in its 1 shards"):
        embed_input(EmbedSettings(empty.url, MODEL, str(fresh)))
    with pytest.raises(InputError, match="is not there"):
        embed_input(EmbedSettings(world.input.url + "-missing", MODEL, str(fresh)))
    assert not fresh.exists()


def test_another_input_of_a_store_is_refused(world: World) -> None:
    world.put_tar("a.tar", range(2))
    world.embed()
    before = world.objects()
    second = Folder(world.input.url + "-2")
    second.write("a.tar", world.input.read("a.tar"))
    with pytest.raises(InputError, match="the store was made from"):
        embed_input(EmbedSettings(second.url, MODEL, world.store.url))
    assert world.objects() == before


def test_a_wrong_channel_count_is_refused_before_anything_is_created(world: World) -> None:
    import tifffile

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    tifffile.imwrite(buffer, pixels, photometric="minisblack", planarconfig="separate")
    world.input.write("a.tif", buffer.getvalue())
    with pytest.raises(ChannelError, match="channel"):
        world.embed()
    assert world.objects() == []


def test_too_many_rejects_fail_the_run_and_keep_what_is_good(world: World) -> None:
    world.put_tar("a.tar", range(100), bad=tuple(range(10)))
    summary = world.embed()
    assert summary.failure is not None
    assert summary.failure.exit_code == 1
    assert "10 images were rejected in 100 rows" in str(summary.failure)
    world.check()
    assert world.embed().failure is None


def test_too_many_damaged_shards_fail_the_run_too(world: World) -> None:
    """A row ``!damaged`` counts like a rejected one: 6 of 106 are too many, 5 of 105 are not."""
    world.put_tar("a.tar", range(100))
    for number in range(5):
        world.input.write(f"cut-{number}.tar", b"")
    assert world.embed(workers="2").failure is None
    world.store = Folder(f"{world.store.url}-2")
    world.input.write("cut-5.tar", b"")
    summary = world.embed(workers="2")
    assert summary.failure is not None
    assert summary.failure.exit_code == 1
    assert "6 damaged shards told in 106 rows" in str(summary.failure)
    world.check()
    assert world.embed().failure is None


def test_damaged_shards_are_known_and_not_tried_again(world: World) -> None:
    world.put_tar("a.tar", range(20))
    world.put_tar("b.tar", range(20))
    whole = world.input.read("b.tar")
    world.input.write("b.tar", whole[: len(whole) // 2 // 512 * 512])
    world.input.write("c.tar", b"")
    world.input.write("d.tar", world._tar({"readme.txt": b"no image"}))
    first = world.embed()
    assert first.failure is None
    assert first.counts.num_damaged_shards == 2
    assert 20 < first.counts.num_seen < 40
    second = world.embed()
    assert second.planned.nothing
    assert second.counts == first.counts


def test_an_input_replaced_during_the_run_is_planned_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import batch

    for number in range(3):
        world.put_tar(f"{number}.tar", range(10))
    open_table = batch.open_table

    def replace_after_the_plan(job: batch.Job) -> EmbeddingTable:
        table = open_table(job)
        world.put_tar("1.tar", range(5, 25))
        return table

    monkeypatch.setattr(batch, "open_table", replace_after_the_plan)
    summary = world.embed()
    assert summary.failure is None
    world.check()


def test_nothing_to_do_starts_neither_ray_nor_torch(world: World) -> None:
    world.put_tar("a.tar", range(3))
    world.embed()
    code = f"""
import sys, time
began = time.monotonic()
from pipelines.batch import embed_input
from pipelines.config import EmbedSettings
summary = embed_input(EmbedSettings({world.input.url!r}, {MODEL!r}, {world.store.url!r}))
assert summary.planned.nothing and summary.counts.num_seen == 3
assert "ray" not in sys.modules and "torch" not in sys.modules, "imported"
assert time.monotonic() - began < 10
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
