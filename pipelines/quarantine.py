"""Images one at a time in a child process, for a shard on which workers died.

An image is rejected only when its child died of it twice by SEGV, ABRT, BUS or ILL; a child that
was killed otherwise (memory, chance) is started again and the image tried again.

The two processes speak in frames over pipes: a JSON header with the lengths of the binary parts
that follow. Nothing is ever unpickled.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from pipelines.errors import QuarantineError
from pipelines.prepare import Preparer, fill, new_row
from pipelines.shard_file import Row
from pipelines.shards import Sample

CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL})
MAX_OTHER_DEATHS = 5
_SIZE = struct.Struct(">I")
_PLAIN = ("width", "height", "error")


class Quarantine:
    """A child process that embeds one image at a time; a context manager."""

    def __init__(self, model_folder: str, device: str, source: str, thumbnail_share: float) -> None:
        settings = {
            "model_folder": model_folder,
            "device": device,
            "source": source,
            "thumbnail_share": thumbnail_share,
        }
        self._command = [sys.executable, "-m", "pipelines.quarantine", json.dumps(settings)]
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def embed(self, samples: Iterable[Sample]) -> Iterator[Row]:
        """One finished row per sample, in order. QuarantineError when children die at random."""
        for sample in samples:
            yield self._embed_one(sample)

    def _embed_one(self, sample: Sample) -> Row:
        row = new_row(sample)
        row.error = sample.error
        if row.error is not None:
            return row
        crashes: list[str] = []
        for _ in range(MAX_OTHER_DEATHS):
            try:
                return self._ask(sample, row)
            except (EOFError, BrokenPipeError):
                died_of = self._stop()
            if died_of not in CRASHES:
                continue
            crashes.append(signal.Signals(died_of).name)
            if len(crashes) == 2:
                row.error = f"the process that decoded it died twice ({', '.join(crashes)})"
                return row
        raise QuarantineError(
            f"{sample.key}: {MAX_OTHER_DEATHS} child processes died on it, {len(crashes)} of them "
            "by a crash; give the workers more memory and run again"
        )

    def _ask(self, sample: Sample, row: Row) -> Row:
        requests, answers = self._pipes()
        send(requests, {"key": sample.key}, [sample.data])
        answer, parts = receive(answers)
        for name in _PLAIN:
            setattr(row, name, answer[name])
        embedding, pose_code, thumbnail = parts
        if answer["embedded"]:
            row.embedding, row.pose_code = np.frombuffer(embedding, np.float32), pose_code
        row.thumbnail = thumbnail or None
        return row

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """To and from a running child."""
        if self._child is None:
            path = os.pathsep.join(entry for entry in sys.path if entry)
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        if self._child.stdin is None or self._child.stdout is None:
            raise QuarantineError("the child process has no pipes; run again")
        return self._child.stdin, self._child.stdout

    def _stop(self) -> int:
        """End the child and say by which signal it had died, 0 if by none."""
        child, self._child = self._child, None
        if child is None:
            return 0
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                close_quietly(pipe)
        try:
            code = child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        return -code if code < 0 else 0


def close_quietly(pipe: IO[bytes]) -> None:
    """Close a pipe whose other end may be gone."""
    try:
        pipe.close()
    except BrokenPipeError:
        return


def send(pipe: IO[bytes], header: dict[str, Any], parts: Sequence[bytes]) -> None:
    """Write one frame: header length, JSON header (with the parts' lengths), parts."""
    text = json.dumps(header | {"lengths": [len(part) for part in parts]}).encode()
    pipe.write(b"".join([_SIZE.pack(len(text)), text, *parts]))
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Read one frame; EOFError when the other side is gone."""
    header = json.loads(_exactly(pipe, _SIZE.unpack(_exactly(pipe, _SIZE.size))[0]))
    return header, [_exactly(pipe, length) for length in header["lengths"]]


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def serve(settings: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    """The child's loop: embed image after image until the pipe is closed."""
    import torch

    from eqmodel import Embedder

    torch.set_num_threads(1)
    embedder = Embedder.load(settings["model_folder"], device=settings["device"], verify=False)
    preparer = Preparer(embedder, settings["source"], settings["thumbnail_share"])
    while True:
        try:
            header, (data,) = receive(requests)
        except EOFError:
            return
        sample = Sample(
            key=header["key"], data=data, label=None, offset=None, length=None, item_etag=None
        )
        prepared = preparer.prepare([sample], {})
        if prepared.encodable:
            fill(prepared.encodable, *embedder.encode(torch.cat(prepared.pixels)))
        row = prepared.rows[0]
        embedding = b"" if row.embedding is None else row.embedding.tobytes()
        plain = {name: getattr(row, name) for name in _PLAIN}
        send(
            answers,
            plain | {"embedded": row.embedding is not None},
            [embedding, row.pose_code or b"", row.thumbnail or b""],
        )


def main() -> None:
    """Run the child; what any library prints goes to standard error, not among the frames."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
