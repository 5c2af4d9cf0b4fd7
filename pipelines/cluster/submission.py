"""Jobs of a cluster through Ray's job API: submit, list, follow, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.code import LAUNCHER, Code
from pipelines.cluster.connection import ADDRESSES, Connection
from pipelines.errors import ClusterError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SUBMISSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED = 143
STOP_S = 60
"""Seconds a stopped job has to commit what is done, before Ray kills it."""
PATIENCE_S = 600.0
PAUSE_S = 1.0
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True)
class Job:
    """A job as its cluster tells it; times are seconds since 1970."""

    id: str
    status: str
    command: str
    message: str
    started: float | None
    ended: float | None
    code: int | None

    @property
    def over(self) -> bool:
        """True when nothing more comes."""
        return self.status in ENDED

    @property
    def exit_code(self) -> int | None:
        """The exit code an ended job stands for: its own; 143 when it was stopped, else 1."""
        if not self.over:
            return None
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED
        code = self.code
        return 1 if not code else 128 - code if code < 0 else code

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "submission_id": self.id,
            "status": self.status,
            "exit_code": self.exit_code,
            "command": self.command,
            "message": self.message,
            "started": self.started,
            "ended": self.ended,
        }


class Cluster:
    """A cluster whose job API was reached with ``connect``."""

    def __init__(self, connection: Connection) -> None:
        self.address = connection.address
        with _no_other_address():
            from ray.job_submission import JobSubmissionClient

            for name in _TALKATIVE:
                logging.getLogger(name).setLevel(logging.WARNING)
            with self._told_in_one_line():
                self._client = JobSubmissionClient(self.address, headers=connection.headers)

    def submit(
        self, submission_id: str, words: list[str], code: Code, environment: Mapping[str, str]
    ) -> None:
        """Send the code and start a verb. ClusterError when the id is in use: nothing is sent."""
        import shlex

        if not SUBMISSION_ID.fullmatch(submission_id):
            raise ClusterError(
                f"the id '{submission_id}' does not fit: letters, digits, '.', '_' and '-' are "
                "expected, 100 at most"
            )
        earlier = self.find(submission_id)
        if earlier is not None:
            raise _in_use(earlier)
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), "PYTHONUNBUFFERED": "1"}
        with self._told_in_one_line():
            try:
                self._client.submit_job(
                    entrypoint=f"sh ./{LAUNCHER} {shlex.join(words)}",
                    submission_id=submission_id,
                    runtime_env={
                        "working_dir": str(code.folder),
                        "env_vars": variables | dict(environment),
                    },
                    metadata={"orbit_verb": words[0], "orbit_code": code.digest},
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                raise _in_use(self.find(submission_id)) from error

    def jobs(self) -> list[Job]:
        """Every job that was submitted to the cluster, newest first."""
        with self._told_in_one_line():
            found = [_job(details) for details in self._client.list_jobs()]
        jobs = [job for job in found if job.id]
        return sorted(jobs, key=lambda job: -(job.started or 0.0))

    def find(self, submission_id: str) -> Job | None:
        """One job, None when there is none of that id."""
        with self._told_in_one_line():
            try:
                return _job(self._client.get_job_info(submission_id))
            except RuntimeError as error:
                if "404" in str(error):
                    return None
                raise

    def job(self, submission_id: str) -> Job:
        """One job. ClusterError when there is none of that id."""
        found = self.find(submission_id)
        if found is None:
            raise ClusterError(
                f"the cluster at {self.address} knows no job '{submission_id}'; "
                "'orbit jobs' lists those that it knows"
            )
        return found

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; it commits what is done. False when it had ended."""
        with self._told_in_one_line():
            return bool(self._client.stop_job(submission_id))

    def log(self, submission_id: str) -> str:
        """All that a job has printed."""
        with self._told_in_one_line():
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str, write: Callable[[str], None]) -> Job:
        """Hand a job's log to ``write`` as it grows, until the job is over.

        A connection that breaks is made again; ClusterError when the cluster is silent for ten
        minutes: the job may go on then.
        """
        shown, heard = _Shown(write), time.monotonic()
        while True:
            try:
                asyncio.run(self._tail(submission_id, shown))
                job = self.job(submission_id)
                heard = time.monotonic()
                if job.over:
                    shown.all_of(self.log(submission_id))
                    return job
            except (ClusterError, OSError, RuntimeError) as error:
                if time.monotonic() - heard > PATIENCE_S:
                    raise ClusterError(
                        f"nothing was heard from {self.address} for {PATIENCE_S:g} s; job "
                        f"{submission_id} may go on: orbit jobs {submission_id} --follow"
                    ) from error
            time.sleep(PAUSE_S)

    async def _tail(self, submission_id: str, shown: _Shown) -> None:
        shown.from_the_start()
        async for text in self._client.tail_job_logs(submission_id):
            shown(text)

    @contextmanager
    def _told_in_one_line(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except (RuntimeError, ConnectionError, OSError, AuthenticationError) as error:
            if isinstance(error, ClusterError):
                raise
            text = " ".join(str(error).split())
            raise ClusterError(f"the cluster at {self.address} refused: {text[-300:]}") from error


class _Shown:
    """Writes a log that is read again from its start after a break, each part once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written, self._at = write, 0, 0

    def from_the_start(self) -> None:
        """What comes next is the log's beginning."""
        self._at = 0

    def __call__(self, text: str) -> None:
        fresh = text[max(0, self._written - self._at) :]
        self._at += len(text)
        if fresh:
            self._write(fresh)
            self._written += len(fresh)

    def all_of(self, text: str) -> None:
        """The whole log: what was not shown yet is."""
        self.from_the_start()
        self(text)


def _in_use(job: Job | None) -> ClusterError:
    if job is None:
        return ClusterError("the id is in use on this cluster; give another with --id")
    return ClusterError(
        f"job {job.id} is there already ({job.status}), so nothing was submitted; follow it with "
        f"'orbit jobs {job.id} --follow', or run it once more under another name with --id NAME"
    )


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id or "",
        status=str(getattr(details.status, "value", details.status)),
        command=(details.entrypoint or "").removeprefix(f"sh ./{LAUNCHER} "),
        message=" ".join((details.message or "").split())[:500],
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        code=details.driver_exit_code,
    )


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray's client prefers the environment's address to the one it is given."""
    before = {name: os.environ.pop(name, None) for name in ADDRESSES[1:]}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
