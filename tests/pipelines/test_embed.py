"""One shard in, one Parquet file and a receipt out; with the shipped model, without Ray."""

import hashlib
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from eqmodel import Embedder
from eqmodel.checkpoint import resolve
from pipelines import calibrate
from pipelines.calibrate import BUDGET_S, Phase, quartiles
from pipelines.embed import ShardEmbedder, ShardWork, WorkerSettings
from pipelines.errors import ModelMismatchError, ObjectChanged, ShardFileError
from pipelines.models import model_id_of
from pipelines.pacing import Phases, Seconds, Turn
from pipelines.shard_file import ShardFile, image_id
from pipelines.shards import Shard, list_shards
from pipelines.storage import Folder
from pipelines.table import SCHEMA, KnownFile, Receipt, shard_folder
from pipelines.warm_up import Batching, at_most

MODEL = "d4-28-grey"
MakePng = Callable[[NDArray[Any]], bytes]
MakeTar = Callable[[dict[str, bytes]], bytes]


def picture(seed: int, shape: tuple[int, ...] = (28, 28)) -> NDArray[np.uint8]:
    """Blobs that the model can tell apart."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7), np.uint8)
    image = Image.fromarray(noise).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> ShardEmbedder:
    """One loaded worker for the whole module; each test gives it its own folders."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("worker")
    folder = resolve(MODEL)
    return ShardEmbedder(
        WorkerSettings(str(place), str(place / "store"), model_id_of(folder), str(folder)), "w7"
    )


class Bench:
    """INPUT and STORE of one test, and the worker on them."""

    def __init__(self, worker: ShardEmbedder, place: Path) -> None:
        self.place, self.worker = place, worker
        place.joinpath("in").mkdir()
        self.settings = replace(
            worker.settings,
            input_url=str(place / "in"),
            store_url=str(place / "store"),
            thumbnail_share=1.0,
        )
        worker.settings = self.settings
        worker.input = Folder(self.settings.input_url)
        worker.table = Folder(self.settings.store_url).child("embeddings/m")

    def put(self, name: str, data: bytes) -> None:
        path = self.place / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def shard(self, buckets: int = 1) -> Shard:
        (shard,) = list_shards(self.worker.input, buckets=buckets)
        return shard

    def embed(self, previous: Receipt | None = None, **work: Any) -> Receipt:
        known = None
        if previous is not None:
            names = KnownFile.__dataclass_fields__
            known = KnownFile(**{name: getattr(previous, name) for name in names})
        work = {"run": "r1", "attempt": 1, "previous": known} | work
        return self.worker.embed(ShardWork(self.shard(), **work))

    def rows(self, receipt: Receipt) -> dict[str, dict[str, Any]]:
        table = pq.read_table(Path(self.worker.table.url, receipt.path))
        assert table.schema.equals(SCHEMA)
        return {row["key"]: row for row in table.to_pylist()}


@pytest.fixture
def bench(worker: ShardEmbedder, tmp_path: Path) -> Bench:
    return Bench(worker, tmp_path)


def test_every_column_of_a_tar_shard(bench: Bench, make_png: MakePng, make_tar: MakeTar) -> None:
    data = {f"a/{n}.png": make_png(picture(n, (28 + n, 28))) for n in range(5)}
    tar = make_tar(data | {"a/4.cls": b"7"})
    bench.put("x.tar", tar)
    receipt = bench.embed()
    rows = bench.rows(receipt)
    assert list(rows) == [f"a/{n}" for n in range(5)]
    embedder = bench.worker.embedder
    for n, row in enumerate(rows.values()):
        assert tar[row["offset"] : row["offset"] + row["length"]] == data[f"a/{n}.png"]
        assert row["digest"] == hashlib.sha256(data[f"a/{n}.png"]).hexdigest()
        assert (row["width"], row["height"]) == (28, 28 + n)
        assert row["image_id"] == image_id("x.tar", f"a/{n}")
        assert (row["source"], row["source_etag"]) == ("x.tar", bench.shard().etag)
        assert row["item_etag"] is None
        assert row["error"] is None
        expected = embedder.embed([picture(n, (28 + n, 28))])[0]
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)
        assert len(row["pose_code"]) == embedder.group.order * 8
        thumbnail = Image.open(io.BytesIO(row["thumbnail"]))
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (28, 28 + n))
        assert len(row["thumbnail"]) <= 1536
    assert [row["label"] for row in rows.values()] == [None, None, None, None, "7"]


def test_what_is_read_is_progress_though_it_holds_no_image(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    """Else a long shard of few images is held to be stuck."""
    bench.worker.input.on_read = bench.worker._step
    bench.put("x.tar", make_tar({"film.mp4": bytes(30 << 20), "a.png": make_png(picture(1))}))
    before = bench.worker.progress
    assert bench.embed().num_embedded == 1
    assert bench.worker.progress - before > 30


def test_the_receipt_vouches_for_the_file_on_disk(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    bench.put("x.tar", make_tar({"a.png": make_png(picture(1)), "b.png": b"text"}))
    receipt = bench.embed(run="run", attempt=3)
    ended = time.process_time()
    content = Path(bench.worker.table.url, receipt.path).read_bytes()
    assert receipt.sha256 == hashlib.sha256(content).hexdigest()
    assert receipt.size == len(content)
    assert receipt.path == f"{shard_folder('x.tar')}/run-3-2-{receipt.sha256}.parquet"
    assert (receipt.num_rows, receipt.num_embedded, receipt.num_rejected) == (2, 1, 1)
    assert (receipt.num_encoded, receipt.damaged, receipt.worker) == (1, False, "w7")
    assert {"fetch", "decode", "encode", "write", "upload"} <= receipt.seconds.keys()
    phases = {name: spent for name, spent in receipt.core_s.items() if name != "whole"}
    assert phases.keys() == receipt.seconds.keys()
    assert 0 < sum(phases.values()) < receipt.core_s["whole"]
    assert all(spent <= receipt.seconds[name] + 1e-3 for name, spent in phases.items())
    second = bench.embed(run="again").core_s["whole"]  # what the first one told is not told again
    assert receipt.core_s["whole"] > 0.01
    assert second < time.process_time() - ended + 0.005


def test_image_ids_are_63_bits_of_blake2b_over_source_key_and_occurrence() -> None:
    digest = hashlib.blake2b(b"s/1.tar\0key\x000").digest()
    assert image_id("s/1.tar", "key") == int.from_bytes(digest, "big") >> (512 - 63)


def test_a_broken_image_is_a_row_with_its_reason(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    good = make_png(picture(1, (64, 64)))
    bench.put("x.tar", make_tar({
        "good.png": good, "empty.png": b"", "text.png": b"hello", "cut.png": good[:300],
    }))  # fmt: skip
    receipt = bench.embed()
    rows = bench.rows(receipt)
    assert rows["good"]["embedding"] is not None
    for key, reason in (("empty", "0 bytes"), ("text", "not an image"), ("cut", "damaged")):
        assert reason in rows[key]["error"]
        assert rows[key]["embedding"] is rows[key]["pose_code"] is rows[key]["thumbnail"] is None
        assert rows[key]["digest"] is not None
    assert (receipt.num_embedded, receipt.num_rejected, receipt.num_encoded) == (1, 3, 1)


def test_images_the_model_cannot_take_are_rejected_and_cost_no_other_its_row(
    bench: Bench, make_tar: MakeTar, make_png: MakePng, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = bench.worker.embedder.preprocess

    def picky(images: list[NDArray[Any]]) -> torch.Tensor:
        if any(image.shape == (1, 1) for image in images):
            raise ValueError("too\nsmall")
        return preprocess(images)

    monkeypatch.setattr(bench.worker.embedder, "preprocess", picky)
    bench.put("x.tar", make_tar({
        "a.png": make_png(picture(1)), "b.png": make_png(picture(1)[:1, :1].copy()),
        "c.png": make_png(picture(2)),
    }))  # fmt: skip
    rows = bench.rows(bench.embed())
    assert rows["b"]["error"] == "too small"
    assert rows["a"]["embedding"] is not None
    np.testing.assert_allclose(
        rows["c"]["embedding"], bench.worker.embedder.embed([picture(2)])[0], atol=1e-5
    )


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "finite"), (np.inf, "finite"), (0, "zero")])
def test_an_embedding_that_is_no_direction_is_rejected(
    bench: Bench, make_png: MakePng, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch,
    value: float, reason: str,
) -> None:  # fmt: skip
    encode = bench.worker.embedder.encode

    def broken(batch: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        embeddings, poses = encode(batch)
        embeddings[1] = value
        return embeddings, poses

    monkeypatch.setattr(bench.worker.embedder, "encode", broken)
    bench.put("x.tar", make_tar({f"{n}.png": make_png(picture(n)) for n in range(3)}))
    receipt = bench.embed()
    rows = bench.rows(receipt)
    assert reason in rows["1"]["error"]
    assert rows["1"]["embedding"] is rows["1"]["pose_code"] is None
    assert rows["0"]["embedding"] is not None
    assert (receipt.num_embedded, receipt.num_rejected, receipt.num_encoded) == (2, 1, 3)


def test_an_empty_shard_and_a_damaged_one_leave_marks_that_are_no_images(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    bench.put("x.tar", make_tar({"readme.md": b"nothing to see"}))
    receipt = bench.embed()
    assert list(bench.rows(receipt)) == ["!empty"]
    assert (receipt.num_rows, receipt.num_embedded, receipt.num_rejected) == (1, 0, 0)
    assert not receipt.damaged
    whole = make_tar({f"{n}.png": make_png(picture(n)) for n in range(4)})
    bench.put("x.tar", whole[: len(whole) // 2 // 512 * 512])
    receipt = bench.embed()
    rows = bench.rows(receipt)
    assert "!damaged" in rows
    assert rows["!damaged"]["error"].startswith("at ")
    assert rows["!damaged"]["digest"] is None
    assert receipt.damaged
    assert receipt.num_embedded == len(rows) - 1


def test_a_changed_bucket_fetches_and_encodes_only_what_is_new(
    bench: Bench, make_png: MakePng, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        bench.put(f"in/{n}.png", make_png(picture(n)))
    bench.put("bad.png", b"x")
    first = bench.embed()
    before = bench.rows(first)
    assert {row["label"] for row in before.values()} == {"in", None}
    bench.put("in/2.png", make_png(picture(20)))
    bench.put("in/9.png", make_png(picture(9)))
    bench.place.joinpath("in/in/4.png").unlink()
    fetched: list[str] = []
    read = Folder.read

    def spy(self: Folder, path: str, *arguments: Any, **options: Any) -> bytes:
        fetched.append(path)
        return read(self, path, *arguments, **options)

    monkeypatch.setattr(Folder, "read", spy)
    second = bench.embed(first, attempt=2)
    after = bench.rows(second)
    assert sorted(fetched) == ["in/2.png", "in/9.png"]
    assert second.num_encoded == 2
    assert sorted(after) == sorted([*before.keys() - {"in/4.png"}, "in/9.png"])
    changed = ("source_etag",)
    for key in after.keys() - {"in/2.png", "in/9.png"}:
        for column in set(SCHEMA.names) - set(changed):
            assert after[key][column] == before[key][column], column
        assert after[key]["source_etag"] == second.etag != first.etag
    assert after["in/2.png"]["digest"] != before["in/2.png"]["digest"]
    assert after["in/2.png"]["image_id"] == before["in/2.png"]["image_id"]


def test_a_replaced_tar_carries_rows_over_by_digest(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    images = {f"{n}.png": make_png(picture(n)) for n in range(5)}
    bench.put("x.tar", make_tar(images | {"bad.png": b"x"}))
    first = bench.embed()
    renamed = {"new.png": make_png(picture(50)), "bad.png": b"x", "other.png": images["3.png"]}
    bench.put("x.tar", make_tar(renamed | {"other.cls": b"5"}))
    second = bench.embed(first, attempt=2)
    rows, before = bench.rows(second), bench.rows(first)
    assert second.num_encoded == 1
    assert (second.num_embedded, second.num_rejected) == (2, 1)
    assert rows["other"]["embedding"] == before["3"]["embedding"]
    assert rows["other"]["thumbnail"] == before["3"]["thumbnail"]
    assert rows["other"]["label"] == "5"
    assert rows["other"]["image_id"] == image_id("x.tar", "other")
    assert rows["bad"]["error"] == before["bad"]["error"]


def test_thumbnails_are_kept_for_the_share_of_ids_that_is_asked_for(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    bench.put("x.tar", make_tar({f"{n}.png": make_png(picture(n)) for n in range(40)}))
    bench.worker.settings = replace(bench.settings, thumbnail_share=0.5)
    rows = bench.rows(bench.embed())
    kept = {key for key, row in rows.items() if row["thumbnail"] is not None}
    assert kept == {key for key, row in rows.items() if row["image_id"] < 2**62}
    assert 5 < len(kept) < 35
    bench.worker.settings = replace(bench.settings, thumbnail_share=0.0)
    assert all(row["thumbnail"] is None for row in bench.rows(bench.embed()).values())


def test_neither_batch_size_nor_company_changes_an_embedding(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    bench.put("x.tar", make_tar({f"{n}.png": make_png(picture(n)) for n in range(70)}))
    with ThreadPoolExecutor(2) as threads:
        large, small = threads.map(
            lambda size: bench.embed(batch_size=size, attempt=size), (256, 3)
        )
    one, other = bench.rows(large), bench.rows(small)
    assert list(one) == list(other)
    for key in one:
        np.testing.assert_allclose(one[key]["embedding"], other[key]["embedding"], atol=1e-5)
    assert large.num_encoded == small.num_encoded == 70


def test_jpeg_decoded_to_a_smaller_size_when_asked(bench: Bench, make_tar: MakeTar) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(5, (300, 260))).save(buffer, "JPEG", quality=95)
    bench.put("x.tar", make_tar({"a.jpg": buffer.getvalue()}))
    exact = bench.rows(bench.embed())["a"]
    bench.worker.settings = replace(bench.settings, reduced_jpeg=True)
    reduced = bench.rows(bench.embed(attempt=2))["a"]
    assert (reduced["width"], reduced["height"]) == (260, 300)
    apart = np.linalg.norm(np.subtract(exact["embedding"], reduced["embedding"]))
    assert 1e-5 < apart < 0.1
    assert bench.worker.calibrate() is not None


def test_two_shards_at_once_end_in_their_turn(
    bench: Bench, make_png: MakePng, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is begun while the first is encoded, and encoded after it."""
    bench.put("x.tar", make_tar({f"{n}.png": make_png(picture(n)) for n in range(300)}))
    order, encode = list[int](), bench.worker.embedder.encode

    def noted(batch: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        order.append(len(batch))
        return encode(batch)

    monkeypatch.setattr(bench.worker.embedder, "encode", noted)
    monkeypatch.setattr(bench.worker, "batching", Batching(256, in_lanes=True))
    with ThreadPoolExecutor(2) as threads:
        found = list(
            threads.map(lambda size: bench.embed(batch_size=size, attempt=size), (150, 30))
        )
    assert [receipt.num_encoded for receipt in found] == [300, 300]
    sizes = [size < 100 for size in order]
    assert sizes in (sorted(sizes), sorted(sizes, reverse=True))


def test_an_object_that_changed_is_never_mixed_in(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    bench.put("x.tar", make_tar({"a.png": make_png(picture(1))}))
    planned = bench.shard()
    bench.put("x.tar", make_tar({"a.png": make_png(picture(2)), "b.png": make_png(picture(3))}))
    with pytest.raises(ObjectChanged):
        bench.worker.embed(ShardWork(planned, "r1", 1))
    assert not Path(bench.worker.table.url).exists()


def test_a_file_that_does_not_read_back_is_not_vouched_for(tmp_path: Path) -> None:
    with ShardFile(tmp_path / "x.parquet", "s", "e") as file:
        file.mark("!empty")
        file.num_rows += 1
        with pytest.raises(ShardFileError, match="1 rows read back, 2 written"):
            file.finish()


def test_a_worker_refuses_another_model_than_the_planned_one(tmp_path: Path) -> None:
    settings = WorkerSettings(str(tmp_path), str(tmp_path), "0" * 16, str(resolve(MODEL)))
    with pytest.raises(ModelMismatchError, match="0000000000000000 expected"):
        ShardEmbedder(settings)


def test_a_worker_without_the_driver_s_folder_takes_the_store_s_copy(
    tmp_path: Path, worker: ShardEmbedder
) -> None:
    from pipelines.models import keep_copy

    model_id = worker.settings.model_id
    keep_copy(Folder(str(tmp_path)), model_id, resolve(MODEL))
    elsewhere = WorkerSettings(str(tmp_path), str(tmp_path), model_id, "/not/on/this/machine")
    made = ShardEmbedder(elsewhere)
    assert made.embedder.model_id == model_id
    assert made.input.on_read is not None


FIRST_SHARD = """
import sys
from pipelines.embed import ShardEmbedder, ShardWork, WorkerSettings
from pipelines.shards import list_shards

place, model_id, folder = sys.argv[1:]
worker = ShardEmbedder(WorkerSettings(f"{place}/in", f"{place}/store", model_id, folder))
(shard,) = list_shards(worker.input, buckets=1)
before = set(sys.modules)
assert worker.embed(ShardWork(shard, "r1", 1)).num_embedded == 20
print("late:", *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_a_loaded_worker_has_no_library_left_to_import(
    make_png: MakePng, make_tar: MakeTar, tmp_path: Path
) -> None:
    tmp_path.joinpath("in").mkdir()
    images = {f"{i}.png": make_png(picture(i)) for i in range(20)}
    tmp_path.joinpath("in", "a.tar").write_bytes(make_tar(images))
    words = [str(tmp_path), model_id_of(resolve(MODEL)), str(resolve(MODEL))]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_SHARD, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout == "late:\n"


def test_calibration_measures_each_phase_on_images_of_the_run(
    bench: Bench, make_png: MakePng, make_tar: MakeTar
) -> None:
    bench.worker._first, bench.worker._kept = None, []
    assert bench.worker.calibrate() is None
    bench.put("x.tar", make_tar({f"{n}.png": make_png(picture(n)) for n in range(20)}))
    bench.embed()
    rates = bench.worker.calibrate()
    assert rates is not None
    assert rates.num_images == 20
    assert 0 < rates.decode_s < rates.encode_s
    assert rates.preprocess_s > 0
    assert rates.fetch_bytes_per_s is not None
    assert not rates.encode_on_gpu
    seen = bench.worker._core_s
    assert bench.worker._num_encoded >= 20
    seen.update(dict.fromkeys(("decode", "preprocess", "encode"), 1e-9))
    bounded = bench.worker.calibrate()
    assert bounded is not None
    assert max(bounded.decode_s, bounded.preprocess_s, bounded.encode_s) < 1e-9


def test_calibration_takes_no_longer_than_the_run_did(
    bench: Bench, make_png: MakePng, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def noted(phases: Sequence[Phase], budget_s: float) -> list[float]:
        given.append(budget_s)
        return quartiles(phases, budget_s)

    monkeypatch.setattr(calibrate, "quartiles", noted)
    bench.put("x.tar", make_tar({"a.png": make_png(picture(1))}))
    bench.embed()
    for spent in (0.1, 60.0):
        monkeypatch.setattr(bench.worker, "_core_s", Seconds(encode=spent))
        bench.worker.calibrate()
    assert given == [0.1, BUDGET_S]


def test_model_input_of_one_batch_is_bounded(worker: ShardEmbedder) -> None:
    class Large:
        channels, image_size = 3, 1024

    assert at_most(Large(), 256) == 5  # type: ignore[arg-type]
    assert at_most(worker.embedder, 100) == 100


def test_the_oldest_ticket_has_the_first_call() -> None:
    turn, order = Turn(), []
    first, second, third = turn.ticket(), turn.ticket(), turn.ticket()

    def take(ticket: int) -> None:
        with turn.hold(ticket):
            order.append(ticket)

    with ThreadPoolExecutor(2) as threads:
        with turn.hold(second):
            waiting = [threads.submit(take, third), threads.submit(take, first)]
            while len(turn._waiting) < 2:
                pass
        for future in waiting:
            future.result()
    assert order == [first, third]


CRASH = """
import os, signal
import pipelines.decode as module
decode = module.decode
def crash(data):
    if b"CRASH" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"KILLED" in data and not os.path.exists({mark!r}):
        open({mark!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data)
module.decode = crash
"""


@pytest.mark.parametrize("stage", [1, 2])
def test_in_quarantine_only_the_image_that_crashes_is_rejected(
    bench: Bench, make_png: MakePng, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """A child that is killed by chance is started again, and its image is embedded."""
    good = make_png(picture(1))
    bench.put("x.tar", make_tar({
        "a.png": good, "b.png": good + b"CRASH", "c.png": good + b"KILLED", "d.png": b"text",
    }))  # fmt: skip
    code = bench.place / "code"
    code.mkdir()
    code.joinpath("sitecustomize.py").write_text(CRASH.format(mark=str(bench.place / "mark")))
    monkeypatch.syspath_prepend(str(code))
    receipt = bench.embed(quarantine=stage)
    monkeypatch.delitem(sys.modules, "sitecustomize", raising=False)
    rows = bench.rows(receipt)
    expected = bench.worker.embedder.embed([picture(1)])[0]
    for key in ("a", "c"):
        np.testing.assert_allclose(rows[key]["embedding"], expected, atol=1e-5)
        assert rows[key]["error"] is None
        assert rows[key]["thumbnail"] is not None
        assert rows[key]["width"] == 28
    assert "died twice (SIGSEGV, SIGSEGV)" in rows["b"]["error"]
    assert "not an image" in rows["d"]["error"]
    assert (receipt.num_embedded, receipt.num_rejected) == (2, 2)


def test_a_compiled_encoder_is_one_for_the_lanes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads are counted when it is compiled: no other number of them is tried."""
    compiled_for: list[int] = []

    def note(embedder: Embedder) -> None:
        compiled_for.append(torch.get_num_threads())
        embedder.compiled = True

    monkeypatch.setattr(Embedder, "compile", note)
    monkeypatch.setattr("pipelines.warm_up.lanes_are_faster", lambda *_: pytest.fail("tried"))
    worker = ShardEmbedder(replace(bench.settings, compile=True, threads=2))
    assert compiled_for == [1]
    assert worker.batching.in_lanes
    assert worker.lanes.encodes


def test_what_it_takes_to_get_each_item_is_counted_and_no_more() -> None:
    def slow() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.02)
            yield item
        time.sleep(0.02)  # until it is known that there are no more

    phases, found = Phases(), list[int]()
    for item in phases.each("fetch", slow()):
        time.sleep(0.3)
        found.append(item)
    assert found == [0, 1, 2]
    assert 0.08 <= phases.seconds["fetch"] < 0.8  # a busy machine sleeps longer than it is told
    assert phases.core_s["fetch"] < 0.08
