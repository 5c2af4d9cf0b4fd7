"""What every request passes first: the token, the host it asked for, the headers of the answer."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.server.metrics import Metrics
from pipelines.server.settings import ServerSettings, is_loopback

OPEN_PATHS = ("/", "/healthz")
"""What is answered without a token: the page, which then asks for it, and the health probe."""
REPORT_PATH, TICKET_S = "/report", 60
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""On every answer; a route may set its own policy and caching."""


class Guard:
    """ASGI middleware: refuses strangers, sets the headers, counts the answers."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._token = None if settings.token is None else _digest(settings.token)
        self._tickets = None if settings.token is None else Tickets(settings.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(scope["method"], route, message["status"])
            await send(message)

        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        ticket = asked.get("ticket", [""])[0] if scope["path"] == REPORT_PATH else ""
        refused = self._refusal(scope["path"], Headers(scope=scope), ticket)
        await (refused or self._app)(scope, receive, sending)

    def _refusal(self, path: str, headers: Headers, ticket: str) -> JSONResponse | None:
        if self._token is None:
            # Without a token a page elsewhere must not reach us under a name of its own.
            host = headers.get("host", "").strip()
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if is_loopback(name.strip("[]")):
                return None
            return JSONResponse({"error": f"host '{name[:80]}' found, localhost expected"}, 421)
        if path in OPEN_PATHS or (self._tickets and self._tickets.admits(ticket, time.time())):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Digests of equal length, compared in constant time.
        same = hmac.compare_digest(_digest(given.strip()), self._token)
        if scheme.lower() == "bearer" and same:
            return None
        return JSONResponse(
            {"error": "no valid token found, 'Authorization: Bearer TOKEN' expected"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )


class Tickets:
    """What a link carries in place of the token: good for a minute, and for the report alone.

    A browser that follows a link sends no Authorization header, and a token has no place in an
    address, which is kept in histories and logs. Signed with the token, so that every replica of
    a server knows the tickets of the others.
    """

    def __init__(self, token: str) -> None:
        self._key = _digest(f"orbit ticket {token}")

    def issue(self, now: float) -> str:
        """A ticket; ``now`` in seconds since 1970."""
        until = str(int(now) + TICKET_S)
        return f"{until}.{self._sign(until)}"

    def admits(self, ticket: str, now: float) -> bool:
        """Whether a ticket is one of ours and its minute is not over."""
        until, _, signature = ticket.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(until).encode()):
            return False
        return until.isdecimal() and now <= int(until) <= now + TICKET_S

    def _sign(self, until: str) -> str:
        words = f"{REPORT_PATH} {until}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, words, hashlib.sha256).hexdigest()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
