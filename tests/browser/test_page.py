"""The search page in a real browser: it finds, turns, browses, explains, and loads nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from pipelines.publication import publish
from pipelines.storage import Folder
from tests.conftest import png
from tests.pipelines.conftest import QUICK, Made

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "light",
        "is_mobile": True,
        "has_touch": True,
    },
}
TOKEN = "a-token-of-enough-letters"


def serving(store: str, cache: Path, **environment: str) -> tuple["subprocess.Popen[str]", str]:
    """`orbit serve` as a process of its own, and its URL."""
    given = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.serve", store, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=given,
    )
    if process.stdout is None:
        raise RuntimeError("no standard output")
    return process, str(json.loads(process.stdout.readline())["url"])


@pytest.fixture(scope="module")
def store(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("browsed") / "store"
    shutil.copytree(embedded.store.url, place)
    publish(Folder(str(place)), embedded.model_id, QUICK)
    return str(place)


@pytest.fixture(scope="module")
def url(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, found = serving(store, tmp_path_factory.mktemp("cache"))
    yield found
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143  # stopped by SIGTERM


@pytest.fixture
def query(embedded: Made) -> dict[str, Any]:
    """A file whose hits are turned: the first image, mirrored and turned."""
    pixels = embedded.images[next(iter(embedded.images))]
    turned = np.ascontiguousarray(np.rot90(pixels[:, ::-1], 1))
    return {"name": "query.png", "mimeType": "image/png", "buffer": png(turned)}


@pytest.fixture(params=list(LOOKS))
def look(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser: Browser, url: str, look: str) -> Iterator[Page]:
    """The page, opened; complaints and requests elsewhere fail the test that caused them."""
    context = browser.new_context(**LOOKS[look])
    made, wrong = context.new_page(), list[str]()
    made.on("console", lambda message: wrong.append(message.text))
    made.on("pageerror", lambda error: wrong.append(str(error)))

    def watch(request: Any) -> None:
        if not request.url.startswith((url, "blob:", "data:")):
            wrong.append(f"foreign: {request.url}")

    made.on("request", watch)
    made.goto(url)
    made.wait_for_selector(".kind")
    yield made
    context.close()
    # Chromium itself notes a declined answer; that is the server's word, not a fault of the page.
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []


def keys(page: Page) -> list[str]:
    found: list[str] = page.locator(".hit").evaluate_all("hits => hits.map(hit => hit.dataset.key)")
    return found


def search(page: Page, query: dict[str, Any]) -> None:
    page.set_input_files("#file", query)
    page.wait_for_selector(".hit .thumb img.there")


def test_a_file_is_searched_and_its_hits_turned(
    page: Page, query: dict[str, Any], embedded: Made, look: str, screenshots: Path
) -> None:
    search(page, query)
    first = next(iter(embedded.images))
    assert set(keys(page)[:3]) == {first, "turned", "equal"}
    assert "best first" in page.inner_text("#status")
    image = page.locator(".hit").nth(keys(page).index(first)).locator("img")
    assert image.evaluate("one => getComputedStyle(one).transform") == "none"
    page.keyboard.press("t")
    assert page.get_attribute("#turn", "aria-checked") == "true"
    page.wait_for_timeout(700)
    matrix = image.evaluate(
        "one => { const m = new DOMMatrix(getComputedStyle(one).transform); "
        "return [m.a, m.b, m.c, m.d].map(Math.round); }"
    )
    # Mirrored left-right, then a quarter turn counter-clockwise, in CSS's (x, y down).
    assert [value + 0 for value in matrix] == [0, 1, 1, 0]
    # What a turn uncovers has the colour of the picture's border, black for these.
    assert max(ground(page)) <= 8
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=screenshots / f"{look}-hits.png")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0  # nothing hangs over the side


def ground(page: Page) -> list[int]:
    """Red, green and blue behind the first hit's picture."""
    colour: str = page.locator(".hit .thumb").first.evaluate(
        "one => getComputedStyle(one).backgroundColor"
    )
    return [int(part) for part in re.findall(r"\d+", colour)[:3]]


def test_the_whole_well_is_a_way_in(page: Page, query: dict[str, Any], look: str) -> None:
    said = "Show an image" if look == "phone" else "Drop an image here"
    assert page.inner_text("#invitation") == said
    with page.expect_file_chooser() as opened:
        page.click("#well", position={"x": 20, "y": 20})
    opened.value.set_files(query)
    page.wait_for_selector(".hit .thumb img.there")
    page.click("#clear")
    assert page.inner_text("#invitation") == said


def test_hits_clusters_filters_and_the_way_back(page: Page, query: dict[str, Any]) -> None:
    search(page, query)
    before = keys(page)
    page.locator(".hit").nth(4).click()
    page.wait_for_function(
        "key => document.querySelector('.hit').dataset.key === key", arg=before[4]
    )
    assert "#item=" in page.url
    label = page.locator("#label option").nth(1).get_attribute("value")
    page.select_option("#label", label)
    page.wait_for_function(
        "label => [...document.querySelectorAll('.hit b')].every(one => one.innerText === label)",
        arg=label,
    )
    page.locator(".kind").first.click()
    page.wait_for_function(
        "() => document.querySelector('#status').textContent.includes('cluster')"
    )
    assert "#cluster=" in page.url
    page.go_back()
    page.wait_for_function("() => location.hash.startsWith('#item=')")


def test_what_went_wrong_is_said(page: Page, look: str, screenshots: Path) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_selector("#alert:visible")
    assert "not an image" in page.inner_text("#wrong")
    page.screenshot(path=screenshots / f"{look}-wrong.png")
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"})
    assert "a.txt" in page.inner_text("#wrong")


@pytest.mark.parametrize("look", ["light"])
def test_it_works_from_the_keyboard(page: Page, query: dict[str, Any]) -> None:
    search(page, query)
    page.locator(".hit").first.focus()
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.key")
    assert second == keys(page)[1]
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.hash.startsWith('#item=')")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('.hit')")


@pytest.mark.parametrize("look", ["light"])
def test_a_pasted_image_is_searched(page: Page, query: dict[str, Any]) -> None:
    page.evaluate(
        "bytes => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], 'p.png', {type: 'image/png'}));"
        "dispatchEvent(new ClipboardEvent('paste', {clipboardData: data})); }",
        list(query["buffer"]),
    )
    page.wait_for_selector(".hit")


def test_a_token_is_asked_for_once(
    browser: Browser, store: str, tmp_path: Path, query: dict[str, Any]
) -> None:
    process, url = serving(store, tmp_path, ORBIT_TOKEN=TOKEN)
    try:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#gate:visible")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector(".kind .thumb img.there")
        search(page, query)
        page.reload()
        page.wait_for_selector(".kind")
        assert page.is_hidden("#gate")
        page.click("#report")  # a plain link, which could not send the token
        page.wait_for_url("**/report?ticket=*")
        assert TOKEN not in page.url
        assert "Orbit" in page.title() or page.locator("h1").count()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
