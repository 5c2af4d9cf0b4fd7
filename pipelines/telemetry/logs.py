"""Log lines: for people, or (``--log-format json``) one JSON object each, with the run's name.

    {"time": "2026-01-01T03:00:00.000+00:00", "level": "info", "run": "...", "event": "progress",
     "stage": "embedding", "done": 3, "total": 8, "note": "1,200 images"}

Secrets are taken out of every text on its way (``pipelines.secrets``).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pipelines.errors import SettingsError
from pipelines.secrets import redacted
from pipelines.telemetry.runs import run_name

VARIABLE = "ORBIT_LOG_FORMAT"
OURS = ("jobs", "pipelines", "eqmodel")
Format = Literal["text", "json"]


@dataclass(frozen=True)
class Log:
    """Where lines go and in which format; the stream None: standard error, as it is then."""

    format: Format = "text"
    stream: TextIO | None = None
    facts: Mapping[str, Any] | None = None

    @property
    def as_json(self) -> bool:
        """Whether lines are JSON objects."""
        return self.format == "json"

    def line(self, event: str, level: str = "info", **facts: Any) -> None:
        """Write one JSON line; texts lose their secrets."""
        document = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "run": run_name(),
            "event": event,
            **(self.facts or {}),
            **facts,
        }
        text = redacted(json.dumps(document, default=str, ensure_ascii=False))
        print(text, file=self.stream or sys.stderr, flush=True)

    def event(self, event: str, **facts: Any) -> None:
        """A line that only machines read: nothing in the format for people."""
        if self.as_json:
            self.line(event, **facts)


_current: list[Log] = [Log()]


def log() -> Log:
    """The log of this process."""
    return _current[-1]


def use_log(given: str | None, environment: Mapping[str, str] = os.environ) -> Log:
    """Set the format: ``given``, else ORBIT_LOG_FORMAT, else for people. SettingsError."""
    name = given or environment.get(VARIABLE) or "text"
    if name not in ("text", "json"):
        where = "--log-format" if given else VARIABLE
        raise SettingsError(f"{where} {name}: expected text or json")
    _current[:] = [Log("json" if name == "json" else "text")]
    _attach()
    return log()


def worker_log(format: str, run: str, worker: str) -> None:
    """The same format in a worker, whose lines Ray keeps in its files."""
    facts = {"run": run, "worker": worker, "pid": os.getpid()}
    _current[:] = [Log("json" if format == "json" else "text", facts=facts)]
    _attach()


def _attach() -> None:
    """Send the records of our loggers, and warnings, through the log, in JSON; as Python does it
    otherwise."""
    logging.captureWarnings(log().as_json)
    for name in (*OURS, "py.warnings"):
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if isinstance(h, _Handler)]:
            logger.removeHandler(handler)
        if log().as_json:
            logger.addHandler(_Handler())
            logger.setLevel(logging.INFO)
            logger.propagate = False
        else:
            logger.propagate = True


class _Handler(logging.Handler):
    """Records as lines of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        log().line("log", record.levelname.lower(), logger=record.name, message=record.getMessage())
