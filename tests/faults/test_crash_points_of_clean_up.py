"""Clean-up and erasing die or raise at each of their points, on local files and on S3.

The next attempt makes it good. Minutes: make test-faults.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.faults import POINTS
from pipelines.storage import Folder

from .conftest import Started, World, Zygote
from .test_clean_up import ids, traces
from .test_retired_models import NEW, OLD, add_model, rows_of

pytestmark = [
    pytest.mark.faults_slow,
    pytest.mark.parametrize("action", ["kill", "term", "raise"]),
    pytest.mark.parametrize("storage", ["local", "s3"]),
]
OF_GC = ["gc.forget@1", "gc.delete@1", "gc.delete@9"]
OF_ERASING = ["erase.commit@1", "erase.committed@1", "publish.built@1", "publish.uploading@2",
              "publish.row@1", "publish.visible@1", "gc.delete@1", "gc.delete@9"]  # fmt: skip
HERE = {point.partition("@")[0] for point in (*OF_GC, *OF_ERASING, "gc.retire")}
assert {name for name in POINTS if name.startswith(("gc.", "erase."))} <= HERE


@pytest.fixture
def url(storage: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if storage == "local":
        return str(tmp_path / "world")
    found: str = request.getfixturevalue("s3_url")
    return found


@pytest.fixture
def nights(zygote: Zygote, url: str, make_world: Callable[[str], World]) -> World:
    """Two publications of two versions."""
    world = make_world(url)
    for night in range(2):
        world.put("0.tar", range(night, 8 + night))
        assert zygote.start("run", **world.where()).wait() == 0
    return world


def dies(started: Started, action: str) -> None:
    """It passed the point, and ended as it was made to."""
    code = started.wait()
    assert started.fired, started.output.read_text()
    assert code in {"kill": (-signal.SIGKILL,), "term": (0, 143), "raise": (1,)}[action]


@pytest.mark.parametrize("point", OF_GC)
def test_clean_up(zygote: Zygote, nights: World, action: str, point: str) -> None:
    order = {"store": nights.store.url, "keep": 1, "grace_s": 0}
    dies(zygote.start("gc", f"{point}:{action}", **order), action)
    nights.check()
    assert zygote.start("gc", **order).wait() == 0
    nights.check()
    assert len(ids(nights.store)) == 1


@pytest.mark.parametrize("point", OF_ERASING)
def test_erasing(zygote: Zygote, nights: World, action: str, point: str) -> None:
    erased = "2.tar/4"
    order = {"store": nights.store.url, "keys": [erased]}
    assert traces(nights.store, erased)
    dies(zygote.start("erase", f"{point}:{action}", **order), action)
    nights.check_between()
    again = zygote.start("erase", **order)
    assert again.wait() == 0, again.output.read_text()
    assert traces(nights.store, erased) == []
    nights.truth["2.tar"].remove("4")
    nights.check()


def test_retiring_a_model(zygote: Zygote, url: str, tmp_path: Path, action: str) -> None:
    store, order = Folder(url), {"store": url, "keep": 1, "grace_s": 0}
    for model in (OLD, NEW):
        add_model(store, model, tmp_path)
    dies(zygote.start("gc", f"gc.retire@1:{action}", **order), action)
    assert rows_of(store, NEW) == 1
    for _ in range(2):
        assert zygote.start("gc", **order).wait() == 0
    assert rows_of(store, NEW) == 1
    assert store.entries(f"models/{OLD}") == []
    assert len(store.entries(f"models/{NEW}")) == 2
