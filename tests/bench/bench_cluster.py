"""A night on a cluster that is up, and what its driver can plan and hand out.

python -m pytest tests/bench/bench_cluster.py -o python_files='bench_*.py' -s --timeout=0
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from jobs.sample import FOLDER
from tests.bench.results import keep, number_of
from tests.clusters import RayCluster
from tests.jobs.test_nodes import finished, process, submit

SHARDS = number_of("ORBIT_BENCH_SHARDS", 100_000)


def test_shards_are_planned_and_handed_out() -> None:
    program = Path(__file__).with_name("dispatch_scale.py")
    told = subprocess.run(
        [sys.executable, str(program), str(SHARDS)], capture_output=True, text=True, check=True
    )
    found = json.loads(told.stdout)
    keep(
        f"{SHARDS:,} shards by one driver, the embedding a stub",
        {
            "shards committed": found["num_shards"],
            "workers, on the same two cores": found["num_workers"],
            "shards handed out and committed a second (1,000 asked)": found["shards_per_s"],
            "of it in commits, s": found["commit_s"],
            "listing, plan and start of Ray, s": found["startup_s"],
            "CPU of the driver per shard, ms": found["driver_cpu_ms_per_shard"],
            "peak memory of the driver, MiB (1,024 allowed)": found["driver_peak_mib"],
        },
    )
    assert (found["failure"], found["num_shards"]) == (None, SHARDS)
    assert found["driver_peak_mib"] < 1_024
    assert found["shards_per_s"] >= 1_000


def test_a_night_is_submitted_run_published_and_waited_for(tmp_path: Path) -> None:
    cluster = RayCluster(tmp_path, cpus=2)
    try:
        began = time.monotonic()
        run = ["run", str(FOLDER), "--model", "d4-28-grey", "--out", str(tmp_path / "store")]
        result = finished(process([*submit(cluster), *run, "--json"], cluster.environment))
        took = time.monotonic() - began
    finally:
        cluster.close()
    keep(
        "A night on a Ray head that is up: 2,000 images, by `orbit submit`",
        {
            "submitted, run, published, exit code 0, s (90 allowed)": took,
            "of it workers started, s": result["startup_s"],
            "of it embedding, s": result["steady_s"],
            "images embedded": result["num_embedded"],
            "recall@10": result["recall_at_10"],
        },
    )
    assert result["num_embedded"] == 2_000
    assert took < 90
