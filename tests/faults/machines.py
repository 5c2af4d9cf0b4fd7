"""A Ray cluster of several nodes on this machine, drivers that join it, and what may be killed."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from pipelines.child import die_with_parent

READY = re.compile(r"^[0-9.]+ worker-\d+ is ready after [0-9.]+ s as process (\d+)", re.M)
EVENT = re.compile(
    r"^([0-9.]+) worker-\d+ (is ready|died) after ([0-9.]+) s(, while loading)?", re.M
)
DRIVER = """
import json, logging, sys, torch
from pipelines.batch import embed_input
from pipelines.config import EmbedSettings
logging.basicConfig(format="%(created)f %(message)s", level=logging.WARNING)
logging.getLogger("pipelines.pool").setLevel(logging.INFO)
torch.set_num_threads(1)
settings = {"commit_every_s": 0.1, "buckets": 4, "workers": "2"} | json.loads(sys.argv[3])
summary = embed_input(EmbedSettings(sys.argv[1], "d4-28-grey", sys.argv[2], **settings))
print(json.dumps(summary.as_dict() | {"encodings": len(summary.landed)}))
if summary.failure is not None:
    print(summary.failure, file=sys.stderr)
sys.exit(0 if summary.failure is None else summary.failure.exit_code)
"""


@dataclass
class Driver:
    """One process that runs the job; it dies with the test."""

    process: subprocess.Popen[bytes]
    output: Path
    started: float = field(default_factory=time.time)

    @classmethod
    def start(
        cls,
        source: str,
        store: str,
        output: Path,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> "Driver":
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        with output.open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, source, store, json.dumps(settings)],
                stdout=told,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=die_with_parent,
            )
        return cls(process, output)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def told(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def json(self) -> Any:
        """Its summary."""
        return json.loads(next(line for line in self.told.splitlines() if line.startswith("{")))

    @property
    def ready(self) -> set[int]:
        """The processes that were its workers at one time, each with its model loaded."""
        return {int(pid) for pid in READY.findall(self.told)}

    def restarts(self, workers: int = 2) -> tuple[float, float]:
        """Seconds until its workers began; after that, seconds of the run that starting workers
        took: while one of two starts, half of the time passes so.

        A start lasts from the moment a worker is asked for until it is ready; one that died over it
        counts for no longer than the others took. No restart is: the time until a death is noticed,
        a pause before the next worker is asked for, work that is done again, and a worker that
        nothing was left for when it came.
        """
        from pipelines.pool.driver import GATHER_S  # a driver waits so long for its second worker

        events = [
            (float(at), float(age), what == "is ready", bool(loading))
            for at, what, age, loading in EVENT.findall(self.told)
        ]
        ready = sorted(at for at, _, comes, _ in events if comes)
        if not ready:
            return 0.0, 0.0
        begun = min([ready[0] + GATHER_S, *ready[1:]])
        usual = median(age for _, age, comes, _ in events if comes)
        starts = [
            (at - age, at if comes else at - age + min(age, usual))
            for at, age, comes, loading in events
            if comes or loading
        ]
        starting = [max(0.0, min(ended, ready[-1]) - max(asked, begun)) for asked, ended in starts]
        return begun - self.started, sum(starting) / workers

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Machines:
    """A head without CPUs, and nodes of some CPUs that come and go."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        os.environ.setdefault("RAY_health_check_period_ms", "500")  # as in infra/Dockerfile
        assert not ray.is_initialized()
        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, num_cpus: int = 1) -> Any:
        """A node more."""
        node = patiently(
            lambda: self.cluster.add_node(num_cpus=num_cpus, object_store_memory=80 << 20)
        )
        self.nodes.append(node)
        return node

    def lose(self, node: Any) -> None:
        """A node with everything on it, at once."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def workers(self, ready: Collection[int]) -> list[psutil.Process]:
        """The processes of actors on all nodes that are among ``ready``: a death while loading says
        another thing, and eight of those in a row end a run."""
        raylets = [one for node in self.nodes for one in node.all_processes.get("raylet", [])]
        found = [worker for one in raylets for worker in _workers_below(one.process.pid)]
        return [worker for worker in found if worker.pid in ready]

    def close(self) -> None:
        self.cluster.shutdown()


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to start, which a busy machine may not have."""
    for _ in range(5):
        try:
            return start()
        except (Exception, SystemExit) as error:
            if "timed out" not in str(error) and not isinstance(error, SystemExit):
                raise
    return start()


def _workers_below(pid: int) -> list[psutil.Process]:
    found = []
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    for process in below:
        try:
            if "ray::ShardWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def machines(*cpus: int) -> Iterator[Machines]:
    """A cluster with a node of so many CPUs each."""
    made = Machines()
    try:
        for num in cpus:
            made.add(num)
        yield made
    finally:
        made.close()
