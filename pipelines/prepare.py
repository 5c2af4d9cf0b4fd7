"""One image's way through a worker: bytes -> pixels -> model input -> embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import Refused
from pipelines.decode import Caps, decode, quiet_decoders
from pipelines.errors import Rejected
from pipelines.fast_decode import decode_reduced
from pipelines.faults import faultpoint
from pipelines.pacing import Phases
from pipelines.shard_file import Row, image_id
from pipelines.shards import Sample
from pipelines.thumbnails import encode_thumbnail

if TYPE_CHECKING:
    import torch

    from eqmodel import Embedder

MAX_PIXEL_BYTES = 16 << 20
"""Decoded pixels held at once by one thread before they become (small) model input."""

MIN_NORM = 1e-6


@dataclass
class Prepared:
    """Some images decoded: a row for each, and model input for the ones worth encoding.

    ``pixels`` are model input (B_i, C, S, S) whose rows belong to ``encodable`` in order;
    ``num_encoded`` of them went through the network.
    """

    rows: list[Row] = field(default_factory=list)
    encodable: list[Row] = field(default_factory=list)
    pixels: list[torch.Tensor] = field(default_factory=list)
    phases: Phases = field(default_factory=Phases)
    num_encoded: int = 0

    def absorb(self, other: Prepared) -> None:
        """Append another part of the same shard."""
        self.rows += other.rows
        self.encodable += other.encodable
        self.pixels += other.pixels
        self.phases.absorb(other.phases)


Decoded = tuple[Row, NDArray[Any]]


class Preparer:
    """Turns samples into rows and model input; used by several threads at once."""

    def __init__(
        self,
        embedder: Embedder,
        source: str,
        thumbnail_share: float,
        decoder: Callable[[bytes], NDArray[Any]] | None = None,
        reduced: int = 0,
    ) -> None:
        """reduced: decode a JPEG straight to a smaller size, of so many pixels a side at least."""
        self._embedder, self._decode = embedder, decoder or decode
        self._reduced = reduced
        self._source, self._all_shown = source, thumbnail_share >= 1
        self._share_of_ids = int(thumbnail_share * 2**63)

    def prepare(self, samples: Sequence[Sample], done: Mapping[str, Row]) -> Prepared:
        """Decode and preprocess; what ``done`` holds by digest is carried over, not decoded."""
        faultpoint("worker.decode")
        with quiet_decoders():
            return self._prepare(samples, done)

    def _prepare(self, samples: Sequence[Sample], done: Mapping[str, Row]) -> Prepared:
        out = Prepared()
        with out.phases.timed("digest"):
            new = iter(self._new(samples, done, out))
        while waiting := self._decoded(new, out):
            self._use(waiting, out)
        return out

    def _new(
        self, samples: Sequence[Sample], done: Mapping[str, Row], out: Prepared
    ) -> list[tuple[Row, bytes]]:
        """A row for each sample; those that are to be decoded, with their bytes."""
        found = []
        for sample in samples:
            row = new_row(sample)
            out.rows.append(row)
            earlier = done.get(row.digest or "")
            if sample.error is not None:
                row.error = sample.error
            elif earlier is not None:
                carry_over(earlier, row)
            else:
                found.append((row, sample.data))
        return found

    def _decoded(self, new: Iterator[tuple[Row, bytes]], out: Prepared) -> list[Decoded]:
        """The next images as pixels, as many as may be held at once; none when all are done."""
        found, held = list[Decoded](), 0
        with out.phases.timed("decode"):
            while held <= MAX_PIXEL_BYTES and (following := next(new, None)) is not None:
                row, data = following
                try:
                    image, (row.height, row.width) = self._pixels(data)
                    self._embedder.accepts(image)
                except (Rejected, Refused) as error:
                    row.error = one_line(error)
                    continue
                found.append((row, image))
                held += image.nbytes
        return found

    def _pixels(self, data: bytes) -> tuple[NDArray[Any], tuple[int, int]]:
        if self._reduced:
            found = decode_reduced(data, Caps(), self._reduced)
            if found is not None:
                return found
        image = self._decode(data)
        return image, image.shape[:2]

    def _use(self, waiting: list[Decoded], out: Prepared) -> None:
        """Thumbnails, then model input, of some decoded images.

        Each for all of them at once: every change from one kind of work to another costs something.
        Measured for JPEG of 256 x 256: 1,173 microseconds an image with each thumbnail made right
        after the decoding, 1,078 so; with each preprocessed right after it too, 1,557.
        """
        with out.phases.timed("thumbnail"):
            for row, image in waiting:
                if self._all_shown or image_id(self._source, row.key) < self._share_of_ids:
                    row.thumbnail = encode_thumbnail(image)
        with out.phases.timed("preprocess"):
            self._preprocess(waiting, out)

    def _preprocess(self, waiting: list[Decoded], out: Prepared) -> None:
        rows, images = [row for row, _ in waiting], [image for _, image in waiting]
        try:
            parts = [self._embedder.model_input(images)]
        except ValueError:
            rows, parts = self._one_by_one(waiting)
        out.encodable.extend(rows)
        out.pixels.extend(parts)

    def _one_by_one(self, waiting: list[Decoded]) -> tuple[list[Row], list[torch.Tensor]]:
        """So that one image that the model cannot take costs no other image its row."""
        rows, parts = [], []
        for row, image in waiting:
            try:
                parts.append(self._embedder.model_input([image]))
                rows.append(row)
            except ValueError as error:
                row.error = one_line(error)
        return rows, parts


def fill(rows: Sequence[Row], embeddings: NDArray[np.float32], poses: NDArray[np.int8]) -> None:
    """Write embeddings (B, d) and pose codes (B, |G| * 8) into their rows; reject non-numbers."""
    finite = np.asarray(np.isfinite(embeddings).all(axis=1))
    norms = np.linalg.norm(np.where(finite[:, None], embeddings, 0.0), axis=1)
    for index, row in enumerate(rows):
        if not finite[index]:
            row.error = "its embedding is not finite"
        elif norms[index] < MIN_NORM:
            row.error = "its embedding is zero"
        else:
            row.embedding, row.pose_code = embeddings[index], poses[index].tobytes()


def carry_over(earlier: Row, row: Row) -> None:
    """Take what depends on the image's bytes alone from an earlier row."""
    for name in ("width", "height", "embedding", "pose_code", "thumbnail", "error"):
        setattr(row, name, getattr(earlier, name))


def one_line(error: BaseException) -> str:
    """An error's message on one line, bounded."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def new_row(sample: Sample) -> Row:
    """A sample's row before anything is decoded."""
    return Row(
        key=sample.key,
        item_etag=sample.item_etag,
        offset=sample.offset,
        length=sample.length,
        digest=hashlib.sha256(sample.data).hexdigest(),
        label=sample.label,
    )
