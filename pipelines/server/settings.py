"""What a server is told: where it listens, who may ask, and how much of everything."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import SettingsError

MIN_TOKEN = 16


@dataclass(frozen=True)
class Limits:
    """The most that a request, and all requests together, may take.

    body_bytes of one request, held_bytes of all bodies being received; pixels of an image before
    it is decoded; k neighbours; queue searches at work or waiting; connections open at once;
    header_s and body_s seconds to send the head and the body of a request.
    """

    body_bytes: int = 32 << 20
    held_bytes: int = 256 << 20
    pixels: int = 32_000_000
    k: int = 1_000
    queue: int = 64
    connections: int = 1_000
    header_s: float = 10.0
    body_s: float = 20.0


@dataclass(frozen=True)
class ServerSettings:
    """One server. ``token`` None is allowed on a loopback address only; ``poll_s`` is how often
    the store is asked for a newer publication, ``stop_s`` how long a stop waits for answers."""

    store: str
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    device: str = "cpu"
    cache: str | None = None
    poll_s: float = 5.0
    stop_s: float = 15.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """SettingsError for a port that is none, or an open address without a token."""
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"port {self.port}: a number from 0 (any free one) to 65535")
        if self.token is None and not is_loopback(self.host):
            raise SettingsError(
                f"--host {self.host} can be reached from other machines, so a token is expected: "
                "give --token-file FILE or set ORBIT_TOKEN"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of ``--token-file``, else of ORBIT_TOKEN, else None.

    SettingsError for one that cannot be read, is short, or holds more than printable ASCII.
    """
    if file is not None:
        try:
            token, where = file.read_text("utf-8").strip(), f"'{file}'"
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"no token can be read from '{file}': {error}") from error
    elif "ORBIT_TOKEN" in environment:
        token, where = environment["ORBIT_TOKEN"].strip(), "ORBIT_TOKEN"
    else:
        return None
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(
            f"{where} holds a token of {len(token)} characters; at least {MIN_TOKEN} printable "
            "ASCII characters without spaces are expected (openssl rand -hex 32)"
        )
    return token
