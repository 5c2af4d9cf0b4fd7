"""The name of a run: in every log line, in the heartbeat, in the names of the files it writes."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

_names: list[str] = []
_taken: set[str] = set()


def new_run_name() -> str:
    """A name no other run has; begins with the time for people, means nothing to the program."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}_{secrets.token_hex(4)}"


def run_name() -> str:
    """The name of the run that this process is at."""
    if not _names:
        _names.append(new_run_name())
    return _names[-1]


def take_run_name() -> str:
    """``run_name`` for the first run of this process, a new name for each one after it."""
    if run_name() in _taken:
        _names.append(new_run_name())
    _taken.add(run_name())
    return run_name()
