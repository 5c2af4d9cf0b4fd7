"""`orbit submit`: run a verb on a Ray cluster, once a night, whoever asks how often."""

import hashlib
import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqmodel.errors import Refused
from jobs.clusters import ClusterFlags, ended, follow, ways
from jobs.commands import check_command
from jobs.console import Answer, Json, complain, run_alone, verb

if TYPE_CHECKING:
    from pipelines.cluster import Cluster

NOT_SUBMITTED = ("schedule", "submit", "jobs", "serve", "demo")
PASSED_ON = ("ORBIT_LOG_FORMAT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME")
"""Of this machine's environment, what a job gets; credentials are the cluster's own."""


@verb(
    "orbit submit --address http://head:8265 run s3://bucket/images --model d4-28-grey "
    "--out s3://bucket/store",
    own_flags_first=True,
)
def submit(
    cluster: ClusterFlags,
    command: Annotated[
        list[str],
        typer.Argument(metavar="VERB ARGS...", help="what to run; all after VERB is passed on"),
    ],
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="show its progress and return its exit code, or go at once"
        ),
    ] = True,
    id: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="name of this run [default: from verb, arguments, code and night]"
        ),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Run a verb on a Ray cluster, through its job API.

    Own flags come first. The code is sent, data never; paths must be those of the cluster. The same
    command is taken once a night (noon to noon, UTC), or once for each --id.
    """
    check_command(command, NOT_SUBMITTED, "submit")
    check_paths(command)
    from pipelines.cluster import pack_code

    with tempfile.TemporaryDirectory(prefix="orbit-code-") as place:
        code = pack_code(Path(place), command)
        name = id or submission_id(command, code.digest, datetime.now(UTC))
        there = cluster.open()
        there.submit(name, command, code, environment())
    complain(f"job {name} submitted to {there.address} ({code.size / 1e6:.1f} MB of code)")
    if not wait:
        return Answer(there.job(name).as_dict() | {"address": there.address},
                      f"job      {name}\n{ways(name, cluster)}")  # fmt: skip
    return waited(there, name, cluster)


def waited(there: "Cluster", name: str, flags: ClusterFlags) -> Answer:
    """The answer once the job is over: with the JSON object it printed, if it printed one."""
    job = follow(there, name, ways(name, flags))
    return ended(job, {"address": there.address, "result": last_object(there.log(name))})


def last_object(log: str) -> Any:
    """The last line of a log that is a JSON object, else None."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def submission_id(command: list[str], code: str, now: datetime) -> str:
    """The same for the same verb, arguments, code and night: orbit-run-20260101-<12 hex digits>.

    A night goes from noon to noon UTC and is named after the day it begins on.
    """
    night = (now.astimezone(UTC) - timedelta(hours=12)).strftime("%Y%m%d")
    digest = hashlib.sha256(json.dumps([command, code]).encode()).hexdigest()[:12]
    return f"orbit-{command[0]}-{night}-{digest}"


def environment() -> dict[str, str]:
    """Variables of the job: it works on the cluster that it was submitted to, unless told else."""
    passed = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return passed | {"ORBIT_RAY": "auto"}


def check_paths(command: list[str]) -> None:
    """Refuse what is a path from here: on the cluster it would be another, or none."""
    from eqmodel.checkpoint import shipped

    names = {str(model["name"]) for model in shipped()}
    for word in command[1:]:
        value = word.partition("=")[2] if word.startswith("--") else word
        relative = value and "://" not in value and not Path(value).expanduser().is_absolute()
        if relative and value not in names and Path(value).exists() and not value.isdecimal():
            raise Refused(
                f"'{value}' is a path of this machine, seen from this folder; the cluster needs a "
                "URL, or an absolute path that each of its machines has"
            )


if __name__ == "__main__":
    run_alone(submit)
