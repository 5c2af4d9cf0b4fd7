"""Decoding in a child process, which a decoder may crash without harm.

Used where an image must not end the process that asks: for the driver's look at the first images,
and for a shard on which workers died. The child imports decoders alone, so it is there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.child import Child, Frame, serve
from pipelines.errors import Rejected


class IsolatedDecoder(Child):
    """``decode`` of decode.py in a child process; a context manager."""

    def __init__(self) -> None:
        super().__init__("pipelines.isolated", {})

    def decode(self, data: bytes) -> NDArray[Any]:
        """Pixels as ``decode`` gives them. Rejected with its reason, or when the child died of
        the image twice by a crash; QuarantineError when children die at random.
        """
        answer, (pixels,) = self.ask("an image", data)
        if answer["error"] is not None:
            raise Rejected(answer["error"])
        return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"])


def _ready() -> Callable[[str, bytes], Frame]:
    from pipelines.decode import decode

    def decoded(_: str, data: bytes) -> Frame:
        try:
            pixels = decode(data)
        except Rejected as error:
            return {"error": str(error)}, [b""]
        return {"error": None, "dtype": pixels.dtype.str, "shape": pixels.shape}, [pixels.tobytes()]

    return decoded


if __name__ == "__main__":
    serve(_ready)
