"""`orbit embed` against plain loops, on three kinds of images, and as the bucket grows.

All with d4-28-grey in float32, as processes that turns are taken by, medians. ORBIT_BENCH_SHARDS
(20) and ORBIT_BENCH_REPEATS (3) try it small. The steady rate is checked by an outside clock: the
slope of the whole time between a bucket and a quarter of it.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from tests.bench.buckets import bucket
from tests.bench.results import BUILD, keep, number_of

SHARDS, REPEATS = number_of("ORBIT_BENCH_SHARDS", 20), number_of("ORBIT_BENCH_REPEATS", 3)
STORE = BUILD / "store"
LOOKED_EVERY_S = 1.0
"""Looking at the memory of a dozen processes five times a second cost 10 to 20% of the rates."""


def timed(command: list[str]) -> tuple[float, int, dict[str, Any]]:
    """(seconds, largest resident bytes of the process and its children, its JSON)."""
    began, peak, looked = time.perf_counter(), 0, 0.0
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.1)
        if time.perf_counter() < looked + LOOKED_EVERY_S:
            continue
        looked = time.perf_counter()
        held = 0
        for member in [process, *process.children(recursive=True)]:
            try:
                held += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, held)
    assert process.stdout is not None
    out = process.stdout.read()
    assert process.returncode == 0, out
    return time.perf_counter() - began, peak, json.loads(out.splitlines()[-1])


def embed(folder: Path, *flags: str) -> tuple[float, int, dict[str, Any]]:
    shutil.rmtree(STORE, ignore_errors=True)
    words = ["embed", str(folder), "--model", "d4-28-grey", "--out", str(STORE), "--json", *flags]
    return timed([sys.executable, "-m", "jobs.cli", *words])


def loop(kind: str, folder: Path) -> tuple[float, int, dict[str, Any]]:
    return timed([sys.executable, "-m", "tests.bench.plain_loops", kind, str(folder)])


def test_against_plain_loops() -> None:
    folder, loops = bucket(28, SHARDS), ["webdataset", "raydata"]
    try:
        import webdataset  # noqa: F401
    except ImportError:
        loops.remove("webdataset")
    whole: dict[str, list[float]] = {name: [] for name in ["orbit embed", *loops]}
    steady: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(REPEATS):
        for name in whole:
            seconds, _, found = embed(folder) if name == "orbit embed" else loop(name, folder)
            count = found["num_encoded" if name == "orbit embed" else "num_images"]
            assert count == SHARDS * 2000
            whole[name].append(count / seconds)
            steady[name].append(count / found["steady_s"])
    figures: dict[str, object] = {"images": SHARDS * 2000}
    for name in whole:
        figures[f"{name}, images/s with start-up"] = median(whole[name])
        figures[f"{name}, images/s without"] = median(steady[name])
    for name in loops:
        figures[f"orbit embed against {name}, with start-up"] = median(
            whole["orbit embed"]
        ) / median(whole[name])
        figures[f"orbit embed against {name}, without"] = median(steady["orbit embed"]) / median(
            steady[name]
        )
    if "webdataset" not in loops:
        figures["left out"] = "webdataset (not installed)"
    keep("orbit embed against plain loops, 28x28 PNG", figures)


def spent(core_us: dict[str, float]) -> str:
    """By phase, the largest first, and their sum."""
    parts = sorted(core_us.items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {each:.1f}" for name, each in parts)
    return f"{told}; in all {sum(core_us.values()):.1f}"


KINDS = [(28, "28x28 PNG", 4 * SHARDS), (256, "256x256 JPEG", 4 * SHARDS),
         (1024, "1024x1024 JPEG", 6 * SHARDS)]  # fmt: skip
"""So large that the seconds by which one start differs from another are little of the slope."""


@pytest.mark.parametrize(("side", "kind", "shards"), KINDS)
def test_efficiency_by_an_outside_clock(side: int, kind: str, shards: int) -> None:
    """The slope between a bucket and a quarter of it: start and end cancel out."""
    folder = bucket(side, shards)
    runs = [(embed(folder), embed(folder, "--limit", str(shards // 4))) for _ in range(REPEATS)]
    slopes = [(a[2]["num_encoded"] - b[2]["num_encoded"]) / (a[0] - b[0]) for a, b in runs]
    told = [a[2]["images_per_s"] for a, _ in runs]
    efficiency = [a[2]["efficiency"] for a, _ in runs]
    outside = median(slopes) * median(efficiency) / median(told)
    last = runs[-1][0][2]
    keep(f"Efficiency on {kind}, d4-28-grey", {
        "images": last["num_encoded"],
        "images/s told": median(told),
        "images/s by the slope": median(slopes),
        "efficiency told": median(efficiency),
        "efficiency by the slope": outside,
        "efficiency told, least and most": f"{min(efficiency):.3f} {max(efficiency):.3f}",
        "efficiency_total told": median(a[2]["efficiency_total"] for a, _ in runs),
        "limit": last["limit"],
        "fetch, decode and model by themselves, images/s": ", ".join(
            f"{last[name]:,.0f}" for name in ("fetch_per_s", "decode_per_s", "model_per_s")
        ),
        "microseconds of the cores for each image": spent(last["core_us"]),
    })  # fmt: skip
    assert abs(outside / median(efficiency) - 1) < 0.2, (slopes, told)


def test_layouts() -> None:
    """Two workers of one CPU against one of two."""
    folder, figures = bucket(28, SHARDS), dict[str, object]()
    for flags in (["--workers", "2"], ["--workers", "1", "--cpus-per-worker", "2"]):
        found = [embed(folder, *flags)[2] for _ in range(REPEATS)]
        name = " ".join(flags)
        figures[f"{name}: images/s"] = median(run["images_per_s"] for run in found)
        figures[f"{name}: efficiency"] = median(run["efficiency"] for run in found)
    keep("Layouts of workers, 28x28 PNG", figures)


def test_growth() -> None:
    """The time may grow by 2.1 and the memory by a tenth where the shards double."""
    figures: dict[str, object] = {}
    before, folder = None, bucket(28, 2 * SHARDS)
    for shards in (2, 4, 8, 16, 32):
        run = embed(folder, "--limit", str(shards))
        seconds, peak, found = run
        told = f"{found['num_encoded']:,} images in {seconds:.1f} s, steady {found['steady_s']:.1f}"
        told += f" s, {peak >> 20} MiB at most"
        if before is not None:
            whole, memory = seconds / before[0], peak / before[1]
            steady = found["steady_s"] / before[2]["steady_s"]
            told += f": times {whole:.2f}, {steady:.2f}, {memory:.2f}"
            assert whole < 2.1, told
        figures[f"{shards} shards"] = told
        before = run
    for workers in ("1", "2"):
        _, _, found = embed(folder, "--limit", "16", "--workers", workers, "--cpus-per-worker", "1")
        figures[f"{workers} worker of one CPU, images/s"] = found["images_per_s"]
    keep("Growth of a bucket of 28x28 PNG", figures)
