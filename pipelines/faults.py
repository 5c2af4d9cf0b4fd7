"""Places at which a test may make this process die, hang or raise; nothing happens otherwise.

``ORBIT_FAULT=name@n:action`` arms one place for its n-th passing in a process, several with
commas: ``kill`` (SIGKILL), ``term`` (SIGTERM), ``stop`` (SIGSTOP), ``raise`` (InjectedFault),
``sleep`` or ``sleep=SECONDS``. With ``ORBIT_FAULT_TOKENS=folder`` each fires once in all the
processes of a run, by creating a file there that must not exist yet. Unset, a place costs one
look into the environment.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ARMED, TOKENS = "ORBIT_FAULT", "ORBIT_FAULT_TOKENS"

POINTS = {
    "worker.load": "a worker is about to load its model",
    "worker.fetch": "a worker has been given a shard and read nothing of it",
    "worker.decode": "a worker is about to decode some images",
    "worker.encode": "a worker is about to encode a batch",
    "worker.written": "a shard's file is on the worker's disk and not uploaded",
    "worker.uploaded": "a shard's file is in the store and nobody knows of it",
    "worker.receipt": "a worker is about to hand its receipt over",
    "driver.planned": "the plan is made, nothing is created",
    "driver.created": "the table is there and nothing was handed out",
    "driver.received": "the driver has believed a receipt and not committed it",
    "driver.commit": "the driver is about to commit",
    "log.written": "a commit is in the log and its reply was not looked at",
    "driver.committed": "the driver has committed and told nobody",
    "driver.embedded": "everything is committed and nothing published",
    "publish.built": "the artifacts are on the driver's disk and not uploaded",
    "publish.uploading": "an artifact has been uploaded, others may be missing",
    "publish.row": "every artifact is in the store and no row names them",
    "publish.visible": "the row of a publication is in the log",
    "gc.retire": "clean-up is about to empty the table of a model without publications",
    "gc.forget": "clean-up knows what to drop and has changed nothing",
    "gc.delete": "clean-up is about to delete one object",
    "erase.commit": "files without the erased rows are uploaded and not named",
    "erase.committed": "the table no longer names the erased rows, older versions do",
}
"""Every place, and what is true when it is passed."""

_RULE = re.compile(r"^([a-z.]+)(?:@(\d+))?:(kill|term|stop|raise|sleep)(?:=([0-9.]+))?$")
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_passed: Counter[str] = Counter()
_lock = threading.Lock()


class InjectedFault(RuntimeError):
    """What an armed place with the action ``raise`` raises."""


@dataclass(frozen=True)
class Fault:
    """What is to happen when ``name`` is passed for the ``n``-th time in a process."""

    name: str
    n: int
    action: str
    seconds: float

    def token(self) -> str:
        """The file whose creation lets it happen."""
        return f"{self.name}@{self.n}-{self.action}"


def parse(text: str) -> list[Fault]:
    """The faults of ``ORBIT_FAULT``. ValueError for an unknown place or action."""
    found = []
    for part in filter(None, text.split(",")):
        rule = _RULE.match(part)
        if rule is None or rule[1] not in POINTS:
            raise ValueError(
                f"{ARMED}={part}: expected name@n:kill, term, stop, raise or sleep=SECONDS with a "
                f"name of {', '.join(POINTS)}"
            )
        found.append(Fault(rule[1], int(rule[2] or 1), rule[3], float(rule[4] or 3600)))
    return found


def faultpoint(name: str) -> None:
    """Pass a place; does what ``ORBIT_FAULT`` says of it. KeyError for a place not listed."""
    armed = os.environ.get(ARMED)
    if not armed:
        return
    if name not in POINTS:
        raise KeyError(f"{name} is no fault point; list it in faults.POINTS")
    with _lock:
        _passed[name] += 1
        passed = _passed[name]
    for fault in parse(armed):
        if fault.name == name and fault.n == passed and _take(fault):
            _happen(fault)


def _take(fault: Fault) -> bool:
    """Whether this process is the one in which it happens."""
    folder = os.environ.get(TOKENS)
    if not folder:
        return True
    try:
        os.close(os.open(Path(folder, fault.token()), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _happen(fault: Fault) -> None:
    if fault.action == "raise":
        raise InjectedFault(f"injected at {fault.name}, passing {fault.n}")
    if fault.action == "sleep":
        time.sleep(fault.seconds)
        return
    os.kill(os.getpid(), _SIGNALS[fault.action])
