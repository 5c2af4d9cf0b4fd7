"""100,000 shards planned, handed out and committed by one driver; only the embedding is a stub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "dispatch_scale.py"
NUM_SHARDS = 100_000


@pytest.mark.cluster_slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_shards_in_a_gigabyte() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), str(NUM_SHARDS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["failure"] is None
    assert measured["num_shards"] == NUM_SHARDS
    assert measured["driver_peak_mib"] < 1024
    assert measured["shards_per_s"] >= 1_000
