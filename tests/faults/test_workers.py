"""Real Ray workers that die at every point of their work, and at random. Minutes: make test-faults.

ORBIT_TEST_KILLS=100 and ORBIT_TEST_SHARDS=200 repeat the figures of the notes; the defaults are
what two cores do in a few minutes.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.faults import POINTS

from .conftest import World, read_rows

pytestmark = [pytest.mark.faults_slow, pytest.mark.timeout(1800)]
KILLS = int(os.environ.get("ORBIT_TEST_KILLS", 12))
SHARDS = int(os.environ.get("ORBIT_TEST_SHARDS", 24))
IMAGES = 100
LOADING_S = 4.0
"""Eight deaths in a row while loading end a run: it is not for that that these are killed."""
OF_A_WORKER = [name for name in POINTS if name.startswith("worker.")]

DRIVER = """
import json, sys
from pipelines.batch import embed_input
from pipelines.config import EmbedSettings
summary = embed_input(EmbedSettings(sys.argv[1], "d4-28-grey", sys.argv[2], commit_every_s=0.2,
                                    workers="2", max_attempts=12, buckets=4))
print(json.dumps(summary.as_dict() | {"encodings": len(summary.landed)}))
if summary.failure is not None:
    print(summary.failure, file=sys.stderr)
sys.exit(0 if summary.failure is None else summary.failure.exit_code)
"""


def start(world: World, fault: str = "", tokens: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if fault:
        environment |= {"ORBIT_FAULT": fault, "ORBIT_FAULT_TOKENS": str(tokens)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, world.input.url, world.store.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def check(world: World) -> None:
    rows = read_rows(world.store)
    found = sorted((row["source"], row["key"]) for row in rows)
    assert found == sorted(world.images.elements())
    for row in rows:
        good = (row["source"], row["key"]) not in world.bad
        assert (row["embedding"] is not None) == good == (row["error"] is None)


@pytest.mark.parametrize("action", ["kill", "raise", "term"])
def test_a_worker_dies_at_every_point_in_one_run(world: World, tmp_path: Path, action: str) -> None:
    """All at once, each once; a worker that raises while it loads ends the run, so not there."""
    for number in range(3, 10):
        world.put(f"{number}.tar", range(30))
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    points = [name for name in OF_A_WORKER if action == "kill" or name != "worker.load"]
    driver = start(world, ",".join(f"{name}@1:{action}" for name in points), tokens)
    _, told = driver.communicate(timeout=900)
    assert driver.returncode == 0, told
    assert len(list(tokens.iterdir())) == len(points)
    check(world)


def workers_of(driver: int) -> list[psutil.Process]:
    """Workers that the Ray of our own driver has started and that have had time to load."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            old = time.time() - process.create_time() > LOADING_S
            if old and "ray::ShardWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_random_kills(world: World, chance: random.Random) -> None:
    """Lost, doubled and torn are 0, and the work done twice is at most what was in flight."""
    for number in range(SHARDS):
        world.put(f"{number}.tar", range(IMAGES), bad=(7,))
    driver, kills, began = start(world), 0, time.monotonic()
    while driver.poll() is None:
        time.sleep(chance.uniform(1.0, 3.0))
        try:
            workers = workers_of(driver.pid)
        except psutil.Error:
            break
        if workers and kills < KILLS:
            chance.choice(workers).kill()
            kills += 1
    output, told = driver.communicate(timeout=60)
    assert driver.returncode == 0, told
    check(world)
    summary = json.loads(output.strip().splitlines()[-1])  # Ray told of its dead before it
    print(
        f"\n{kills} workers killed over {SHARDS} shards, {SHARDS * IMAGES} images in "
        f"{time.monotonic() - began:.0f} s: nothing lost, doubled or torn; "
        f"{summary['encodings']} files in the table"
    )
    files = list(Path(world.store.url, "embeddings").rglob("*.parquet"))
    assert len(files) <= SHARDS + kills * 4  # two workers, each with one in work and one ahead
