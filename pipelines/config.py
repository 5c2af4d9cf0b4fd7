"""Settings of a run: frozen, from flags, ``ORBIT_*`` environment variables and a TOML file."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from pipelines.errors import SettingsError
from pipelines.layout import WorkerFlags
from pipelines.secrets import no_secrets

DEFAULT_BUCKETS = 1024


@dataclass(frozen=True)
class EmbedSettings:
    """What ``orbit embed`` and ``orbit run`` are told.

    ``limit`` is the number of new or changed shards (for folders: hash buckets) to embed at most;
    ``deadline_s`` the seconds without any progress after which a worker counts as stuck;
    ``commit_every_s`` the pause between commits; ``thumbnail_share`` the share of images that get
    a thumbnail; ``reduced_jpeg`` decodes a JPEG straight to a smaller size, which is faster and not
    exact under turns; ``compile`` encodes through torch.compile where there is no machine code;
    ``max_reject_share`` the share of rejected rows past which the run fails.
    """

    input: str
    model: str
    store: str
    workers: str | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    memory_per_worker: str | None = None
    ray: str = "local"
    image_column: str = "image"
    key_column: str | None = None
    label_column: str | None = None
    thumbnail_share: float = 1.0
    limit: int | None = None
    dry_run: bool = False
    allow_vanish: bool = False
    new_model: bool = False
    add_input: str | None = None
    go_live: bool = False
    max_attempts: int = 4
    max_reject_share: float = 0.05
    deadline_s: float = 300.0
    commit_every_s: float = 5.0
    batch_size: int | None = None
    precision: str = "float32"
    allow_inexact: bool = False
    reduced_jpeg: bool = False
    compile: bool = False
    buckets: int = DEFAULT_BUCKETS

    def __post_init__(self) -> None:
        no_secrets([self.input, self.model, self.store])
        for name in ("limit", "max_attempts", "batch_size", "buckets"):
            _at_least(name, getattr(self, name), 1)
        for name in ("deadline_s", "commit_every_s"):
            _at_least(name, getattr(self, name), 0.1)
        self.worker_flags  # noqa: B018 - refuses what does not fit
        for name in ("thumbnail_share", "max_reject_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SettingsError(f"{_flag(name)} {value}: expected a share between 0 and 1")
        if self.precision not in ("float32", "bf16"):
            raise SettingsError(f"--precision {self.precision}: expected float32 or bf16")
        if self.ray not in ("local", "auto") and ":" not in self.ray:
            raise SettingsError(
                f"--ray {self.ray}: expected local, auto or an address such as ray://host:10001"
            )

    @property
    def worker_flags(self) -> WorkerFlags:
        """What was asked for the workers. SettingsError where it makes no sense."""
        return WorkerFlags.parse(
            self.workers, self.cpus_per_worker, self.gpus_per_worker, self.memory_per_worker
        )


def settings_from(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> EmbedSettings:
    """Flags over environment over TOML over defaults; a flag that is None was not given.

    SettingsError names the first value that does not fit.
    """
    kinds = get_type_hints(EmbedSettings)
    found: dict[str, Any] = {}
    for name, value in (_toml(file) if file else {}).items():
        if name not in kinds:
            raise SettingsError(f"{file}: no setting '{name}'; expected one of {', '.join(kinds)}")
        found[name] = value
    for name, kind in kinds.items():
        text = environment.get(f"ORBIT_{name.upper()}")
        if text is not None:
            found[name] = _parsed(f"ORBIT_{name.upper()}", text, kind)
    found |= {name: value for name, value in flags.items() if value is not None}
    missing = [
        field.name
        for field in dataclasses.fields(EmbedSettings)
        if field.default is dataclasses.MISSING and field.name not in found
    ]
    if missing:
        spelled = {"input": "INPUT", "model": "--model", "store": "--out"}
        raise SettingsError(
            f"missing {', '.join(spelled[name] for name in missing)}, expected for example: "
            "orbit run s3://bucket/images --model d4-28-grey --out s3://bucket/store"
        )
    return EmbedSettings(**found)


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: not readable as TOML ({error})") from error


def _parsed(name: str, text: str, kind: Any) -> Any:
    plain = next(k for k in get_args(kind) if k is not type(None)) if _optional(kind) else kind
    try:
        if plain is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        return plain(text)
    except (KeyError, ValueError) as error:
        raise SettingsError(f"{name}={text}: expected {plain.__name__}") from error


def _optional(kind: Any) -> bool:
    return isinstance(kind, UnionType)


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise SettingsError(f"{_flag(name)} {value}: expected {least} or more")


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").removesuffix("_every").replace("_", "-")
