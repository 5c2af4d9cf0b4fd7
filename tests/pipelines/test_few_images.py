"""Collections with next to nothing in them: a report that says so, never a crash."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from pipelines.drift import FAR
from pipelines.publication import publish
from pipelines.report import schema
from tests.conftest import png
from tests.pipelines.conftest import QUICK, MakeTar, embed_here, sample_members


def pixels(num: int) -> list[bytes]:
    return [data for name, data in sample_members(num).items() if name.endswith(".png")]


def images(num: int, label: str | None = None) -> dict[str, bytes]:
    """``num`` images of the sample, all with one label or with none."""
    found = {f"{n:03}.png": data for n, data in enumerate(pixels(num))}
    labels = {f"{n:03}.cls": label.encode() for n in range(num)} if label is not None else {}
    return dict(sorted((found | labels).items()))


GREY = png(np.full((28, 28), 90, np.uint8))
COLLECTIONS: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "one image": (images(1), {}, "There is only one image"),
    "two images": (images(2), {}, "A map needs at least three images"),
    "fewer than clusters": (images(4), {"clusters": 9}, "there are 4 distinct images"),
    "all identical": ({f"{n}.png": pixels(1)[0] for n in range(30)}, {}, "No image is far"),
    "all of one grey": ({f"{n}.png": GREY for n in range(5)}, {}, "No image is far"),
    "no labels": (images(30), {}, "of images that look alike"),
    "one label": (images(30, "a"), {}, "purity 100%"),
    "no point on the map": (images(6), {"map_points": 0}, "A map needs at least three images"),
    "nothing audited": (images(6), {"audit_images": 0}, "Invariance was not measured"),
}


@pytest.mark.parametrize("clustering", ["kmeans", "density"])
@pytest.mark.parametrize("name", list(COLLECTIONS))
def test_a_report_says_what_there_is(
    name: str, clustering: str, tmp_path: Path, make_tar: MakeTar
) -> None:
    members, options, said = COLLECTIONS[name]
    if clustering == "density" and "clusters" in options:
        pytest.skip("density finds the number itself")
    facts, page = report(members, {**options, "clustering": clustering}, tmp_path, make_tar)
    clusters = facts["clusters"]
    assert sum(c["size"] for c in clusters["clusters"]) + clusters["num_alone"] == len(
        [member for member in members if member.endswith(".png")]
    )
    assert clusters["num_clusters"] >= 1
    assert said in page
    assert facts["drift"] == {
        "previous": None,
        "verdict": facts["drift"]["verdict"],
        "word": facts["drift"]["word"],
    }
    assert "first publication of this model" in page
    assert (clusters["agreement"] is None) == (name != "one label")
    if name == "one label":
        assert (clusters["agreement"]["purity"], clusters["agreement"]["num_labels"]) == (1.0, 1)
        assert clusters["agreement"]["knn5_accuracy"] == 1.0
    if name.startswith("all "):
        assert clusters["num_clusters"] == 1
        assert facts["duplicates"]["num_redundant"] == len(members) - 1
        assert facts["outliers"]["images"] == []


def report(
    members: dict[str, bytes], options: dict[str, Any], place: Path, make_tar: MakeTar
) -> tuple[dict[str, Any], str]:
    """Publish the images; report.json, valid, and report.html."""
    (place / "input").mkdir()
    (place / "input" / "a.tar").write_bytes(make_tar(members))
    store, model_id = embed_here(str(place / "input"), str(place / "store"))
    row = publish(store, model_id, dataclasses.replace(QUICK, **options))
    folder = Path(store.url, "artifacts", row.id)
    facts: dict[str, Any] = json.loads((folder / "report.json").read_bytes())
    Draft202012Validator(schema()).validate(facts)
    return facts, (folder / "report.html").read_text("utf-8")


def test_a_night_with_other_images_says_that_the_model_may_not_fit(
    tmp_path: Path, make_tar: MakeTar
) -> None:
    facts, _ = report(images(60), {}, tmp_path, make_tar)
    assert facts["drift"]["verdict"] == "first"
    chance = np.random.default_rng(0)
    noise = {f"n{n}.png": png(chance.integers(0, 256, (28, 28), np.uint8)) for n in range(30)}
    (tmp_path / "input" / "b.tar").write_bytes(make_tar(noise))
    store, model_id = embed_here(str(tmp_path / "input"), str(tmp_path / "store"))
    row = publish(store, model_id, QUICK)
    folder = Path(store.url, "artifacts", row.id)
    facts = json.loads((folder / "report.json").read_bytes())
    Draft202012Validator(schema()).validate(facts)
    assert (facts["drift"]["verdict"], facts["drift"]["num_added"]) == ("unfit", 30)
    assert facts["drift"]["arrivals"]["share"] > FAR
    told = row.facts["drift"]
    assert (told["verdict"], told["word"]) == ("unfit", facts["drift"]["word"])
    assert told["arrivals_distance"] > told["arrivals_threshold"]
    assert 'class="alert unfit"' in (folder / "report.html").read_text("utf-8")
    # The night after nothing is new, and the word is taken back as far as that goes.
    again = publish(store, model_id, dataclasses.replace(QUICK, force=True))
    assert again.facts["drift"]["distribution_distance"] == 0.0
    shutil.rmtree(tmp_path / "input")
