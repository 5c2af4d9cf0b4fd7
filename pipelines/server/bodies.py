"""The body of a request, received within its limits, and the query in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from pipelines.server.settings import Limits

LINGER_S = 1.0


class Declined(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Query:
    """What is searched for: exactly one of the three is given."""

    image: bytes | None = None
    key: str | None = None
    image_id: str | None = None


class Bodies:
    """Receives bodies; knows how many bytes all of them hold together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held = limits, 0

    @asynccontextmanager
    async def query(self, request: Request) -> AsyncIterator[Query]:
        """The query of a request; its bytes count as held until the block ends.

        Declined: 400, 408, 413, 415 or 429.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (kind.startswith("image/") or kind in ("multipart/form-data", "application/json")):
            raise Declined(
                415,
                f"content type '{kind[:60]}' found, an image/* type, multipart/form-data or "
                "application/json was expected",
            )
        body = bytearray()
        try:
            await self._receive(request, body)
            yield await _parse(request, kind, bytes(body))
        finally:
            self._held -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        most = self._limits.body_bytes
        declared, parts = request.headers.get("content-length", "0"), _stream(request)
        if declared.isdecimal() and int(declared) > most:
            if "expect" not in request.headers:  # else it waits for leave to send
                await _linger(parts, most)
            raise _too_large(f"{int(declared):,} bytes", most)
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in parts:
                    body += part
                    self._held += len(part)
                    if len(body) > most:
                        await _linger(parts, most)
                        raise _too_large(f"over {most:,} bytes", most)
                    if self._held > self._limits.held_bytes:
                        raise Declined(429, "too many uploads at once; try again in a second")
        except TimeoutError as error:
            raise Declined(
                408, f"the body did not arrive within {self._limits.body_s:g} s; send it again"
            ) from error


async def _parse(request: Request, kind: str, body: bytes) -> Query:
    if kind == "application/json":
        return _from_json(body)
    image = body if kind.startswith("image/") else await _from_form(request, body)
    if not image:
        raise Declined(400, "the image is empty, the bytes of one image were expected")
    return Query(image=image)


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect as error:
        raise Declined(400, "the connection closed before the body was whole") from error


async def _linger(parts: AsyncIterator[bytes], most: int) -> None:
    """Let a client that sends too much finish, for a moment, and drop what comes.

    A connection closed while the client still sends is reset, and the answer is lost with it.
    """
    dropped = 0
    with suppress(TimeoutError, Declined):
        async with asyncio.timeout(LINGER_S):
            async for part in parts:
                dropped += len(part)
                if dropped > most:
                    return


def _too_large(found: str, most: int) -> Declined:
    return Declined(413, f"the body is {found}, {most:,} at most are expected; send a smaller one")


def _from_json(body: bytes) -> Query:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Declined(400, f"the body is not JSON: {str(error)[:120]}") from error
    names = ("key", "image_id")
    given = {name: found[name] for name in names if name in found} if _is_object(found) else {}
    if len(given) != 1 or len(found) != 1 or not isinstance(next(iter(given.values())), str):
        raise Declined(400, 'expected {"key": "..."} or {"image_id": "..."}, one string')
    return Query(**given)


def _is_object(found: Any) -> bool:
    return isinstance(found, dict)


async def _from_form(request: Request, body: bytes) -> bytes:
    async def replay() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, replay).form(max_files=1, max_fields=4)
    except (MultiPartException, HTTPException) as error:
        raise Declined(400, f"the form cannot be read: {error}") from error
    try:
        field = form.get("image")
        if not isinstance(field, UploadFile):
            raise Declined(400, "the form has no file in its field 'image'")
        return await field.read()
    finally:
        await form.close()
