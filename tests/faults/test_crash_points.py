"""At every fault point the process dies or raises, and the next run makes it good."""

import ast
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.faults import POINTS, parse

from .conftest import World, Zygote, read_rows

ROOT = Path(__file__).parents[2]
OF_A_RUN = [name for name in POINTS if not name.startswith(("gc.", "erase."))]
NTH = {"driver.received": 2, "driver.commit": 2, "driver.committed": 2, "log.written": 3,
       "worker.fetch": 2, "worker.uploaded": 2, "publish.uploading": 4}  # fmt: skip


def test_every_point_is_passed_somewhere_and_listed() -> None:
    called: set[str] = set()
    for path in (ROOT / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "faultpoint":
                called.add(ast.literal_eval(node.args[0]))
    assert called == set(POINTS)


def test_a_wrong_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="expected name@n:kill"):
        parse("driver.nowhere@1:kill")
    assert [fault.token() for fault in parse("gc.delete@3:kill,worker.load:raise")] == [
        "gc.delete@3-kill", "worker.load@1-raise"
    ]  # fmt: skip


def crash_and_run_again(zygote: Zygote, world: World, point: str, action: str) -> None:
    started = zygote.start("run", f"{point}@{NTH.get(point, 1)}:{action}", **world.where())
    code = started.wait()
    assert started.fired, f"{point} was never passed: {started.output.read_text()[-500:]}"
    if action == "kill":
        assert code == -signal.SIGKILL
    if action == "term":
        assert code in (0, 143)  # 0: it came when everything was done
    if world.store.exists():
        world.check_between()
    done = {row["source"] for row in read_rows(world.store)} if world.store.exists() else set()
    again = zygote.start("run", **world.where())
    assert again.wait() == 0, again.output.read_text()
    world.check()
    left = [image for image in world.images if image[0] not in done and image not in world.bad]
    assert again.json["num_encoded"] == len(left), "what was committed was done again"


def all_points(*quick: str) -> list[object]:
    """Every point of a run; those not in ``quick`` with `make test-faults` only."""
    assert set(quick) <= set(OF_A_RUN)
    slow = pytest.mark.faults_slow
    return [name if name in quick else pytest.param(name, marks=slow) for name in OF_A_RUN]


@pytest.mark.parametrize("point", all_points("driver.commit", "log.written"))
def test_an_error_costs_no_image(zygote: Zygote, world: World, point: str) -> None:
    crash_and_run_again(zygote, world, point, "raise")


@pytest.mark.parametrize(
    "point",
    all_points(
        "worker.decode", "worker.uploaded", "driver.received", "driver.commit", "log.written",
        "driver.committed", "publish.uploading", "publish.visible",
    ),
)  # fmt: skip
def test_a_crash_costs_no_image(zygote: Zygote, world: World, point: str) -> None:
    crash_and_run_again(zygote, world, point, "kill")


@pytest.mark.parametrize("point", all_points("driver.commit"))
def test_a_preemption_costs_no_image(zygote: Zygote, world: World, point: str) -> None:
    crash_and_run_again(zygote, world, point, "term")


@pytest.mark.faults_slow
@pytest.mark.parametrize("point", ["worker.encode", "driver.commit", "publish.uploading"])
def test_told_to_stop_and_killed_two_seconds_later(
    zygote: Zygote, world: World, point: str
) -> None:
    started = zygote.start("run", f"{point}@2:stop", **world.where())
    while not started.fired:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGTERM)
    time.sleep(2)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    world.check_between()
    assert zygote.start("run", **world.where()).wait() == 0
    world.check()


@pytest.mark.faults_slow
@pytest.mark.parametrize("action", ["kill", "term", "raise"])
@pytest.mark.parametrize("point", OF_A_RUN)
def test_on_s3_too(
    zygote: Zygote, s3_url: str, make_world: Callable[[str], World], point: str, action: str
) -> None:
    crash_and_run_again(zygote, make_world(s3_url), point, action)
