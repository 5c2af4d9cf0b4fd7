"""IDX files in, WebDataset tars out; what is not the published data set is refused."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eqmodel.errors import Refused
from jobs.datasets import (
    DATASETS,
    IMAGES,
    LABELS,
    MNIST,
    DatasetError,
    Split,
    datasets,
    load,
    parse_idx,
    write_idx,
)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """Seven made digits of the test split, as IDX files in FOLDER/mnist."""
    folder = tmp_path / "idx" / "mnist"
    folder.mkdir(parents=True)
    images = np.arange(7 * 28 * 28, dtype=np.uint8).reshape(7, 28, 28)
    write_idx(folder / f"{IMAGES[Split.test]}.gz", images)
    write_idx(folder / f"{LABELS[Split.test]}.gz", np.arange(7, dtype=np.uint8))
    return tmp_path / "idx"


def test_idx_goes_there_and_back(idx_folder: Path) -> None:
    images, labels = load(MNIST, Split.test, idx_folder, check=False)
    assert images.shape == (7, 28, 28)
    assert images[6, 27, 27] == (7 * 28 * 28 - 1) % 256
    assert labels.tolist() == list(range(7))


def test_files_directly_in_the_folder_are_found(idx_folder: Path) -> None:
    images, _ = load(MNIST, Split.test, idx_folder / "mnist", check=False)
    assert len(images) == 7


def test_shards_hold_images_and_class_names(idx_folder: Path, tmp_path: Path) -> None:
    datasets(["mnist"], tmp_path / "out", Split.test, idx_folder, per_shard=3, check=False)
    tars = sorted((tmp_path / "out" / "mnist" / "test").iterdir())
    assert [path.name for path in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    with tarfile.open(tars[1]) as tar:
        assert tar.getnames()[:2] == ["00003.cls", "00003.png"]
        label, image = (tar.extractfile(name) for name in tar.getnames()[:2])
        assert label is not None
        assert image is not None
        assert label.read() == b"3"
        pixels = np.asarray(Image.open(io.BytesIO(image.read())))
    assert pixels[0, 1] == (3 * 28 * 28 + 1) % 256


def test_another_content_is_refused(idx_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"has sha256 .* expected .* --no-check"):
        load(MNIST, Split.test, idx_folder)


def test_a_missing_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no t10k-images-idx3-ubyte.gz in .*expected .* or "):
        load(MNIST, Split.test, tmp_path)


def test_a_cut_gzip_is_refused(idx_folder: Path) -> None:
    path = idx_folder / "mnist" / f"{IMAGES[Split.test]}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="not a whole gzip file"):
        load(MNIST, Split.test, idx_folder, check=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"\0\0\x09\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x08\x03\0"],
)
def test_what_is_no_idx_file_is_refused(content: bytes) -> None:
    with pytest.raises(DatasetError, match="IDX file"):
        parse_idx(content)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no data set 'cifar': expected mnist or fashion-mnist"):
        datasets(["cifar"], tmp_path)


def test_a_download_tries_every_mirror(monkeypatch: pytest.MonkeyPatch, idx_folder: Path) -> None:
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        if len(asked) == 1:
            raise OSError("no route")
        return io.BytesIO((idx_folder / "mnist" / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    images, _ = load(MNIST, Split.test, check=False)
    assert len(images) == 7
    assert asked[0].startswith(MNIST.mirrors[0])
    assert asked[1].startswith(MNIST.mirrors[1])


def test_every_file_has_a_digest() -> None:
    for dataset in DATASETS.values():
        assert set(dataset.digests) == {*IMAGES.values(), *LABELS.values()}
        assert len(dataset.classes) == 10


def test_gzip_files_are_the_same_each_time(tmp_path: Path) -> None:
    write_idx(tmp_path / "a.gz", np.zeros((2, 2), np.uint8))
    assert gzip.decompress((tmp_path / "a.gz").read_bytes())[:4] == b"\0\0\x08\x02"
