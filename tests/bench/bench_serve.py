"""The server under load: tail latency at half of saturation, and exchanges of publications.

`ORBIT_DATA=/data make bench`; ORBIT_BENCH_SERVED=2000 tries it small. The clients run on the same
cores as the server.
"""

import gzip
import http.client
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.batch import silent
from pipelines.publication import PublishOptions, publish
from pipelines.restore import restore
from pipelines.storage import Folder
from pipelines.table import PublicationLog
from tests.bench.results import BUILD, keep, number_of
from tests.bench.views import clothes
from tests.conftest import png
from tests.pipelines.conftest import embed_here

NUM, PER_SHARD, CLIENTS = number_of("ORBIT_BENCH_SERVED", 100_000), 10_000, 8
SECONDS = number_of("ORBIT_BENCH_SECONDS", 20)
SWAPS, SWAP_RATE = number_of("ORBIT_BENCH_SWAPS", 20), 50.0
IMAGE = {"Content-Type": "image/png"}


def digits() -> NDArray[np.uint8]:
    path = Path(os.environ["ORBIT_DATA"], "mnist", "train-images-idx3-ubyte.gz")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(
        -1, 28, 28
    )


@cache
def real_images() -> NDArray[np.uint8]:
    """(NUM, 28, 28): clothes, then digits; image n of the store has the key of n in six digits."""
    return np.concatenate([clothes(), digits()])[:NUM]


@pytest.fixture(scope="module")
def store() -> Folder:
    return made_store()


def made_store() -> Folder:
    """A store of clothes and digits with two publications, made once and kept."""
    place = BUILD / f"served-{NUM}"
    store = Folder(str(place / "store"))
    log = PublicationLog.open(store)
    if log is None or len({row.id for row in log.rows()}) < 2:
        images = real_images()
        (place / "input").mkdir(parents=True, exist_ok=True)
        for first in range(0, len(images), PER_SHARD):
            with tarfile.open(place / "input" / f"{first // PER_SHARD:03}.tar", "w") as tar:
                for number in range(first, min(first + PER_SHARD, len(images))):
                    data = png(images[number])
                    info = tarfile.TarInfo(f"{number:06}.png")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        _, model_id = embed_here(str(place / "input"), store.url)
        options = PublishOptions(audit_images=0, map_points=500, clusters=20, force=True)
        for clusters in (20, 21):
            publish(store, model_id, replace(options, clusters=clusters))
    return store


@dataclass(frozen=True)
class Served:
    """`orbit serve` in a process of its own."""

    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


@pytest.fixture
def served(store: Folder) -> Iterator[Served]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(BUILD / "cache")}
    line = [sys.executable, "-m", "jobs.serve", store.url, "--port", "0", "--json"]
    server = subprocess.Popen(
        [*line, "--poll", "0.5"], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    yield Served(int(url.rstrip("/").rpartition(":")[2]))
    server.send_signal(signal.SIGTERM)
    server.wait(20)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    chance = np.random.default_rng(7)
    return [png(image) for image in clothes()[chance.choice(70_000, 500, replace=False)]]


def ask(connection: http.client.HTTPConnection, image: bytes) -> tuple[int, str]:
    connection.request("POST", "/search?k=10", image, IMAGE)
    reply = connection.getresponse()
    reply.read()
    return reply.status, reply.headers.get("X-Orbit-Publication", "")


def closed_loop(served: Served, images: list[bytes], clients: int, seconds: float) -> list[float]:
    """Seconds of every answer while so many clients each ask as soon as they were answered."""
    took: list[list[float]] = [[] for _ in range(clients)]
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = served.connect()
        place = number
        while (began := time.perf_counter()) < until:
            status, _ = ask(connection, images[place % len(images)])
            took[number].append(time.perf_counter() - began)
            assert status == 200
            place += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for part in took for value in part]


def open_loop(
    served: Served, images: list[bytes], rate: float, seconds: float, stop: threading.Event
) -> list[tuple[int, str, float]]:
    """Questions at times drawn beforehand (Poisson), whether or not the last was answered: status,
    publication, and seconds since each should have been asked."""
    chance = np.random.default_rng(1)
    due = np.cumsum(chance.exponential(1 / rate, max(1, round(rate * seconds))))
    todo: queue.Queue[tuple[int, float] | None] = queue.Queue()
    answers: list[tuple[int, str, float]] = []
    began = time.perf_counter()

    def client() -> None:
        connection = served.connect()
        while (one := todo.get()) is not None:
            number, when = one
            try:
                status, name = ask(connection, images[number % len(images)])
            except (OSError, http.client.HTTPException) as error:
                status, name, connection = 0, type(error).__name__, served.connect()
            answers.append((status, name, time.perf_counter() - began - when))

    threads = [threading.Thread(target=client) for _ in range(32)]
    for thread in threads:
        thread.start()
    for number, when in enumerate(due):
        if stop.is_set():
            break
        time.sleep(max(0.0, began + when - time.perf_counter()))
        todo.put((number, float(when)))
    for _ in threads:
        todo.put(None)
    for thread in threads:
        thread.join()
    return answers


def test_the_tail_at_half_of_saturation(served: Served, images: list[bytes]) -> None:
    closed_loop(served, images, 2, 3)
    alone = float(np.median(closed_loop(served, images, 1, max(3, SECONDS / 2))))
    busy = closed_loop(served, images, CLIENTS, SECONDS)
    rate = len(busy) / SECONDS
    found = open_loop(served, images, rate / 2, 2 * SECONDS, threading.Event())
    seconds = np.array([answer[2] for answer in found])
    p99 = float(np.quantile(seconds, 0.99))
    keep(
        f"POST /search against {NUM:,} images, {os.cpu_count()} cores for server and clients",
        {
            "one client, median, ms": 1e3 * alone,
            f"{CLIENTS} clients, saturation, searches/s": rate,
            "at half of it, open loop, searches": len(found),
            "median, ms": 1e3 * float(np.median(seconds)),
            "p99, ms": 1e3 * p99,
            "p99 / median of one client (4 asked at most)": p99 / alone,
            "errors": sum(status != 200 for status, _, _ in found),
        },
    )
    assert {status for status, _, _ in found} == {200}
    assert p99 <= 4 * alone


def test_exchanges_of_publications_fail_no_request(
    store: Folder, served: Served, images: list[bytes]
) -> None:
    log = PublicationLog.open(store)
    assert log is not None
    names = list(dict.fromkeys(row.id for row in log.rows()))[:2]
    over, found = threading.Event(), list[tuple[int, str, float]]()
    asking = threading.Thread(
        target=lambda: found.extend(open_loop(served, images, SWAP_RATE, 3600, over))
    )
    asking.start()
    try:
        for number in range(SWAPS):
            wanted = names[number % 2]
            restore(store, wanted, silent)
            limit = time.monotonic() + 60
            while time.monotonic() < limit and ask_health(served) != wanted:
                time.sleep(0.2)
            assert ask_health(served) == wanted
            time.sleep(1)
    finally:
        over.set()
        asking.join()
    seconds = np.array([answer[2] for answer in found])
    keep(
        f"{SWAPS} exchanges at {SWAP_RATE:g} requests/s",
        {
            "requests": len(found),
            "errors": sum(status != 200 for status, _, _ in found),
            "median, ms": 1e3 * float(np.median(seconds)),
            "p99, ms": 1e3 * float(np.quantile(seconds, 0.99)),
            "publications answered from": len({name for _, name, _ in found}),
        },
    )
    assert {status for status, _, _ in found} == {200}
    assert {name for _, name, _ in found} == set(names)


def ask_health(served: Served) -> str:
    connection = served.connect()
    connection.request("GET", "/healthz")
    name: str = json.loads(connection.getresponse().read())["publication"]
    connection.close()
    return name


if __name__ == "__main__":  # what takes long and is not timed: made beforehand
    print(made_store().url)
