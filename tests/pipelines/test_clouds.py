"""The main job over Google's and Azure's storage, as far as their emulators go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import app
from jobs.console import run
from pipelines.errors import ObjectChanged
from pipelines.shards import ReadOptions, Sample, list_shards, read_shard
from pipelines.storage import Folder


@pytest.fixture
def shard(make_png: Callable[..., bytes], make_tar: Callable[..., bytes]) -> bytes:
    noise = np.random.default_rng(7).integers(0, 255, (12, 28, 28), np.uint8)
    return make_tar({f"{place:02d}.png": make_png(image) for place, image in enumerate(noise)})


def orbit(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = run(app, "orbit", [*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err[-800:]
    found: dict[str, Any] = json.loads(out)
    return found


def test_google_as_input(gs_url: str, shard: bytes) -> None:
    """The emulator lacks the listing that a Delta table asks for: shards are listed and read."""
    folder = Folder(f"{gs_url}/day")
    folder.write("a.tar", shard)
    (found,) = list_shards(folder, buckets=16)
    assert (found.source, found.kind, found.size) == ("a.tar", "tar", len(shard))
    samples = list(read_shard(folder, found, ReadOptions()))
    assert [sample.key for sample in samples if isinstance(sample, Sample)] == [
        f"{place:02d}" for place in range(12)
    ]
    folder.write("a.tar", shard + b"\0" * 512)
    with pytest.raises(ObjectChanged):
        list(read_shard(folder, found, ReadOptions()))


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_azure_as_input_and_store(
    az_url: str,
    shard: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Folder(az_url).write("day/a.tar", shard)
    job = ("run", f"{az_url}/day", "--model", "d4-28-grey", "--out", f"{az_url}/store")
    first = orbit(capsys, *job, "--workers", "1")
    assert (first["num_added"], first["num_embedded"]) == (12, 12)
    again = orbit(capsys, *job)
    assert (again["num_added"], again["publication"]) == (0, first["publication"])
    assert orbit(capsys, "status", f"{az_url}/store")["num_embedded"] == 12
    found = orbit(capsys, "query", f"{az_url}/store", "--key", "03", "-k", "1")
    assert len(found["results"][0]["neighbours"]) == 1
