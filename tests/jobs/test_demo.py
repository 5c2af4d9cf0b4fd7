"""`orbit demo`: the whole road on the sample, with the figures it must show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eqmodel.actions import turn
from eqmodel.groups import group
from jobs.sample import FOLDER
from pipelines.decode import decode
from pipelines.search import Searcher
from pipelines.shards import Sample, list_shards, read_shard
from pipelines.storage import Folder
from tests.jobs.conftest import Orbit

pytestmark = pytest.mark.integration


def check(found: dict[str, Any], out: Path) -> None:
    assert (found["num_seen"], found["num_embedded"], found["num_rejected"]) == (2000, 2000, 0)
    assert (found["num_copies"], found["num_copies_found_first"]) == (100, 100)
    assert found["images_per_s"] > 0
    assert found["efficiency"] > 0
    assert found["recall_at_10"] >= 0.99
    assert Path(found["report"]).read_text().startswith("<!")
    assert Path(found["sheet"]).read_bytes().startswith(b"\x89PNG")
    assert (out / "store" / "report.html").is_file()
    own, turned, stranger = (result["neighbours"] for result in found["results"])
    assert own[0]["key"] == turned[0]["key"]
    assert own[0]["pose"] == {"angle_degrees": 0.0, "mirror": False}
    assert turned[0]["pose"] == {"angle_degrees": 90.0, "mirror": True}
    assert stranger[0]["score"] < 0.9999 <= own[0]["score"]


def test_demo(orbit: Orbit, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    outcome = orbit("demo", "--out", out, "--json")
    assert outcome.code == 0, outcome.stderr
    check(outcome.json, out)
    assert outcome.json["free_angle_rank1"] >= 0.80
    assert outcome.json["demo_s"] < 180
    assert f"- orbit run {FOLDER} --model d4-28-grey --out {out}/store\n" in outcome.stderr
    check_all_turns_of_500_images(str(out / "store"))


def check_all_turns_of_500_images(store: str) -> None:
    """4,000 queries: first is the image itself, or one that is its copy pixel for pixel.

    The pose of the first hit turns it into the query, exactly.
    """
    images = sample_images()
    searcher = Searcher.open(store)
    for element in group("d4").elements:
        keys = list(images)[:500]
        queries = [turn(images[key], element) for key in keys]
        for key, query, hits in zip(
            keys, queries, searcher.search(queries, 1, align=True), strict=True
        ):
            first, pose = images[hits[0].key], hits[0].pose
            assert pose is not None
            turned = turn(first, (int(pose["mirror"]), round(pose["angle_degrees"] / 90)))
            assert np.array_equal(turned, query), (key, element, hits[0])


def sample_images() -> dict[str, NDArray[Any]]:
    """The images of the sample by key."""
    folder = Folder(str(FOLDER))
    samples = [x for shard in list_shards(folder) for x in read_shard(folder, shard)]
    return {x.key: decode(x.data) for x in samples if isinstance(x, Sample)}


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_demo_with_its_own_model_over_an_earlier_demo(
    orbit: Orbit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.demo.TRAIN_MINUTES", 0.05)
    out = tmp_path / "demo"
    (out / "store").mkdir(parents=True)
    (out / "store" / "left over").touch()
    (out / ".orbit-demo").touch()
    outcome = orbit("demo", "--train", "--out", out)
    assert outcome.code == 0, outcome.stderr
    assert "100 of 100 known copies found first" in outcome.stdout
    assert outcome.stdout.count("Query ") == 3
    assert f"{out}/model" in outcome.stdout
    assert not (out / "store" / "left over").exists()
