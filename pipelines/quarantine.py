"""Images one at a time, from bytes to embedding, in a child process.

For a shard on which workers died although its images were decoded apart (``isolated.py``).

An image is rejected only when its child died of it twice by SEGV, ABRT, BUS or ILL; a child that
was killed otherwise (memory, chance) is started again and the image tried again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pipelines.child import Child, Frame, serve
from pipelines.errors import Rejected
from pipelines.prepare import Preparer, fill, new_row
from pipelines.shard_file import Row
from pipelines.shards import Sample

_PLAIN = ("width", "height", "error")


class Quarantine(Child):
    """A child process that embeds one image at a time; a context manager."""

    def __init__(self, model_folder: str, device: str, source: str, thumbnail_share: float) -> None:
        settings = {
            "model_folder": model_folder,
            "device": device,
            "source": source,
            "thumbnail_share": thumbnail_share,
        }
        super().__init__("pipelines.quarantine", settings)

    def embed(self, samples: Iterable[Sample]) -> Iterator[Row]:
        """One finished row per sample, in order. QuarantineError when children die at random."""
        for sample in samples:
            row = new_row(sample)
            row.error = sample.error
            if row.error is None:
                try:
                    _take(row, self.ask(sample.key, sample.data))
                except Rejected as error:
                    row.error = str(error)
            yield row


def _take(row: Row, frame: Frame) -> None:
    answer, (embedding, pose_code, thumbnail) = frame
    for name in _PLAIN:
        setattr(row, name, answer[name])
    if answer["embedded"]:
        row.embedding, row.pose_code = np.frombuffer(embedding, np.float32), pose_code
    row.thumbnail = thumbnail or None


def _ready(settings: dict[str, Any]) -> Callable[[str, bytes], Frame]:
    import torch

    from eqmodel import Embedder
    from eqmodel.preprocess import joined

    torch.set_num_threads(1)
    embedder = Embedder.load(settings["model_folder"], device=settings["device"], verify=False)
    preparer = Preparer(embedder, settings["source"], settings["thumbnail_share"])

    def answer_to(key: str, data: bytes) -> Frame:
        prepared = preparer.prepare([Sample(key, data)], {})
        if prepared.encodable:
            fill(prepared.encodable, *embedder.encode(joined(prepared.pixels)))
        row = prepared.rows[0]
        embedding = b"" if row.embedding is None else row.embedding.tobytes()
        plain = {name: getattr(row, name) for name in _PLAIN}
        return (
            plain | {"embedded": row.embedding is not None},
            [embedding, row.pose_code or b"", row.thumbnail or b""],
        )

    return answer_to


if __name__ == "__main__":
    serve(lambda: _ready(json.loads(sys.argv[1])))
