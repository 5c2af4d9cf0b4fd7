"""The HTTP server and its page over ``Searcher``: ``serve`` runs it, ``create_app`` makes it."""

from pipelines.server.app import create_app
from pipelines.server.live import Live, View
from pipelines.server.run import bind, serve
from pipelines.server.settings import Limits, ServerSettings, read_token

__all__ = [
    "Limits",
    "Live",
    "ServerSettings",
    "View",
    "bind",
    "create_app",
    "read_token",
    "serve",
]
