"""The whole publication with its report: 100,000 real images, and a million made embeddings.

`ORBIT_DATA=/data make bench` (the folder with fashion-mnist/*.gz and mnist/*.gz); ORBIT_BENCH_NUM
tries it small.
"""

import json
import subprocess
import sys

import pytest

from tests.bench.results import BUILD, keep, number_of

GIB, MB = 1 << 30, 1_000_000
CASES = {
    "images": (number_of("ORBIT_BENCH_NUM", 100_000), 180.0, 3.0),
    "synthetic": (number_of("ORBIT_BENCH_NUM", 1_000_000), 600.0, None),
}
"""What fills the store, with how many; seconds and GiB that its publication may take."""
TITLES = {"images": "100,000 images", "synthetic": "a million made embeddings"}
BY = {"kmeans": "", "density": ", clusters by density"}


@pytest.mark.parametrize(
    ("kind", "clustering"), [("images", "kmeans"), ("images", "density"), ("synthetic", "kmeans")]
)
def test_a_report_is_made_in_time(kind: str, clustering: str) -> None:
    num, seconds, memory = CASES[kind]
    place = BUILD / f"report-{kind}-{num}"
    if not (place / "embeddings").exists():
        place.mkdir(parents=True, exist_ok=True)
        _run(kind, str(num), str(place))
    told = json.loads(_run("publish", str(place), clustering).splitlines()[-1])
    figures = {
        "images": told["num"],
        "seconds": told["seconds"],
        "resident memory, GiB": told["resident_bytes"] / GIB,
        "report.html, MB": told["page_bytes"] / MB,
        "index": told["index_kind"],
        "recall at 10": told["recall_at_10"],
        "clusters": told["num_clusters"],
        **{f"{stage}, seconds": value for stage, value in told["stages_s"].items()},
    }
    keep(f"Publication and report of {TITLES[kind]}{BY[clustering]}", figures)
    assert told["seconds"] <= seconds
    assert told["page_bytes"] < 15 * MB
    if memory is not None:
        assert told["resident_bytes"] <= memory * GIB


def _run(*arguments: str) -> str:
    line = [sys.executable, "-m", "tests.bench.report_scale", *arguments]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
