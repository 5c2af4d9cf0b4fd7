"""An S3 that throttles, loses replies, cuts, alters and stalls what it sends, and locks us out."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.storage import Folder

from .conftest import MODEL_ID, Started, World, Zygote, log_entries, read_rows
from .machines import Driver
from .proxy import FaultProxy

LOG = "_delta_log/0.*json$"
TAR, ROWS, MODEL = r"/in/.*\.tar", r"/embeddings/.*\.parquet", "/models/.*/model"
READ_S = 2
"""After so many seconds of silence a socket is given up (30 for users)."""


def slow(*case: object) -> object:
    return pytest.param(*case, marks=pytest.mark.faults_slow)


def one_line_of(started: Started) -> str:
    """The one line that a failed job has said."""
    told = started.output.read_text().strip()
    lines = [line for line in told.splitlines() if line.startswith("orbit:")]
    assert len(lines) == 1, told
    assert "Traceback" not in told
    return lines[0]


@dataclass
class Behind:
    """A world on S3 whose jobs speak to ``proxy``; the test itself speaks to the server."""

    zygote: Zygote
    world: World
    proxy: FaultProxy

    def start(self, **settings: object) -> Started:
        env = {"AWS_ENDPOINT_URL": self.proxy.endpoint, "ORBIT_TEST_READ_S": str(READ_S)}
        return self.zygote.start("run", env=env, **self.world.where(), **settings)

    def succeeds(self) -> None:
        """The run ends well, with every image once, and nothing was done in vain."""
        started = self.start()
        assert started.wait() == 0, started.output.read_text()
        assert started.json["num_encoded"] == self.world.images.total() - len(self.world.bad)
        self.proxy.heal()
        self.world.check()


@pytest.fixture
def behind(
    zygote: Zygote,
    s3_server: str,
    s3_url: str,
    make_world: Callable[[str], World],
    chance: random.Random,
) -> Iterator[Behind]:
    with FaultProxy(s3_server, chance) as proxy:
        yield Behind(zygote, make_world(s3_url), proxy)


def test_a_fifth_of_the_requests_is_throttled(behind: Behind) -> None:
    behind.proxy.wrong("503", share=0.2)
    behind.succeeds()
    assert behind.proxy.kinds["503"] > 10


@pytest.mark.parametrize(
    ("skip", "seconds"), [slow(0, 3), slow(40, 3), slow(80, 3), slow(0, 60), slow(50, 60)]
)
def test_everything_is_throttled_for_a_while(behind: Behind, skip: int, seconds: int) -> None:
    behind.proxy.wrong("503", skip=skip, seconds=seconds)
    behind.succeeds()
    assert behind.proxy.kinds["503"] > 3


@pytest.mark.parametrize(
    ("kind", "skip"),
    [("drop", 1), slow("drop", 0), slow("drop", 4)]
    + [slow(kind, skip) for kind in ("409", "500") for skip in (0, 1, 4)],
)
def test_a_commit_is_answered_wrongly_or_not_at_all(behind: Behind, kind: str, skip: int) -> None:
    """``drop``: it is in the log and nobody said so. 0: the table's creation; 4: the last ones."""
    fault = behind.proxy.wrong(kind, method="PUT", path=LOG, skip=skip, most=1)
    behind.succeeds()
    assert fault.happened == 1
    log_entries(behind.world.store, f"embeddings/{MODEL_ID}")  # contiguous
    log_entries(behind.world.store, "publications")


@pytest.mark.faults_slow
@pytest.mark.parametrize("kind", ["409", "drop"])
def test_many_commits_in_a_row(behind: Behind, kind: str) -> None:
    fault = behind.proxy.wrong(kind, method="PUT", path=LOG, skip=1, most=4)
    behind.succeeds()
    assert fault.happened == 4


@pytest.mark.faults_slow
def test_replies_are_lost(behind: Behind) -> None:
    behind.proxy.wrong("drop", method="PUT POST DELETE", share=0.3)
    behind.succeeds()
    assert behind.proxy.kinds["drop"] > 3


@pytest.mark.parametrize(
    ("kind", "path"),
    [slow(kind, path) for kind in ("stall", "truncate") for path in (TAR, LOG, ROWS, MODEL)],
)
def test_a_body_that_does_not_come(behind: Behind, kind: str, path: str) -> None:
    fault = behind.proxy.wrong(kind, method="GET", path=path, most=2)
    started = time.monotonic()
    behind.succeeds()
    assert fault.happened == 2
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("path", [TAR, slow(MODEL)])
def test_a_flipped_bit_is_read_again(behind: Behind, path: str) -> None:
    """``succeeds`` compares the digest of every image with the truth."""
    fault = behind.proxy.wrong("flip", method="GET", path=path, most=2)
    behind.succeeds()
    assert fault.happened == 2


@pytest.mark.faults_slow
def test_a_share_of_the_bodies_is_cut(behind: Behind) -> None:
    behind.proxy.wrong("truncate", method="GET", share=0.2)
    behind.succeeds()
    assert behind.proxy.kinds["truncate"] > 3


@pytest.mark.faults_slow
def test_one_object_that_is_refused_does_not_keep_the_others_out(behind: Behind) -> None:
    """As an archived one is, or one of another owner: reported, exit 1, hardly asked again."""
    fault = behind.proxy.wrong("403", path=r"/in/1\.tar")
    started = behind.start()
    assert started.wait() == 1
    told = one_line_of(started)
    assert "1 of 3 shards failed, the others are committed; 1.tar" in told
    assert "access denied" in told
    assert fault.happened < 10
    rows = read_rows(behind.world.store)
    assert {row["source"] for row in rows} == {"0.tar", "2.tar"}
    behind.proxy.heal()
    assert behind.start().wait() == 0
    behind.world.check()


@pytest.mark.faults_slow
def test_told_to_stop_while_nothing_answers(behind: Behind) -> None:
    """503 for all: no commit gets through, and it still ends within 20 seconds."""
    behind.proxy.wrong("503", skip=40)
    started = behind.start()
    while behind.proxy.kinds["503"] < 4:
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == 143
    assert time.monotonic() - began < 20
    behind.proxy.heal()
    behind.world.check_between()
    assert behind.start().wait() == 0
    behind.world.check()


@pytest.mark.parametrize(
    ("kind", "skip"),
    [("403", 40), slow("400", 40)]
    + [slow(kind, skip) for kind in ("403", "400") for skip in (0, 15, 60, 90)],
)
def test_locked_out_midway(behind: Behind, kind: str, skip: int) -> None:
    """Stops, says so in one line, and does not ask for ever: 400 is what a token that has expired
    is answered on S3, with the reason in a body that a HEAD has not."""
    fault = behind.proxy.wrong(kind, skip=skip)
    started = behind.start()
    assert started.wait() == 1
    told = one_line_of(started)
    assert "denied" in told or "Expired" in told
    assert "credentials" in told
    assert fault.happened <= 20
    behind.proxy.heal()
    if behind.world.store.exists():
        behind.world.check_between()
    assert behind.start().wait() == 0
    behind.world.check()


@pytest.mark.faults_slow
@pytest.mark.timeout(0)
def test_the_price_of_throttling(
    s3_server: str,
    make_world: Callable[[str], World],
    s3_url: str,
    chance: random.Random,
    tmp_path: Path,
) -> None:
    """The figure of the notes: a fifth of the requests answered 503, against none.

    ORBIT_THROTTLE="SHARDS IMAGES" sets the size. Real workers; both runs go through the proxy.
    """
    shards, images = map(int, os.environ.get("ORBIT_THROTTLE", "24 100").split())
    world = make_world(s3_url)
    for number in range(shards):
        world.put(f"{number}.tar", range(images), bad=(5,) if number == 1 else ())
    seconds, steady = [], []
    with FaultProxy(s3_server, chance) as proxy:
        for share in (0.0, 0.2):
            proxy.heal()
            proxy.wrong("503", share=share)
            store = f"{s3_url}/out-{share}"
            env = {"AWS_ENDPOINT_URL": proxy.endpoint}
            began = time.monotonic()
            driver = Driver.start(world.input.url, store, tmp_path / f"out-{share}", env)
            assert driver.process.wait() == 0, driver.told
            seconds.append(time.monotonic() - began)
            steady.append(driver.json["steady_s"])
            world.store = Folder(store)
            rows = [(row["source"], row["key"]) for row in read_rows(world.store)]
            assert sorted(rows) == sorted(world.images.elements())
        throttled = proxy.kinds["503"]
    print(
        f"\n{throttled} requests answered 503 over {shards} shards, {shards * images} images: "
        f"0 failed shards; {seconds[0]:.1f} s without, {seconds[1]:.1f} s with them "
        f"({seconds[1] / seconds[0]:.2f}x; steady part {steady[0]:.1f} and {steady[1]:.1f} s, "
        f"{steady[1] / steady[0]:.2f}x)"
    )
    assert throttled > shards
    assert seconds[1] <= 1.5 * seconds[0]
