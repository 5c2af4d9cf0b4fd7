"""Images for training: on disk, as they are, in any number, once."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from eqmodel.preprocess import PreprocessSpec
from eqmodel.training import TrainConfig, as_inputs, train
from pipelines.decode import decode
from pipelines.errors import InputError
from pipelines.shards import list_shards
from pipelines.storage import Folder
from pipelines.training import Part, StoredImages, read_images
from pipelines.training.stored import Writer, smaller
from tests.pipelines.conftest import SAMPLE, MakeTar


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


def bytes_of(images: Any) -> list[bytes]:
    return sorted(np.ascontiguousarray(image).tobytes() for image in images)


def test_images_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images: list[NDArray[Any]] = [
        random.integers(0, 256, (5, 7), np.uint8),
        random.integers(0, 65536, (3, 3, 3), np.uint16),
        random.random((9, 2, 5), np.float32),
        random.integers(0, 256, (1, 1, 1), np.uint8),
    ]
    writer = Writer(tmp_path / "images", 64)
    for image in images:
        writer.add(image)
    stored = writer.finish({"a": 1})
    assert len(stored) == 4
    for image, found in zip(images, stored, strict=True):
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, image)
    assert [image.shape for image in stored[1:3]] == [(3, 3, 3), (9, 2, 5)]
    assert StoredImages.kept(tmp_path / "images", {"a": 2}) is None
    assert StoredImages.kept(tmp_path / "images", {"a": 1}) is not None
    with pytest.raises(IndexError):
        stored[4]


def test_large_images_are_stored_smaller_by_a_whole_factor() -> None:
    image = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9)
    np.testing.assert_array_equal(smaller(image, 9), image)
    found = smaller(image, 3)
    assert found.shape == (2, 3)
    assert found[0, 0] == np.rint(image[:3, :3].mean())
    assert smaller(np.ones((4, 8, 2), np.float32), 4).shape == (2, 4, 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, make_tar: MakeTar) -> tuple[Path, list[bytes]]:
    """A collection of tars, a Parquet file and a folder, with the pixels that are in it."""
    place = tmp_path_factory.mktemp("many")
    contents: list[bytes] = []
    with tarfile.open(SAMPLE / "clothes-0.tar") as tar:
        for member in tar:
            if member.name.endswith(".png"):
                file = tar.extractfile(member)
                assert file is not None
                contents.append(file.read())
    contents = contents[:120]
    for number in range(3):
        part = contents[number * 20 : number * 20 + 20]
        members = {f"{n}.png": data for n, data in enumerate(part)}
        (place / f"{number}.tar").write_bytes(make_tar(members | {"bad.png": b"no image"}))
    pq.write_table(pa.table({"image": contents[60:90]}), place / "p.parquet")
    (place / "folder").mkdir()
    for number, data in enumerate(contents[90:]):
        (place / "folder" / f"{number}.png").write_bytes(data)
    return place, bytes_of(decode(data) for data in contents)


def test_tars_parquet_and_folders_are_read_whole_and_once(
    many: tuple[Path, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, truth = many
    stored = read_images(str(place), tmp_path / "i", silent)
    assert bytes_of(stored) == truth
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.training.reading.read_shard", pytest.fail)
        again = read_images(str(place), tmp_path / "i", silent)
    assert all(np.array_equal(one, two) for one, two in zip(stored, again, strict=True))
    other = read_images(str(place), tmp_path / "i", silent, seed=1)
    assert bytes_of(other) == truth
    assert not all(np.array_equal(one, two) for one, two in zip(again, other, strict=True))


def test_a_limit_is_spread_over_the_shards(many: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    seen: list[str] = []
    stored = read_images(
        str(SAMPLE), tmp_path / "i", lambda stage, done, total=None, note="": seen.append(note),
        limit=50,
    )  # fmt: skip
    assert len(stored) == 50
    assert seen == [f"{n} images" for n in (10, 20, 30, 40, 50)]


@pytest.mark.parametrize("of", [2, 3, 40])
def test_parts_are_the_whole(many: tuple[Path, list[bytes]], tmp_path: Path, of: int) -> None:
    """By shards where there are enough of them, else by images; never one twice."""
    place, truth = many
    num_shards = len(list_shards(Folder(str(place)), buckets=64))
    assert (num_shards >= 2 * of) == (of < 40)
    parts = [
        read_images(str(place), tmp_path / str(n), silent, part=Part(n, of)) for n in range(of)
    ]
    assert sorted(sum((bytes_of(part) for part in parts), [])) == truth  # noqa: RUF017


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to train on"):
        read_images(str(tmp_path / "empty"), tmp_path / "i", silent)


def test_a_damaged_shard_gives_its_whole_part(tmp_path: Path) -> None:
    content = bytearray((SAMPLE / "clothes-0.tar").read_bytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.tar").write_bytes(content[: 512 * 101])
    assert 10 < len(read_images(str(tmp_path / "in"), tmp_path / "i", silent)) < 40


def test_the_models_input_lies_on_disk_and_is_the_same(tmp_path: Path) -> None:
    stored = read_images(str(SAMPLE), tmp_path / "i", silent, limit=40)
    spec = PreprocessSpec(image_size=28, channels=1)
    on_disk, in_memory = as_inputs(stored, spec), as_inputs(list(stored), spec)
    assert (on_disk == in_memory).all()
    assert (tmp_path / "i" / "inputs.bin").stat().st_size == 40 * 28 * 28 * 2


@pytest.mark.slow
def test_a_training_from_disk_gives_the_same_weights(tmp_path: Path) -> None:
    config = TrainConfig(width=2, features=6, dim=8, epochs=1, batch_size=32)
    stored = read_images(str(SAMPLE), tmp_path / "i", silent, limit=96)
    one = train(stored, tmp_path / "disk", config)
    two = train(list(stored), tmp_path / "memory", config)
    assert one["model_id"] == two["model_id"]


def test_images_are_views_of_the_file(tmp_path: Path) -> None:
    stored = read_images(str(SAMPLE), tmp_path / "i", silent, limit=40)
    assert isinstance(stored._bytes, np.memmap)
    assert all(np.shares_memory(image, stored._bytes) for image in stored)
