"""A Ray to work on: one of our own, or one that was asked for; never one found by chance."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # 30 are few on a busy machine

import ray
from ray._private import ray_constants

from eqmodel.errors import OrbitError
from pipelines.errors import RayError as OrbitRayError

_LOGGER = logging.getLogger(__name__)


@contextmanager
def ray_session(mode: str, least_cpus: int) -> Iterator[tuple[float, float]]:
    """A Ray to work on: ``local`` starts one of our own, ``auto`` or a URL joins a running one.

    Yields (CPUs, GPUs) of the whole. A Ray that this process is already connected to is used and
    left as it was. OrbitRayError when none can be reached.
    """
    if ray.is_initialized():
        yield _resources()
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if mode == "local":
            _lock_the_door()
            with _loopback_only():
                _start(max(least_cpus, _cpus_here()), quiet)
        else:
            ray.init(address=mode, **quiet)
    except OrbitError:  # a signal
        raise
    except (Exception, SystemExit) as error:  # the boundary to Ray, which raises what it likes
        raise OrbitRayError(
            f"Ray ({mode}) cannot be used: {' '.join(str(error).split())[:200]}; "
            "expected --ray local, auto (a cluster on this machine) or a cluster's URL"
        ) from error
    try:
        yield _resources()
    finally:
        ray.shutdown()


def _start(cpus: int, quiet: dict[str, Any]) -> None:
    """Start a Ray. It gives itself 30 seconds, which a busy machine may not have: some tries."""
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=100 << 20,
                include_dashboard=False,
                **quiet,
            )
            return
        except (Exception, SystemExit) as error:  # Ray raises a bare one, or would exit
            late = isinstance(error, SystemExit) or "timed out during startup" in str(error)
            if not (tries_left and late):
                raise
            _LOGGER.info("Ray did not start in time; it is started again")
            ray.shutdown()


def _lock_the_door() -> None:
    """A token of this process's own for the token authentication of a Ray that we start.

    Ray 2.60 turns it on by itself for such a Ray (RAY_AUTH_MODE must not be set here: its library
    has read it when it was imported); found in the environment, the token is neither looked for
    nor written in the home folder.
    """
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _loopback_only() -> Iterator[None]:
    """A Ray that is started meanwhile listens on 127.0.0.1 alone.

    Its servers do so on a node whose address is loopback, and by default it takes the machine's
    address, whichever is asked for: only on systems on which it knows no clusters (macOS,
    Windows) is that loopback. So for this moment this one is such a system.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _resources() -> tuple[float, float]:
    total = ray.cluster_resources()
    return float(total.get("CPU", 1.0)), float(total.get("GPU", 0.0))


def _cpus_here() -> int:
    """CPUs that this process may use: its affinity, within the quota of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return cpus or 1
    return max(1, min(cpus or 1, allowed))
