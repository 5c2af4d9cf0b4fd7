"""What `orbit submit` and `orbit jobs` share: the cluster's flags, and a job as it is told."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqmodel.errors import OrbitError
from jobs.console import Answer, Stopped
from jobs.table import table

if TYPE_CHECKING:
    from pipelines.cluster import Cluster, Job


@dataclass(frozen=True)
class ClusterFlags:
    """Which cluster, and by which token."""

    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="its job API [default: ORBIT_ADDRESS, RAY_API_SERVER_ADDRESS, RAY_ADDRESS, "
            "else http://127.0.0.1:8265]",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="file with its token [default: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, "
            "~/.ray/auth_token]",
        ),
    ] = None

    def open(self) -> "Cluster":
        """The cluster, when it answers, knows the token and has our versions. ClusterError."""
        from pipelines.cluster import Cluster, connect, find_token

        return Cluster(connect(self.address, find_token(self.token_file)))

    def words(self) -> str:
        """The same flags for a command that is told to a person."""
        given = [("--address", self.address), ("--token-file", self.token_file)]
        return "".join(f" {flag} {value}" for flag, value in given if value)


class JobFailed(OrbitError):
    """A job that ended without success; its exit code is the command's."""

    def __init__(self, job: "Job") -> None:
        tail = f": {job.message}" if job.message else ""
        super().__init__(f"job {job.id} {job.status} with exit code {job.exit_code}{tail[:300]}")
        self.exit_code = job.exit_code or 1


def follow(cluster: "Cluster", submission_id: str, hint: str) -> "Job":
    """Show a job's log on standard error until it ends; the job, whatever its end.

    A signal leaves the job running, and says how to follow and to stop it.
    """

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        return cluster.follow(submission_id, write)
    except (KeyboardInterrupt, Stopped):
        print(f"\norbit: job {submission_id} goes on\n{hint}", file=sys.stderr)
        raise


def ways(submission_id: str, flags: ClusterFlags) -> str:
    """How a job is followed and stopped."""
    rest = flags.words()
    return (
        f"follow   orbit jobs{rest} {submission_id} --follow\n"
        f"stop     orbit jobs{rest} {submission_id} --stop"
    )


def ended(job: "Job", more: dict[str, Any] | None = None) -> Answer:
    """The answer for a job that is over; its failure is the command's."""
    took = f" after {job.ended - job.started:.0f} s" if job.ended and job.started else ""
    failure = JobFailed(job) if job.exit_code else None
    text = f"{job.id}  {job.status}, exit code {job.exit_code}{took}"
    return Answer(job.as_dict() | (more or {}), text, failure)


def listed(jobs: "Sequence[Job]") -> str:
    """A table of jobs, newest first."""
    header = ["id", "status", "exit", "started (UTC)", "seconds", "command"]
    return table(header, [_row(job) for job in jobs]) if jobs else "no job was submitted"


def _row(job: "Job") -> list[str]:
    started = "-" if job.started is None else f"{datetime.fromtimestamp(job.started, UTC):%F %T}"
    over = job.ended is not None and job.started is not None
    seconds = f"{(job.ended or 0) - (job.started or 0):.0f}" if over else "-"
    code = "-" if job.exit_code is None else str(job.exit_code)
    command = job.command if len(job.command) <= 60 else job.command[:57] + "..."
    return [job.id, job.status, code, started, seconds, command]
