"""One scheduled command: what runs, when, and with how much. Frozen, checked when it is made."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.schedules.cron import Times
from pipelines.errors import SettingsError

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 33
"""KubeRay takes RayJob names of 47 characters; -YYYYmmdd-HHMM are 14 of them."""
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kMGTPE]|[KMGTPE]i|m)?")
EMBEDDING = ("run", "embed")
"""Verbs whose Ray workers may come and go."""
IMAGE = re.compile(r"[\w.\-/:@]+")


@dataclass(frozen=True)
class Size:
    """CPUs, memory (as Kubernetes writes it, 8Gi) and GPUs of one Ray worker, and how many."""

    cpus: str
    memory: str
    gpus: int
    min_workers: int
    max_workers: int

    @classmethod
    def parse(cls, cpus: str, memory: str, gpus: int, workers: str) -> Size:
        """From flags. SettingsError."""
        for flag, value in (("--pod-cpus", cpus), ("--pod-memory", memory)):
            if not QUANTITY.fullmatch(value):
                raise SettingsError(f"{flag} {value}: a quantity such as 4 or 8Gi is expected")
        least, _, most = workers.partition(":")
        try:
            lower, upper = int(least), int(most or least)
        except ValueError:
            lower, upper = -1, -1
        if not 0 <= lower <= upper or upper < 1:
            raise SettingsError(f"--pods {workers}: MIN[:MAX] is expected, as in 2 or 0:8")
        return cls(cpus, memory, gpus, lower, upper)

    @property
    def whole_cpus(self) -> int:
        """CPUs that a Ray worker may count on: whole ones, one at least."""
        return max(1, int(amount(self.cpus)))

    @property
    def mebibytes(self) -> int:
        """The memory as schedulers of machines take it, rounded up."""
        return math.ceil(amount(self.memory) / (1 << 20))

    @property
    def grows(self) -> bool:
        """Whether workers come and go with the work."""
        return self.max_workers > self.min_workers


def amount(quantity: str) -> float:
    """The number that a Kubernetes quantity stands for: 8Gi, 2k, 500m."""
    found = QUANTITY.fullmatch(quantity)
    if found is None:
        raise SettingsError(f"'{quantity}': a quantity such as 4 or 8Gi is expected")
    number, unit = float(found[1]), found[2] or ""
    if unit == "m":
        return number / 1000
    return number * float(
        (1024 if unit.endswith("i") else 1000) ** " KMGTPE".index(unit[:1].upper() or " ")
    )


@dataclass(frozen=True)
class ScheduledJob:
    """A verb with its arguments, its times, and where it runs.

    ``deadline_s`` ends a run that takes longer; ``history`` is how many finished runs are kept;
    ``secret`` names the Kubernetes secret with the storage's credentials (None: the identity of
    ``service_account``); ``program`` is the orbit command of the machine, ``env_file`` the file
    with its environment.
    """

    name: str
    namespace: str
    command: tuple[str, ...]
    times: Times
    image: str
    size: Size
    head_cpus: str
    head_memory: str
    deadline_s: int
    history: int
    secret: str | None
    service_account: str
    program: str
    env_file: str | None
    user: str
    ray_version: str

    def __post_init__(self) -> None:
        for flag, value in (
            ("--name", self.name),
            ("--namespace", self.namespace),
            ("--service-account", self.service_account),
        ):
            if not NAME.fullmatch(value) or len(value) > (MAX_NAME if flag == "--name" else 63):
                most = f", {MAX_NAME} at most" if flag == "--name" else ""
                raise SettingsError(
                    f"{flag} '{value}': small letters, digits and dashes{most}, a letter first, "
                    "are expected"
                )
        if not IMAGE.fullmatch(self.image):
            raise SettingsError(f"--image '{self.image}': an image such as orbit:cpu is expected")
        for flag, value in (
            ("--program", self.program),
            ("--env-file", self.env_file or ""),
            ("--user", self.user),
        ):
            if re.search(r"[\s\"'\\%$]", value):
                raise SettingsError(f"{flag} '{value}': no spaces, quotes, \\, % or $ are expected")
        printable(self.command)

    @property
    def words(self) -> str:
        """The command for people: `orbit run ...`."""
        return shlex.join(("orbit", *self.command))

    @property
    def entrypoint(self) -> str:
        """The command for a Ray cluster, where 75 counts as success."""
        return shlex.join(("python", "-m", "jobs.accept", "75", *self.command))

    def on_cluster(self, takes_ray: bool) -> ScheduledJob:
        """The same job on the Ray cluster that is started for it."""
        if not takes_ray or self._says("--ray"):
            return self
        return replace(self, command=(*self.command, *self._growing(), "--ray", "auto"))

    def _growing(self) -> tuple[str, ...]:
        """A cluster grows by what is asked of it: one worker for each pod that may come."""
        size = self.size
        if not size.grows or self._says("--workers") or self.command[0] not in EMBEDDING:
            return ()
        flags = {
            "--workers": f"{max(1, size.min_workers)}:{size.max_workers}",
            "--cpus-per-worker": str(size.whole_cpus),
            "--gpus-per-worker": str(size.gpus) if size.gpus else "",
        }
        said = {flag: value for flag, value in flags.items() if value and not self._says(flag)}
        return tuple(word for pair in said.items() for word in pair)

    def _says(self, flag: str) -> bool:
        return any(word.split("=")[0] == flag for word in self.command)


def printable(words: Sequence[str]) -> None:
    """SettingsError for control characters."""
    for word in words:
        if not word.isprintable():
            raise SettingsError(
                f"argument {word!r} holds a line break or another control character, which no "
                "scheduler's file takes"
            )
