"""The command as a person meets it: its two streams and its exit code."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.sample import FOLDER


@dataclass(frozen=True)
class Outcome:
    """What one command line left: exit code and the text of both streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as exactly one JSON object."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, f"expected one line of JSON, found {self.stdout!r}"
        return json.loads(lines[0])


Orbit = Callable[..., Outcome]


@pytest.fixture
def orbit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Orbit:
    """Run a command line in this process: `orbit("query", store, "-", stdin=png)`."""
    from jobs.cli import app
    from jobs.console import run

    def call(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        code = run(app, "orbit", [str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return Outcome(code, streams.out, streams.err)

    return call


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content: to show that nothing changed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SHIPPED = "d4-28-grey"


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INPUT of the session's store: one shard of the sample, 400 images."""
    folder = tmp_path_factory.mktemp("bucket")
    shutil.copy2(FOLDER / "clothes-0.tar", folder)
    return folder


@pytest.fixture(scope="session")
def store(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that `orbit run` made of it, for tests that only read."""
    from pipelines.batch import run_input
    from pipelines.config import EmbedSettings
    from pipelines.publication import PublishOptions

    folder = tmp_path_factory.mktemp("stores") / "store"
    options = PublishOptions(clusters=5, audit_images=16, map_points=100)
    summary = run_input(EmbedSettings(str(bucket), SHIPPED, str(folder)), options)
    assert summary.failure is None
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of artifacts for this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
