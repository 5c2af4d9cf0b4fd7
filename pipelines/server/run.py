"""The process: a socket, uvicorn over it, and connections that must not wait for ever."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipelines.errors import SettingsError
from pipelines.server.app import create_app
from pipelines.server.live import Live
from pipelines.server.settings import Limits, ServerSettings

_SLOW = b'{"error": "the head of the request did not arrive in time; send it again"}\n'
SLOW_HEAD = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_SLOW), _SLOW)
)


BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. SettingsError when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Named TCP: asyncio turns off Nagle's delay, 40 ms an answer, for such sockets alone.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another with "
            "--port (0: any free one) or --host"
        ) from error
    return made


def serve(
    settings: ServerSettings, ready: Callable[[str, Live], None] = lambda url, live: None
) -> None:
    """Serve until SIGINT or SIGTERM, then end within ``stop_s`` and a moment.

    ``ready`` is told the URL once the socket is bound and the publication is open.
    """
    sock = bind(settings.host, settings.port)
    with contextlib.closing(sock):
        live = Live.open(settings.store, settings.device, settings.cache, settings.poll_s)
        _raise_open_files(settings.limits.connections + 256)
        config = uvicorn.Config(
            create_app(live, settings),
            http=protocol(settings.limits),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=round(settings.stop_s),
            backlog=BACKLOG,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        sock.listen(BACKLOG)  # who is told the URL may connect at once, and waits a moment
        ready(f"http://{host}:{sock.getsockname()[1]}/", live)
        uvicorn.Server(config).run(sockets=[sock])


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, with a limit on how long a request's head may take and on how many
    connections are open: beyond it, the one that has been silent longest is closed."""

    connections: dict[BoundedProtocol, None] = {}  # in the order they came or last answered

    class BoundedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            connections[self] = None
            self._await_head()
            if len(connections) > limits.connections:
                idle = next((one for one in connections if one._is_idle()), None)
                if idle is not None:
                    idle.transport.abort()
                    connections.pop(idle, None)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.pop(self, None)
            self._stop_timer()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if not self._is_idle():
                self._stop_timer()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            connections.pop(self, None)
            if not self.transport.is_closing():
                connections[self] = None

        def data_received(self, data: bytes) -> None:
            if self._timer is None and self._is_idle():
                self._await_head()
            super().data_received(data)

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _await_head(self) -> None:
            self._timer = self.loop.call_later(limits.header_s, self._head_is_late)

        def _head_is_late(self) -> None:
            if self._is_idle() and not self.transport.is_closing():
                self.transport.write(SLOW_HEAD)
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return BoundedProtocol


def _raise_open_files(wanted: int) -> None:
    """Allow as many open files as there may be connections, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
