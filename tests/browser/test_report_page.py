"""The report in a real browser: drawn, quiet, readable at every width, usable and named."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from pipelines.publication import publish
from pipelines.storage import Folder
from tests.browser.test_page import LOOKS
from tests.pipelines.conftest import QUICK, Made

SMOOTH_S, MANY = 0.1, 20_000
"""Seconds for a frame with MANY points; without a graphics card, on a busy machine."""


@pytest.fixture(scope="module")
def path(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of a second publication, so that there is something to compare with."""
    place = tmp_path_factory.mktemp("reported") / "store"
    shutil.copytree(embedded.store.url, place)
    publish(Folder(str(place)), embedded.model_id, QUICK)
    options = {"force": True, "run": {"images_per_s": 1234.5, "efficiency": 0.7, "limit": "cpu"}}
    publish(Folder(str(place)), embedded.model_id, QUICK.__class__(**{**vars(QUICK), **options}))
    return place / "report.html"


@pytest.fixture
def many(path: Path, tmp_path: Path) -> Path:
    """The same page with MANY points on its map."""
    text = path.read_text("utf-8")
    found = re.search(r'(id="map-data">)(.*?)(</script>)', text, re.S)
    assert found is not None
    data = json.loads(found[2])
    chance = np.random.default_rng(0)
    for name in data["layouts"]:
        data["layouts"][name] = chance.integers(0, 4096, 2 * MANY).tolist()
    data["keys"] = [f"image {n}" for n in range(MANY)]
    data["cluster"] = chance.integers(0, 12, MANY).tolist()
    data["outlier"] = chance.random(MANY).round(4).tolist()
    for name in ("label", "source"):
        names = data[name]["names"]
        data[name]["codes"] = chance.integers(0, len(names), MANY).tolist()
    made = tmp_path / "many.html"
    whole = text[: found.start(2)] + json.dumps(data) + text[found.end(2) :]
    made.write_text(whole, "utf-8")
    return made


def opened(browser: Browser, path: Path, look: str) -> Iterator[Page]:
    """The page; a complaint or a request for anything else fails the test."""
    context = browser.new_context(**LOOKS[look])
    made, wrong = context.new_page(), list[str]()
    made.on("console", lambda message: wrong.append(message.text))
    made.on("pageerror", lambda error: wrong.append(str(error)))

    def watch(request: Any) -> None:
        if not request.url.startswith("data:") and request.url != path.as_uri():
            wrong.append(f"fetched: {request.url}")

    made.on("request", watch)
    made.goto(path.as_uri())
    made.wait_for_selector(".legend button")
    yield made
    context.close()
    # What the tests themselves cause, by looking at the canvas's pixels.
    assert [text for text in wrong if "willReadFrequently" not in text] == []


@pytest.fixture(params=list(LOOKS))
def page(request: pytest.FixtureRequest, browser: Browser, path: Path) -> Iterator[Page]:
    yield from opened(browser, path, request.param)


@pytest.fixture
def light(browser: Browser, path: Path) -> Iterator[Page]:
    yield from opened(browser, path, "light")


@pytest.fixture
def crowded(browser: Browser, many: Path) -> Iterator[Page]:
    yield from opened(browser, many, "light")


CANVAS = ".stage > canvas"
COLOURS = """selector => {
  const canvas = document.querySelector(selector), pixels = canvas.getContext('2d')
    .getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
  for (let i = 0; i < pixels.length; i += 4)
    if (pixels[i + 3] > 200) seen.add((pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2]);
  return seen.size;
}"""
SPOT = """i => {
  const data = JSON.parse(document.getElementById('map-data').textContent);
  const box = document.querySelector('.stage > canvas').getBoundingClientRect();
  const side = Math.min(box.width, box.height) - 52;
  const wide = Math.max(side, Math.min(1.55 * side, box.width - 52));
  const [x, y] = [0, 1].map(a => data.layouts.tsne[2 * i + a] / 4095 - 0.5);
  return [box.left + box.width / 2 + x * wide, box.top + box.height / 2 + y * side, data.keys[i]];
}"""


def test_everything_is_drawn_and_nothing_hangs_over_the_side(
    page: Page, screenshots: Path, request: pytest.FixtureRequest
) -> None:
    assert page.evaluate(COLOURS, CANVAS) >= 4  # the colours of at least four clusters
    assert page.locator(".plot svg path.line").count() == 2
    for box in page.locator(".plot svg path.line").all():
        size = box.bounding_box()
        assert size is not None
        assert min(size["width"], size["height"]) > 40
    broken = "images => images.filter(one => !one.naturalWidth).length"
    page.wait_for_function("() => [...document.images].every(one => one.complete)")
    assert page.locator("img").evaluate_all(broken) == 0
    assert page.locator("img").count() > 60
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    name = request.node.callspec.params["page"]
    page.screenshot(path=screenshots / f"report-{name}.png", full_page=True)


def test_hover_shows_the_image(light: Page) -> None:
    light.locator(CANVAS).scroll_into_view_if_needed()
    assert light.is_hidden(".tip")
    x, y, key = light.evaluate(SPOT, 7)
    light.mouse.move(x, y)
    light.wait_for_selector(".tip:visible")
    assert light.inner_text(".tip b") == key
    assert "cluster" in light.inner_text(".tip span")
    light.wait_for_function(f"() => ({COLOURS})('.tip canvas') > 8")  # its thumbnail
    light.mouse.move(5, 5)
    light.wait_for_selector(".tip", state="hidden")


def test_zoom_turns_dots_into_pictures_and_back(light: Page) -> None:
    before = light.evaluate(COLOURS, CANVAS)
    light.click("[data-choice=zoom] [data-value=in]")
    light.wait_for_function(f"least => ({COLOURS})('{CANVAS}') > least", arg=before + 30)
    light.click("[data-choice=zoom] [data-value=reset]")
    light.wait_for_function(f"most => ({COLOURS})('{CANVAS}') <= most", arg=before)
    light.focus(CANVAS)
    light.keyboard.press("+")
    light.keyboard.press("+")
    light.wait_for_function(f"least => ({COLOURS})('{CANVAS}') > least", arg=before + 30)


def test_colours_follow_what_is_chosen(light: Page) -> None:
    clusters = light.locator(".legend button").count()
    light.click("[data-choice=colour] [data-value=label]")
    assert "Cluster" not in light.inner_text(".legend")
    light.click("[data-choice=colour] [data-value=source]")
    assert light.locator(".legend button").all_inner_texts() == ["a.tar", "b.tar"]
    light.click("[data-choice=colour] [data-value=outlier]")
    assert "alone" in light.inner_text(".legend")
    light.click("[data-choice=colour] [data-value=cluster]")
    assert light.locator(".legend button").count() == clusters
    light.click("[data-choice=layout] [data-value=pca]")
    light.wait_for_timeout(900)
    assert light.evaluate(COLOURS, CANVAS) >= 4


def test_every_plot_and_picture_has_a_name(light: Page) -> None:
    nameless = """() => [...document.querySelectorAll('img, canvas, svg, [role=img]')]
      .filter(one => !one.closest('[aria-hidden=true]'))
      .filter(one => !one.getAttribute('alt') && !one.getAttribute('aria-label'))
      .map(one => one.outerHTML.slice(0, 80))"""
    assert light.evaluate(nameless) == []
    named = light.locator("main").aria_snapshot()
    for words in ("Map of 60 images", "Variance explained", "How far an embedding moves"):
        assert re.search(rf'img "{words}', named), words
    assert light.locator("main h1").count() == 1
    assert light.evaluate("document.documentElement.lang") == "en"


def test_a_map_of_many_points_is_smooth(crowded: Page) -> None:
    # Callbacks of one frame run in the order asked for: ours, the page's drawing, ours.
    frames = """() => new Promise(done => {
      const canvas = document.querySelector('.stage > canvas'), taken = []; let began = 0;
      const step = () => {
        requestAnimationFrame(() => { began = performance.now(); });
        const key = taken.length % 2 ? 'ArrowLeft' : 'ArrowRight';
        canvas.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
        requestAnimationFrame(() => {
          taken.push(performance.now() - began);
          if (taken.length < 40) step(); else done(taken);
        });
      };
      step();
    })"""
    taken = sorted(crowded.evaluate(frames))
    print(f"{MANY:,} points: a frame takes {taken[0]:.1f} ms, median {taken[20]:.1f} ms")
    assert taken[20] / 1000 < SMOOTH_S
    crowded.locator(CANVAS).scroll_into_view_if_needed()
    x, y, _ = crowded.evaluate(SPOT, 11)
    crowded.mouse.move(x, y)
    crowded.wait_for_selector(".tip:visible")


def test_it_prints(light: Page, tmp_path: Path) -> None:
    light.emulate_media(media="print")
    assert light.is_hidden("nav")
    assert light.is_hidden(".tools")
    light.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
