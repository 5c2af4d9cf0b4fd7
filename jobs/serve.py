"""`orbit serve`: search a store over HTTP, and a page to do it with."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eqmodel.errors import Refused
from jobs.console import Json, run_alone, verb
from jobs.flags import Store

if TYPE_CHECKING:
    from pipelines.server.settings import ServerSettings


@verb("orbit serve s3://bucket/store --port 8000")
def serve(
    store: Store,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any free one")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="file with the token that callers must send (or ORBIT_TOKEN); needed for a "
            "--host that other machines can reach",
        ),
    ] = None,
    poll: Annotated[
        float, typer.Option(min=0.1, help="seconds between looks for a newer publication")
    ] = 5.0,
    max_body_mib: Annotated[int, typer.Option(min=1, help="largest upload")] = 32,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="largest image")] = 32.0,
    max_k: Annotated[
        int, typer.Option("--max-k", min=1, max=10_000, help="most neighbours")
    ] = 1_000,
    max_queue: Annotated[int, typer.Option(min=1, help="searches at once before 429")] = 64,
    ray: Annotated[
        str | None,
        typer.Option(metavar="local|auto|URL", help="serve on Ray Serve instead of this process"),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="of the server, with --ray")] = 1,
    as_json: Json = False,
) -> None:
    """Search a store over HTTP, and serve a page to do it with.

    Runs until it is stopped; with --json, the object that tells the URL comes first.
    """
    from pipelines.server.settings import Limits, ServerSettings, read_token

    settings = ServerSettings(
        store=store,
        host=host,
        port=port,
        token=read_token(token_file),
        poll_s=poll,
        limits=Limits(
            body_bytes=max_body_mib << 20,
            pixels=round(max_megapixels * 1e6),
            k=max_k,
            queue=max_queue,
        ),
    )
    if replicas > 1 and ray is None:
        raise Refused(f"--replicas {replicas} is for Ray Serve: add --ray local, auto or a URL")
    if ray is not None:
        serve_on_ray(settings, ray, replicas, as_json)
        return
    from pipelines.server import Live
    from pipelines.server import serve as run_server

    def ready(url: str, live: Live) -> None:
        num = len(live.view.searcher.rows)
        if as_json:
            told = {"url": url, "publication": live.view.id, "num_images": num}
            print(json.dumps(told), file=sys.__stdout__, flush=True)
        print(f"serving {num:,} images of publication {live.view.id}", file=sys.stderr)
        print(f"open {url} (Ctrl-C stops)", file=sys.stderr, flush=True)

    run_server(settings, ready)


def serve_on_ray(settings: "ServerSettings", mode: str, replicas: int, as_json: bool) -> None:
    """Deploy the app on Ray Serve, and stay until stopped."""
    from pipelines import open_store
    from pipelines.errors import NotPublishedError
    from pipelines.pool.serving import serve_on_ray as run_on_ray

    rows = open_store(settings.store).publications()
    if not rows:
        raise NotPublishedError(
            f"{settings.store} holds no publication yet; make one with 'orbit index STORE'"
        )

    def ready(url: str) -> None:
        if as_json:
            told = {
                "url": url,
                "publication": rows[-1].id,
                "num_images": rows[-1].facts.get("num_embedded"),
                "replicas": replicas,
            }
            print(json.dumps(told), file=sys.__stdout__, flush=True)
        print(f"open {url}, {replicas} replicas (Ctrl-C stops)", file=sys.stderr, flush=True)

    run_on_ray(settings, mode, replicas, ready)


if __name__ == "__main__":
    run_alone(serve)
