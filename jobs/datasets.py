"""Get MNIST and Fashion-MNIST and write them as WebDataset tar shards.

    python -m jobs.datasets mnist fashion-mnist --out data/ [--split train|test] [--from FOLDER]
    python -m jobs.datasets mnist fashion-mnist --idx --out data/     # for orbit evaluate

Without --from the IDX files are downloaded from their usual mirrors. Either way their content is
checked by sha256, of the bytes inside the gzip, so that a re-compressed copy is as good.
"""

import gzip
import hashlib
import io
import os
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from eqmodel.errors import OrbitError, Refused
from jobs.console import run_alone

Pixels = NDArray[np.uint8]


class DatasetError(OrbitError, OSError):
    """A data set that is not where it should be, or not what it should be."""


class Split(StrEnum):
    """Which of the two published halves of a data set."""

    train = "train"
    test = "test"


@dataclass(frozen=True)
class Dataset:
    """Labelled images in IDX files: where to get them, how to know them, what the classes are."""

    name: str
    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    digests: dict[str, str]
    """sha256 of each file's content after gunzip."""


IMAGES = {Split.train: "train-images-idx3-ubyte", Split.test: "t10k-images-idx3-ubyte"}
LABELS = {Split.train: "train-labels-idx1-ubyte", Split.test: "t10k-labels-idx1-ubyte"}

MNIST = Dataset(
    name="mnist",
    classes=tuple("0123456789"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    digests={
        IMAGES[Split.train]: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        LABELS[Split.train]: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        IMAGES[Split.test]: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        LABELS[Split.test]: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)

FASHION_MNIST = Dataset(
    name="fashion-mnist",
    classes=(
        "T-shirt",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mirrors=(
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    digests={
        IMAGES[Split.train]: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        LABELS[Split.train]: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        IMAGES[Split.test]: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        LABELS[Split.test]: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)

DATASETS = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST)}


def parse_idx(content: bytes) -> Pixels:
    """The array of an IDX file: two zero bytes, 0x08 (uint8), the number of axes, their lengths
    as big-endian uint32, then the values."""
    axes = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    header = 4 + 4 * axes
    if axes == 0 or len(content) < header:
        raise DatasetError("found no IDX file of uint8 values, expected 00 00 08 first")
    shape = np.frombuffer(content, ">u4", axes, 4)
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DatasetError(f"found {values.size} values in an IDX file, its header says {shape}")
    return values.reshape(*shape)


def write_idx(path: Path, values: Pixels) -> None:
    """Write `values` as a gzip-compressed IDX file."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


def _unpack(packed: bytes, where: str) -> bytes:
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{where} is not a whole gzip file: {error}") from error


def _from_folder(folder: Path, dataset: Dataset, name: str) -> bytes:
    tried = [folder / dataset.name / f"{name}.gz", folder / f"{name}.gz"]
    for path in tried:
        if path.is_file():
            return _unpack(path.read_bytes(), str(path))
    raise DatasetError(f"no {name}.gz in {folder}: expected {tried[0]} or {tried[1]}")


def _download(dataset: Dataset, name: str) -> bytes:
    failures = []
    for mirror in dataset.mirrors:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=60) as reply:
                return _unpack(reply.read(), mirror)
        except OSError as error:
            failures.append(f"{mirror}: {error}")
    raise DatasetError(
        f"no mirror gave {name}.gz ({'; '.join(failures)}); "
        "get the file by other means and name its folder with --from"
    )


def load(
    dataset: Dataset, split: Split, folder: Path | None = None, *, check: bool = True
) -> tuple[Pixels, Pixels]:
    """Images (N, H, W) and class numbers (N,), from IDX files in `folder` or from a mirror.

    `check` compares the digests with those of the published files.
    """
    contents = []
    for name in (IMAGES[split], LABELS[split]):
        content = _from_folder(folder, dataset, name) if folder else _download(dataset, name)
        digest = hashlib.sha256(content).hexdigest()
        if check and digest != dataset.digests[name]:
            raise DatasetError(
                f"{name} of {dataset.name} has sha256 {digest[:16]}..., expected "
                f"{dataset.digests[name][:16]}...: get it again, or pass --no-check"
            )
        contents.append(parse_idx(content))
    images, labels = contents
    if len(images) != len(labels):
        raise DatasetError(f"found {len(images)} images and {len(labels)} labels, expected as many")
    return images, labels


def png(image: Pixels) -> bytes:
    """A grey image (H, W) as the bytes of a PNG file, the smallest zlib makes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A plain tar of named contents, the same bytes for the same members: no owner, no time."""
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    os.replace(partial, path)


def _members(
    images: Pixels, labels: Pixels, dataset: Dataset, first: int
) -> Iterator[tuple[str, bytes]]:
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start=first):
        key = f"{number:05d}"
        yield f"{key}.cls", dataset.classes[label].encode()
        yield f"{key}.png", png(image)


def write_shards(
    images: Pixels, labels: Pixels, dataset: Dataset, out: Path, per_shard: int
) -> list[Path]:
    """Write `out`/00000.tar, 00001.tar, ... of `per_shard` images each with their class names."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for shard, start in enumerate(range(0, len(images), per_shard)):
        stop = start + per_shard
        path = out / f"{shard:05d}.tar"
        write_tar(path, _members(images[start:stop], labels[start:stop], dataset, start))
        written.append(path)
    return written


def write_idx_files(dataset: Dataset, out: Path, source: Path | None, check: bool) -> None:
    """OUT/NAME/ with the four IDX files, under their published names."""
    folder = out / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    for split in Split:
        images, labels = load(dataset, split, source, check=check)
        write_idx(folder / f"{IMAGES[split]}.gz", images)
        write_idx(folder / f"{LABELS[split]}.gz", labels)
        print(f"{len(images)} {split} images in {folder}", file=sys.stderr)


def datasets(
    names: Annotated[list[str], typer.Argument(help="mnist, fashion-mnist, or both")],
    out: Annotated[Path, typer.Option(help="folder that gets OUT/NAME/SPLIT/00000.tar, ...")],
    split: Annotated[Split, typer.Option(help="which half")] = Split.train,
    source: Annotated[
        Path | None, typer.Option("--from", help="folder with the IDX files, instead of a mirror")
    ] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="images per tar shard")] = 5000,
    check: Annotated[bool, typer.Option(help="compare with the published digests")] = True,
    idx: Annotated[
        bool, typer.Option("--idx", help="both halves as IDX files, for orbit evaluate")
    ] = False,
) -> None:
    """Get MNIST or Fashion-MNIST and write it as tar shards that `orbit run` reads."""
    unknown = [name for name in names if name not in DATASETS]
    if unknown:
        raise Refused(f"no data set {unknown[0]!r}: expected {' or '.join(DATASETS)}")
    for name in names:
        if idx:
            write_idx_files(DATASETS[name], out, source, check)
            continue
        images, labels = load(DATASETS[name], split, source, check=check)
        folder = out / name / split
        written = write_shards(images, labels, DATASETS[name], folder, per_shard)
        print(f"{len(images)} images in {len(written)} shards in {folder}", file=sys.stderr)


if __name__ == "__main__":
    run_alone(datasets)
