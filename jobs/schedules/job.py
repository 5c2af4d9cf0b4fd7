"""One scheduled command: what runs, when, and with how much. Frozen, checked when it is made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.schedules.cron import Times
from pipelines.errors import SettingsError

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 33
"""KubeRay takes RayJob names of 47 characters; -YYYYmmdd-HHMM are 14 of them."""
QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTPE]i?|m)?")
IMAGE = re.compile(r"[\w.\-/:@]+")
SECRET_URL = re.compile(r"://[^/\s@]*:[^/\s@]*@")


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
        no_secrets(self.command)

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
        if not takes_ray or any(word.split("=")[0] == "--ray" for word in self.command):
            return self
        return replace(self, command=(*self.command, "--ray", "auto"))


def no_secrets(words: Sequence[str]) -> None:
    """SettingsError for a URL with a password in it (arguments are seen by everybody), and for
    control characters."""
    for word in words:
        if not word.isprintable():
            raise SettingsError(
                f"argument {word!r} holds a line break or another control character, which no "
                "scheduler's file takes"
            )
        if SECRET_URL.search(word):
            raise SettingsError(
                "an argument holds a URL with a password, which process lists and logs would show; "
                "put credentials into the environment (--env-file, --secret)"
            )
