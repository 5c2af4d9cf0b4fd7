"""The server's smaller promises: tickets for the report, filters, thumbnails made of originals."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.publication import publish
from pipelines.server import Live, ServerSettings
from pipelines.server.guard import TICKET_S, Tickets
from pipelines.storage import Folder
from pipelines.turning import refined
from tests.conftest import png
from tests.pipelines.conftest import QUICK, Made
from tests.pipelines.test_server import LIMITS, Served, start

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def served(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that asks for a token."""
    place = tmp_path_factory.mktemp("details")
    store = Folder(str(place / "store"))
    shutil.copytree(embedded.store.url, store.url)
    publish(store, embedded.model_id, replace(QUICK, audit_images=0))
    cache = str(place / "cache")
    settings = ServerSettings(store.url, cache=cache, limits=LIMITS, token=TOKEN)
    made, stop = start(Live.open(store.url, cache=cache), store, settings)
    yield made
    stop()


def search(served: Served, image: bytes, asking: str) -> Any:
    return served.ask("POST", f"/search?{asking}", image, BEARER | {"Content-Type": "image/png"})


def test_a_ticket_is_good_for_a_minute_and_for_its_own_token() -> None:
    tickets = Tickets(TOKEN)
    made = tickets.issue(1000.7)
    assert tickets.admits(made, 1000.7)
    assert Tickets(TOKEN).admits(made, 1000 + TICKET_S)  # another replica
    assert not tickets.admits(made, 1001 + TICKET_S)
    assert not tickets.admits(made, 900)  # a clock that stepped back makes none eternal
    assert not Tickets(TOKEN + "x").admits(made, 1001)
    until, _, signature = made.partition(".")
    for forged in (
        "",
        ".",
        f"{int(until) + 9}.{signature}",
        f"{until}.{signature[:-1]}0",
        "\ud800",
    ):
        assert not tickets.admits(forged, 1001)


def test_the_report_is_reached_by_a_link_without_the_token_in_it(served: Served) -> None:
    assert served.ask("GET", "/report").status == 401
    assert served.ask("POST", "/report/ticket").status == 401
    address = served.ask("POST", "/report/ticket", headers=BEARER).json["address"]
    assert TOKEN not in address
    reply = served.ask("GET", f"/{address}")
    assert (reply.status, reply.headers["referrer-policy"]) == (200, "no-referrer")
    assert reply.body.lstrip().startswith(b"<!doctype html>")
    # It opens the report and nothing else.
    ticket = address.partition("?")[2]
    assert served.ask("GET", f"/info?{ticket}").status == 401
    assert served.ask("GET", f"/items/1?{ticket}").status == 401
    assert served.ask("GET", "/report?ticket=1.x").status == 401


def test_source_and_score_are_filters_too(served: Served, embedded: Made) -> None:
    image = png(embedded.images["turned"])
    everything = search(served, image, "k=1000").json["neighbours"]
    for asking, passing in (
        ("source=b.tar", [hit for hit in everything if hit["source"] == "b.tar"]),
        ("min_score=0.6", [hit for hit in everything if hit["score"] >= 0.6]),
    ):
        assert 0 < len(passing) < len(everything)
        assert search(served, image, f"k=1000&{asking}").json["neighbours"] == passing
    assert search(served, image, "source=nothing").json == {"neighbours": []}
    for wrong in ("min_score=2", "min_score=nan", "min_score=x"):
        assert search(served, image, wrong).status == 400


def test_a_free_angle_is_told_as_the_searcher_tells_it(served: Served, embedded: Made) -> None:
    pixels = embedded.images["turned"]
    # By 40 degrees its score would be 0.9618775, and 1e-8 would decide how it is rounded.
    turned = Image.fromarray(pixels).rotate(65, Image.Resampling.BICUBIC)
    reply = search(served, png(np.asarray(turned)), "k=3&align=true")
    expected = served.live.view.searcher.search([np.asarray(turned)], 3, align=True)[0]
    assert reply.json == {"neighbours": [hit.as_dict() for hit in expected]}
    body = json.dumps({"key": "turned"})
    kind = BEARER | {"Content-Type": "application/json"}
    by_key = served.ask("POST", "/search?k=3&align=true", body, kind).json["neighbours"]
    hits = served.live.view.searcher.search_keys(["turned"], 3, align=True)[0]
    assert by_key == [hit.as_dict() for hit in hits]


def test_the_members_of_a_cluster_are_turned_on_pixels(served: Served) -> None:
    view = served.live.view
    number = max(view.clusters, key=lambda one: one["size"])["cluster"]
    members = served.ask("GET", f"/clusters/{number}?k=20", headers=BEARER).json["members"]
    medoid = view.row_of_id(members[0]["image_id"])
    rows = [view.row_of_id(member["image_id"]) for member in members]
    gallery = view.searcher.gallery
    codes = view.searcher._align(view.stored(medoid)[1], np.array(rows))
    expected = refined(gallery.looks([medoid])[0], gallery.looks(rows), codes, 90, True)
    assert [member["pose"] for member in members] == [pose.as_dict() for pose in expected]
    assert any(member["pose"]["angle_degrees"] % 90 for member in members)


def test_an_image_without_thumbnail_is_shown_from_its_own_bytes(
    served: Served, embedded: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = served.live.view
    gallery = view.searcher.gallery
    monkeypatch.setattr(gallery, "stored", lambda row: None)
    asked: list[list[int]] = []
    whole = gallery.originals
    monkeypatch.setattr(
        gallery, "originals", lambda rows: (asked.append(list(rows)), whole(rows))[1]
    )
    row = view.searcher.row_of_key("turned")
    path = f"/items/{view.record(row)['image_id']}/thumbnail"
    replies = [served.ask("GET", path, headers=BEARER) for _ in range(3)]
    assert {reply.status for reply in replies} == {200}
    assert asked == [[row]]  # fetched once, then held
    with Image.open(io.BytesIO(replies[0].body)) as picture:
        shown = np.asarray(picture.convert("L"), np.float32)
    real = np.asarray(Image.fromarray(embedded.images["turned"]).resize(shown.shape), np.float32)
    assert np.abs(shown - real).mean() < 12
    monkeypatch.setattr(gallery, "originals", lambda rows: {})
    other = view.record(view.searcher.row_of_key("equal"))["image_id"]
    assert served.ask("GET", f"/items/{other}/thumbnail", headers=BEARER).status == 404
