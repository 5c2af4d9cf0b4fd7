"""`orbit query` on folders, with filters, into files; what it does about images it cannot read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.publications import read_size
from jobs.sample import FOLDER
from pipelines.errors import SettingsError
from pipelines.publication import publish
from tests.jobs.conftest import Orbit
from tests.pipelines.conftest import QUICK, embed_here

QUERIES = FOLDER.parent / "sample_queries"


@pytest.fixture(scope="module")
def store(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made in this process, without Ray."""
    place = tmp_path_factory.mktemp("query") / "store"
    folder, model_id = embed_here(str(bucket), str(place))
    publish(folder, model_id, replace(QUICK, clusters=5, audit_images=0))
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them in a folder of its own, and a text."""
    place = tmp_path / "asked"
    (place / "more").mkdir(parents=True)
    first, second, third = sorted(QUERIES.glob("*.png"))[:3]
    shutil.copy2(first, place / "a.png")
    shutil.copy2(second, place / "b.png")
    shutil.copy2(third, place / "more" / "c.png")
    (place / "readme.txt").write_text("no image")
    return place


def results(orbit: Orbit, *line: object) -> list[dict[str, Any]]:
    outcome = orbit("query", *line, "--json")
    assert outcome.code == 0, outcome.stderr
    found: list[dict[str, Any]] = outcome.json["results"]
    return found


def test_a_folder_is_all_images_in_it_by_name(orbit: Orbit, store: Path, folder: Path) -> None:
    found = results(orbit, store, folder, "-k", 2)
    names = [folder / "a.png", folder / "b.png", folder / "more" / "c.png"]
    assert [result["query"] for result in found] == [str(name) for name in names]
    one_by_one = results(orbit, store, *names, "-k", 2)
    assert found == one_by_one


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_answers_go_into_a_file(orbit: Orbit, store: Path, folder: Path, suffix: str) -> None:
    out = folder.parent / f"found{suffix}"
    line = (store, folder, "-k", 3, "--align")
    told = orbit("query", *line, "--out", out, "--json").json
    assert told == {"out": str(out), "num_queries": 3, "num_neighbours": 9, "num_failed": 0}
    expected = results(orbit, *line)
    if suffix == ".jsonl":
        assert [json.loads(row) for row in out.read_text().splitlines()] == expected
        return
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 9
    for row, (result, rank) in zip(
        rows, [(result, rank) for result in expected for rank in range(3)], strict=True
    ):
        neighbour = result["neighbours"][rank]
        assert (row["query"], row["rank"]) == (result["query"], rank + 1)
        assert {name: row[name] for name in neighbour if name != "pose"} == {
            name: value for name, value in neighbour.items() if name != "pose"
        }
        assert {n: row[n] for n in ("angle_degrees", "mirror")} == neighbour["pose"]


@pytest.mark.parametrize("out", [False, True])
def test_what_cannot_be_read_in_a_folder_is_told_and_the_others_are_asked(
    orbit: Orbit, store: Path, folder: Path, out: bool
) -> None:
    (folder / "b.png").write_bytes(b"no image at all")
    file = folder.parent / "found.jsonl"
    outcome = orbit("query", store, folder, "--json", *(("--out", file) if out else ()))
    assert outcome.code == 1
    assert "1 image could not be asked; the first: " in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    if out:
        found = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        found = outcome.json["results"]
    assert [len(result["neighbours"]) for result in found] == [10, 0, 10]
    assert "b.png" in found[1]["error"]


def test_filters_keep_the_nearest_of_what_passes(orbit: Orbit, store: Path, folder: Path) -> None:
    (whole,) = results(orbit, store, folder / "a.png", "-k", 400)
    everything = whole["neighbours"]
    assert len(everything) == 400
    last = everything[-1]
    for flags, passes in (
        (["--label", last["label"]], lambda hit: hit["label"] == last["label"]),
        (["--cluster", last["cluster"]], lambda hit: hit["cluster"] == last["cluster"]),
        (["--source", last["source"]], lambda hit: True),
        (["--source", "other.tar"], lambda hit: False),
        (["--min-score", 0.5], lambda hit: hit["score"] >= 0.5),
    ):
        (found,) = results(orbit, store, folder / "a.png", "-k", 400, *flags)
        assert found["neighbours"] == [hit for hit in everything if passes(hit)], flags
    (two,) = results(orbit, store, folder / "a.png", "-k", 2, "--label", last["label"])
    assert [hit["label"] for hit in two["neighbours"]] == [last["label"]] * 2


def test_a_query_turned_counter_clockwise_by_30_degrees_has_the_pose_30(
    orbit: Orbit, store: Path, tmp_path: Path
) -> None:
    """Angle signs end to end, on the images of the store whose turned copy finds them first."""
    import tarfile

    right = found_first = 0
    with tarfile.open(FOLDER / "clothes-0.tar") as tar:
        members = [name for name in tar.getnames() if name.endswith(".png")][:24]
        tar.extractall(tmp_path, members=[tar.getmember(n) for n in members], filter="data")
    for name in members:
        with Image.open(tmp_path / name) as picture:
            turned = picture.rotate(30, Image.Resampling.BICUBIC)
            turned.save(tmp_path / name)
    asked = [tmp_path / name for name in members]
    for name, result in zip(members, results(orbit, store, *asked, "--align", "-k", 1),
                            strict=True):  # fmt: skip
        hit = result["neighbours"][0]
        if hit["key"] == name.removesuffix(".png"):
            found_first += 1
            angle = hit["pose"]["angle_degrees"]
            right += not hit["pose"]["mirror"] and abs(angle - 30) <= 3
    assert found_first >= 20
    assert right >= 0.9 * found_first


def test_quarter_turns_and_mirrors_keep_their_exact_pose(
    orbit: Orbit, store: Path, tmp_path: Path
) -> None:
    source = sorted(QUERIES.glob("*.png"))[1]
    key = results(orbit, store, source, "-k", 1)[0]["neighbours"][0]
    pixels = np.asarray(Image.open(source))
    names = []
    for mirror in (0, 1):
        for k in range(4):
            names.append(tmp_path / f"{mirror}{k}.png")
            turned = np.rot90(pixels[:, ::-1] if mirror else pixels, k)
            Image.fromarray(np.ascontiguousarray(turned)).save(names[-1])
    found = results(orbit, store, *names, "--align", "-k", 1)
    first = found[0]["neighbours"][0]["pose"]
    assert {result["neighbours"][0]["key"] for result in found} == {key["key"]}
    for place, result in enumerate(found[:4]):
        pose = result["neighbours"][0]["pose"]
        expected = (first["angle_degrees"] + 90 * place) % 360
        assert pose["angle_degrees"] == pytest.approx(expected, abs=0.5)
        assert pose["mirror"] == first["mirror"]
    assert all(r["neighbours"][0]["pose"]["mirror"] != first["mirror"] for r in found[4:])


def test_an_image_from_standard_input_is_drawn_on_the_sheet(
    orbit: Orbit, store: Path, tmp_path: Path
) -> None:
    image = sorted(QUERIES.glob("*.png"))[9]
    sheets = []
    for name, stdin in ((str(image), b""), ("-", image.read_bytes())):
        sheets.append(tmp_path / f"{len(sheets)}.png")
        found = orbit("query", store, name, "--sheet", sheets[-1], "-k", 3, stdin=stdin)
        assert found.code == 0, found.stderr
    by_name, by_stream = (np.asarray(Image.open(sheet)) for sheet in sheets)
    assert (by_name == by_stream).all()


def test_where_no_image_passes_it_is_said(orbit: Orbit, store: Path, folder: Path) -> None:
    outcome = orbit("query", store, folder / "a.png", "--label", "no such label")
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[-1].strip() == "no image passes"


@pytest.mark.parametrize("name", ["found.csv", "nowhere/found.jsonl"])
def test_a_file_that_cannot_be_written_is_refused_at_once(
    orbit: Orbit, store: Path, folder: Path, name: str
) -> None:
    outcome = orbit("query", store, folder, "--out", folder / name)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("7", 7), ("8k", 8000)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "5iB", "1 MiB more"])
def test_a_size_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match="size"):
        read_size(text)
