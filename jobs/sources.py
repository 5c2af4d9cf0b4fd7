"""The images behind `orbit evaluate`: IDX files of MNIST and Fashion-MNIST, or class folders."""

import hashlib
import os
from pathlib import Path

import numpy as np

from eqmodel.errors import Refused
from eqmodel.preprocess import PreprocessSpec, preprocess
from eqmodel.protocols.draws import Labelled, Protocol, Source
from jobs.datasets import DATASETS, IMAGES, DatasetError, Pixels, Split, load

PLANKTON_SIDE = 32
NEEDED_CLASSES = 2


def data_folder(given: Path | None) -> Path:
    """--data, else ORBIT_DATA, else the folder `data` here."""
    return given or Path(os.environ.get("ORBIT_DATA") or "data")


def read_source(protocol: Protocol, folder: Path) -> Source:
    """What a protocol draws from. Raises Refused, saying what to fetch, where it is not there."""
    if protocol.dataset == "plankton":
        return read_class_folders(folder)
    return read_idx(protocol, folder)


def read_idx(protocol: Protocol, folder: Path) -> Source:
    """Both published halves from FOLDER/mnist (or fashion-mnist), or from FOLDER itself."""
    dataset = DATASETS[protocol.dataset]
    fetch = f"fetch it with 'python -m jobs.datasets {dataset.name} --idx --out {folder}'"
    try:
        halves = [load(dataset, split, folder, check=False) for split in Split]
    except DatasetError as error:
        raise Refused(f"{protocol.name} needs {dataset.name}: {error}; {fetch}") from error
    for other in DATASETS.values():
        if other is not dataset and digest(halves[0][0]) == other.digests[IMAGES[Split.train]]:
            raise Refused(
                f"{protocol.name} needs {dataset.name}, but {folder} holds {other.name}; {fetch}"
            )
    train, test = (Labelled(images, labels.astype(np.int64)) for images, labels in halves)
    return Source(train, test, dataset.classes)


def digest(images: Pixels) -> str:
    """sha256 of the IDX file that these images make."""
    header = bytes([0, 0, 8, images.ndim]) + np.array(images.shape, ">u4").tobytes()
    return hashlib.sha256(header + images.tobytes()).hexdigest()


def read_class_folders(folder: Path) -> Source:
    """FOLDER/CLASS/image files, or FOLDER/train/CLASS/...: padded to square, scaled to 32x32 grey
    uint8; no split of its own."""
    from pipelines.decode import decode
    from pipelines.errors import Rejected

    root = next((f for f in (folder / "plankton", folder / "train") if f.is_dir()), folder)
    root = root / "train" if (root / "train").is_dir() else root
    kinds = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    if len(kinds) < NEEDED_CLASSES:
        raise Refused(
            f"plankton needs a folder of images per class: found {len(kinds)} in {root}; fetch "
            "train.zip of the National Data Science Bowl (kaggle.com/c/datasciencebowl), unpack "
            "it and name its folder with --data"
        )
    images, labels = [], []
    for number, kind in enumerate(kinds):
        for path in sorted(f for f in kind.iterdir() if f.is_file()):
            try:
                images.append(decode(path.read_bytes()))
            except Rejected:
                continue
            labels.append(number)
    if not images:
        raise Refused(f"no file in the folders of {root} is an image; name another with --data")
    pixels = preprocess(images, PreprocessSpec(image_size=PLANKTON_SIDE)) * 255.0
    squares = pixels.round().clamp(0, 255).byte().numpy()[:, 0]
    nothing = Labelled(squares[:0], np.empty(0, np.int64))
    whole = Labelled(squares, np.array(labels, np.int64))
    return Source(whole, nothing, tuple(kind.name for kind in kinds))
