"""A bucket whose truth is known, processes that may be killed, and a reader of its own."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from eqmodel.checkpoint import resolve
from pipelines.batch import silent
from pipelines.models import model_id_of
from pipelines.storage import Folder
from pipelines.verify import VerifyOptions, verify

MODEL_ID = model_id_of(resolve("d4-28-grey"))
SEED = int(os.environ.get("ORBIT_TEST_SEED", random.SystemRandom().randrange(2**31)))
MakePng = Callable[[NDArray[Any]], bytes]
MakeTar = Callable[[dict[str, bytes]], bytes]
Image = tuple[str, str]


def pytest_report_header() -> str:
    return f"faults: ORBIT_TEST_SEED={SEED} repeats this choice"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance that the printed seed repeats, another for each test."""
    return random.Random(f"{SEED}-{request.node.name}")


class Zygote:
    """Starts scenarios as processes of their own (see zygote.py)."""

    def __init__(self, place: Path) -> None:
        self._place, self._number = place, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def start(self, scenario: str, fault: str = "", **arguments: Any) -> "Started":
        """A process that works on the scenario, with ``fault`` armed once."""
        self._number += 1
        tokens = self._place / f"tokens-{self._number}"
        tokens.mkdir()
        environment = {"ORBIT_FAULT": fault, "ORBIT_FAULT_TOKENS": str(tokens)}
        environment |= {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        environment |= arguments.pop("env", {})
        output = self._place / f"output-{self._number}"
        order: dict[str, Any] = {"do": "start", "scenario": scenario, "env": environment}
        order |= {"output": str(output)}
        if "largest_file" in arguments:
            order["largest_file"] = arguments.pop("largest_file")
        return Started(self, self._ask(order | {"arguments": arguments}), tokens, output)

    def wait(self, pid: int) -> int:
        return self._ask({"do": "wait", "pid": pid})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@dataclass
class Started:
    """One process: ``pid``; ``tokens`` holds a file once its fault has happened."""

    zygote: Zygote
    pid: int
    tokens: Path
    output: Path

    def wait(self) -> int:
        """Its exit code, or minus the signal it died of."""
        return self.zygote.wait(self.pid)

    @property
    def fired(self) -> bool:
        return any(self.tokens.iterdir())

    @property
    def json(self) -> Any:
        """The last line it printed, as JSON."""
        return json.loads(self.output.read_text().strip().splitlines()[-1])


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    started = Zygote(tmp_path_factory.mktemp("zygote"))
    yield started
    started.close()


@dataclass
class World:
    """A bucket with its truth, and the store made of it."""

    input: Folder
    store: Folder
    make_png: MakePng
    make_tar: MakeTar
    truth: dict[str, list[str]] = field(default_factory=dict)
    bad: set[Image] = field(default_factory=set)
    digests: dict[Image, str] = field(default_factory=dict)

    def put(self, name: str, numbers: range, bad: tuple[int, ...] = ()) -> None:
        """A tar of made images; those in ``bad`` are none."""
        members = {}
        for n in numbers:
            pixels = np.random.default_rng(n).integers(0, 256, (28, 28), np.uint8)
            members[f"{n}.png"] = b"broken" if n in bad else self.make_png(pixels)
        self.input.write(name, self.make_tar(members))
        self.truth[name] = [str(n) for n in numbers]
        digests = {m[:-4]: hashlib.sha256(data).hexdigest() for m, data in members.items()}
        self.digests |= {(name, key): digest for key, digest in digests.items()}
        self.bad = {image for image in self.bad if image[0] != name}
        self.bad |= {(name, str(n)) for n in bad}

    @property
    def images(self) -> Counter[Image]:
        return Counter((source, key) for source, keys in self.truth.items() for key in keys)

    def where(self) -> dict[str, str]:
        return {"source": self.input.url, "store": self.store.url}

    def check(self) -> None:
        """The oracle: every image once, an embedding for every good one, the store whole."""
        rows = read_rows(self.store)
        assert Counter((row["source"], row["key"]) for row in rows) == self.images
        for row in rows:
            good = (row["source"], row["key"]) not in self.bad
            assert (row["embedding"] is not None) == good == (row["error"] is None)
            assert row["digest"] == self.digests[row["source"], row["key"]]
        verdict = verify(self.store, VerifyOptions(audit_images=0), silent)
        assert verdict.findings == []
        live = live_row(self.store)
        assert live is not None
        assert live["table_version"] == len(log_entries(self.store, f"embeddings/{MODEL_ID}")) - 1

    def check_between(self) -> None:
        """After a crash, before it is run again: no image twice, none that is not in the truth,
        every file that is named is whole, and what is live can be used."""
        rows = read_rows(self.store)
        assert not Counter((row["source"], row["key"]) for row in rows) - self.images
        assert all((row["embedding"] is None) == (row["error"] is not None) for row in rows)
        live = live_row(self.store)
        for file in live["files"] if live else ():
            entry = self.store.stat(file["path"])
            assert entry is not None
            assert entry.size == file["size"]


def log_entries(store: Folder, table: str) -> list[list[dict[str, Any]]]:
    """The actions of every version of a Delta table, read without deltalake."""
    paths = [
        entry.path
        for entry in store.entries(f"{table}/_delta_log")
        if entry.path.endswith(".json") and entry.path.rpartition("/")[2][:20].isdecimal()
    ]
    numbers = [int(path.rpartition("/")[2][:20]) for path in sorted(paths)]
    assert numbers == list(range(len(numbers))), "the versions are not contiguous"
    return [[json.loads(line) for line in store.read(p).splitlines()] for p in sorted(paths)]


def named_files(store: Folder, table: str) -> set[str]:
    """Files of the newest version: added and not removed since."""
    named: set[str] = set()
    for actions in log_entries(store, table):
        for action in actions:
            if "remove" in action:
                named.discard(unquote(action["remove"]["path"]))
        for action in actions:
            if "add" in action:
                path = unquote(action["add"]["path"])
                assert path not in named, "a name was used twice"
                named.add(path)
    return named


def read_rows(store: Folder) -> list[dict[str, Any]]:
    """Every image of the newest version, by a reader that shares no code with the table's."""
    rows: list[dict[str, Any]] = []
    for path in sorted(named_files(store, f"embeddings/{MODEL_ID}")):
        rows += _read(store, f"embeddings/{MODEL_ID}/{path}")
    return [row for row in rows if row["digest"] is not None]


def live_row(store: Folder) -> dict[str, Any] | None:
    """The row of the live publication."""
    paths = sorted(named_files(store, "publications"))
    rows = [row for path in paths for row in _read(store, f"publications/{path}")]
    return max(rows, key=lambda row: row["seq"]) if rows else None


def _read(store: Folder, path: str) -> list[dict[str, Any]]:
    import pyarrow as pa

    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(store.read(path))).to_pylist()
    return rows


@pytest.fixture
def make_world(make_png: MakePng, make_tar: MakeTar) -> Callable[[str], World]:
    def make(url: str) -> World:
        if "://" not in url:
            Path(url).mkdir(parents=True)
        world = World(Folder(f"{url}/in"), Folder(f"{url}/out"), make_png, make_tar)
        for number in range(3):
            world.put(f"{number}.tar", range(8), bad=(5,) if number == 1 else ())
        return world

    return make


@pytest.fixture
def world(tmp_path: Path, make_world: Callable[[str], World]) -> World:
    """Three shards of eight images; one is no image."""
    return make_world(str(tmp_path / "world"))
