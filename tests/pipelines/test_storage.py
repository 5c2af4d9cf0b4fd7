"""One suite over every storage: local files, and S3 over real HTTP."""

import os
import pickle
from pathlib import Path

import pytest

from pipelines.errors import ObjectChanged, ObjectMissing, SettingsError, StorageError
from pipelines.storage import Folder, normal_form


def test_what_is_written_is_listed_and_read(folder_url: str) -> None:
    folder = Folder(folder_url)
    assert not folder.exists()
    assert folder.entries() == []
    written = folder.write("a/b.bin", b"0123456789")
    folder.write("c.bin", b"")
    assert [(e.path, e.size) for e in folder.entries()] == [("a/b.bin", 10), ("c.bin", 0)]
    assert folder.entries("a") == [written] == [folder.stat("a/b.bin")]
    assert folder.exists()
    assert folder.stat("nothing") is None
    assert folder.stat("a") is None
    assert folder.read("a/b.bin") == b"0123456789"
    assert folder.read("a/b.bin", 2, 3) == b"234"
    assert folder.read("a/b.bin", 0, 4) == b"0123"
    assert folder.read("c.bin") == b""


def test_a_fresh_listing_sees_what_another_wrote(folder_url: str) -> None:
    one, other = Folder(folder_url), Folder(folder_url)
    one.write("x", b"1")
    assert len(other.entries()) == 1
    one.write("y", b"2")
    assert len(other.entries()) == 2
    other.delete("x")
    other.delete("x")  # no error
    assert [e.path for e in one.entries()] == ["y"]


def test_reads_are_pinned_to_the_content_listed(folder_url: str) -> None:
    folder = Folder(folder_url)
    listed = folder.write("x", b"first")
    folder.write("x", b"second!")
    with pytest.raises(ObjectChanged, match="has changed"):
        folder.read("x", etag=listed.etag)
    with pytest.raises(ObjectChanged), folder.stream("x", listed.etag) as stream:
        stream.read()
    folder.delete("x")
    with pytest.raises(ObjectMissing):
        folder.read("x", etag=listed.etag)
    with pytest.raises(ObjectMissing):
        folder.read("x")


def test_a_stream_reads_a_large_object_in_pieces(folder_url: str) -> None:
    folder, data = Folder(folder_url), os.urandom(1 << 20) * 20
    entry = folder.write("big", data)
    with folder.stream("big", entry.etag) as stream:
        head = stream.read(512)
        assert head + stream.read() == data


def test_upload_and_download(folder_url: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"abc")
    folder = Folder(folder_url)
    assert folder.upload(tmp_path / "local", "p/q").size == 3
    folder.download("p/q", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"abc"
    assert folder.child("p").read("q") == b"abc"


def test_only_the_url_travels(folder_url: str) -> None:
    folder = Folder(folder_url)
    folder.write("x", b"1")
    again = pickle.loads(pickle.dumps(folder))
    assert again.url == folder.url
    assert again.read("x") == b"1"


def test_a_bucket_that_is_not_there_is_an_error_in_one_line(s3_url: str) -> None:
    with pytest.raises(StorageError) as raised:
        Folder("s3://no-such-bucket-here").write("x", b"1")
    assert "\n" not in str(raised.value)


def test_normal_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normal_form("a/b/") == normal_form(f"file://{tmp_path}/a/b") == f"{tmp_path}/a/b"
    assert normal_form("s3://bucket/a/") == "s3://bucket/a"
    for wrong in ("", "ftp://host/x"):
        with pytest.raises(SettingsError):
            normal_form(wrong)


def test_nothing_half_written_is_left_by_a_failed_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    def cut(source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", cut)
    folder = Folder(str(tmp_path / "out"))
    with pytest.raises(OSError, match="No space"):
        folder.write("x", b"whole")
    assert list((tmp_path / "out").iterdir()) == []
