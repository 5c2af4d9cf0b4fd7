"""`orbit schedule`: print what makes a scheduler run a verb again and again."""

import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commands import check_command
from jobs.console import Answer, Json, nearest, run_alone, verb
from pipelines.errors import SettingsError

if TYPE_CHECKING:
    from jobs.schedules.job import ScheduledJob

TARGETS = ("cronjob", "raycronjob", "crontab", "systemd", "slurm")
ALIASES = {"kubernetes": "cronjob", "rayjob-cron": "raycronjob", "cron": "crontab"}
UNSCHEDULED = ("schedule", "submit", "jobs", "serve")


@dataclass(frozen=True)
class Where:
    """Flags that say where and how the job runs."""

    target: Annotated[str, typer.Option(metavar="|".join(TARGETS), help="the scheduler")] = (
        "cronjob"
    )
    cron: Annotated[
        str, typer.Option(metavar="EXPR", help="minute hour day-of-month month day-of-week")
    ] = "0 3 * * *"
    timezone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE",
            help="such as Europe/Berlin [default: UTC on Kubernetes, elsewhere the machine's]",
        ),
    ] = None
    name: Annotated[str, typer.Option(help="of the job, its units and manifests")] = "orbit-nightly"
    deadline_hours: Annotated[
        float, typer.Option(min=0.1, max=720.0, help="stop a run that takes longer")
    ] = 8.0
    namespace: Annotated[str, typer.Option(help="Kubernetes: namespace")] = "orbit"
    image: Annotated[
        str | None,
        typer.Option(help="Kubernetes: image [default: orbit:cpu, with GPUs orbit:cuda]"),
    ] = None
    pods: Annotated[
        str,
        typer.Option(metavar="MIN[:MAX]", help="Kubernetes: Ray worker pods; Slurm: MAX nodes"),
    ] = "2"
    pod_cpus: Annotated[str, typer.Option(help="CPUs of each")] = "4"
    pod_memory: Annotated[str, typer.Option(help="memory of each")] = "8Gi"
    pod_gpus: Annotated[int, typer.Option(min=0, help="GPUs of each")] = 0
    head_cpus: Annotated[str, typer.Option(help="Kubernetes: CPUs of the driver's pod")] = "2"
    head_memory: Annotated[str, typer.Option(help="Kubernetes: its memory")] = "8Gi"
    history: Annotated[int, typer.Option(min=1, help="Kubernetes: finished runs kept")] = 3
    secret: Annotated[
        str,
        typer.Option(help="Kubernetes: secret with the storage's credentials; '' for none"),
    ] = "orbit-storage"
    service_account: Annotated[
        str, typer.Option(help="Kubernetes: account of the Ray pods (workload identity)")
    ] = "orbit"
    program: Annotated[
        str | None, typer.Option(metavar="PATH", help="machines: the orbit command there")
    ] = None
    env_file: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="machines: file with AWS_... and other environment"),
    ] = None
    user: Annotated[str, typer.Option(help="systemd: the user who runs it")] = "orbit"

    def job(self, command: tuple[str, ...]) -> "ScheduledJob":
        """As the writers of manifests take it. SettingsError where a flag does not fit."""
        from jobs.schedules.cron import times
        from jobs.schedules.job import ScheduledJob, Size

        image = self.image or ("orbit:cuda" if self.pod_gpus else "orbit:cpu")
        return ScheduledJob(
            name=self.name,
            namespace=self.namespace,
            command=command,
            times=times(self.cron, self.timezone),
            image=image,
            size=Size.parse(self.pod_cpus, self.pod_memory, self.pod_gpus, self.pods),
            head_cpus=self.head_cpus,
            head_memory=self.head_memory,
            deadline_s=round(self.deadline_hours * 3_600),
            history=self.history,
            secret=self.secret or None,
            service_account=self.service_account,
            program=self.program or this_program(),
            env_file=self.env_file,
            user=self.user,
            ray_version=version("ray"),
        )


@verb(
    "orbit schedule --cron '0 3 * * *' --timezone Europe/Berlin "
    "run s3://bucket/images --model d4-28-grey --out s3://bucket/store",
    own_flags_first=True,
)
def schedule(
    where: Where,
    command: Annotated[
        list[str],
        typer.Argument(metavar="VERB ARGS...", help="what to run; all after VERB is passed on"),
    ],
    as_json: Json = False,
) -> Answer:
    """Print what makes a scheduler run a verb again and again; contacts nothing.

    Own flags come first. cronjob and raycronjob print Kubernetes manifests for KubeRay, the others
    text for one machine or a Slurm cluster. --json: {"target", "files": {name: content}}.
    """
    target = ALIASES.get(where.target, where.target)
    if target not in TARGETS:
        raise SettingsError(
            f"--target {where.target}{nearest(where.target, TARGETS)}: "
            f"expected one of {', '.join(TARGETS)}"
        )
    on_ray = takes_ray(command)
    files = written(target, where.job(tuple(command)), on_ray)
    text = next(iter(files.values()))
    if len(files) > 1:
        text = "# Two files. Into files: ... | awk '/^# file: /{f=$3} f{print > f}'\n" + "".join(
            f"# file: {name}\n{content}\n" for name, content in files.items()
        )
    return Answer({"target": target, "files": files}, text.rstrip("\n"))


def takes_ray(command: list[str]) -> bool:
    """Refuse a verb or flags that there are not; True when the verb can work on a Ray cluster."""
    found = check_command(command, UNSCHEDULED, "schedule")
    return any("--ray" in parameter.opts for parameter in found.params)


def written(target: str, job: "ScheduledJob", on_ray: bool) -> dict[str, str]:
    """File name -> content."""
    from jobs.schedules import kubernetes, machines

    if target == "cronjob":
        return {f"{job.name}.yaml": kubernetes.cron_job(job.on_cluster(on_ray))}
    if target == "raycronjob":
        return {f"{job.name}.yaml": kubernetes.ray_cron_job(job.on_cluster(on_ray))}
    if target == "crontab":
        return {f"{job.name}.crontab": machines.crontab(job)}
    if target == "systemd":
        return machines.systemd(job)
    if not job.size.cpus.isdecimal():
        raise SettingsError(f"--pod-cpus {job.size.cpus}: Slurm expects a whole number")
    return {f"{job.name}.sbatch": machines.slurm(job.on_cluster(on_ray))}


def this_program() -> str:
    """The orbit command that runs, as a path that a scheduler with a bare PATH can find."""
    beside = Path(sys.executable).with_name("orbit")
    return str(beside) if beside.exists() else shutil.which("orbit") or "orbit"


if __name__ == "__main__":
    run_alone(schedule)
