"""The report: every figure in JSON, one page that loads nothing, and texts that stay texts."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.publication import publish
from pipelines.report.map import draw_map
from pipelines.report.page import number, share, small
from pipelines.storage import Folder
from tests.pipelines.conftest import QUICK, Made, MakeTar, embed_here, sample_members

HOSTILE = """</script><script>alert('taken')</script><img src=x onerror="alert(1)">'"&"""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was published: report.json and report.html."""

    facts: dict[str, Any]
    page: str
    path: Path


def published(store: Folder, model_id: str) -> Report:
    run = {"images_per_s": 1200.0, "efficiency": 0.8, "limit": "cpu", "num_encoded": 79}
    times = dict.fromkeys(("startup_s", "steady_s", "commit_s", "elapsed_s"), 1.5)
    options = dataclasses.replace(QUICK, clusters=5, run=run | times)
    row = publish(store, model_id, options)
    path = Path(store.url, "artifacts", row.id, "report.html")
    facts = json.loads(path.with_name("report.json").read_bytes())
    return Report(facts, path.read_text("utf-8"), path)


@pytest.fixture(scope="module")
def report(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> Report:
    place = tmp_path_factory.mktemp("reported") / "store"
    shutil.copytree(embedded.store.url, place)
    return published(Folder(str(place)), embedded.model_id)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, make_tar: MakeTar) -> Report:
    """A report of images whose keys, labels and shard are written to break out of the page."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "input").mkdir()
    members: dict[str, bytes] = {}
    for number_, (name, data) in enumerate(sample_members(12).items()):
        stem = f"{number_ // 2} {HOSTILE.replace('/', '')}"
        label = b"</script><b>" + HOSTILE.replace("/", "").encode()
        members[f"{stem}{name[name.rindex('.') :]}"] = data if name.endswith(".png") else label
    members[f"bad {HOSTILE.replace('/', '')}.png"] = b"<script>"
    (place / "input" / "<b>a&'\".tar").write_bytes(make_tar(members))
    store, model_id = embed_here(str(place / "input"), str(place / "store"))
    return published(store, model_id)


def test_every_section_is_in_the_json(report: Report) -> None:
    facts = report.facts
    assert list(facts) == [
        *("format_version", "publication", "collection", "clusters", "duplicates"),
        *("outliers", "rejects", "drift", "invariance", "recall", "efficiency"),
    ]
    collection = facts["collection"]
    assert (collection["num_seen"], collection["num_embedded"]) == (79, 78)
    assert sum(item["count"] for item in collection["labels"]) == collection["num_labelled"] == 76
    assert facts["rejects"]["reasons"][0]["count"] == 1
    assert facts["rejects"]["reasons"][0]["example"] == {"source": "b.tar", "key": "broken"}
    clusters = facts["clusters"]["clusters"]
    assert sum(cluster["size"] for cluster in clusters) == 78
    assert set(clusters[0]["nearest"][0]) == {"source", "key", "image_id", "label", "pose"}
    assert facts["recall"]["recall_at_10"] == 1.0
    assert facts["recall"]["num_turned_queries"] == 8
    invariance = facts["invariance"]
    assert len(invariance["per_element"]) == 8
    assert invariance["invariance_error"] < 1e-5
    assert invariance["stored_error"] < 1e-5
    assert invariance["curve"][0][0] == 0
    assert facts["efficiency"]["efficiency"] == 0.8


def test_the_known_copies_are_in_the_duplicates(report: Report) -> None:
    members = [
        {member["key"]: member["pose"] for member in group["members"]}
        for group in report.facts["duplicates"]["groups"]
    ]
    group = next(found for found in members if "turned" in found)
    assert {"equal", "turned"} < set(group)
    # 'turned' is the first mirrored, then turned by 90 degrees: an element that undoes itself.
    there = {key: (pose["angle_degrees"], pose["mirror"]) for key, pose in group.items()}
    assert {there["turned"], there["equal"]} == {(90.0, True), (0.0, False)}


def test_members_of_a_cluster_are_posed_towards_its_medoid(report: Report) -> None:
    posed = [
        image["pose"]
        for cluster in report.facts["clusters"]["clusters"]
        for image in cluster["nearest"]
    ]
    assert len({(pose["angle_degrees"], pose["mirror"]) for pose in posed}) > 3
    assert 'class="posed" style="--pose: rotate(' in report.page


class Links(HTMLParser):
    """Collects the tags of a page, and everything that could be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.fetched.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_the_page_loads_nothing_and_runs_only_its_own_script(
    which: str, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(which).page
    links = Links()
    links.feed(page)
    assert all(link.startswith(("#", "data:")) for link in links.fetched)
    assert links.tags.count("script") == 2  # the map's data, and ours
    assert links.handlers == []
    assert "b" not in re.findall(r"<td[^>]*><(b)>", page)
    assert "default-src 'none'" in page
    assert len(page) < 2_000_000


def test_hostile_texts_are_shown_as_texts(hostile: Report) -> None:
    assert "alert('taken')" not in hostile.page
    assert "onerror=&#34;" in hostile.page
    data = re.search(r'id="map-data">(.*?)</script>', hostile.page, re.S)
    assert data is not None
    keys = json.loads(data[1])["keys"]
    assert sum("onerror" in key for key in keys) == 12
    assert hostile.facts["rejects"]["num_rejected"] == 1


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_a_browser_draws_the_page_without_complaint(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found: Report = request.getfixturevalue(which)
    browser = chromium()
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium found; .ci/run installs it")
        pytest.skip("no Chromium found; on Debian: apt install chromium")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr "
        f"--virtual-time-budget=3000 --user-data-dir={tmp_path / 'profile'}"
    )
    done = subprocess.run(
        [browser, *flags.split(), "--dump-dom", found.path.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "CONSOLE" not in done.stderr
    assert "<title>Orbit report" in done.stdout
    # The legend is made by the script, after it has drawn the map.
    legend = done.stdout.partition('class="legend"')[2].partition("</div>")[0]
    assert legend.count("<button") == found.facts["clusters"]["num_clusters"]


@pytest.mark.parametrize("num", [0, 1, 2, 3, 5, 40])
def test_a_map_of_few_images_is_drawn_or_left_out(num: int) -> None:
    from types import SimpleNamespace

    vectors = np.random.default_rng(0).normal(size=(num, 8)).astype(np.float32)
    for rows in (vectors, np.ones_like(vectors)):
        made: Any = type("Made", (SimpleNamespace,), {"__len__": lambda self: len(self.vectors)})
        drawn = draw_map(made(vectors=rows))
        assert ("pca" in drawn.layouts) == (num >= 3)
        for points in drawn.layouts.values():
            assert points.shape == (len(drawn.shown), 2)
            assert points.min() >= 0
            assert points.max() <= 4095
        assert json.dumps(drawn.as_dict(), allow_nan=False)


def test_numbers_are_set_for_people() -> None:
    assert number(1234567) == "1,234,567"
    assert number(None) == "\u2013"
    assert [share(v) for v in (1, 0.99999, 0.5, 0.00001, 0)] == [
        *("100%", "99.9%", "50%", "<0.1%", "0%")
    ]
    assert small(0.25) == "0.25"
    assert small(1.26e-6) == "1.3\u202f\u00d7\u202f10<sup>\u22126</sup>"
