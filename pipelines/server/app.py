"""The routes. Each takes the view once, so that an answer comes from one publication."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from eqmodel.errors import ChannelError, OrbitError
from pipelines.errors import KeyNotFoundError
from pipelines.search import Only
from pipelines.server import answers, schema
from pipelines.server.asking import Asking, Wish
from pipelines.server.bodies import Bodies, Declined
from pipelines.server.guard import HEADERS, Guard, Tickets
from pipelines.server.live import Live
from pipelines.server.metrics import Metrics
from pipelines.server.page import page
from pipelines.server.published import published_gauges
from pipelines.server.settings import ServerSettings

REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
)


class Service:
    """What the routes share."""

    def __init__(self, live: Live, settings: ServerSettings) -> None:
        self.live, self.settings, self.limits = live, settings, settings.limits
        self.metrics = Metrics()
        self.bodies = Bodies(self.limits)
        self.asking = Asking(self.limits, self.metrics)


def create_app(live: Live, settings: ServerSettings) -> FastAPI:
    """The ASGI app over a live publication, which it watches while it runs."""
    service = Service(live, settings)

    @asynccontextmanager
    async def watching(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(live.watch())
        yield
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        service.asking.close()

    app = FastAPI(
        title="Orbit",
        summary="The nearest images of a store, whatever way up they are.",
        version=version("orbit-embeddings"),
        lifespan=watching,
        docs_url=None,  # both load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    app.include_router(_search_routes(service))
    app.include_router(_browse_routes(service))
    app.include_router(_operation_routes(service))
    _explain_errors(app)
    return app


def _search_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/search",
        summary="The k nearest images to one image",
        response_model=schema.Neighbours,
        responses=schema.refusals(400, 404, 408, 413, 415, 429),
        openapi_extra=schema.SEARCH_BODY,
    )
    async def search(
        request: Request,
        k: Annotated[int, Query(description="how many, up to the limit in /info")] = min(
            10, service.limits.k
        ),
        align: Annotated[bool, Query(description="tell the turn of each")] = False,
        label: Annotated[str | None, Query(description="only images with it")] = None,
        source: Annotated[str | None, Query(description="only images of this shard")] = None,
        cluster: Annotated[int | None, Query(description="only images in it")] = None,
        min_score: Annotated[float | None, Query(description="-1 to 1: none below it")] = None,
    ) -> Response:
        _check_k(k, service.limits.k)
        if min_score is not None and not -1 <= min_score <= 1:
            raise Declined(400, f"min_score = {min_score}: a number from -1 to 1 is expected")
        wish = Wish(k, align, Only(label or None, source or None, cluster), min_score)
        async with service.bodies.query(request) as query:
            view = service.live.view
            hits = await service.asking.neighbours(view, query, wish)
        return answers.answer({"neighbours": [hit.as_dict() for hit in hits]}, view)

    return router


def _browse_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/items/{image_id}", response_model=schema.ItemDetail, responses=schema.refusals(404)
    )
    async def item(image_id: str) -> Response:
        """One image of the store."""
        view = service.live.view
        return answers.answer(
            answers.item(view.record(view.row_of_id(image_id)), detail=True), view
        )

    @router.get(
        "/items/{image_id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}, "image/jpeg": {}}}, **schema.refusals(404)},
    )
    async def thumbnail(image_id: str, request: Request) -> Response:
        """A small picture of an image; 304 when the caller has it already."""
        view = service.live.view
        data = await asyncio.to_thread(view.thumbnail, view.row_of_id(image_id))
        if data is None:
            raise Declined(404, f"image {image_id} has no thumbnail")
        return answers.picture(data, request.headers.get("if-none-match", ""))

    @router.get("/clusters", response_model=schema.Clusters)
    async def clusters() -> Response:
        """Every cluster: its size, its medoid, its labels."""
        view = service.live.view
        return answers.answer({"clusters": [answers.cluster(one) for one in view.clusters]}, view)

    @router.get(
        "/clusters/{cluster}",
        response_model=schema.ClusterMembers,
        responses=schema.refusals(400, 404),
    )
    async def cluster(
        cluster: int,
        k: Annotated[int, Query(description="how many, up to the limit in /info")] = min(
            60, service.limits.k
        ),
    ) -> Response:
        """One cluster and the images in it that are nearest to its medoid, turned to match it."""
        _check_k(k, service.limits.k)
        view = service.live.view
        found = next((one for one in view.clusters if one["cluster"] == cluster), None)
        if found is None:
            raise Declined(404, f"no cluster {cluster} in publication {view.id}; GET /clusters")
        members = await asyncio.to_thread(answers.members, view, found, k)
        return answers.answer({**answers.cluster(found), "members": members}, view)

    return router


def _operation_routes(service: Service) -> APIRouter:
    router = APIRouter()
    html, policy = page()

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def root() -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return Response(html, media_type="text/html", headers=headers)

    @router.get("/report", include_in_schema=False)
    async def report() -> Response:
        found = service.live.view.report
        if found is None:
            raise Declined(404, "the publication has no report")
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return Response(found, media_type="text/html", headers=headers)

    @router.post("/report/ticket", include_in_schema=False)
    async def ticket() -> dict[str, str]:
        # The page follows it to the report at once; without a token none is needed.
        token = service.settings.token
        made = "" if token is None else Tickets(token).issue(time.time())
        return {"address": f"report?ticket={made}" if made else "report"}

    @router.get("/info")
    async def info() -> dict[str, Any]:
        """What is served: the publication, the model, the labels, the limits."""
        return _info(service)

    @router.head("/healthz", include_in_schema=False)  # how balancers probe
    @router.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server answers; `alarm` tells why a newer publication was refused."""
        live = service.live
        return {
            "status": "ok" if live.alarm is None else "stale",
            "publication": live.view.id,
            "alarm": live.alarm,
        }

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus text."""
        text = service.metrics.text(_gauges(service))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _explain_errors(app: FastAPI) -> None:
    """Every error is one line of JSON."""

    def tell(kind: type[Exception], status: Callable[[Any], int]) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            code = status(error)
            headers = dict(getattr(error, "headers", None) or {})
            if code == 429:
                headers["Retry-After"] = "1"
            if code in (408, 413):
                headers["Connection"] = "close"  # what is left of the body is not waited for
            return JSONResponse({"error": _one_line(error)}, code, headers)

        app.add_exception_handler(kind, handler)

    tell(Declined, lambda error: error.status)
    tell(HTTPException, lambda error: error.status_code)
    tell(RequestValidationError, lambda error: 400)
    tell(KeyNotFoundError, lambda error: 404)
    tell(ChannelError, lambda error: 400)
    tell(OrbitError, lambda error: 503)

    async def failed(request: Request, error: Exception) -> Response:
        text = f"the server failed at this ({type(error).__name__}); its log tells more"
        return JSONResponse({"error": text}, 500, HEADERS)

    app.add_exception_handler(Exception, failed)


def _one_line(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return f"{place} = {str(first.get('input'))[:60]!r}: {first['msg']}"
    text = str(error.detail) if isinstance(error, HTTPException) else str(error)
    return " ".join(text.split())


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise Declined(400, f"k = {k}: a number from 1 to {most:,} is expected")


def _info(service: Service) -> dict[str, Any]:
    view = service.live.view
    embedder, row = view.searcher.embedder, view.publication
    return {
        "name": str(view.collection.get("input", "")).rstrip("/").rpartition("/")[2],
        "num_images": len(view.searcher.rows),
        "num_clusters": len(view.clusters),
        "labels": view.collection.get("labels", []),
        "publication": {
            "id": row.id,
            "created": row.created.isoformat(timespec="seconds"),
            "table_version": row.table_version,
            "recall_at_10": row.recall_at_10,
        },
        "model": {
            "model_id": row.model_id,
            "name": embedder.name,
            "group": embedder.group.name,
            "dim": embedder.dim,
        },
        "limits": {
            "body_bytes": service.limits.body_bytes,
            "pixels": service.limits.pixels,
            "k": service.limits.k,
        },
        "report": view.report is not None,
    }


def _gauges(service: Service) -> list[tuple[str, str, str, float]]:
    live, batcher = service.live, service.asking.batcher
    return [
        ("orbit_queue", "gauge", "Searches at work or waiting.", service.asking.num_asked),
        ("orbit_images", "gauge", "Images searched.", len(live.view.searcher.rows)),
        ("orbit_publication_seq", "gauge", "Publication served.", live.view.publication.seq),
        ("orbit_swaps_total", "counter", "Publications exchanged.", live.num_swaps),
        ("orbit_refused_publications_total", "counter", "Publications refused.", live.num_refused),
        ("orbit_alarm", "gauge", "1 while the newest is refused.", live.alarm is not None),
        ("orbit_encoder_batches_total", "counter", "Batches encoded.", batcher.num_batches),
        ("orbit_encoder_images_total", "counter", "Images encoded.", batcher.num_images),
        *published_gauges(live.view.publication),
    ]
