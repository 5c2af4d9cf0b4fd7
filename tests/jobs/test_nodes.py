"""Several nodes on one machine: the same rows as one, also when nodes come and go."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.sample import FOLDER
from pipelines import open_store
from tests.clusters import RayCluster

pytestmark = [pytest.mark.cluster_slow, pytest.mark.timeout(900)]
ORBIT = Path(sys.executable).with_name("orbit")
NUM_SHARDS = 100
GROWING = ("--workers", "1:2", "--deadline", "120")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards enough to be at work while nodes come and go: 40,000 images."""
    place = tmp_path_factory.mktemp("nodes")
    for number in range(NUM_SHARDS):
        content = (FOLDER / f"clothes-{number % 5}.tar").read_bytes()
        (place / f"{number:02d}.tar").write_bytes(content)
    return place


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """A head with one CPU; nodes are added by the test."""
    made = RayCluster(tmp_path, cpus=1)
    yield made
    made.close()


def start(cluster: RayCluster | None, bucket: Path, store: Path, *flags: str) -> Any:
    """`orbit embed` as a process: submitted to a cluster, or (None) on this machine."""
    embed = ["embed", str(bucket), "--model", "d4-28-grey", "--out", str(store),
             "--cpus-per-worker", "1", "--batch-size", "64", "--json", "--log-format", "json",
             *flags]  # fmt: skip
    if cluster is None:
        return process([str(ORBIT), *embed], None)
    return process([*submit(cluster), *embed], cluster.environment)


def submit(cluster: RayCluster) -> list[str]:
    """`orbit submit` with its own flags: it waits, and answers with the job's result."""
    return [str(ORBIT), "submit", "--address", cluster.address, "--token-file",
            str(cluster.token_file), "--json"]  # fmt: skip


def process(command: list[str], environment: dict[str, str] | None) -> Any:
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(started: Any) -> dict[str, Any]:
    """What the run itself told, through the job API or not."""
    stdout, stderr = started.communicate(timeout=800)
    assert started.returncode == 0, stderr
    return result_of(stdout)


def result_of(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout)
    return found.get("result", found)


def rows(store: Path) -> dict[tuple[str, str], dict[str, Any]]:
    names = ["source", "key", "digest", "label", "image_id", "width", "error", "embedding"]
    found = open_store(str(store)).embeddings(names).to_pylist()
    by_name = {(row["source"], row["key"]): row for row in found}
    assert len(by_name) == len(found)
    return by_name


def assert_equal(one: Path, other: Path) -> None:
    """Row by row; embeddings up to float rounding."""
    left, right = rows(one), rows(other)
    assert left.keys() == right.keys()
    assert len(left) == NUM_SHARDS * 400
    for name, row in left.items():
        there = dict(right[name])
        vector = np.array(there.pop("embedding"))
        np.testing.assert_allclose(row.pop("embedding"), vector, atol=1e-6)
        assert row == there


@pytest.fixture(scope="module")
def truth(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one node makes."""
    store = tmp_path_factory.mktemp("truth") / "store"
    assert finished(start(None, bucket, store, "--workers", "1"))["num_embedded"] > 0
    return store


def test_two_nodes_make_the_rows_of_one(
    cluster: RayCluster, bucket: Path, truth: Path, tmp_path: Path
) -> None:
    cluster.add_node(1)
    job = start(cluster, bucket, tmp_path / "store", "--workers", "2")
    assert finished(job)["num_added"] == NUM_SHARDS * 400
    assert_equal(truth, tmp_path / "store")


def test_a_node_that_comes_is_used_and_one_that_goes_costs_nothing(
    cluster: RayCluster, bucket: Path, truth: Path, tmp_path: Path
) -> None:
    job = Followed(start(cluster, bucket, tmp_path / "store", *GROWING))
    job.until(2)
    node = cluster.add_node(1)
    job.until_used_by(2, cluster)
    cluster.end_node(node)
    assert job.result()["num_added"] == NUM_SHARDS * 400
    assert_equal(truth, tmp_path / "store")


def test_a_node_that_is_drained_finishes_what_it_has(
    cluster: RayCluster, bucket: Path, truth: Path, tmp_path: Path
) -> None:
    cluster.add_node(1)
    job = Followed(start(cluster, bucket, tmp_path / "store", *GROWING))
    job.until_used_by(2, cluster)
    (node_id,) = cluster.workers()
    cluster.drain(node_id, seconds=300)
    while not job.told("leaves: its node is drained"):
        job.until(job.lines[-1]["done"])
    cluster.until_gone(node_id, 120)  # with nothing in work it goes, long before its time is up
    assert job.result()["num_added"] == NUM_SHARDS * 400
    assert not job.told(" died: ")
    assert_equal(truth, tmp_path / "store")


class Followed:
    """A run and the JSON lines that were read of it so far."""

    def __init__(self, process: Any) -> None:
        self.process, self.lines = process, list[dict[str, Any]]()

    def until(self, done: int) -> None:
        """Read on until so many shards are done."""
        line = ""
        for line in self.process.stderr:
            last = self.note(line)
            if last.get("stage") == "embedding" and last["done"] >= done:
                return
        pytest.fail(f"it ended before {done} shards were done: {line}")

    def until_used_by(self, count: int, cluster: RayCluster) -> None:
        """Read on until so many workers have finished a shard."""
        logs = cluster.folder / "session_latest" / "logs"
        self.until(1)
        while len(workers(logs)) < count:
            self.until(self.lines[-1]["done"])

    def note(self, line: str) -> dict[str, Any]:
        """Keep a line if it is JSON; empty if it is none."""
        if not line.startswith("{"):
            return {}
        self.lines.append(json.loads(line))
        return self.lines[-1]

    def result(self) -> dict[str, Any]:
        """What it came to, with the rest of its lines."""
        stdout, stderr = self.process.communicate(timeout=800)
        assert self.process.returncode == 0, stderr
        for line in stderr.splitlines():
            self.note(line)
        return result_of(stdout)

    def told(self, words: str) -> bool:
        return any(words in line.get("message", "") for line in self.lines)


def test_a_night_takes_less_than_90_seconds(tmp_path: Path) -> None:
    """With the cluster up: submitted, all of the sample embedded and published, waited for."""
    cluster = RayCluster(tmp_path, cpus=2)
    try:
        began = time.monotonic()
        run = ["run", str(FOLDER), "--model", "d4-28-grey", "--out", str(tmp_path / "store")]
        result = finished(process([*submit(cluster), *run, "--json"], cluster.environment))
        took = time.monotonic() - began
    finally:
        cluster.close()
    parts = {name: result[name] for name in ("startup_s", "steady_s", "commit_s", "elapsed_s")}
    print({"submit_to_exit_s": round(took, 1), "num_embedded": result["num_embedded"], **parts})
    assert (result["num_embedded"], result["num_rejected"]) == (2000, 0)
    assert Path(result["report"]).is_file()
    assert took < 90


def workers(logs: Path) -> set[str]:
    """The workers that have finished a shard, by the JSON lines that Ray keeps of them."""
    found = set()
    for path in logs.glob("worker-*.err"):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("{") and '"event": "shard"' in line:
                found.add(json.loads(line)["worker"])
    return found
