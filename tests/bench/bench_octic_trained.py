"""The octic encoder against the dense one after equal time of training on mnist-rot.

Both at once, each on one thread, for ORBIT_BENCH_MINUTES (5) of a core's own time at the width of
d4-28-grey; ORBIT_DATA names the folder of MNIST.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.bench.results import keep, number_of

MINUTES, WIDTH = number_of("ORBIT_BENCH_MINUTES", 5), 6
WITHIN = 0.005


def test_octic_and_dense_after_equal_time() -> None:
    if not os.environ.get("ORBIT_DATA"):
        pytest.skip("ORBIT_DATA is not set: the folder of MNIST")
    words = [sys.executable, "-m", "tests.bench.octic_trained"]
    running = {
        arch: subprocess.Popen([*words, arch, str(WIDTH), str(MINUTES)], stdout=subprocess.PIPE)
        for arch in ("dense", "octic")
    }
    told = {arch: process.communicate()[0] for arch, process in running.items()}
    assert not any(process.returncode for process in running.values()), told
    found = {arch: json.loads(text.splitlines()[-1]) for arch, text in told.items()}
    figures: dict[str, object] = {"width, minutes of one core": f"{WIDTH}, {MINUTES}"}
    for arch, facts in found.items():
        figures |= {f"{arch}: {name}": value for name, value in facts.items()}
    behind = found["dense"]["nearest_neighbours_5"] - found["octic"]["nearest_neighbours_5"]
    figures["5-NN of octic below dense, points (0.5 allowed)"] = 100 * behind
    keep("Octic against dense after equal time, mnist-rot, D12", figures)
    assert behind < WITHIN, found
