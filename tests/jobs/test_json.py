"""The JSON objects others build on, field by field."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.sample import FOLDER, QUERIES
from tests.jobs.conftest import SHIPPED, Orbit, snapshot

NUMBER = (int, float)
EMBED_FIELDS: dict[str, Any] = {
    "num_seen": int,
    "num_embedded": int,
    "num_rejected": int,
    "num_added": int,
    "num_removed": int,
    "num_encoded": int,
    "num_damaged_shards": int,
    "images_per_s": NUMBER,
    "efficiency": NUMBER,
    "efficiency_total": NUMBER,
    "startup_s": NUMBER,
    "steady_s": NUMBER,
    "commit_s": NUMBER,
    "elapsed_s": NUMBER,
    "limit": str,
    "fetch_per_s": NUMBER,
    "decode_per_s": NUMBER,
    "model_per_s": NUMBER,
    "core_us": dict,
    "model_id": str,
    "table_version": int,
}
RUN_FIELDS = EMBED_FIELDS | {"recall_at_10": NUMBER, "publication": str, "report": str}
NULL_WHEN_IDLE = frozenset(
    {"images_per_s", "efficiency", "efficiency_total", "limit"}
    | {"fetch_per_s", "decode_per_s", "model_per_s", "core_us"}
)
NEIGHBOUR_FIELDS: dict[str, Any] = {
    "key": str,
    "source": str,
    "label": str,
    "score": NUMBER,
    "image_id": str,
    "cluster": int,
}
MODEL_FIELDS: dict[str, Any] = {
    "name": str,
    "group": str,
    "image_size": int,
    "channels": int,
    "readout": str,
    "dim": int,
    "model_id": str,
    "recommended": bool,
    "description": str,
}


def check(
    found: dict[str, Any], fields: dict[str, Any], null: frozenset[str] = frozenset()
) -> None:
    """Every field in its place with its type, and no other."""
    assert list(found) == list(fields)
    for name, kind in fields.items():
        if name in null:
            assert found[name] is None, name
        else:
            assert isinstance(found[name], kind), name
            assert kind is bool or not isinstance(found[name], bool), name


def test_models(orbit: Orbit) -> None:
    models = orbit("models", "--json").json["models"]
    for model in models:
        check(model, MODEL_FIELDS)
    assert [model["recommended"] for model in models] == [True] + [False] * (len(models) - 1)
    assert models[0]["name"].startswith(SHIPPED)


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    """A bucket of two shards that a test may change."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    for name in ("clothes-0.tar", "clothes-1.tar"):
        shutil.copy2(FOLDER / name, folder)
    return folder


@pytest.mark.integration
def test_embed_and_what_follows(orbit: Orbit, two_shards: Path, tmp_path: Path) -> None:
    line = ("embed", two_shards, "--model", SHIPPED, "--out", tmp_path / "store", "--json")

    planned = orbit(*line, "--dry-run").json
    assert planned.pop("dry_run") is True
    assert planned.pop("plan")["num_added"] == 2
    check(planned, EMBED_FIELDS, NULL_WHEN_IDLE | {"table_version"})
    assert not (tmp_path / "store").exists()

    first = orbit(*line).json
    check(first, EMBED_FIELDS)
    assert (first["num_seen"], first["num_added"], first["num_encoded"]) == (800, 800, 800)
    assert 0 < first["efficiency_total"] <= first["efficiency"] <= 1.5

    before = snapshot(tmp_path / "store")
    again = orbit(*line).json
    check(again, EMBED_FIELDS, NULL_WHEN_IDLE)
    assert (again["num_seen"], again["num_added"], again["num_encoded"]) == (800, 0, 0)
    assert again["table_version"] == first["table_version"]
    assert snapshot(tmp_path / "store") == before

    (two_shards / "clothes-1.tar").unlink()
    removed = orbit(*line, "--allow-vanish").json
    check(removed, EMBED_FIELDS, NULL_WHEN_IDLE)
    assert (removed["num_seen"], removed["num_removed"], removed["num_encoded"]) == (400, 400, 0)


@pytest.mark.integration
def test_run_with_nothing_new(orbit: Orbit, bucket: Path, store: Path) -> None:
    before = snapshot(store)
    outcome = orbit("run", bucket, "--model", SHIPPED, "--out", store, "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    check(outcome.json, RUN_FIELDS, NULL_WHEN_IDLE)
    assert outcome.json["num_embedded"] == 400
    assert Path(outcome.json["report"]).is_file()
    assert snapshot(store) == before
    told = orbit("run", bucket, "--model", SHIPPED, "--out", store)
    assert told.stdout.startswith("nothing to do: the store holds what INPUT holds\n")


@pytest.mark.integration
@pytest.mark.parametrize("flags", [[], ["--align"]])
def test_query(orbit: Orbit, store: Path, flags: list[str]) -> None:
    asked = sorted(QUERIES.glob("*.png"))[:3]
    key = json.loads((FOLDER / "copies.json").read_text())[0]["copy"]
    found = orbit("query", store, *asked, "--key", key, "-k", 4, "--json", *flags).json
    assert list(found) == ["results"]
    assert [result["query"] for result in found["results"]] == [*map(str, asked), key]
    for result in found["results"]:
        assert list(result) == ["query", "neighbours"]
        assert len(result["neighbours"]) == 4
        for neighbour in result["neighbours"]:
            pose = neighbour.pop("pose", None)
            check(neighbour, NEIGHBOUR_FIELDS)
            assert neighbour["image_id"].isdecimal()
            assert (pose is not None) == bool(flags)
            assert not flags or list(pose) == ["angle_degrees", "mirror"]
    assert found["results"][3]["neighbours"][0]["key"] == key


@pytest.mark.integration
def test_query_from_standard_input_is_the_query_of_the_file(orbit: Orbit, store: Path) -> None:
    path = QUERIES / "02-trouser.png"
    by_file = orbit("query", store, path, "--json").json["results"][0]
    by_bytes = orbit("query", store, "-", "--json", stdin=path.read_bytes()).json["results"][0]
    assert by_bytes == by_file | {"query": "-"}
    assert len(by_file["neighbours"]) == 10


@pytest.mark.integration
def test_query_tells_a_table_and_draws_a_sheet(orbit: Orbit, store: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "found.png"
    outcome = orbit("query", store, QUERIES / "02-trouser.png", "-k", 3, "--sheet", sheet)
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0] == str(QUERIES / "02-trouser.png")
    assert lines[1].split() == ["score", "key", "source", "label", "cluster", "pose"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_status_index_and_report(orbit: Orbit, store: Path, tmp_path: Path) -> None:
    status = orbit("status", store, "--json").json
    assert (status["num_seen"], status["up_to_date"]) == (400, True)
    index = orbit("index", store, "--json").json
    assert index == status["publication"]
    page = tmp_path / "report.html"
    report = orbit("report", store, "--out", page, "--json").json
    assert report == index | {"copy": str(page)}
    assert page.read_bytes() == Path(index["report"]).read_bytes()
    assert orbit("index", store).stdout.startswith("nothing to do: the newest embeddings are live")
    assert "up_to_date " in orbit("status", store).stdout
