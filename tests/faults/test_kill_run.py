"""Workers, machines and drivers killed in one run, against the same run left alone.

The sizes are parameters: ORBIT_KILL_RUN="shards=200 images=100 workers=100 machines=10 drivers=5"
is the figure of the notes; the defaults are what a busy machine does in a few minutes. Each kill
comes when its share of the shards is in the table, so that all of them come while there is work.
"""

import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.batch import silent
from pipelines.storage import Folder
from pipelines.verify import VerifyOptions, verify

from .conftest import MODEL_ID, MakePng, MakeTar, named_files, read_rows
from .machines import Driver, Machines, machines

pytestmark = [pytest.mark.faults_slow, pytest.mark.timeout(0)]
IN_FLIGHT = 2
"""Shards that one worker has: one in work, one fetched ahead."""


@dataclass(frozen=True)
class Sizes:
    """How much there is, and how many of what are killed.

    ``fetch_ms``: what fetching a shard takes longer than it does here, in both runs, so that there
    is a midst to kill in.
    """

    shards: int = 20
    images: int = 40
    side: int = 64
    fetch_ms: int = 1500
    workers: int = 5
    machines: int = 2
    drivers: int = 1

    @classmethod
    def given(cls) -> "Sizes":
        told = dict(part.split("=") for part in os.environ.get("ORBIT_KILL_RUN", "").split())
        unknown = told.keys() - {field.name for field in fields(cls)}
        assert not unknown, f"ORBIT_KILL_RUN: no {unknown}"
        return cls(**{name: int(value) for name, value in told.items()})

    @property
    def events(self) -> list[str]:
        kinds = {"worker": self.workers, "machine": self.machines, "driver": self.drivers}
        return [kind for kind, count in kinds.items() for _ in range(count)]

    @property
    def slow_fetches(self) -> str:
        """``ORBIT_FAULT`` for every fetch of every worker."""
        times, seconds = range(1, 2 * self.shards), self.fetch_ms / 1000
        return ",".join(f"worker.fetch@{n}:sleep={seconds}" for n in times)


def fill(place: Path, sizes: Sizes, make_png: MakePng, make_tar: MakeTar) -> Counter[Any]:
    """Shards of made images, some of which are none; returns what there is."""
    place.mkdir()
    truth: Counter[Any] = Counter()
    ramp = np.add.outer(np.arange(sizes.side), np.arange(sizes.side))
    for shard in range(sizes.shards):
        chance, members = np.random.default_rng(shard), {}
        for n in range(sizes.images):
            pixels = (ramp * chance.integers(1, 9) + chance.integers(256)).astype(np.uint8)
            x, y = chance.integers(0, sizes.side - 8, 2)
            pixels[x : x + 40, y : y + 60] = chance.integers(256)
            members[f"{n}.png"] = b"broken" if n == shard % 50 else make_png(pixels)
            truth[f"{shard:04d}.tar", str(n)] += 1
        (place / f"{shard:04d}.tar").write_bytes(make_tar(members))
    return truth


class Log:
    """Shards in a table, read from its log as it grows."""

    def __init__(self, store: Path) -> None:
        self._folder, self._next, self.num = store / "embeddings" / MODEL_ID / "_delta_log", 0, 0

    def __call__(self) -> int:
        while (entry := self._folder / f"{self._next:020d}.json").exists():
            lines = entry.read_text().splitlines()
            self.num += sum('"add"' in line[:10] for line in lines)
            self._next += 1
        return self.num


@dataclass
class Killer:
    """One disturbed run."""

    sizes: Sizes
    made: Machines
    place: Path
    chance: random.Random
    drivers: list[Driver]

    def run(self, source: Path, store: Path) -> float:
        """Seconds from the first driver's start to the last one's end."""
        began, log = time.monotonic(), Log(store)
        events = self.sizes.events
        self.chance.shuffle(events)
        self.start(source, store)
        for number, event in enumerate(events, 1):
            share = number * self.sizes.shards // (len(events) + 1)
            while log() < share:
                self.alive()
                time.sleep(0.02)
            time.sleep(self.chance.uniform(0, 0.3))
            self.kill(event, source, store)
        assert self.drivers[-1].process.wait() == 0, self.drivers[-1].told
        return time.monotonic() - began

    def start(self, source: Path, store: Path) -> None:
        output = self.place / f"driver-{len(self.drivers)}"
        settings: dict[str, Any] = {"ray": self.made.address}
        self.drivers.append(Driver.start(str(source), str(store), output, **settings))

    def alive(self) -> None:
        driver = self.drivers[-1]
        assert driver.running, f"it ended before everything was killed: {driver.told}"

    def kill(self, event: str, source: Path, store: Path) -> None:
        if event == "driver":
            self.alive()
            self.drivers[-1].kill()
            self.start(source, store)
        elif event == "machine":
            self.made.lose(self.chance.choice(self.made.nodes))
            self.made.add()
        else:
            while not (workers := self.made.workers(self.drivers[-1].ready)):
                self.alive()
                time.sleep(0.02)
            self.chance.choice(workers).kill()

    def restarts(self) -> tuple[float, float]:
        """Seconds of the run that restarts of workers took, and those of drivers."""
        took = [driver.restarts() for driver in self.drivers]
        return sum(workers for _, workers in took), sum(begun for begun, _ in took[1:])


def rows_of(store: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = read_rows(Folder(str(store)))
    found = {(row["source"], row["key"]): row for row in rows}
    assert len(found) == len(rows), "an image is in the table twice"
    return found


def compare(alone: Path, disturbed: Path, truth: Counter[Any]) -> float:
    """The oracle; the largest difference of an embedding."""
    expected, found = rows_of(alone), rows_of(disturbed)
    assert Counter(list(found)) == truth == Counter(list(expected))
    worst = 0.0
    for image, row in found.items():
        before = expected[image]
        assert (row["error"], row["digest"]) == (before["error"], before["digest"])
        assert (row["embedding"] is None) == (before["embedding"] is None) == bool(row["error"])
        if row["embedding"] is not None:
            worst = max(
                worst, float(np.abs(np.subtract(row["embedding"], before["embedding"])).max())
            )
    return worst


def test_kills(
    tmp_path: Path,
    chance: random.Random,
    make_png: MakePng,
    make_tar: MakeTar,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = Sizes.given()
    monkeypatch.setenv("ORBIT_FAULT", sizes.slow_fetches)
    truth = fill(tmp_path / "in", sizes, make_png, make_tar)
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    with machines(1, 1) as made:
        began = time.monotonic()
        quiet = Driver.start(str(tmp_path / "in"), str(alone), tmp_path / "out", ray=made.address)
        assert quiet.process.wait() == 0, quiet.told
        undisturbed = time.monotonic() - began
        killer = Killer(sizes, made, tmp_path, chance, [])
        wall = killer.run(tmp_path / "in", disturbed)
    worst = compare(alone, disturbed, truth)
    store = Folder(str(disturbed))
    verdict = verify(store, VerifyOptions(audit_images=0), silent)
    workers, drivers = killer.restarts()
    encoded = len(list((disturbed / "embeddings").rglob("*.parquet")))
    lost = sizes.workers + sizes.machines + 2 * sizes.drivers
    facts = {
        "shards": sizes.shards,
        "images": truth.total(),
        "kills": dict(Counter(sizes.events)),
        "undisturbed_s": round(undisturbed, 1),
        "wall_s": round(wall, 1),
        "worker_restarts_s": round(workers, 1),
        "driver_restarts_s": round(drivers, 1),
        "allowed_s": round(1.25 * undisturbed + workers + drivers, 1),
        "quarantines": sum(one.told.count(" goes to quarantine ") for one in killer.drivers),
        "shards_encoded": encoded,
        "shards_encoded_at_most": sizes.shards + IN_FLIGHT * lost,
        "embedding_difference": worst,
    }
    print("\n" + json.dumps(facts, indent=2))
    assert verdict.findings == []
    assert len(named_files(store, f"embeddings/{MODEL_ID}")) == sizes.shards
    assert worst <= 1e-5
    assert encoded <= facts["shards_encoded_at_most"]
    assert wall <= facts["allowed_s"]
