"""The pod that creates a RayJob and waits for it, against an API server of our own over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs import rayjob
from jobs.rayjob import Api, Owner, exit_code, owned, run, run_name

TOKEN = "a-token-of-the-service-account"
NIGHT = "orbit-nightly-29930580"  # 2026-11-28 03:00 UTC, in minutes
NAME = "orbit-nightly-20261128-0300"


class Server(ThreadingHTTPServer):
    """RayJobs in a dictionary; `states` are what they say, one after another; `faults` come first:
    a status to answer with, or 0 to hang up."""

    daemon_threads = True

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states: list[dict[str, Any]] = []
        self.faults: list[int] = []
        self.posts = 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.failed():
            return
        name = body["metadata"]["name"]
        self.server.posts += 1
        code = 409 if name in self.server.jobs else 201
        self.server.jobs.setdefault(name, body)
        self.answer(code, body)

    def do_GET(self) -> None:
        if self.failed():
            return
        name = self.path.rpartition("/")[2]
        if name not in self.server.jobs:
            self.answer(404, {"message": "not found"})
            return
        states = self.server.states
        state = states.pop(0) if len(states) > 1 else states[0]
        self.answer(200, self.server.jobs[name] | {"status": state})

    def failed(self) -> bool:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(403, {"message": "forbidden"})
            return True
        if not self.server.faults:
            return False
        code = self.server.faults.pop(0)
        if code:
            self.answer(code, {"message": "a fault"})
        else:
            self.close_connection = True
        return True

    def answer(self, code: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(server: Server, tmp_path: Path) -> Api:
    (tmp_path / "token").write_text(TOKEN + "\n")
    return Api(f"http://127.0.0.1:{server.server_port}", tmp_path / "token")


MANIFEST = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "x"}, "spec": {}}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def failed(code: int) -> dict[str, str]:
    message = f"Job entrypoint command failed with exit code {code}, last available logs: ..."
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": message}


def night(api: Api, pauses: list[float] | None = None) -> int:
    waited = [] if pauses is None else pauses
    manifest = owned(MANIFEST, Owner(NIGHT, "1-2-3"))
    return run(api, "orbit", manifest, waited.append, lambda: sum(waited))


def test_it_waits_until_the_end(server: Server, api: Api) -> None:
    server.states = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, RUNNING, DONE]
    pauses: list[float] = []
    assert night(api, pauses) == 0
    assert len(pauses) == 4
    created = server.jobs[NAME]["metadata"]
    assert created["ownerReferences"][0] == {
        "apiVersion": "batch/v1", "kind": "Job", "name": NIGHT, "uid": "1-2-3"
    }  # fmt: skip


@pytest.mark.parametrize("code", [1, 2, 75, 143])
def test_it_exits_with_the_exit_code_of_the_job(server: Server, api: Api, code: int) -> None:
    server.states = [RUNNING, failed(code)]
    assert night(api) == code


def test_a_pod_in_the_place_of_another_waits_for_the_same_job(server: Server, api: Api) -> None:
    server.jobs[NAME] = MANIFEST
    server.states = [RUNNING, DONE]
    assert night(api) == 0
    assert list(server.jobs) == [NAME]
    assert server.posts == 1


def test_short_faults_of_the_api_server_are_borne(server: Server, api: Api) -> None:
    server.faults = [503, 0, 429, 401]
    server.states = [RUNNING, DONE]
    assert night(api) == 0
    assert server.posts == 1


def test_long_silence_is_a_failure(server: Server, api: Api) -> None:
    server.faults = [503] * 1_000
    pauses: list[float] = []
    assert night(api, pauses) == 1
    assert rayjob.PATIENCE_S < sum(pauses) <= rayjob.PATIENCE_S + 2 * rayjob.POLL_S


def test_no_right_and_no_job_are_failures_at_once(
    server: Server, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [403]
    assert night(api) == 1
    assert "403" in capsys.readouterr().out
    server.states = [RUNNING]
    server.faults = []
    original = api.ask

    class Deleted:
        def ask(self, method: str, path: str, body: Any = None) -> Any:
            found = original(method, path, body)
            server.jobs.clear()
            return found

    assert night(Deleted()) == 1  # type: ignore[arg-type]
    assert TOKEN not in capsys.readouterr().out


def test_names_come_from_the_scheduled_time() -> None:
    assert run_name(NIGHT) == NAME
    assert run_name("orbit-nightly-29930581") == "orbit-nightly-20261128-0301"
    assert run_name("by-hand") == "by-hand"
    assert run_name("try-2") == "try-2"
    assert len(run_name("a" * 33 + "-29930580")) == 47
    assert len(run_name("b" * 63)) == 47


def test_what_an_end_means() -> None:
    assert exit_code(DONE) == 0
    assert exit_code(failed(-15)) == 143  # Popen's way to say SIGTERM
    assert exit_code(failed(0)) == 1
    assert exit_code({"jobStatus": "STOPPED"}) == 143
    assert exit_code({"jobStatus": "", "reason": "DeadlineExceeded"}) == 143
    assert exit_code({"jobStatus": "FAILED", "message": "no more nodes"}) == 1


def test_outside_a_pod_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOB_NAME", raising=False)
    (tmp_path / "rayjob.yaml").write_text(json.dumps(MANIFEST))
    assert rayjob.main([str(tmp_path / "rayjob.yaml")]) == 2
    assert "orbit schedule" in capsys.readouterr().out


def test_it_needs_little() -> None:
    """The waiting pod has 128 MiB: nothing heavy may come with the module."""
    import subprocess
    import sys

    code = "import sys, jobs.rayjob; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "typer", "pyarrow", "eqmodel"} & {*told.stdout.split()}
