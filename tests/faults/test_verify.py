"""``orbit verify``: each kind of damage is one finding at its place, and a whole store has none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.cli import app
from jobs.console import run
from pipelines.batch import silent
from pipelines.errors import TableError
from pipelines.shard_file import SCHEMA
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, KnownFile
from pipelines.verify import VerifyOptions, verify
from pipelines.verify_index import compare_index
from pipelines.verify_rows import check_file

from .conftest import MODEL_ID, World, Zygote, live_row


@pytest.fixture(scope="module")
def whole(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, make_png: Any, make_tar: Any
) -> World:
    place = tmp_path_factory.mktemp("whole")
    world = World(Folder(str(place / "in")), Folder(str(place / "out")), make_png, make_tar)
    world.put("a.tar", range(8), bad=(3,))
    world.put("b.tar", range(8, 14))
    assert zygote.start("run", **world.where()).wait() == 0
    return world


@pytest.fixture
def store(whole: World, tmp_path: Path) -> Folder:
    shutil.copytree(whole.store.url, tmp_path / "store")
    return Folder(str(tmp_path / "store"))


def findings(store: Folder, audit: int = 0) -> dict[str, str]:
    verdict = verify(store, VerifyOptions(audit_images=audit), silent)
    assert (verdict.failure() is None) == (not verdict.findings)
    return {finding.where: finding.what for finding in verdict.findings}


def data_file(store: Folder, source: str = "a.tar") -> Path:
    table = EmbeddingTable.open(store, MODEL_ID)
    assert table is not None
    return Path(table.folder.url, table.known()[source].path)


def artifact(store: Folder, name: str) -> Path:
    live = live_row(store)
    assert live is not None
    return Path(store.url, "artifacts", live["id"], name)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_whole_store_has_no_finding_and_its_images_are_turned(store: Folder) -> None:
    verdict = verify(store, VerifyOptions(audit_images=8), silent)
    assert verdict.findings == []
    assert (verdict.num_files, verdict.num_rows, verdict.num_vectors) == (2, 14, 13)
    assert verdict.num_audited == 8
    assert verdict.invariance_error is not None
    assert verdict.invariance_error < 1e-4


@pytest.mark.parametrize("how", ["gone", "flipped", "cut"])
def test_a_damaged_table_file_is_found(store: Folder, how: str) -> None:
    file = data_file(store)
    if how == "gone":
        file.unlink()
    elif how == "flipped":
        flip(file)
    else:
        os.truncate(file, file.stat().st_size - 100)
    found = findings(store)
    where = str(file.relative_to(store.url))
    expected = {"gone": "is gone", "flipped": "sha256", "cut": ""}
    assert expected[how] in found[where]


@pytest.mark.parametrize("name", ["index.faiss", "ids.arrow", "vectors.npy", "report.html"])
def test_a_damaged_artifact_is_found(store: Folder, name: str) -> None:
    file = artifact(store, name)
    flip(file)
    assert "was published" in findings(store)[str(file.relative_to(store.url))]
    file.unlink()
    assert "is gone" in findings(store)[str(file.relative_to(store.url))]


def test_damaged_rows_are_dropped_and_embedded_again(zygote: Zygote, world: World) -> None:
    assert zygote.start("run", **world.where()).wait() == 0
    flip(data_file(world.store, "0.tar"))
    data_file(world.store, "1.tar").unlink()
    options = VerifyOptions(audit_images=0, repair=True)
    assert verify(world.store, options, silent).num_repaired == 2
    again = zygote.start("run", **world.where())
    assert again.wait() == 0
    assert again.json["num_encoded"] == 15
    world.check()


def test_a_changed_shard_carries_nothing_over_from_a_damaged_file(
    zygote: Zygote, world: World
) -> None:
    assert zygote.start("run", **world.where()).wait() == 0
    flip(data_file(world.store, "0.tar"))
    data_file(world.store, "1.tar").unlink()
    world.put("0.tar", range(9))
    world.put("1.tar", range(9))
    again = zygote.start("run", **world.where())
    assert again.wait() == 0, again.output.read_text()
    assert again.json["num_encoded"] == 18
    world.check()


def test_a_missing_table_file_is_told_in_one_line(store: Folder) -> None:
    data_file(store).unlink()
    table = EmbeddingTable.open(store, MODEL_ID)
    assert table is not None
    with pytest.raises(TableError, match="orbit verify --repair"):
        table.read()


def test_rows_that_are_none_are_found(store: Folder, tmp_path: Path) -> None:
    rows = pq.read_table(data_file(store))
    first = next(row for row in range(rows.num_rows) if rows["embedding"][row].is_valid)
    changes: dict[str, Callable[[dict[str, list[Any]]], None]] = {
        "keys twice": lambda c: c["key"].__setitem__(0, c["key"][1]),
        "image_ids": lambda c: c["image_id"].__setitem__(0, 7),
        "without a digest": lambda c: c["digest"].__setitem__(0, None),
        "neither an embedding": lambda c: c["error"].__setitem__(first, "why"),
        "not numbers": lambda c: c["embedding"][first].__setitem__(0, float("nan")),
        "unit length": lambda c: c["embedding"][first].__setitem__(0, 3.0),
        "of lengths": lambda c: c["embedding"][first].append(0.0),
        "source_etag": lambda c: c["source_etag"].__setitem__(0, "other"),
        "rejected images": lambda c: c["embedding"].__setitem__(first, None),
    }
    columns = rows.to_pydict()
    for expected, change in changes.items():
        changed = json_copy(columns)
        change(changed)
        file = tmp_path / "changed.parquet"
        pq.write_table(pa.table(changed, schema=SCHEMA), file)
        told = list(check_file(file, known(file, rows), 128))
        assert any(expected in what for what in told), (expected, told)


def json_copy(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: [list(v) if isinstance(v, list) else v for v in values]
        for name, values in columns.items()
    }


def known(file: Path, rows: pa.Table) -> KnownFile:
    embedded = pc.count(rows["embedding"]).as_py()
    return KnownFile(
        "a.tar", rows["source_etag"][0].as_py(), file.name, file.stat().st_size,
        rows.num_rows, embedded, rows.num_rows - embedded, False,
    )  # fmt: skip


class FakeSidecar:
    """Three rows."""

    ids = np.asarray([1, 5, 9], np.int64)
    vectors = np.eye(3, dtype=np.float32)

    def __len__(self) -> int:
        return 3

    def alive(self) -> Any:
        return np.ones(3, bool)

    def rows_of(self, ids: Any) -> Any:
        place = np.minimum(np.searchsorted(self.ids, ids), 2)
        return np.where(self.ids[place] == ids, place, -1)

    def records(self, rows: Any) -> list[dict[str, str]]:
        return [{"source": "s", "key": str(row)} for row in rows]


def test_an_index_that_differs_from_its_rows_is_found() -> None:
    sidecar: Any = FakeSidecar()
    vectors = sidecar.vectors.copy()
    assert list(compare_index(sidecar, [(sidecar.ids, vectors)])) == []
    (told,) = compare_index(sidecar, [(sidecar.ids[:2], vectors[:2])])
    assert told.startswith("1 images beside it are not in it (s/2)")
    vectors[1, 0] = 0.5
    (told,) = compare_index(sidecar, [(sidecar.ids, vectors)])
    assert told.startswith("1 images have another vector in it than beside it (s/1)")
    foreign = np.asarray([1, 5, 10], np.int64)
    assert len(list(compare_index(sidecar, [(foreign, sidecar.vectors)]))) == 2


def test_another_model_in_the_store_is_found(store: Folder) -> None:
    flip(Path(store.url, "models", MODEL_ID, "model.safetensors"))
    found = findings(store, audit=2)
    assert any("cannot be checked" in what for what in found.values())


def test_the_command_exits_with_one_line_for_each_finding(
    store: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(app, "orbit", ["verify", store.url, "--audit", "0"]) == 0
    assert capfd.readouterr().out.startswith("whole: 2 files with 14 rows")
    flip(data_file(store))
    flip(artifact(store, "report.json"))
    assert run(app, "orbit", ["verify", store.url, "--audit", "0"]) == 1
    streams = capfd.readouterr()
    assert sum("sha256" in line for line in streams.out.splitlines()) == 2
    assert "findings, none expected" in streams.err
    assert run(app, "orbit", ["verify", store.url, "--audit", "0", "--json"]) == 1
    document = json.loads(capfd.readouterr().out)
    assert document["ok"] is False
    assert len(document["findings"]) == document["num_findings"] >= 2
    assert run(app, "orbit", ["verify", f"{store.url}/nothing"]) == 2


def test_the_command_cleans_up_restores_and_says_so(
    store: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(app, "orbit", ["gc", store.url, "--grace-days", "0", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    removed = sorted(entry["path"].split("/")[-1] for entry in document["removed"])
    assert removed == ["heartbeat.json", "summary.json"]  # of the run, which has ended
    assert (document["num_removed"], document["forgotten"]) == (2, [])
    assert run(app, "orbit", ["gc", store.url, "--dry-run"]) == 0
    assert "0 objects, 0.0 MiB would be removed; 1 publications are kept" in capfd.readouterr().out
    assert run(app, "orbit", ["gc", store.url, "--erase-keys", str(tmp_path / "none")]) == 2
    assert "one key a line is expected" in capfd.readouterr().err
    live = live_row(store)
    assert live is not None
    assert run(app, "orbit", ["publish", store.url, live["id"], "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["seq"] == 1
    assert run(app, "orbit", ["publish", store.url, "nothing"]) == 2
    assert "no publication nothing; the newest are" in capfd.readouterr().err
