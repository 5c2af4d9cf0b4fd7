"""`orbit serve` as a process: its flags, what it refuses to serve, how it stops."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.publication import publish
from pipelines.server import Live
from pipelines.storage import Folder
from pipelines.table import PublicationLog
from tests.conftest import png
from tests.jobs.conftest import Orbit
from tests.pipelines.conftest import QUICK, embed_here

STOP_S = 20


@pytest.fixture(scope="module")
def store(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made in this process, without Ray."""
    place = tmp_path_factory.mktemp("serve") / "store"
    folder, model_id = embed_here(str(bucket), str(place))
    publish(folder, model_id, replace(QUICK, clusters=5, audit_images=0))
    return place


@pytest.fixture
def copied(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of one's own, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(store, tmp_path / "store"))


@contextmanager
def serving(store: Path, cache: Path, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.serve", str(store), "--port", "0", "--json", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()


def ask(url: str, image: bytes, asking: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}search?{asking}", image, {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_flags_are_the_limits_and_sigterm_ends_it_though_a_client_is_slow(
    store: Path, tmp_path: Path
) -> None:
    limits = ("--max-body-mib", "1", "--max-megapixels", "0.5", "--max-k", "7", "--max-queue", "3")
    with serving(store, tmp_path, *limits) as (process, url):
        with urllib.request.urlopen(f"{url}info", timeout=30) as reply:
            told = json.load(reply)["limits"]
        assert told == {"body_bytes": 1 << 20, "pixels": 500_000, "k": 7}
        small, large = (np.zeros((side, 1000), np.uint8) for side in (28, 501))
        assert ask(url, png(small), "k=8") == (
            400,
            {"error": "k = 8: a number from 1 to 7 is expected"},
        )
        assert ask(url, png(large))[0] == 413
        assert ask(url, bytes((1 << 20) + 1))[0] == 413
        status, found = ask(url, png(small))  # unasked, no more than the limit
        assert (status, len(found["neighbours"])) == (200, 7)
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(
                b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            time.sleep(0.2)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_S + 5) == 143
            assert time.monotonic() - began <= STOP_S


def test_a_store_without_a_publication_is_refused(orbit: Orbit, tmp_path: Path) -> None:
    outcome = orbit("serve", tmp_path / "nothing")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.count("\n") == 1
    assert "holds no publication" in outcome.stderr


def test_an_index_whose_digest_is_wrong_is_refused(orbit: Orbit, copied: Path) -> None:
    index = next(copied.glob("artifacts/*/index.faiss"))
    whole = index.read_bytes()
    index.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    outcome = orbit("serve", copied)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.count("\n") == 1
    assert "index.faiss" in outcome.stderr
    assert "sha256" in outcome.stderr


def of_another_model(store: Path) -> str:
    """Name the index of the live publication in one of another model, and make that live."""
    log = PublicationLog.open(Folder(str(store)))
    assert log is not None
    live = log.live()
    assert live is not None
    shared = [file.path for file in live.files]
    other = replace(live, id=f"{live.id}-other", model_id="f" * 16)
    return log.append(other, shared, live=True).id


def test_an_index_of_another_model_is_refused(orbit: Orbit, copied: Path) -> None:
    name = of_another_model(copied)
    for line in (("serve", copied), ("query", copied, "--key", "0000")):
        outcome = orbit(*line)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.count("\n") == 1
        assert f"publication {name} is of model {'f' * 16}, its index of " in outcome.stderr


def test_the_old_publication_keeps_answering_when_one_of_another_model_comes(
    copied: Path, tmp_path: Path
) -> None:
    live = Live.open(str(copied), cache=str(tmp_path / "own"))
    before = live.view
    of_another_model(copied)
    assert not live.refresh()
    assert live.view is before
    assert live.alarm is not None
    assert "publish again" in live.alarm
    assert len(before.searcher.search_vectors(*some(before), 3)[0]) == 3


def some(view: Any) -> tuple[Any]:
    return (view.stored(0)[0][None],)
