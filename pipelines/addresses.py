"""URLs: their normal form, what identifies an object's content, how clients are set up."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pipelines.errors import SettingsError, StorageError

SCHEMES = ("file", "s3", "gs", "az", "abfs", "abfss", "http", "https")
ALIASES = {"s3a": "s3", "gcs": "gs", "local": "file"}
TABLE_SCHEMES = ("file", "s3", "gs", "az", "abfs", "abfss")
CONNECT_S, READ_S = 10, 30  # a socket that says nothing for so long is given up and tried again


def normal_form(url: str, is_known: Callable[[str], bool] = lambda scheme: False) -> str:
    """A URL without trailing slash; a local path becomes absolute.

    ``is_known`` says of other schemes whether there is a client. Raises SettingsError.
    """
    if not url:
        raise SettingsError(
            "an empty path was given; a local path or a URL such as s3://bucket/folder is expected"
        )
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:
        return os.path.abspath(os.path.expanduser(url))
    scheme = ALIASES.get(scheme.lower(), scheme.lower())
    if scheme == "file":
        return os.path.abspath(os.path.expanduser(rest))
    if scheme not in SCHEMES and not is_known(scheme):
        raise SettingsError(
            f"'{url}' has the unknown scheme {scheme}://; use a local path, "
            f"{', '.join(f'{known}://' for known in SCHEMES[1:-1])} or another scheme of fsspec"
        )
    if not rest.strip("/"):
        raise SettingsError(f"'{url}' names no place; {scheme}://bucket/folder is expected")
    return f"{scheme}://{rest.rstrip('/')}"


def content_identity(scheme: str, facts: dict[str, Any], url: str) -> str:
    """What tells one content of an object from another; StorageError where the storage says
    nothing.

    S3's VersionId is left out: a listing does not give it, and the ETag changes with the content.
    """
    names = ("generation",) if scheme == "gs" else ("ETag", "etag", "checksum", "blob_id")
    for name in names:
        if facts.get(name):
            return str(facts[name]).removeprefix("W/").strip('"')
    for name in ("LastModified", "last_modified", "Last-Modified", "created", "mtime"):
        if facts.get(name) is not None and facts.get("size") is not None:
            return f"{facts[name]}-{facts['size']}"
    raise StorageError(
        f"{url}: the server gives neither an ETag nor a time of change, so a change could not be "
        "seen; put the images where it does"
    )


def client_options(scheme: str) -> dict[str, Any]:
    """Options of the fsspec client: no cached listing, short silences, no retries of its own."""
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        options |= _s3_options()
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        options["client_kwargs"] = {"timeout": timeout}
    return options


def _s3_options() -> dict[str, Any]:
    # One try per call: `retried` repeats, so that waits do not multiply.
    config = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "max_pool_connections": 32,
    }
    options: dict[str, Any] = {"config_kwargs": config}
    if region := os.environ.get("AWS_REGION"):
        options["client_kwargs"] = {"region_name": region}
    if endpoint := s3_endpoint():
        options["endpoint_url"] = endpoint
    return options


def s3_endpoint() -> str | None:
    """The endpoint of an object store other than AWS's own, from the environment."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def table_options(scheme: str) -> dict[str, str]:
    """Storage options of deltalake; credentials come from the environment, as for every other
    request. It tries a request again by itself, ten times.
    """
    if scheme != "s3":
        return {}
    options = {"timeout": f"{READ_S}s", "connect_timeout": f"{CONNECT_S}s"}
    if endpoint := s3_endpoint():
        options["AWS_ENDPOINT_URL"] = endpoint
        if endpoint.startswith("http://"):
            options["AWS_ALLOW_HTTP"] = "true"
    return options
