"""A child process that may die of what it is asked, and an answer all the same.

The two speak in frames over pipes: a JSON header with the lengths of the binary parts that follow.
Nothing is ever unpickled.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeVar

from pipelines.errors import QuarantineError, Rejected

CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL})
MAX_OTHER_DEATHS = 5
_SIZE = struct.Struct(">I")
C = TypeVar("C", bound="Child")
Frame = tuple[dict[str, Any], list[bytes]]


class Child:
    """``python -m module settings``, started when it is first asked; a context manager."""

    def __init__(self, module: str, settings: dict[str, Any]) -> None:
        self._command = [sys.executable, "-m", module, json.dumps(settings)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def ask(self, name: str, data: bytes) -> Frame:
        """Its answer to the image ``name``.

        Rejected when it died of it twice by SEGV, ABRT, BUS or ILL. A child that was killed
        otherwise (memory, chance) is started again; QuarantineError when that does not end.
        """
        crashes: list[str] = []
        for _ in range(MAX_OTHER_DEATHS):
            try:
                requests, answers = self._pipes()
                send(requests, {"key": name}, [data])
                return receive(answers)
            except (EOFError, BrokenPipeError):
                died_of = self._stop()
            if died_of not in CRASHES:
                continue
            crashes.append(signal.Signals(died_of).name)
            if len(crashes) == 2:
                raise Rejected(f"the process that decoded it died twice ({', '.join(crashes)})")
        raise QuarantineError(
            f"{name}: {MAX_OTHER_DEATHS} child processes died on it, {len(crashes)} of them by a "
            "crash; give the workers more memory and run again"
        )

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """To and from a running child."""
        if self._process is None:
            path = os.pathsep.join(entry for entry in sys.path if entry)
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise QuarantineError("the child process has no pipes; run again")
        return self._process.stdin, self._process.stdout

    def _stop(self) -> int:
        """End the child and say by which signal it had died, 0 if by none."""
        child, self._process = self._process, None
        if child is None:
            return 0
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                _close_quietly(pipe)
        try:
            code = child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        return -code if code < 0 else 0


def _close_quietly(pipe: IO[bytes]) -> None:
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


def receive(pipe: IO[bytes]) -> Frame:
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


def serve(ready: Callable[[], Callable[[str, bytes], Frame]]) -> None:
    """The child's loop: answer image after image until the pipe is closed.

    ``ready`` loads what is needed and gives what answers. What any library prints goes to standard
    error, not among the frames.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer_to = ready()
    while True:
        try:
            header, (data,) = receive(sys.stdin.buffer)
        except EOFError:
            return
        send(answers, *answer_to(header["key"], data))
