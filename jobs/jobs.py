"""`orbit jobs`: what runs on a Ray cluster: list it, follow it, stop it."""

from typing import Annotated

import typer

from eqmodel.errors import Refused
from jobs.clusters import ClusterFlags, ended, follow, listed, ways
from jobs.console import Answer, Json, run_alone, verb


@verb("orbit jobs --address http://head:8265")
def jobs(
    cluster: ClusterFlags,
    job: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="one job; without it all are listed")
    ] = None,
    logs: Annotated[bool, typer.Option("--logs", help="what the job has printed so far")] = False,
    following: Annotated[
        bool, typer.Option("--follow", help="show its log until it ends; exit with its exit code")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="end it, after it has committed what is done")
    ] = False,
    as_json: Json = False,
) -> Answer:
    """List the jobs of a Ray cluster, or show, follow or stop one of them."""
    if sum([logs, following, stop]) > 1:
        raise Refused("found several of --logs, --follow and --stop, expected one of them")
    if job is None and (logs or following or stop):
        raise Refused("no ID was given, expected the job to show; 'orbit jobs' lists them")
    there = cluster.open()
    if job is None:
        found = there.jobs()
        return Answer({"jobs": [one.as_dict() for one in found]}, listed(found))
    before = there.job(job)
    if following:
        return ended(follow(there, job, ways(job, cluster)))
    if stop:
        stopped = there.stop(job)
        told = "asked to stop; it commits what is done" if stopped else f"was over: {before.status}"
        return Answer(there.job(job).as_dict() | {"stopped": stopped}, f"{job}  {told}")
    if logs:
        text = there.log(job)
        return Answer(before.as_dict() | {"log": text}, text.rstrip("\n"))
    return Answer(before.as_dict(), listed([before]))


if __name__ == "__main__":
    run_alone(jobs)
