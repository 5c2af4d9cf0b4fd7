"""Blue and green: another model beside the live one, and the moment queries go over to it."""

import dataclasses
from pathlib import Path

import pytest

from eqmodel.training import TrainConfig, train
from pipelines import open_store
from pipelines.models import find_checkpoint, in_precision, model_id_of
from pipelines.publication import publish
from pipelines.restore import restore
from pipelines.retention import RetentionOptions, collect_garbage
from pipelines.search import Searcher
from pipelines.storage import Folder
from pipelines.table import PublicationLog, PublicationRow
from tests.pipelines.conftest import QUICK, Made, embed_here


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Progress that nobody looks at."""


def row(name: str, model: str = "a" * 16, version: int = 1) -> PublicationRow:
    return PublicationRow(name, model, version)


def test_a_candidate_is_in_the_log_and_never_live(tmp_path: Path) -> None:
    log = PublicationLog.open_or_create(Folder(str(tmp_path / "store")))
    live = log.append(row("one"))
    waiting = [log.append(row(name, "b" * 16, 4), live=False) for name in ("two", "three")]
    assert [found.seq for found in waiting] == [0, -1]
    assert {found.state for found in waiting} == {"candidate"}
    assert log.live() == live
    assert [found.id for found in log.rows()] == ["three", "two", "one"]
    newest = log.candidate("b" * 16, 4)
    assert newest is not None
    assert newest.id == "three"
    assert log.candidate("b" * 16, 5) is None
    again = log.append(row("four"))
    assert (again.seq, log.live()) == (2, again)
    assert log.restore("two").seq == 3
    found = log.live()
    assert found is not None
    assert (found.id, found.state, found.model_id) == ("two", "restored", "b" * 16)
    assert [gone.id for gone in log.forget({0, -1, 1, 2})] == ["three", "two", "one", "four"]


@pytest.mark.slow
def test_queries_stay_with_the_live_model_until_they_are_told(
    embedded: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    train(list(embedded.images.values()), model, TrainConfig(width=2, features=6, dim=8, epochs=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, old = embed_here(str(embedded.input), str(tmp_path / "store"))
    monkeypatch.setattr("tests.pipelines.conftest.MODEL", str(model))
    _, new = embed_here(str(embedded.input), store.url)
    assert old != new

    aside = dataclasses.replace(QUICK, go_live=False)
    first = publish(store, old, aside)
    assert first.seq == 1  # there was no other model to keep live
    page = store.read("report.html")
    candidate = publish(store, new, aside)
    assert (candidate.seq, candidate.state) == (0, "candidate")
    assert publish(store, new, aside) == candidate
    assert Searcher.open(store.url).model_id == old
    assert store.read("report.html") == page
    told = open_store(store.url).status()
    assert told["model_id"] == old
    assert told["publication"]["id"] == first.id
    assert told["waiting"] == [candidate.id]
    collect_garbage(store, RetentionOptions(keep=5, grace_s=0.0), silent)

    live = publish(store, new, QUICK)  # the same version: nothing is built again
    assert (live.id, live.seq, live.state) == (candidate.id, 2, "restored")
    searcher = Searcher.open(store.url)
    assert searcher.model_id == new
    assert searcher.search_keys([next(iter(embedded.images))], 1)[0][0].score == 1.0
    assert store.read("report.html") != page
    assert open_store(store.url).status()["waiting"] == []
    assert restore(store, first.id, silent).model_id == old
    assert Searcher.open(store.url).model_id == old


def test_another_precision_is_another_model(tmp_path: Path) -> None:
    shipped = find_checkpoint("d4-28-grey", tmp_path)
    assert in_precision(shipped, "float32", tmp_path, False) == shipped
    half = in_precision(shipped, "bf16", tmp_path, True)
    assert model_id_of(half) != model_id_of(shipped)
    assert in_precision(half, "bf16", tmp_path, False) == half
