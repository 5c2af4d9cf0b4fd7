"""Which failures of a storage pass by waiting, and how long a request is tried.

Storage clients raise what they like: their errors are sorted here by what the server answered and
by kind, never by words that might as well stand in an object's name.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from eqmodel.errors import OrbitError
from pipelines.addresses import s3_endpoint
from pipelines.errors import AccessDenied, ObjectMissing, StorageError

PATIENCE_S = 90.0
"""How long one request is tried again on a storage that has answered before."""

UNREACHED_PATIENCE_S = 8.0
"""The same for a storage that never answered in this process: more likely a wrong address."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0

_UNREACHED = {
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ConnectTimeoutError",
    "ConnectionRefusedError",
    "EndpointConnectionError",
    "gaierror",
}
_NO_CREDENTIALS = {
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "TokenRetrievalError",
}
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "400"}
"""S3's codes for a token that is none any more. All come with status 400; a HEAD has no body to
hold the code, so that it is the number then."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_FINAL = {errno.ENAMETOOLONG, errno.EPERM, errno.ENOSYS, errno.EISDIR, errno.ENOTDIR}
_reached: set[str] = set()
T = TypeVar("T")


def retried(call: Callable[[], T], url: str) -> T:
    """Call, again with growing waits where the failure may pass.

    Raises AccessDenied, ObjectMissing or StorageError in one line; errors that are ours already
    pass through.
    """
    started, wait, place = time.monotonic(), FIRST_WAIT_S, _place(url)
    while True:
        try:
            result = call()
        except OrbitError:
            raise
        except Exception as error:  # the boundary to storage clients
            final = final_error(error, url)
            if final is not None:
                raise final from error
            spent = time.monotonic() - started
            unreached = place not in _reached and bool(_names(error) & _UNREACHED)
            if spent + wait > (UNREACHED_PATIENCE_S if unreached else PATIENCE_S):
                what = "cannot be reached" if unreached else "gives no good answer"
                raise StorageError(
                    f"{url}: {what} ({one_line(error)}), tried for {spent:.0f} s; "
                    "check the address and the network, and run again"
                ) from error
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_S)
        else:
            _reached.add(place)
            return result


def final_error(error: Exception, url: str) -> StorageError | None:
    """What gets no better by waiting, as one of our errors; None for what may."""
    status, number = status_of(error), getattr(error, "errno", None)
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or _names(error) & _NO_CREDENTIALS
        or _code_of(error) in _EXPIRED
    ):
        return AccessDenied(f"{url}: access denied ({one_line(error)}); check the credentials")
    if is_missing(error):
        return ObjectMissing(f"{url} is not there; check the name")
    text = f"{url}: {one_line(error)}"
    if number in _FULL:
        full = StorageError(f"{text}; make room and run again")
        full.errno = number
        return full
    if number in _FINAL or not _may_pass(error):
        return StorageError(f"{text}; check the address and what may be done there")
    return None


def is_missing(error: BaseException) -> bool:
    """Whether the storage said that there is no such object, rather than nothing or an error.

    fsspec's http client raises FileNotFoundError for every failure; the cause tells which it was.
    """
    if not isinstance(error, FileNotFoundError):
        return False
    status = status_of(error)
    return status in (404, 410) if status is not None else not _names(error) & _UNREACHED


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the server answered with, if it did."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, gcsfs, azure
            status = getattr(link, "status", getattr(link, "status_code", None))
        if isinstance(status, int):
            return status
    return None


def _code_of(error: BaseException) -> str | None:
    """S3's own word for the error, if it is S3's."""
    responses = (getattr(link, "response", None) for link in _chain(error))
    found = [r.get("Error", {}).get("Code") for r in responses if isinstance(r, dict)]
    return str(found[0]) if found else None


def one_line(error: BaseException) -> str:
    """An error's message on one line, bounded."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _may_pass(error: Exception) -> bool:
    # A wrong call (ValueError, TypeError, NotImplementedError) stays wrong; network, server and
    # client libraries' own errors may pass.
    return isinstance(error, OSError | EOFError) or type(error).__module__ != "builtins"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}


def _place(url: str) -> str:
    parts = urlsplit(url)
    endpoint = s3_endpoint() if parts.scheme == "s3" else None
    return f"{endpoint or parts.scheme}://{parts.netloc}"
