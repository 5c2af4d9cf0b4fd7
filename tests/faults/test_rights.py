"""What infra/iam gives is enough: no request of a writer deletes, or changes INPUT; none of a
reader changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.sample import FOLDER
from pipelines import open_store
from pipelines.export import Selection, export
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.storage import Folder
from tests.pipelines.conftest import QUICK, embed_here

from .proxy import FaultProxy

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def proxy(s3_server: str, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Between this process and the S3 server, with one shard of the sample as INPUT."""
    Folder(f"{s3_url}/in").write("a.tar", (FOLDER / "clothes-0.tar").read_bytes())
    with FaultProxy(s3_server) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


def night(url: str) -> str:
    """Embed what is new and publish it; the publication's id."""
    store, model_id = embed_here(f"{url}/in", f"{url}/store")
    return publish(store, model_id, QUICK).id


def test_least_rights_are_enough(
    proxy: FaultProxy, s3_server: str, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.wrong("403", method="DELETE")
    proxy.wrong("403", method="POST", path=r"[?&]delete")
    proxy.wrong("403", method="PUT POST", path=r"^/[^/]+/in/")
    first = night(s3_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    Folder(f"{s3_url}/in").write("a.tar", (FOLDER / "clothes-1.tar").read_bytes())
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    live = night(s3_url)  # a shard was replaced: rows are added and removed
    assert live != first
    assert proxy.kinds["403"] == 0
    assert {"GET", "PUT"} <= {seen.method for seen in proxy.seen}

    proxy.heal()
    proxy.seen.clear()
    proxy.wrong("403", method="PUT POST DELETE PATCH")
    searcher = Searcher.open(f"{s3_url}/store", cache=tmp_path / "cache")
    key = open_store(f"{s3_url}/store", cache=tmp_path / "cache").to_pandas()["key"][0]
    (hits,) = searcher.search_keys([key], 3)
    assert hits[0].key == key
    store = open_store(f"{s3_url}/store", cache=tmp_path / "cache")
    assert store.status()["publication"]["id"] == live
    export(store, str(tmp_path / "e.npy"), Selection(), lambda *_: None)
    assert {seen.method for seen in proxy.seen} <= {"GET", "HEAD"}
    assert len(proxy.seen) > 10
