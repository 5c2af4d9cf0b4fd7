"""An S3 server over real HTTP, and makers of small inputs."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from PIL import Image

AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def png(pixels: NDArray[Any]) -> bytes:
    """Pixels (H, W[, 3]) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    """A plain tar of regular members, in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_png() -> Callable[[NDArray[Any]], bytes]:
    return png


@pytest.fixture(scope="session")
def make_tar() -> Callable[[dict[str, bytes]], bytes]:
    return tar_of


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of moto's server; the AWS_* variables point at it while the session lasts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    before = {name: os.environ.get(name) for name in [*AWS, "AWS_ENDPOINT_URL"]}
    os.environ.update(AWS | {"AWS_ENDPOINT_URL": endpoint})
    yield endpoint
    server.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def s3_url(s3_server: str, request: pytest.FixtureRequest) -> str:
    """A fresh bucket as s3://name."""
    import hashlib

    import boto3

    name = "test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(params=["local", "s3"])
def folder_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, on each storage."""
    if request.param == "local":
        return str(tmp_path / "folder")
    return f"{request.getfixturevalue('s3_url')}/folder"
