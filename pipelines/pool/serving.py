"""The search server on Ray Serve: the same app in so many replicas behind one address.

Each replica opens the publication itself and watches the store itself, so replicas exchange it
within a poll of each other; every answer names the publication it comes from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from pipelines.errors import RayError
from pipelines.pool.session import ray_session
from pipelines.server.run import bind
from pipelines.server.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "orbit"


def serve_on_ray(
    settings: ServerSettings, mode: str, replicas: int, ready: Callable[[str], None]
) -> None:
    """Serve until an exception (a signal's) ends it; ``ready`` is told the URL.

    OrbitRayError when Ray cannot be used or no replica can answer.
    """
    with deployed(settings, mode, replicas) as url:
        ready(url)
        threading.Event().wait()


@contextmanager
def deployed(settings: ServerSettings, mode: str, replicas: int) -> Iterator[str]:
    """The app in ``replicas`` replicas of one CPU each; yields the URL, and takes it down after."""
    with ray_session(mode, replicas + 1) as (cpus, _):
        if replicas > cpus:
            raise RayError(
                f"{replicas} replicas take a CPU each, this Ray has {cpus:g}; ask for fewer with "
                "--replicas"
            )
        port = settings.port or _free_port(settings.host)
        options = HTTPOptions(host=settings.host, port=port, location=ProxyLocation.HeadOnly)
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options)
        try:
            app = serve.deployment(
                name=NAME,
                num_replicas=replicas,
                ray_actor_options={"num_cpus": 1},
                max_ongoing_requests=2 * settings.limits.queue,
                graceful_shutdown_timeout_s=settings.stop_s,
                health_check_timeout_s=60,
            )(serve.ingress(_builder(settings))())
            serve.run(app.bind(), name=NAME, route_prefix="/")
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            yield f"http://{host}:{port}/"
        except RuntimeError as error:
            words = " ".join(str(error).split())[:300]
            raise RayError(f"the server cannot be deployed on Ray ({mode}): {words}") from error
        finally:
            serve.shutdown()


def _free_port(host: str) -> int:
    with closing(bind(host, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _builder(settings: ServerSettings) -> Callable[[], FastAPI]:
    def build() -> FastAPI:
        import torch

        from pipelines.server.app import create_app
        from pipelines.server.live import Live

        torch.set_num_threads(1)  # as many as the CPUs that the replica asked for
        live = Live.open(settings.store, settings.device, settings.cache, settings.poll_s)
        return create_app(live, settings)

    return build
