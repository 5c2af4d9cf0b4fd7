"""A small proxy in front of an S3 server that answers wrongly when it is told to.

A ``Wrong`` says which requests (method, path, conditional or not), how many of them or which share,
and what happens: see ``KINDS``. Everything that passed is in ``FaultProxy.seen``.
"""

import random
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = {
    "503": "answer SlowDown, and pass nothing on",
    "500": "answer InternalError, and pass nothing on",
    "403": "answer AccessDenied, and pass nothing on",
    "400": "answer ExpiredToken, and pass nothing on",
    "409": "answer ConditionalRequestConflict, and pass nothing on",
    "drop": "pass on, then close the connection instead of the reply",
    "truncate": "send half of the body and close the connection",
    "flip": "send the body with one bit flipped in its middle",
    "stall": "send half of the body and then nothing, with the connection open",
}
_CODES = {
    "503": "SlowDown",
    "500": "InternalError",
    "403": "AccessDenied",
    "400": "ExpiredToken",
    "409": "ConditionalRequestConflict",
}
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


@dataclass
class Wrong:
    """One fault: ``kind`` of KINDS for the requests that match, after ``skip`` of them, ``most`` of
    them at most, each with the chance ``share``, and for ``seconds`` after the first, where set.
    """

    kind: str
    method: str = ""
    path: str = ""
    conditional: bool | None = None
    skip: int = 0
    most: int | None = None
    share: float = 1.0
    seconds: float | None = None
    until: float | None = field(default=None, init=False)
    happened: int = field(default=0, init=False)

    def matches(self, method: str, path: str, headers: Any) -> bool:
        """Whether it is meant for such a request."""
        conditional = "If-None-Match" in headers or "If-Match" in headers
        return (
            (not self.method or method in self.method.split())
            and re.search(self.path, path) is not None
            and self.conditional in (None, conditional)
            and (self.until is None or time.monotonic() < self.until)
            and (self.most is None or self.happened < self.most)
        )

    def happen(self) -> None:
        """Count it; the first one starts the time."""
        self.happened += 1
        if self.seconds is not None and self.until is None:
            self.until = time.monotonic() + self.seconds


@dataclass(frozen=True)
class Seen:
    """One request: ``wrong`` is the kind of fault that it met, ``at`` is time.monotonic."""

    method: str
    path: str
    status: int | None
    wrong: str | None
    at: float


class FaultProxy:
    """Listens on a port of its own and passes on to ``target``; a context manager."""

    def __init__(self, target: str, chance: random.Random | None = None) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.wrongs: list[Wrong] = []
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self._chance, self._lock = chance or random.Random(0), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def wrong(self, kind: str, **where: Any) -> Wrong:
        """Have something go wrong from now on."""
        assert kind in KINDS
        made = Wrong(kind, **where)
        with self._lock:
            self.wrongs.append(made)
        return made

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        with self._lock:
            self.wrongs.clear()

    @property
    def kinds(self) -> Counter[str | None]:
        """How many requests met which fault; None: passed on as they were."""
        return Counter(seen.wrong for seen in list(self.seen))

    def choose(self, method: str, path: str, headers: Any) -> str | None:
        """What happens to a request."""
        with self._lock:
            for wrong in self.wrongs:
                if not wrong.matches(method, path, headers):
                    continue
                if wrong.skip > 0:
                    wrong.skip -= 1
                elif self._chance.random() < wrong.share:
                    wrong.happen()
                    return wrong.kind
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


def _handler_of(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        upstream: HTTPConnection | None = None

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def finish(self) -> None:
            super().finish()
            if self.upstream is not None:
                self.upstream.close()

        def serve(self) -> None:
            body = self.body()
            kind = proxy.choose(self.command, self.path, self.headers)
            if kind in _CODES:
                self.note(int(kind), kind)
                return self.refuse(int(kind), _CODES[kind])
            reply, data = self.passed_on(body)
            if kind in ("truncate", "flip", "stall") and len(data) < 2:
                kind = None
            self.note(None if kind == "drop" else reply.status, kind)
            if kind == "drop":
                self.close_connection = True
                return
            self.answer(reply, data, kind)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

        def note(self, status: int | None, kind: str | None) -> None:
            proxy.seen.append(Seen(self.command, self.path, status, kind, time.monotonic()))

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(parts)

        def passed_on(self, body: bytes) -> tuple[HTTPResponse, bytes]:
            if self.upstream is None:
                self.upstream = HTTPConnection(*proxy.target, timeout=120)
            self.upstream.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "expect"):
                    self.upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                self.upstream.putheader("Content-Length", str(len(body)))
            self.upstream.endheaders(body or None)
            reply = self.upstream.getresponse()
            return reply, reply.read()

        def refuse(self, status: int, code: str) -> None:
            data = (
                '<?xml version="1.0" encoding="UTF-8"?>'
                f"<Error><Code>{code}</Code><Message>made up by the test</Message></Error>"
            ).encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def answer(self, reply: HTTPResponse, data: bytes, kind: str | None) -> None:
            self.send_response_only(reply.status, reply.reason)
            for name, value in reply.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            length = reply.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            half = len(data) // 2
            if kind == "flip":
                data = data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]
            self.wfile.write(data[:half] if kind in ("truncate", "stall") else data)
            if kind == "truncate":
                self.close_connection = True
            if kind == "stall":
                self.wfile.flush()
                proxy.closing.wait(600)
                self.close_connection = True

    return Handler
