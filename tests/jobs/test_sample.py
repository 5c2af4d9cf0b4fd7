"""The sample that ships: what it says about itself is so, pixel for pixel."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.datasets import FASHION_MNIST, Pixels
from jobs.sample import FOLDER, QUERIES
from jobs.sample.make_sample import ELEMENTS, act, has_clear_pose, make_sample, orbit_key

MAX_BYTES = 5_000_000


def read_tar(path: Path) -> dict[str, tuple[Pixels, str]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            found.setdefault(key, {})[extension] = content.read()
    return {
        key: (np.asarray(Image.open(io.BytesIO(parts["png"]))), parts["cls"].decode())
        for key, parts in found.items()
    }


@pytest.fixture(scope="module")
def shards() -> dict[str, dict[str, tuple[Pixels, str]]]:
    return {path.name: read_tar(path) for path in sorted(FOLDER.glob("*.tar"))}


@pytest.fixture(scope="module")
def images(shards: dict[str, dict[str, tuple[Pixels, str]]]) -> dict[str, Pixels]:
    return {key: pixels for shard in shards.values() for key, (pixels, _) in shard.items()}


def test_it_is_small_and_whole(shards: dict[str, dict[str, tuple[Pixels, str]]]) -> None:
    assert [len(shard) for shard in shards.values()] == [400] * 5
    assert sum(path.stat().st_size for path in FOLDER.glob("*.tar")) <= MAX_BYTES


def test_labels_are_class_names(shards: dict[str, dict[str, tuple[Pixels, str]]]) -> None:
    counts = Counter(label for shard in shards.values() for _, label in shard.values())
    assert set(counts) == set(FASHION_MNIST.classes)
    assert min(counts.values()) > 150


def test_copies_are_exact(
    shards: dict[str, dict[str, tuple[Pixels, str]]],
) -> None:
    copies = json.loads((FOLDER / "copies.json").read_text())
    assert len(copies) == 100
    for copy in copies:
        pixels, label = shards[copy["source_copy"]][copy["copy"]]
        original, label_original = shards[copy["source_original"]][copy["original"]]
        element = (int(copy["mirror"]), copy["angle_degrees"] // 90)
        assert element != (0, 0)
        assert np.array_equal(pixels, act(original, element))
        assert label == label_original
        assert has_clear_pose(original)
    elements = Counter((copy["mirror"], copy["angle_degrees"]) for copy in copies)
    assert len(elements) == 7
    assert min(elements.values()) >= 14


def test_no_other_image_is_a_copy(images: dict[str, Pixels]) -> None:
    orbits = Counter(orbit_key(pixels) for pixels in images.values())
    assert Counter(orbits.values()) == {1: 1800, 2: 100}


def test_query_images_are_in_no_shard(images: dict[str, Pixels]) -> None:
    orbits = {orbit_key(pixels) for pixels in images.values()}
    queries = sorted(QUERIES.glob("*.png"))
    assert len(queries) == 20
    for path in queries:
        assert orbit_key(np.asarray(Image.open(path))) not in orbits


def test_act_is_mirror_then_turn_counter_clockwise() -> None:
    pixels = np.array([[1, 2], [3, 4]], np.uint8)
    assert act(pixels, (0, 1)).tolist() == [[2, 4], [1, 3]]
    assert act(pixels, (1, 0)).tolist() == [[2, 1], [4, 3]]
    assert act(pixels, (1, 1)).tolist() == [[1, 3], [2, 4]]
    assert len({act(pixels, element).tobytes() for element in ELEMENTS}) == 8


def test_the_same_seed_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2300, 28, 28), np.uint8)
    labels = (np.arange(2300) % 10).astype(np.uint8)
    monkeypatch.setattr("jobs.sample.make_sample.load", lambda *_: (images, labels))
    for name in ("one", "two"):
        make_sample(None, tmp_path / name, seed=3)
    one, two = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 6
