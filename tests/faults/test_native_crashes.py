"""An image that crashes the process that decodes it costs that image, and nothing else."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from eqmodel import Embedder
from eqmodel.checkpoint import resolve
from pipelines.errors import InputError
from pipelines.guards import check_images
from pipelines.shards import ReadOptions, list_shards

from .conftest import MakePng, MakeTar, World, read_rows
from .machines import Driver

CRASH = """
import os, signal
import pipelines.decode as module
decode = module.decode
def crash(data):
    if b"CRASH" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(data)
module.decode = crash
"""


@pytest.fixture
def poisonous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """PYTHONPATH of processes in which an image with the word CRASH in it is the end."""
    code = tmp_path / "code"
    code.mkdir()
    code.joinpath("sitecustomize.py").write_text(CRASH)
    monkeypatch.syspath_prepend(str(code))
    return os.pathsep.join(filter(None, sys.path))


def put_poison(world: World, name: str, place: int, make_png: MakePng, make_tar: MakeTar) -> None:
    """A tar whose image number ``place`` is poison."""
    members = {}
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (28, 28), np.uint8)
        members[f"{n}.png"] = make_png(pixels) + (b"CRASH" if n == place else b"")
    world.input.write(name, make_tar(members))
    world.truth[name] = [str(n) for n in range(6)]
    world.bad.add((name, str(place)))


def test_the_look_at_the_first_images_survives_one(
    world: World, make_png: MakePng, make_tar: MakeTar, poisonous: str
) -> None:
    embedder = Embedder.load(resolve("d4-28-grey"))
    put_poison(world, "0.tar", 0, make_png, make_tar)
    check_images(world.input, list_shards(world.input), ReadOptions(), embedder)
    world.input.write("0.tar", make_tar({"0.txt": b"none"}))
    with pytest.raises(InputError, match="no image in its 1 shards"):
        check_images(world.input, list_shards(world.input)[:1], ReadOptions(), embedder)


@pytest.mark.faults_slow
@pytest.mark.timeout(1800)
def test_a_run_rejects_that_image_alone(
    world: World, make_png: MakePng, make_tar: MakeTar, tmp_path: Path, poisonous: str
) -> None:
    """The first image of all and one in the midst, on real workers: two of them die of each."""
    put_poison(world, "0.tar", 0, make_png, make_tar)
    put_poison(world, "2.tar", 3, make_png, make_tar)
    driver = Driver.start(
        world.input.url, world.store.url, tmp_path / "out", {"PYTHONPATH": poisonous}, workers="1"
    )
    assert driver.process.wait() == 0, driver.told
    rows = read_rows(world.store)
    assert sorted((r["source"], r["key"]) for r in rows) == sorted(world.images.elements())
    errors = {(r["source"], r["key"]): r["error"] for r in rows if r["error"]}
    assert set(errors) == world.bad
    assert all("died twice" in errors[i] for i in (("0.tar", "0"), ("2.tar", "3")))
    assert all((r["embedding"] is None) == bool(r["error"]) for r in rows)
