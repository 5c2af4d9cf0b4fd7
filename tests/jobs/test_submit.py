"""Jobs on a cluster: what is refused before anything is sent, and one real head with a token."""

import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.sample import FOLDER
from jobs.submit import last_object, submission_id
from pipelines.cluster import pack_code
from pipelines.cluster.connection import find_token, normal_address
from pipelines.cluster.submission import Job, _Shown
from pipelines.errors import ClusterError, SettingsError
from pipelines.secrets import no_secrets, redacted
from tests.clusters import RayCluster
from tests.jobs.conftest import Orbit, Outcome

ORBIT = Path(sys.executable).with_name("orbit")
TOKEN = "0123456789abcdef0123456789abcdef"


class JobApi:
    """A job API that tells versions, asks for a token, and counts what is sent to it."""

    def __init__(self, ray_version: str, python_version: str) -> None:
        self.posts: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization")
                if given != f"Bearer {TOKEN}":
                    return self.send(401 if given is None else 403, {})
                if self.path == "/api/version":
                    return self.send(200, {"version": "4", "ray_version": ray_version})
                return self.send(200, {"data": {"pythonVersion": python_version}})

            def do_POST(self) -> None:
                api.posts.append(self.path)
                self.send(500, {})

            do_PUT = do_POST

            def send(self, code: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


RUN = ("run", "s3://bucket/images", "--model", "d4-28-grey", "--out", "s3://bucket/store")


@pytest.mark.parametrize(
    ("versions", "token", "words"),
    [
        (("2.9.3", None), TOKEN, ["2.9.3", ray.__version__, "same"]),
        ((None, "3.8.1"), TOKEN, ["Python 3.8.1", platform.python_version()]),
        ((None, None), "wrong-token-0123456789", ["does not know this token"]),
        ((None, None), None, ["asks for a token", "--token-file"]),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused_and_nothing_is_sent(
    orbit: Orbit, no_token: pytest.MonkeyPatch, versions: tuple[str | None, str | None],
    token: str | None, words: list[str],
) -> None:  # fmt: skip
    if token:
        no_token.setenv("RAY_AUTH_TOKEN", token)
    api = JobApi(versions[0] or ray.__version__, versions[1] or platform.python_version())
    try:
        outcomes = [
            orbit("submit", "--address", api.address, *RUN),
            orbit("jobs", "--address", api.address),
        ]
    finally:
        api.close()
    for outcome in outcomes:
        assert (outcome.code, outcome.stdout) == (2, "")
        assert len(outcome.stderr.splitlines()) == 1
        assert all(word in outcome.stderr for word in words), outcome.stderr
        assert "wrong-token" not in outcome.stderr
    assert api.posts == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["submit", "--address", "http://127.0.0.1:9", *RUN], "no Ray cluster answers"),
        (["submit", "--address", "s3://bucket", *RUN], "job API"),
        (["submit", "--token-file", "/nowhere/token", *RUN], "token file /nowhere/token"),
        (["submit", "runn", "s3://bucket"], "did you mean 'run'"),
        (["submit", "submit", "run"], "no verb 'submit' to submit"),
        (["submit", "run", "s3://b/i", "--modell", "x"], "no such flag '--modell'"),
        (["submit"], "missing"),
        (["submit", "run", "https://u:pass-word@host/i", "--out", "/x"], "holds a secret"),
        (["jobs", "--address", "http://127.0.0.1:9"], "no Ray cluster answers"),
        (["jobs", "--stop"], "no ID was given"),
        (["jobs", "x", "--stop", "--follow"], "several of"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    orbit: Orbit, no_token: pytest.MonkeyPatch, command: list[str], words: str
) -> None:
    outcome = orbit(*command)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert len(outcome.stderr.splitlines()) == 1
    assert words in outcome.stderr
    assert "pass-word" not in outcome.stderr


def test_a_path_seen_from_here_is_refused(
    orbit: Orbit, no_token: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    no_token.chdir(tmp_path)
    outcome = orbit("submit", "run", "images", "--model", "d4-28-grey", "--out", "/srv/store")
    assert outcome.code == 2
    assert "'images' is a path of this machine" in outcome.stderr


def test_the_id_is_one_for_a_night_and_differs_with_all_that_matters() -> None:
    evening = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
    morning = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
    command = list(RUN)
    one = submission_id(command, "abc", evening)
    assert one == submission_id(command, "abc", morning)
    assert one.startswith("orbit-run-20261122-")
    others = {
        submission_id(command, "abd", evening),
        submission_id([*command, "--limit", "3"], "abc", evening),
        submission_id(["embed", *command[1:]], "abc", evening),
        submission_id(command, "abc", datetime(2026, 11, 23, 13, 0, tzinfo=UTC)),
    }
    assert len(others | {one}) == 5


def test_code_is_packed_without_data_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = pack_code(tmp_path / "a"), pack_code(tmp_path / "b")
    assert first.digest == second.digest
    assert first.size < 8 << 20
    files = {str(p.relative_to(first.folder)) for p in first.folder.rglob("*") if p.is_file()}
    assert {"jobs/cli.py", "pipelines/templates/page.html", "orbit"} <= files
    assert any(name.endswith("model.safetensors") for name in files)
    assert not [name for name in files if name.endswith((".tar", ".pyc", ".png"))]


def test_only_the_models_that_a_command_names_are_sent(tmp_path: Path) -> None:
    def models(place: str, *words: str) -> set[str]:
        code = pack_code(tmp_path / place, words)
        return {path.parent.name[:-2] for path in code.folder.rglob("model.safetensors")}

    assert models("none") == models("own", "run", "--model", "s3://x/m") == {"d4-28-grey"}
    assert models("one", "run", "--model", "d12-28-grey") == {"d12-28-grey"}
    assert models("exact", "run", "--model", "d12-28-grey-2") == {"d12-28-grey"}


def test_the_code_that_is_sent_runs(tmp_path: Path) -> None:
    """On a machine that has the libraries, from the folder alone."""
    code = pack_code(tmp_path / "a")
    command = [sys.executable, "-m", "jobs.cli", "models", "--json"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=code.folder, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]
    where = "import jobs.cli, pipelines.batch; print(jobs.cli.__file__, pipelines.batch.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=code.folder, env=clean,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert found.stdout.count(str(code.folder)) == 2, found.stderr


def test_data_among_the_code_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.code.MAX_BYTES", 100_000)
    with pytest.raises(SettingsError, match="only code is sent"):
        pack_code(tmp_path / "a")


def test_addresses_and_tokens(tmp_path: Path) -> None:
    assert normal_address("head:8265/", {}) == "http://head:8265"
    assert normal_address(None, {"RAY_ADDRESS": "http://other:1"}) == "http://other:1"
    assert normal_address("http://x:1", {"RAY_ADDRESS": "http://other:1"}) == "http://x:1"
    assert normal_address(None, {}) == "http://127.0.0.1:8265"
    for wrong in ("ray://head:10001", "ftp://x", "http://", "http://h:99999"):
        with pytest.raises(ClusterError, match="expected the address"):
            normal_address(wrong, {})
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert find_token(file, {"RAY_AUTH_TOKEN": "other"}) == TOKEN
    assert find_token(None, {"RAY_AUTH_TOKEN_PATH": str(file)}) == TOKEN
    file.write_text("")
    with pytest.raises(ClusterError, match="holds no token"):
        find_token(file, {})


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 75, 75), ("FAILED", None, 1),
        ("FAILED", -9, 137), ("STOPPED", None, 143), ("RUNNING", None, None),
    ],
)  # fmt: skip
def test_exit_codes_of_jobs(status: str, code: int | None, expected: int | None) -> None:
    assert Job("x", status, "run", "", 1.0, 2.0, code).exit_code == expected


def test_a_log_that_is_read_again_is_shown_once() -> None:
    parts: list[str] = []
    shown = _Shown(parts.append)
    shown.from_the_start()
    shown("one\ntw")
    shown.from_the_start()  # the connection broke
    shown("one\ntwo\n")
    shown.all_of("one\ntwo\nthree\n")
    assert "".join(parts) == "one\ntwo\nthree\n"


def test_the_result_is_the_last_object_of_the_log() -> None:
    assert last_object('{"a": 1}\n{not json\nembedding: 3 of 4\n{"b": 2}\nbye') == {"b": 2}
    assert last_object("nothing\nhere") is None


def test_secrets_are_seen_and_hidden() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "canary-secret-1",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
        "RAY_AUTH_TOKEN": "canary-token-22",
    }
    text = "GET https://u:p4ss@h/a?sig=AbC%3D&x=1 canary-secret-1 canary-token-22 /var/run/token"
    assert redacted(text, environment) == ("GET https://***@h/a?sig=***&x=1 *** *** /var/run/token")
    with pytest.raises(SettingsError) as caught:
        no_secrets(["https://host/images?X-Amz-Signature=deadbeef"])
    assert "deadbeef" not in str(caught.value)
    no_secrets(["s3://bucket/images", "--out", "az://container/x", "gs://a/b?x=1"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    made = RayCluster(tmp_path_factory.mktemp("c"))
    yield made
    made.close()


def command_line(cluster: RayCluster, *arguments: object, token: str | None = "") -> Outcome:
    """The orbit command in a process of its own, as a person has it."""
    environment = dict(cluster.environment)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        del environment[name]
    if token:
        environment["RAY_AUTH_TOKEN"] = token
    flags = ["--address", cluster.address]
    if token == "":
        flags += ["--token-file", str(cluster.token_file)]
    verb, *rest = [str(argument) for argument in arguments]
    done = subprocess.run(
        [str(ORBIT), verb, *flags, *rest], env=environment, capture_output=True, text=True,
        timeout=170, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_real_cluster_runs_publishes_refuses_and_tells(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes((FOLDER / "clothes-0.tar").read_bytes())
    run = ["run", tmp_path / "in", "--model", "d4-28-grey", "--out", tmp_path / "store",
           "--clusters", "5", "--json"]  # fmt: skip
    first = command_line(cluster, "submit", "--json", *run)
    assert first.code == 0, first.stderr
    told = first.json
    assert (told["status"], told["exit_code"]) == ("SUCCEEDED", 0)
    assert told["result"]["num_embedded"] == 400
    assert Path(told["result"]["report"]).is_file()
    assert "embedding: 1 of 1, 400 images" in first.stderr

    again = command_line(cluster, "submit", *run)
    assert (again.code, again.stdout) == (2, "")
    assert told["submission_id"] in again.stderr
    assert len(again.stderr.splitlines()) == 1

    failing = command_line(
        cluster, "submit", "--id", "wrong-model", "run", tmp_path / "in", "--model", "no-such",
        "--out", tmp_path / "other",
    )  # fmt: skip
    assert failing.code == 2
    assert "no-such" in failing.stderr
    assert not (tmp_path / "other").exists()

    jobs = command_line(cluster, "jobs", "--json").json["jobs"]
    assert [(job["submission_id"], job["exit_code"]) for job in jobs] == [
        ("wrong-model", 2), (told["submission_id"], 0),
    ]  # fmt: skip
    wrong = command_line(cluster, "submit", "--id", "new", *run, token="not-the-token-0123")
    assert wrong.code == 2
    assert "does not know this token" in wrong.stderr
    assert "not-the-token" not in wrong.stderr
    assert len(command_line(cluster, "jobs", "--json").json["jobs"]) == 2
    secret = cluster.token
    assert not any(secret in outcome.stderr + outcome.stdout for outcome in (first, again, wrong))


@pytest.mark.cluster_slow
@pytest.mark.timeout(600)
def test_a_job_is_followed_and_stopped(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(200):
        (tmp_path / "in" / f"{number}.tar").write_bytes((FOLDER / "clothes-0.tar").read_bytes())
    started = command_line(
        cluster, "submit", "--no-wait", "--id", "long", "embed", tmp_path / "in",
        "--model", "d4-28-grey", "--out", tmp_path / "store",
    )  # fmt: skip
    assert started.code == 0, started.stderr
    assert "--follow" in started.stdout
    assert "--stop" in started.stdout
    assert command_line(cluster, "jobs", "long").stdout.splitlines()[1].startswith("long")
    while "embedding: 1" not in command_line(cluster, "jobs", "long", "--logs").stdout:
        pass
    assert command_line(cluster, "jobs", "long", "--stop").code == 0
    followed = command_line(cluster, "jobs", "long", "--follow")
    assert followed.code == 143, followed.stderr
    assert "what was done is committed" in followed.stderr
