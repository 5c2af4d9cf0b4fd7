"""Deaths, stops and rivals on a real local Ray; only processes that a test started are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from eqmodel.checkpoint import resolve
from pipelines.batch import embed_input
from pipelines.config import EmbedSettings
from pipelines.dispatch import Dispatch
from pipelines.embed import WorkerSettings
from pipelines.layout import Layout
from pipelines.models import model_id_of
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable

pytestmark = pytest.mark.integration
MODEL = "d4-28-grey"
MODEL_ID = model_id_of(resolve(MODEL))
SHARDS, IMAGES = 8, 120

DRIVER = """
import sys
from pipelines.batch import embed_input
from pipelines.config import EmbedSettings
summary = embed_input(EmbedSettings(sys.argv[1], "d4-28-grey", sys.argv[2], commit_every_s=0.1,
                                    workers="1", deadline_s=60))
print(summary.num_added, summary.failure)
sys.exit(0 if summary.failure is None else summary.failure.exit_code)
"""


@pytest.fixture(scope="module")
def bucket(
    tmp_path_factory: pytest.TempPathFactory,
    make_png: Callable[[NDArray[Any]], bytes],
    make_tar: Callable[[dict[str, bytes]], bytes],
) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("bucket")))
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        images = rng.integers(0, 256, (IMAGES, 28, 28), np.uint8)
        members = {f"{n}.png": make_png(image) for n, image in enumerate(images)}
        folder.write(f"{number}.tar", make_tar(members))
    return folder


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    from pipelines.pool import ray_session

    with ray_session("local", 2):
        yield


def rows(store: Folder) -> Counter[tuple[str, str]]:
    table = EmbeddingTable.open(store, MODEL_ID)
    if table is None:
        return Counter()
    found = table.read(["source", "key", "embedding"])
    assert found["embedding"].null_count == 0
    return Counter(zip(found["source"].to_pylist(), found["key"].to_pylist(), strict=True))


TRUTH = Counter((f"{shard}.tar", str(n)) for shard in range(SHARDS) for n in range(IMAGES))


def workers_of_this_process() -> list[psutil.Process]:
    """The actor processes that our own Ray started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::ShardWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Saboteur:
    """A progress callback that does something to one busy worker, once some shards are done."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.left = number, times
        self.hit: list[int] = []
        self._next = 1

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if stage != "embedding" or done < self._next or not self.left:
            return
        for worker in workers_of_this_process():
            if worker.pid not in self.hit:
                worker.send_signal(self.number)
                self.hit.append(worker.pid)
                self.left -= 1
                self._next = done + 1
                return


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 1)])
def test_a_worker_that_dies_or_hangs_costs_no_row_and_doubles_none(
    bucket: Folder, tmp_path: Path, number: int, times: int
) -> None:
    store = Folder(str(tmp_path / "store"))
    sabotage = Saboteur(number, times)
    settings = EmbedSettings(
        bucket.url, MODEL, store.url, commit_every_s=0.1, deadline_s=6, workers="2"
    )
    summary = embed_input(settings, sabotage)
    assert len(sabotage.hit) == times
    assert summary.failure is None
    assert rows(store) == TRUTH
    assert summary.counts.num_rejected == 0
    left = {worker.pid for worker in workers_of_this_process()}
    assert not left & set(sabotage.hit)


@pytest.mark.usefixtures("one_ray")
def test_a_model_that_cannot_be_loaded_stops_the_run_at_once(
    bucket: Folder, tmp_path: Path
) -> None:
    from pipelines.pool import Pool, PoolSettings
    from pipelines.shards import list_shards

    broken = tmp_path / "model"
    broken.mkdir()
    broken.joinpath("model.json").write_text("{}")
    worker = WorkerSettings(bucket.url, str(tmp_path), MODEL_ID, str(broken))
    settings = PoolSettings(Layout(1, 1.0, 0.0, 1, 1.0, 0.0), worker)
    work = [(shard, None) for shard in list_shards(bucket)]
    dispatch = Dispatch(work, run="r", max_attempts=4, batch_size=8)
    with Pool(settings, lambda _: True, lambda: None, lambda: False) as pool:
        failure = pool.run(dispatch)
        assert pool.num_restarts == 0
    assert failure is not None
    assert (failure.action, failure.exit_code) == ("fatal", 2)
    assert "model.json" in failure.message


def start_driver(bucket: Folder, store: Folder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, bucket.url, store.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_rows(store: Folder, driver: subprocess.Popen[str]) -> None:
    """Until the first commit with rows is visible."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and driver.poll() is None:
        if rows(store):
            return
        time.sleep(0.05)
    raise AssertionError(f"no commit came: {driver.communicate()}")


def test_two_drivers_at_once_leave_every_row_once(bucket: Folder, tmp_path: Path) -> None:
    store = Folder(str(tmp_path / "store"))
    drivers = [start_driver(bucket, store) for _ in range(2)]
    stop, torn = threading.Event(), []

    def watch() -> None:
        """No reader ever sees a doubled row or a part of a shard."""
        while not stop.is_set():
            found = rows(store)
            per_shard = Counter(source for source, _ in found)
            if set(found.values()) - {1} or set(per_shard.values()) - {IMAGES}:
                torn.append(found)
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ended = [driver.communicate(timeout=120) for driver in drivers]
    stop.set()
    watcher.join()
    assert [driver.returncode for driver in drivers] == [0, 0], ended
    assert not torn
    assert rows(store) == TRUTH
    assert sum(int(out.split()[0]) for out, _ in ended) == sum(TRUTH.values())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_driver_that_is_stopped_commits_what_is_done_and_the_next_resumes(
    bucket: Folder, tmp_path: Path, number: int, code: int
) -> None:
    store = Folder(str(tmp_path / "store"))
    driver = start_driver(bucket, store)
    wait_for_rows(store, driver)
    began = time.monotonic()
    driver.send_signal(number)
    out, errors = driver.communicate(timeout=60)
    assert driver.returncode == code, (out, errors)
    assert time.monotonic() - began < 20
    kept = rows(store)
    assert kept
    assert set(Counter(source for source, _ in kept).values()) == {IMAGES}
    if number == signal.SIGTERM:
        again = start_driver(bucket, store)
        out, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
        assert int(out.split()[0]) == sum(TRUTH.values()) - sum(kept.values())
        assert rows(store) == TRUTH
