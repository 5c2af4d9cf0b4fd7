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
    """``retry``: an attempt of its shard; ``replan``: the object changed; ``fatal``: stop."""

    action: Literal["retry", "replan", "fatal"]
    message: str
    exit_code: int = 1


def failure_of(error: Exception) -> Failure:
    """Sort an error: a full disk, a refused access and a wrong model are not tried again."""
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if not isinstance(error, OrbitError):
        message = f"{type(error).__name__}: {message}"
    if isinstance(error, (ObjectChanged, ObjectMissing)):
        return Failure("replan", message)
    if isinstance(error, AccessDenied):
        return Failure("fatal", message)
    if isinstance(error, Refused):
        return Failure("fatal", message, Refused.exit_code)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return Failure("fatal", message)
    return Failure("retry", message)
