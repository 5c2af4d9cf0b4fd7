"""Where a cluster's job API is, by which token it is opened, and whether its versions fit."""

from __future__ import annotations

import json
import os
import platform
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import ClusterError
from pipelines.secrets import no_secrets

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESSES = ("ORBIT_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TIMEOUT_S = 15.0
_EXPECTED = "expected the address of its job API such as http://head:8265"


@dataclass(frozen=True)
class Connection:
    """A job API that answers: its address, and the token (never shown)."""

    address: str
    token: str | None

    def __repr__(self) -> str:
        return f"Connection({self.address!r})"

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def connect(address: str | None, token: str | None) -> Connection:
    """A connection to a cluster whose Ray and Python are the versions of this one.

    ClusterError (exit 2) when it does not answer, does not know the token, or has others.
    """
    found = Connection(normal_address(address), token)
    ray = _ask(found, "/api/version").get("ray_version")
    facts = _ask(found, "/api/v0/cluster_metadata").get("data") or {}
    here = {"Ray": version("ray"), "Python": platform.python_version()}
    there = {"Ray": ray, "Python": facts.get("pythonVersion")}
    for name, ours in here.items():
        theirs = str(there[name])
        same = ours == theirs if name == "Ray" else ours.split(".")[:2] == theirs.split(".")[:2]
        if not same:
            raise ClusterError(
                f"the cluster at {found.address} runs {name} {theirs}, here is {name} {ours}; "
                f"both must be the same: use this {name} on the cluster, or submit from there"
            )
    return found


def normal_address(address: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """http(s)://host:port of the job API: what was given, else the environment, else this machine.

    ClusterError for anything else.
    """
    given = address or next((environment[n] for n in ADDRESSES if environment.get(n)), None)
    text = DEFAULT_ADDRESS if given in (None, "", "auto") else str(given)
    no_secrets([text])
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ClusterError(f"--address {text}: {_EXPECTED}")
    return url.rstrip("/")


def find_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of ``file``, else of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    ClusterError when a file was named that cannot be read or is empty.
    """
    if file is None and environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    named = file or (environment.get("RAY_AUTH_TOKEN_PATH") or None)
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if named is None:
            return None
        raise ClusterError(f"token file {path}: cannot be read ({error}); name another") from error
    if named and (not token or not token.isprintable() or " " in token):
        raise ClusterError(f"token file {path}: holds no token; expected one line with the token")
    return token or None


def _ask(connection: Connection, path: str) -> dict[str, Any]:
    """One answer of the job API as JSON."""
    address = connection.address
    request = urllib.request.Request(address + path, headers=connection.headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise _refusal(connection, error.code, path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ClusterError(
            f"no Ray cluster answers at {address} ({' '.join(str(reason).split())[:120]}); "
            f"{_EXPECTED}, check that it runs and that this machine may reach it"
        ) from error
    if not isinstance(found, dict):
        raise ClusterError(f"{address} is not Ray's job API; {_EXPECTED}")
    return found


def _refusal(connection: Connection, code: int, path: str) -> ClusterError:
    address = connection.address
    if code == 401:
        return ClusterError(
            f"the cluster at {address} asks for a token, none was found; give it with "
            "--token-file FILE or RAY_AUTH_TOKEN"
        )
    if code == 403:
        return ClusterError(
            f"the cluster at {address} does not know this token; give its own with "
            "--token-file FILE or RAY_AUTH_TOKEN"
        )
    return ClusterError(f"{address}{path} answers {code}; {_EXPECTED}")
