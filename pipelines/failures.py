"""What an error in a worker means for the run; plain values, so that they travel."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Literal

from eqmodel.errors import OrbitError, Refused
from pipelines.errors import AccessDenied, ObjectChanged, ObjectMissing

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


@dataclass(frozen=True)
class Failure:
    """``retry``: an attempt of its shard, with ``smaller`` batches where memory was short;
    ``refused``: access denied, to one object (archived, of another owner) or to all;
    ``replan``: the object changed; ``fatal``: stop."""

    action: Literal["retry", "refused", "replan", "fatal"]
    message: str
    exit_code: int = 1
    smaller: bool = False


def failure_of(error: Exception) -> Failure:
    """Sort an error: a full disk, a wrong model and a refused access are not tried again."""
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if not isinstance(error, OrbitError):
        message = f"{type(error).__name__}: {message}"
    if isinstance(error, (ObjectChanged, ObjectMissing)):
        return Failure("replan", message)
    if isinstance(error, AccessDenied):
        return Failure("refused", message)
    if isinstance(error, Refused):
        return Failure("fatal", message, Refused.exit_code)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return Failure("fatal", message)
    return Failure("retry", message, smaller=_is_for_want_of_memory(error))


def _is_for_want_of_memory(error: Exception) -> bool:
    # torch says so by a RuntimeError on a CPU, by a class of its own on a GPU.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return "DefaultCPUAllocator" in said or "bad_alloc" in said
