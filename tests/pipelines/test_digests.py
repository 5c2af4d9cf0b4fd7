"""A digest found before stands while the file is the same, and no longer."""

import os
import time
from pathlib import Path

import pytest

from pipelines.index import digests, file_sha256, known_sha256


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read."""
    seen: list[Path] = []

    def counting(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    monkeypatch.setattr(digests, "file_sha256", counting)
    return seen


def settled(path: Path, data: bytes) -> Path:
    """A file that was written a minute ago."""
    path.write_bytes(data)
    os.utime(path, (time.time() - 60, time.time() - 60))
    return path


def test_a_file_that_is_the_same_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "a", b"as published")
    os.link(path, tmp_path / "b")
    found = {known_sha256(path) for path in (path, path, tmp_path / "b")}
    assert found == {file_sha256(path)}
    assert reads == [path]


def test_a_file_that_changed_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "a", b"as published")
    first = known_sha256(path)
    path.write_bytes(b"as_published")  # as long, a moment later
    assert known_sha256(path) == file_sha256(path) != first
    other = settled(tmp_path / "other", b"As published")
    os.replace(other, path)
    assert known_sha256(path) == file_sha256(path) != first
    assert reads == [path] * 3


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"just now")
    known_sha256(path)
    known_sha256(path)
    assert reads == [path, path]
