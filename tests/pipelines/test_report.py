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
from jsonschema import Draft202012Validator
from PIL import Image

from pipelines.errors import SettingsError
from pipelines.publication import publish
from pipelines.publish_options import PublishOptions
from pipelines.report import schema
from pipelines.report.map import draw_map
from pipelines.report.page import number, share, small
from pipelines.sprites import SHEET_SIDE, pack
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


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_every_figure_is_described_by_the_schema(
    which: str, request: pytest.FixtureRequest
) -> None:
    found: Report = request.getfixturevalue(which)
    assert json.loads(found.path.with_name("report.schema.json").read_bytes()) == schema()
    Draft202012Validator.check_schema(schema())
    wrong = [f"{list(e.path)}: {e.message}" for e in complaints(found.facts)]
    assert wrong == []
    del found.facts["drift"]["word"]
    found.facts["clusters"]["surprise"] = 1
    assert len(complaints(found.facts)) == 2
    found.facts["drift"]["word"] = ""
    del found.facts["clusters"]["surprise"]


def complaints(facts: dict[str, Any]) -> list[Any]:
    return list(Draft202012Validator(schema()).iter_errors(facts))


def test_the_main_plots_lie_beside_it_as_png(report: Report) -> None:
    assert report.facts["publication"]["plots"] == [
        *("map.png", "clusters.png", "variance.png", "turns.png")
    ]
    for name in report.facts["publication"]["plots"]:
        with Image.open(report.path.with_name(name)) as plot:
            assert (plot.format, plot.width) == ("PNG", 1600)
            assert len(plot.convert("RGB").getcolors(1 << 24) or []) > 20  # something is drawn


def test_the_map_is_in_the_json(report: Report) -> None:
    points = report.facts["clusters"]["map"]["points"]
    assert len(set(points["image_id"])) == len(points["pca"]) == len(points["tsne"]) == 60
    data = re.search(r'id="map-data">(.*?)</script>', report.page, re.S)
    assert data is not None
    assert json.loads(data[1])["layouts"]["tsne"] == [x for xy in points["tsne"] for x in xy]


def test_outliers_have_reasons(report: Report) -> None:
    images = report.facts["outliers"]["images"]
    assert [i["outlier_score"] for i in images] == sorted(
        (i["outlier_score"] for i in images), reverse=True
    )
    assert all(image["reason"] == "; ".join(image["reasons"]) for image in images)
    assert all("nearest score" in image["reasons"][0] for image in images)
    assert any(len(image["reasons"]) > 1 for image in images)
    assert images[0]["reasons"][-1].replace("'", "&#39;") in report.page


def test_the_model_redraws_some_images(report: Report) -> None:
    redrawn = report.facts["invariance"]["reconstruction"]
    errors = [example["error"] for example in redrawn["examples"]]
    assert redrawn["num_images"] == len(errors) == 8
    assert errors == sorted(errors)
    assert redrawn["error"] == pytest.approx(np.mean(errors), rel=1e-4)  # all 8 are shown
    assert 0 < redrawn["error"] < 0.5  # 1 is what a constant grey would have
    assert report.page.count("as drawn again") == 8
    recipe = report.facts["publication"]["model"]["recipe"]
    assert (recipe["group"], recipe["readout"]) == ("d4", "gram")


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
        assert json.dumps(drawn.as_dict(np.arange(num)), allow_nan=False)


def test_sprites_stay_within_their_bytes_whatever_is_in_them() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    pictures = [Image.fromarray(np.roll(noise, n, 0)) for n in range(50)] * 60
    whole = pack(lambda: iter(pictures))
    assert whole is not None
    assert (whole.side, len(whole.uris)) == (40, 2)  # 48 x 48 on a sheet
    tight = pack(lambda: iter(pictures), max_bytes=whole.num_bytes // 8)
    assert tight is not None
    assert tight.num_bytes <= whole.num_bytes // 8
    assert tight.side < 40
    assert tight.columns == SHEET_SIDE // tight.side
    assert pack(lambda: iter(pictures), max_bytes=1_000) is None


def test_what_does_not_go_together_is_refused() -> None:
    for wrong in ({"clusters": 5, "clustering": "density"}, {"clustering": "magic"},
                  {"map_points": 20_001}):  # fmt: skip
        with pytest.raises(SettingsError, match="expected"):
            PublishOptions(**wrong)


def test_numbers_are_set_for_people() -> None:
    assert number(1234567) == "1,234,567"
    assert number(None) == "\u2013"
    assert [share(v) for v in (1, 0.99999, 0.5, 0.00001, 0)] == [
        *("100%", "99.9%", "50%", "<0.1%", "0%")
    ]
    assert small(0.25) == "0.25"
    assert small(1.26e-6) == "1.3\u202f\u00d7\u202f10<sup>\u22126</sup>"
