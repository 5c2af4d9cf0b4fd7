"""What runs on Ray: partitions of an index filled by tasks, and the server in replicas."""

import concurrent.futures
import json
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.pool.partitions import partition
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.server.settings import ServerSettings
from pipelines.storage import Folder
from pipelines.table import KnownFile
from tests.conftest import png
from tests.pipelines.conftest import QUICK, Made

TOKEN = "a-token-of-enough-letters"


def known(num: int) -> KnownFile:
    return KnownFile("s", "e", "p", 1, num, num, 0, False)


def test_partitions_hold_so_many_embeddings_at_most() -> None:
    files = {f"{n}.tar": known(num) for n, num in enumerate([40, 40, 40, 0, 150, 10, 10])}
    groups = partition(files, 100)
    assert groups == [("0.tar", "1.tar"), ("2.tar",), ("4.tar",), ("5.tar", "6.tar")]
    assert partition({}, 100) == []


@pytest.mark.scale
def test_an_index_filled_by_ray_tasks_is_the_one_filled_here(
    embedded: Made, tmp_path: Path
) -> None:
    answers = []
    for name, ray in (("here", None), ("ray", "local")):
        store = Folder(str(tmp_path / name))
        shutil.copytree(embedded.store.url, store.url)
        options = replace(QUICK, index_kind="IVF4,SQ8", index_ray=ray, audit_images=0)
        row = publish(store, embedded.model_id, options)
        assert row.facts["index"]["base_num"] == 78
        searcher = Searcher.open(store.url, tmp_path / f"cache-{name}")
        hits = searcher.search_keys(list(embedded.images)[1:20], 10)
        answers.append([[(hit.key, hit.score) for hit in found] for found in hits])
    assert answers[0] == answers[1]


@pytest.mark.scale
def test_the_same_app_answers_from_replicas_on_ray_serve(embedded: Made, tmp_path: Path) -> None:
    from pipelines.pool.serving import deployed

    store = Folder(str(tmp_path / "store"))
    shutil.copytree(embedded.store.url, store.url)
    publish(store, embedded.model_id, QUICK)
    settings = ServerSettings(store.url, port=0, cache=str(tmp_path / "cache"), token=TOKEN)
    image = png(embedded.images["turned"])
    expected = Searcher.open(store.url, tmp_path / "cache").search(
        [embedded.images["turned"]], 3, align=True
    )[0]
    with deployed(settings, "local", 2) as url:

        def ask(_: int) -> dict[str, object]:
            headers = {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}"}
            request = urllib.request.Request(f"{url}search?k=3&align=true", image, headers)
            with urllib.request.urlopen(request, timeout=60) as reply:
                found: dict[str, object] = json.load(reply)
                return found

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(40)))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}info", timeout=60)
    assert all(a == {"neighbours": [hit.as_dict() for hit in expected]} for a in answers)
