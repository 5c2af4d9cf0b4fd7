"""The HTTP server over real sockets: what it answers, what it declines, what it survives."""

import concurrent.futures
import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from pipelines.errors import SettingsError
from pipelines.publication import publish
from pipelines.search import Searcher
from pipelines.server import Limits, Live, ServerSettings, bind, create_app, read_token
from pipelines.server.run import protocol
from pipelines.storage import Folder
from tests.conftest import png
from tests.pipelines.conftest import QUICK, Made

LIMITS = Limits(body_bytes=1 << 20, pixels=1_000_000, header_s=1.0, body_s=1.0, connections=60)
PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server in a thread of this process."""

    port: int
    live: Live
    store: Folder

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                method, path, body, headers or {}, encode_chunked=isinstance(body, Iterator)
            )
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, answer.read(), found)
        finally:
            connection.close()

    def search(self, image: bytes, asking: str = "") -> Reply:
        return self.ask("POST", f"/search?{asking}", image, PNG)


def start(live: Live, store: Folder, settings: ServerSettings) -> tuple[Served, Any]:
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(live, settings),
            http=protocol(settings.limits),
            ws="none",
            log_level="critical",
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join(10)
        sock.close()

    return Served(sock.getsockname()[1], live, store), stop


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def published(embedded: Made, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    place = tmp_path_factory.mktemp("served") / "store"
    shutil.copytree(embedded.store.url, place)
    publish(Folder(str(place)), embedded.model_id, QUICK)
    return Folder(str(place))


@pytest.fixture(scope="module")
def settings(published: Folder, cache: str) -> ServerSettings:
    return ServerSettings(published.url, cache=cache, poll_s=0.2, limits=LIMITS)


@pytest.fixture(scope="module")
def served(published: Folder, settings: ServerSettings, cache: str) -> Iterator[Served]:
    live = Live.open(published.url, cache=cache, poll_s=settings.poll_s)
    made, stop = start(live, published, settings)
    yield made
    stop()


@pytest.fixture(scope="module")
def image(embedded: Made) -> bytes:
    return png(embedded.images[first(embedded)])


def first(embedded: Made) -> str:
    return next(key for key in list(embedded.images)[1:] if key not in ("equal", "turned"))


# What it answers ----------------------------------------------------------------------------------


def test_an_image_is_answered_as_the_query_verb_does(
    served: Served, embedded: Made, image: bytes, cache: str
) -> None:
    wanted = Searcher.open(served.store.url, cache).search(
        [embedded.images[first(embedded)]], 5, align=True
    )[0]
    reply = served.search(image, "k=5&align=true")
    assert reply.status == 200
    assert reply.json == {"neighbours": [hit.as_dict() for hit in wanted]}
    assert all(isinstance(hit["image_id"], str) for hit in reply.json["neighbours"])
    assert "pose" not in served.search(image).json["neighbours"][0]


def test_a_form_a_key_and_an_id_find_the_same(served: Served, embedded: Made, image: bytes) -> None:
    plain = served.search(image, "k=3").json
    form = (
        b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + image + b"\r\n--cut--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=cut"}
    asked = [
        served.ask("POST", "/search?k=3", form, kind),
        served.ask("POST", "/search?k=3", json.dumps({"key": first(embedded)}), JSON),
        served.ask(
            "POST",
            "/search?k=3",
            json.dumps({"image_id": plain["neighbours"][0]["image_id"]}),
            JSON,
        ),
    ]
    for reply in asked:
        keys = [hit["key"] for hit in reply.json["neighbours"]]
        assert keys == [hit["key"] for hit in plain["neighbours"]]


def test_a_filter_gives_the_nearest_of_all_that_pass(served: Served, image: bytes) -> None:
    everything = served.search(image, "k=1000").json["neighbours"]
    label = everything[-1]["label"]
    number = everything[-1]["cluster"]
    for asking, name, value in (
        (f"label={label.replace(' ', '%20')}", "label", label),
        (f"cluster={number}", "cluster", number),
    ):
        passing = [hit for hit in everything if hit[name] == value]
        assert served.search(image, f"k=1000&{asking}").json["neighbours"] == passing
        assert served.search(image, f"k=2&{asking}").json["neighbours"] == passing[:2]
    assert served.search(image, "label=nothing").json == {"neighbours": []}


def test_items_thumbnails_and_clusters(served: Served, image: bytes) -> None:
    hit = served.search(image, "k=1").json["neighbours"][0]
    item = served.ask("GET", f"/items/{hit['image_id']}").json
    assert {name: item[name] for name in ("key", "source", "label")} == {
        name: hit[name] for name in ("key", "source", "label")
    }
    assert (item["width"], item["height"]) == (28, 28)
    path = f"/items/{hit['image_id']}/thumbnail"
    picture = served.ask("GET", path)
    assert picture.headers["content-type"] == "image/webp"
    assert picture.body[:4] == b"RIFF"
    again = served.ask("GET", path, headers={"If-None-Match": picture.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    clusters = served.ask("GET", "/clusters").json["clusters"]
    assert sum(one["size"] for one in clusters) == len(served.live.view.searcher.rows)
    one = served.ask("GET", f"/clusters/{clusters[0]['cluster']}?k=1000").json
    assert len(one["members"]) == clusters[0]["size"]
    assert one["members"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert {member["cluster"] for member in one["members"]} == {clusters[0]["cluster"]}


def test_what_operators_ask(served: Served, image: bytes) -> None:
    served.search(image)
    info = served.ask("GET", "/info").json
    assert info["num_images"] == len(served.live.view.searcher.rows)
    assert info["publication"]["id"] == served.live.view.id
    text = served.ask("GET", "/metrics").body.decode()
    assert 'orbit_requests_total{method="POST",route="/search",status="200"}' in text
    assert "orbit_search_seconds_count" in text
    described = served.ask("GET", "/openapi.json").json
    assert "image/*" in described["paths"]["/search"]["post"]["requestBody"]["content"]
    assert described["components"]["schemas"]["Neighbour"]["examples"]
    assert served.ask("GET", "/report").body.lstrip().startswith(b"<!doctype html>")


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_a_probe_may_ask_for_the_head_alone(served: Served, path: str) -> None:
    reply = served.ask("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")


def test_every_answer_carries_the_headers(served: Served) -> None:
    for path in ("/", "/info", "/nothing", "/search", "/items/0/thumbnail"):
        headers = served.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_another_name_for_this_machine_is_no_way_in(served: Served) -> None:
    reply = served.ask("GET", "/info", headers={"Host": "evil.example"})
    assert reply.status == 421
    assert served.ask("GET", "/info", headers={"Host": "localhost:1"}).status == 200


# What it declines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asking", "body", "kind", "status"),
    [
        ("k=0", b"", "image/png", 400),
        ("k=1001", b"", "image/png", 400),
        ("k=1000000000", b"", "image/png", 400),
        ("k=nan", b"", "image/png", 400),
        ("cluster=x", b"", "image/png", 400),
        ("", b"", "image/png", 400),
        ("", b"no image", "image/png", 415),
        ("", b"words", "text/plain", 415),
        ("", b"x", "", 415),
        ("", b"\x89PNG\r\n\x1a\n" + bytes(40), "image/png", 400),
        ("", b"{", "application/json", 400),
        ("", b"[1]", "application/json", 400),
        ("", b'{"key": NaN}', "application/json", 400),
        ("", b'{"embedding": [NaN]}', "application/json", 400),
        ("", b'{"key": "nobody"}', "application/json", 404),
        ("", b'{"image_id": "7"}', "application/json", 404),
        ("", b'{"image_id": "-7"}', "application/json", 404),
        ("", b"[" * 100_000, "application/json", 400),
        ("", b"--", "multipart/form-data", 400),
        ("", b"--a--\r\n", "multipart/form-data; boundary=a", 400),
    ],
)
def test_bad_queries_are_one_line(
    served: Served, asking: str, body: bytes, kind: str, status: int
) -> None:
    reply = served.ask("POST", f"/search?{asking}", body, {"Content-Type": kind})
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert reply.json["error"]
    assert "\n" not in reply.json["error"]


def test_a_cut_image_and_one_of_nan_are_400(served: Served, image: bytes) -> None:
    import io

    from PIL import Image

    assert served.search(image[:-40]).status == 400
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(buffer, "TIFF")
    assert served.search(buffer.getvalue()).status == 400


def test_too_large_is_413(served: Served) -> None:
    assert served.search(png(np.zeros((1001, 1000), np.uint8))).status == 413
    assert served.search(bytes(LIMITS.body_bytes + 1)).status == 413
    chunks = (bytes(1 << 16) for _ in range(17))  # no length told
    headers = {**PNG, "Transfer-Encoding": "chunked"}
    assert served.ask("POST", "/search", chunks, headers).status == 413


@pytest.mark.parametrize("path", ["/items/7", "/items/x/thumbnail", "/clusters/99", "/nothing"])
def test_what_is_not_there_is_404(served: Served, path: str) -> None:
    assert served.ask("GET", path).status == 404


# Row 32: what it survives -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 1000\r\n\r\nabc",
    ],
)
def test_a_slow_client_is_told_408_and_harms_nobody(
    served: Served, sent: bytes, image: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
        slow.sendall(sent)
        assert served.search(image).status == 200
        answer = b""
        while part := slow.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_many_silent_connections_keep_nobody_out(served: Served, image: bytes) -> None:
    silent = []
    try:
        for _ in range(4 * LIMITS.connections):
            silent.append(socket.create_connection(("127.0.0.1", served.port), timeout=5))
        assert served.search(image).status == 200
    finally:
        for one in silent:
            one.close()
    assert served.search(image).status == 200


def test_a_full_queue_says_429_and_good_traffic_goes_on(
    published: Folder, settings: ServerSettings, cache: str, image: bytes
) -> None:
    tight = replace(settings, limits=replace(LIMITS, queue=2))
    live = Live.open(published.url, cache=cache)
    served, stop = start(live, published, tight)
    before = live.view.neighbours

    def slow(*given: Any) -> Any:
        time.sleep(0.1)
        return before(*given)

    live.view.neighbours = slow  # type: ignore[method-assign]
    try:
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda _: served.search(image), range(24)))
        assert {reply.status for reply in replies} == {200, 429}
        declined = next(reply for reply in replies if reply.status == 429)
        assert declined.headers["retry-after"] == "1"
        assert served.search(image).status == 200
    finally:
        stop()


def test_queries_that_come_together_are_encoded_together(served: Served, embedded: Made) -> None:
    keys = [key for key in embedded.images if key not in ("equal", "turned")][1:41]
    text = served.ask("GET", "/metrics").body.decode()
    batches = float(text.partition("\norbit_encoder_batches_total ")[2].split()[0])
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(served.search, png(embedded.images[key]), "k=1") for key in keys]
        found = [one.result().json["neighbours"][0]["key"] for one in asked]
    assert found == keys
    text = served.ask("GET", "/metrics").body.decode()
    assert float(text.partition("\norbit_encoder_batches_total ")[2].split()[0]) - batches < 40


# Rows 30 and 33: publications that come -----------------------------------------------------------


def swap_to(served: Served, published: str) -> None:
    limit = time.monotonic() + 20
    while served.live.view.id != published:
        if time.monotonic() > limit:
            pytest.fail(f"{published} was not taken: {served.live.alarm}")
        time.sleep(0.02)


def test_publishing_while_queries_run_fails_none(
    embedded: Made, settings: ServerSettings, tmp_path: Path, image: bytes
) -> None:
    store, cache = Folder(str(tmp_path / "store")), str(tmp_path / "cache")
    shutil.copytree(embedded.store.url, store.url)
    options = replace(QUICK, force=True, audit_images=0, map_points=10)
    publish(store, embedded.model_id, replace(options, clusters=2))
    live = Live.open(store.url, cache=cache, poll_s=0.1)
    served, stop = start(live, store, settings)
    seen: list[tuple[int, str, int]] = []
    over = threading.Event()

    def keep_asking(wait_s: float) -> None:
        while not over.is_set():
            reply = served.search(image, "k=1000")
            clusters = {hit["cluster"] for hit in reply.json["neighbours"]}
            seen.append((reply.status, reply.headers["x-orbit-publication"], len(clusters)))
            time.sleep(wait_s)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(keep_asking, 0.04) for _ in range(2)]
        try:
            counts = {live.view.id: 2}
            for number in (3, 4, 5):
                row = publish(store, embedded.model_id, replace(options, clusters=number))
                counts[row.id] = number
                swap_to(served, row.id)
                time.sleep(0.3)  # some queries meet it
        finally:
            over.set()
            for one in asking:
                one.result()
            stop()
    assert {status for status, _, _ in seen} == {200}
    assert {name for _, name, _ in seen} == set(counts)
    # The clusters of an answer are those of the publication that it names.
    assert all(found == counts[name] for _, name, found in seen)


@pytest.mark.parametrize("harm", ["cut", "flip", "dimension"])
def test_a_damaged_publication_is_refused_and_the_old_one_stays(
    embedded: Made, tmp_path: Path, harm: str
) -> None:
    store = Folder(str(tmp_path / "store"))
    shutil.copytree(embedded.store.url, store.url)
    options = replace(QUICK, force=True, audit_images=0, map_points=10)
    publish(store, embedded.model_id, options)
    live = Live.open(store.url, cache=str(tmp_path / "cache"))
    good = live.view
    row = publish(store, embedded.model_id, options)
    index = Path(store.url) / "artifacts" / row.id / "index.faiss"
    whole = index.read_bytes()
    if harm == "cut":
        index.write_bytes(whole[:-100])
    elif harm == "flip":
        index.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    else:
        vectors = index.with_name("vectors.npy")
        np.save(vectors, np.zeros((len(good.searcher.rows), 3), np.float32))
    assert not live.refresh()
    assert live.view is good
    assert live.alarm is not None
    assert live.num_refused == 1
    index.write_bytes(whole)
    if harm != "dimension":
        assert live.refresh()
        assert live.view.id == row.id
        assert live.alarm is None


# Who may ask --------------------------------------------------------------------------------------


def test_a_token_is_asked_for(published: Folder, settings: ServerSettings, cache: str) -> None:
    token = "a-token-of-enough-letters"
    live = Live.open(published.url, cache=cache)
    served, stop = start(live, published, replace(settings, token=token))
    try:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            reply = served.ask("GET", "/info", headers=headers)
            assert reply.status == 401
            assert list(reply.json) == ["error"]
        good = {"Authorization": f"Bearer {token}"}
        assert served.ask("GET", "/info", headers=good).status == 200
        assert served.ask("GET", "/metrics").status == 401
        assert served.ask("GET", "/healthz").status == 200
        assert served.ask("GET", "/").status == 200
    finally:
        stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_an_open_address_needs_a_token(host: str) -> None:
    with pytest.raises(SettingsError, match="token"):
        ServerSettings("store", host=host)
    ServerSettings("store", host=host, token="x" * 16)


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("0123456789abcdef\n")
    (tmp_path / "short").write_text("abc")
    assert read_token(tmp_path / "good", {"ORBIT_TOKEN": "other"}) == "0123456789abcdef"
    assert read_token(None, {"ORBIT_TOKEN": "x" * 20}) == "x" * 20
    assert read_token(None, {}) is None
    for file in ("short", "absent"):
        with pytest.raises(SettingsError):
            read_token(tmp_path / file, {})
    with pytest.raises(SettingsError):
        read_token(None, {"ORBIT_TOKEN": ""})


def test_a_port_that_is_taken_is_one_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(SettingsError, match="--port"):
            bind("127.0.0.1", taken.getsockname()[1])
