"""Decoded images in one file on disk, mapped into memory: a sequence of arrays of any sizes.

Nothing is held in memory but 32 bytes per image; what the system keeps of the file in its page
cache it gives back when others need it. The model's input, made from the images once, lies beside
them in the same way.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIXELS, TABLE, CARD, INPUTS = "pixels.bin", "images.npy", "card.json", "inputs.bin"
_KINDS: tuple[type[Any], ...] = (np.uint8, np.uint16, np.float32)
_ROW = np.dtype([("at", "<i8"), ("height", "<i4"), ("width", "<i4"), ("channels", "<i4"),
                 ("kind", "<i4")])  # fmt: skip


class StoredImages(Sequence[NDArray[Any]]):
    """The images of a folder that ``Writer`` finished; an image is a view of the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = np.load(folder / TABLE, mmap_mode="r", allow_pickle=False)
        size = (folder / PIXELS).stat().st_size
        self._bytes = np.memmap(folder / PIXELS, np.uint8, "r", shape=(size,)) if size else b""

    @classmethod
    def kept(cls, folder: Path, made_from: dict[str, Any]) -> StoredImages | None:
        """What an earlier training stored of the same collection; None when there is none."""
        try:
            found = json.loads((folder / CARD).read_text())
        except (OSError, ValueError):
            return None
        return cls(folder) if found == json.loads(json.dumps(made_from)) else None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = self._rows[index]
        kind = np.dtype(_KINDS[row["kind"]])
        shape = (int(row["height"]), int(row["width"]), int(row["channels"]))
        at, size = int(row["at"]), math.prod(shape) or int(row["height"] * row["width"])
        if not shape[2]:
            shape = shape[:2]  # type: ignore[assignment]
        data = self._bytes[at : at + size * kind.itemsize]
        return np.frombuffer(data, kind).reshape(shape)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[number] for number in range(len(self)))

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Float16 on disk for the model's input of every image, to be filled."""
        return torch.from_numpy(np.memmap(self.folder / INPUTS, np.float16, "w+", shape=shape))


class Writer:
    """Appends images to a new folder; ``finish`` makes it one that can be opened.

    An image longer than ``max_side`` pixels is made smaller by a whole factor, as the mean of
    squares of pixels.
    """

    def __init__(self, folder: Path, max_side: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self._max_side = folder, max_side
        self._file = (folder / PIXELS).open("wb", buffering=1 << 20)
        self._rows = bytearray()
        self._at = 0

    @property
    def num_images(self) -> int:
        """Images so far."""
        return len(self._rows) // _ROW.itemsize

    def add(self, image: NDArray[Any]) -> None:
        """Append one image, (H, W) or (H, W, C), uint8, uint16 or float32."""
        image = np.ascontiguousarray(smaller(image, self._max_side))
        channels = image.shape[2] if image.ndim == 3 else 0
        kind = _KINDS.index(image.dtype.type)
        row = np.array((self._at, *image.shape[:2], channels, kind), _ROW)
        self._rows += row.tobytes()
        self._file.write(image.tobytes())
        self._at += image.nbytes
        if self._at % 4:  # views of float32 want to be aligned
            self._at += self._file.write(b"\0" * (4 - self._at % 4))

    def finish(self, made_from: dict[str, Any]) -> StoredImages:
        """The images, for reading; the card that says so is written last."""
        self._file.close()
        np.save(self.folder / TABLE, np.frombuffer(bytes(self._rows), _ROW))
        (self.folder / CARD).write_text(json.dumps(made_from))
        return StoredImages(self.folder)


def smaller(image: NDArray[Any], max_side: int) -> NDArray[Any]:
    """The mean over squares of a whole number of pixels, so that no side exceeds ``max_side``."""
    factor = -(-max(image.shape[:2]) // max_side)
    if factor <= 1 or min(image.shape[:2]) < factor:
        return image
    height, width = (side // factor for side in image.shape[:2])
    cut = image[: height * factor, : width * factor]
    squares = cut.reshape(height, factor, width, factor, *image.shape[2:])
    mean = squares.mean(axis=(1, 3), dtype=np.float32)
    found: NDArray[Any] = (mean if image.dtype == np.float32 else np.rint(mean)).astype(image.dtype)
    return found
